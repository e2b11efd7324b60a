//! Tar archives (POSIX ustar): headers of fixed fields, contents padded to blocks of 512 bytes.
//!
//! Invariant: no times and no owners, so that equal entries give equal bytes.

/// One file, folder or link; a folder's path ends with a slash.
pub(super) struct Entry {
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
    /// What a link leads to.
    pub(super) link: Option<String>,
}

impl Entry {
    pub(super) fn folder(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, bytes: Vec::new(), link: None }
    }
}

/// An archive of the entries in their order.
pub(super) fn tar(entries: impl Iterator<Item = Entry>) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&header(&entry));
        out.extend_from_slice(&entry.bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn header(entry: &Entry) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // A long path is divided at a slash: up to 155 bytes before it, up to 100 after.
    let (prefix, name) = match entry.path.len() {
        0..=100 => ("", entry.path.as_str()),
        length => {
            let body = &entry.path[..length - 1];
            let split = body.match_indices('/').map(|(at, _)| at).find(|at| length - at - 1 <= 100).unwrap_or(0);
            (&entry.path[..split.min(155)], &entry.path[split + 1..])
        }
    };
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", entry.bytes.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    let link = entry.link.as_deref().unwrap_or_default();
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(
        156,
        if entry.path.ends_with('/') {
            b"5"
        } else if link.is_empty() {
            b"0"
        } else {
            b"2"
        },
    );
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
