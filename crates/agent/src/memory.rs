//! Memory that only the start needed, given back once.
//!
//! Invariant: nothing is lost by it: program text is read again from its file when it is executed again, and the
//! allocator returns only what is free. The one place of this crate with `unsafe` code.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::EngineHandle;
use crate::readiness::Readiness;

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// After the start has settled for this long.
const SETTLE: Duration = Duration::from_secs(2);

/// Waits until the engine is ready, then gives back what parsing the command line, setting up TLS and reading the
/// first configuration left resident. Ends early when the agent drains.
pub(crate) async fn give_back_after_start(engine: EngineHandle, readiness: Arc<Readiness>) {
    while !engine.not_ready().await.is_empty() {
        if readiness.state().draining {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(SETTLE).await;
    // SAFETY: no argument; frees only memory that nobody owns.
    unsafe { libc::malloc_trim(0) };
    for (start, end) in executable_text(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        // SAFETY: a private, read-only, executable mapping of a file without text relocations (position-independent code has none):
        // dropped pages are read again from the file when they are touched.
        unsafe { libc::madvise(start as *mut c_void, end.saturating_sub(start), libc::MADV_DONTNEED) };
    }
}

/// The address ranges of executable, private file mappings in the form of `/proc/PID/maps` (proc(5)).
fn executable_text(maps: &str) -> Vec<(usize, usize)> {
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let file = words.nth(3)?;
            if rights != "r-xp" || !file.starts_with('/') {
                return None;
            }
            let (start, end) = range.split_once('-')?;
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::executable_text;

    #[test]
    fn only_program_text_is_named() {
        let maps = "55d0c0000000-55d0c0010000 r--p 00000000 fe:00 12 /usr/bin/x\n\
                    55d0c0010000-55d0c0030000 r-xp 00010000 fe:00 12 /usr/bin/x\n\
                    55d0c0030000-55d0c0040000 rw-p 00030000 fe:00 12 /usr/bin/x\n\
                    7f0000000000-7f0000001000 r-xp 00000000 00:00 0 [vdso]\n\
                    7f0000002000-7f0000003000 rwxp 00000000 00:00 0\n\
                    nonsense\n";
        assert_eq!(executable_text(maps), [(0x55d0_c001_0000, 0x55d0_c003_0000)]);
    }
}
