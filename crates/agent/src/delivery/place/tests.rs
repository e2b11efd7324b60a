//! Files on a real file system, with somebody who reads all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("carrick-place-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(place: Place, text: &str, mode: u32) -> File {
    File { place, bytes: Zeroizing::new(text.as_bytes().to_vec()), mode, uid: None, gid: None }
}

fn set(text: &str) -> [File; 2] {
    [file(Place::InSet("tls.crt".into()), text, 0o644), file(Place::InSet("tls.key".into()), text, 0o600)]
}

#[test]
fn a_set_is_replaced_as_a_whole_and_left_alone_when_equal() {
    let folder = Folder::new("set");
    let dir = folder.0.join("deep/certs");
    assert!(write(Some(&dir), &set("one")).unwrap());
    assert!(!write(Some(&dir), &set("one")).unwrap());
    assert_eq!(std::fs::read_to_string(dir.join("tls.key")).unwrap(), "one");
    assert_eq!(std::fs::metadata(dir.join("tls.key")).unwrap().mode() & 0o777, 0o600);
    assert!(write(Some(&dir), &set("two")).unwrap());
    let versions = std::fs::read_dir(&dir).unwrap().flatten();
    let versions = versions.filter(|e| e.file_name().to_string_lossy().starts_with(VERSION)).count();
    assert_eq!(versions, 1, "old ones are gone");
    // Somebody wrote to it by hand.
    std::fs::write(dir.join("tls.crt"), "mine").unwrap();
    assert!(write(Some(&dir), &set("two")).unwrap());
    assert_eq!(std::fs::read_to_string(dir.join("tls.crt")).unwrap(), "two");
    std::fs::set_permissions(dir.join("tls.key"), Permissions::from_mode(0o644)).unwrap();
    assert!(write(Some(&dir), &set("two")).unwrap());
    assert_eq!(std::fs::metadata(dir.join("tls.key")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn what_was_interrupted_is_done_anew() {
    let folder = Folder::new("again");
    let half = folder.0.join(format!("{VERSION}{}", version(&set("one"))));
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("tls.crt"), "hal").unwrap();
    symlink("x", folder.0.join("..new-..current")).unwrap();
    std::fs::write(folder.0.join("tls.crt"), "a file of before").unwrap();
    assert!(write(Some(&folder.0), &set("one")).unwrap());
    assert_eq!(std::fs::read_to_string(folder.0.join("tls.crt")).unwrap(), "one");
}

/// Readers hold the folder as the link shows it, as every atomic reader of mounted Secrets does; no mixture is ever seen.
#[test]
fn no_reader_ever_sees_a_mixture() {
    let folder = Folder::new("mixture");
    write(Some(&folder.0), &set("0")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (dir, ended) = (folder.0.clone(), Arc::clone(&stop));
    let reader = std::thread::spawn(move || {
        let mut reads = 0_u32;
        while !ended.load(Ordering::Relaxed) {
            let held = dir.join(std::fs::read_link(dir.join(CURRENT)).unwrap());
            let both = ["tls.crt", "tls.key"].map(|name| std::fs::read_to_string(held.join(name)).ok());
            // A version may be swept between two reads; what is read fits together.
            if let [Some(certificate), Some(key)] = both {
                assert_eq!(certificate, key);
                reads += 1;
            }
        }
        reads
    });
    for i in 1..200 {
        write(Some(&folder.0), &set(&i.to_string())).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
}

#[test]
fn files_alone_and_errors() {
    let folder = Folder::new("alone");
    let path = folder.0.join("both.pem");
    let one = [file(Place::Alone(path.clone()), "x", 0o600)];
    assert!(write(None, &one).unwrap() && !write(None, &one).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let taken = folder.0.join("folder");
    std::fs::create_dir(&taken).unwrap();
    let error = write(None, &[file(Place::Alone(taken), "x", 0o600)]).unwrap_err().to_string();
    assert!(error.contains("a folder stands where"), "{error}");
    let error = user(&Account::Name("nobody-of-that-name".into())).unwrap_err().to_string();
    assert_eq!(error, "there is no user \"nobody-of-that-name\" on this machine");
    assert_eq!(user(&Account::Name("root".into())).unwrap(), 0);
    assert_eq!(group(&Account::Id(7)).unwrap(), 7);
}
