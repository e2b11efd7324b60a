//! Service names for the host itself: a marked block in `/etc/hosts`.
//!
//! Invariant: every byte outside of the markers stays; a reader sees the old file or the new.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::state::write_atomic;

const BEGIN: &str = "# carrick: begin of service names (written by carrick up)";
const END: &str = "# carrick: end of service names";

/// Puts these names in; none removes the block.
pub(crate) fn write(path: &Path, names: &[(Ipv4Addr, String)]) -> io::Result<()> {
    let path = &std::fs::canonicalize(path)?;
    let before = std::fs::read_to_string(path)?;
    let after = with_block(&before, names);
    if after == before {
        return Ok(());
    }
    let meta = std::fs::metadata(path)?;
    let staged = path.with_extension("carrick-new");
    write_atomic(&staged, after.as_bytes(), 0o644)?;
    let replaced = std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(meta.mode() & 0o7777))
        .and_then(|()| std::os::unix::fs::chown(&staged, Some(meta.uid()), Some(meta.gid())))
        .and_then(|()| std::fs::rename(&staged, path));
    match replaced {
        // A container's hosts file is a mount of its own and can only be written in place.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EXDEV)) => {
            let _ = std::fs::remove_file(&staged);
            std::fs::write(path, after)
        }
        other => other,
    }
}

fn with_block(text: &str, names: &[(Ipv4Addr, String)]) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        match line.trim_end() {
            BEGIN => inside = true,
            END if inside => inside = false,
            _ if inside => {}
            _ => out.push_str(line),
        }
    }
    if names.is_empty() {
        return out;
    }
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    let lines: Vec<String> = names.iter().map(|(ip, name)| format!("{ip}\t{name}\n")).collect();
    format!("{out}{BEGIN}\n{}{END}\n", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_block_changes() {
        let names = |last| vec![(Ipv4Addr::new(10, 96, 0, last), format!("s{last}.ns.svc.cluster.local"))];
        for original in ["", "127.0.0.1 localhost\n", "127.0.0.1 localhost\n# end\n\n::1 x", "a\r\nb\n"] {
            let with = with_block(original, &names(7));
            assert!(with.contains("10.96.0.7\ts7.ns.svc.cluster.local\n"), "{with}");
            assert!(with.starts_with(original), "{with}");
            let again = with_block(&with, &names(8));
            assert!(again.contains("s8") && !again.contains("s7"), "{again}");
            assert_eq!(with_block(&again, &names(8)), again);
            let without = with_block(&again, &[]);
            assert_eq!(without.trim_end_matches('\n'), original.trim_end_matches('\n'));
        }
    }

    #[test]
    fn the_file_keeps_its_mode() {
        let path = std::env::temp_dir().join(format!("carrick-hosts-{}", std::process::id()));
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, &[(Ipv4Addr::new(10, 96, 0, 9), "a.b.svc.cluster.local".into())]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert!(std::fs::read_to_string(&path).unwrap().contains("a.b.svc"));
        write(&path, &[]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "127.0.0.1 localhost\n");
        std::fs::remove_file(&path).unwrap();
    }
}
