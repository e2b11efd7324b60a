//! OCI images without a daemon: a program, the shared libraries that it asks for, and nothing else.
//!
//! Invariant: the same files give the same bytes: no times, no owners, sorted names. What is in an image is found by asking the
//! dynamic loader, so that nothing has to be listed here. The archive is an OCI layout in a tar (`skopeo copy oci-archive:…`).

mod archive;
mod materials;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use archive::{Entry, tar};

/// Numeric user of the proxies and of the control plane.
const USER: u32 = 1337;

/// What is written: an image's name, its program, and what else it needs.
struct Image {
    name: &'static str,
    program: &'static str,
    /// Other names of the program, by which pods call it.
    names: &'static [&'static str],
    /// Programs of the system that it calls, and files that it reads.
    besides: &'static [&'static str],
}

/// Whom servers outside of the mesh are verified by.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

const IMAGES: [Image; 2] = [
    Image { name: "pilot", program: "carrick", names: &["pilot-discovery"], besides: &[AUTHORITIES] },
    Image {
        name: "proxyv2",
        program: "carrick-proxy",
        // Hooks of an injected pod call the first.
        names: &["pilot-agent", "carrick-cni"],
        besides: &[AUTHORITIES, "/usr/sbin/nft"],
    },
];

/// Writes `OUT/NAME.tar` for every image, each from its program, and `OUT/sbom.json`.
pub fn write(root: &Path, programs: [&Path; IMAGES.len()], out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let version = env!("CARGO_PKG_VERSION");
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock")?;
    let bill = materials::bill(&lock, version)?;
    std::fs::write(out.join("sbom.json"), &bill)?;
    for (image, program) in IMAGES.iter().zip(programs) {
        let mut files = BTreeMap::new();
        add(&mut files, program, &format!("usr/local/bin/{}", image.program))?;
        for path in image.besides {
            add(&mut files, Path::new(path), path.trim_start_matches('/'))
                .with_context(|| format!("{}: `tools/install test` puts it here", image.name))?;
        }
        let mut text = |path: &str, text: String| files.insert(path.to_owned(), (text.into_bytes(), 0o644));
        text("etc/passwd", format!("root:x:0:0::/:/nonexistent\nistio-proxy:x:{USER}:{USER}::/:/nonexistent\n"));
        text("etc/group", format!("root:x:0:\nistio-proxy:x:{USER}:\n"));
        text("usr/share/doc/carrick/sbom.json", bill.clone());
        let links = image.names.iter().map(|name| (format!("usr/local/bin/{name}"), image.program.to_owned()));
        let bytes = layout(image, version, &layer(files, links.collect()))?;
        let path = out.join(format!("{}.tar", image.name));
        std::fs::write(&path, &bytes).with_context(|| path.display().to_string())?;
        println!("{}: {} bytes", path.display(), bytes.len());
    }
    Ok(())
}

/// Content and mode by path.
type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// A file, and the libraries that the loader would bring it.
fn add(files: &mut Files, path: &Path, place: &str) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let is_program = bytes.starts_with(b"\x7fELF");
    files.insert(place.to_owned(), (bytes, if is_program { 0o755 } else { 0o644 }));
    if is_program {
        for library in libraries(path)? {
            let bytes = std::fs::read(&library).with_context(|| library.display().to_string())?;
            files.insert(library.display().to_string().trim_start_matches('/').to_owned(), (bytes, 0o755));
        }
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("statically linked") || !output.status.success() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in said.lines() {
        if line.contains("not found") {
            bail!("{}: {}", program.display(), line.trim());
        }
        found.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
    }
    Ok(found)
}

/// Folders, files, and links to files beside them by path.
fn layer(files: Files, links: BTreeMap<String, String>) -> Vec<u8> {
    let mut folders: BTreeMap<String, Entry> = BTreeMap::new();
    for path in files.keys() {
        for (at, _) in path.match_indices('/') {
            folders.insert(path[..=at].to_owned(), Entry::folder(&path[..=at], 0o755));
        }
    }
    folders.insert("tmp/".to_owned(), Entry::folder("tmp/", 0o1777));
    let files = files.into_iter().map(|(path, (bytes, mode))| Entry { path, mode, bytes, link: None });
    let links = links.into_iter().map(|(path, to)| Entry { path, mode: 0o777, bytes: Vec::new(), link: Some(to) });
    tar(folders.into_values().chain(files).chain(links))
}

/// The image as an OCI layout.
fn layout(image: &Image, version: &str, layer: &[u8]) -> Result<Vec<u8>> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let program = format!("/usr/local/bin/{}", image.program);
    ensure!(!program.contains('"'), "a name that JSON would have to escape");
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"User":"{USER}:{USER}","Entrypoint":["{program}"],"Env":["PATH=/usr/local/bin:/usr/sbin:/usr/bin"],"WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        hex(layer)
    );
    let describe = |kind: &str, bytes: &[u8]| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{}","size":{}}}"#,
            hex(bytes),
            bytes.len()
        )
    };
    let packed = packed(layer)?;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        describe("config.v1+json", config.as_bytes()),
        describe("layer.v1.tar+gzip", &packed)
    );
    let about = describe("manifest.v1+json", manifest.as_bytes());
    let named = format!(
        r#"{},"annotations":{{"org.opencontainers.image.ref.name":"{version}"}}}}"#,
        about.trim_end_matches('}')
    );
    let index =
        format!(r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{named}]}}"#);
    let file = |path: String, bytes: &[u8]| Entry { path, mode: 0o644, bytes: bytes.to_vec(), link: None };
    let blob = |bytes: &[u8]| file(format!("blobs/sha256/{}", hex(bytes)), bytes);
    Ok(tar([
        file("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json".to_owned(), index.as_bytes()),
        Entry::folder("blobs/", 0o755),
        Entry::folder("blobs/sha256/", 0o755),
        blob(config.as_bytes()),
        blob(manifest.as_bytes()),
        blob(&packed),
    ]
    .into_iter()))
}

/// Compressed by the system's `gzip`, without name and time.
fn packed(layer: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("gzip")
        .args(["-n", "-6", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("gzip")?;
    let mut input = child.stdin.take().context("gzip")?;
    // Written beside reading: neither waits for the other.
    let output = std::thread::scope(|scope| {
        let writing = scope.spawn(move || input.write_all(layer));
        let output = child.wait_with_output();
        writing.join().map_err(|_| anyhow::anyhow!("gzip"))?.context("gzip")?;
        output.context("gzip")
    })?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what was written with the system's own tar.
    fn listed(bytes: &[u8], file: &Path) -> String {
        std::fs::write(file, bytes).unwrap();
        let output = Command::new("tar").arg("-tvf").arg(file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn archives_are_whole_and_their_digests_right() {
        let scratch = std::env::temp_dir().join(format!("carrick-image-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).unwrap();
        let mut files = Files::new();
        add(&mut files, Path::new("/bin/sh"), "bin/sh").unwrap();
        assert!(files.keys().any(|path| path.contains("libc.so")), "{:?}", files.keys());
        let long = format!("usr/{}/{}", "a".repeat(90), "b".repeat(60));
        files.insert(long.clone(), (b"x".to_vec(), 0o644));
        let links = BTreeMap::from([("bin/other".to_owned(), "sh".to_owned())]);
        let layer = layer(files, links);
        let inside = listed(&layer, &scratch.join("layer.tar"));
        assert!(
            inside.contains("drwxrwxrwt") && inside.contains("bin/other -> sh") && inside.contains(&long),
            "{inside}"
        );
        let image = layout(&IMAGES[0], "1", &layer).unwrap();
        assert_eq!(image, layout(&IMAGES[0], "1", &layer).unwrap());
        let inside = listed(&image, &scratch.join("image.tar"));
        let compressed = packed(&layer).unwrap();
        assert!(
            compressed.len() < layer.len() && inside.contains(&format!("blobs/sha256/{}", hex(&compressed))),
            "{inside}"
        );
        let unpacked = Command::new("tar").arg("-C").arg(&scratch).arg("-xf").arg(scratch.join("image.tar")).status();
        assert!(unpacked.unwrap().success());
        for blob in std::fs::read_dir(scratch.join("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), hex(&std::fs::read(&path).unwrap()));
        }
        let index = std::fs::read_to_string(scratch.join("index.json")).unwrap();
        assert!(index.ends_with(r#""annotations":{"org.opencontainers.image.ref.name":"1"}}]}"#), "{index}");
        std::fs::remove_dir_all(&scratch).unwrap();
    }
}
