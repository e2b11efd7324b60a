//! Memory that was needed for a moment only, given back: after the start, whenever the process has had little to do for a while, and what
//! the allocator holds after a crowd also while there is work.
//!
//! Invariant: nothing is lost by it: pages of the program that were never written are read again from its file when they are touched, and the
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

/// How often is looked whether there was little to do.
const PERIOD: Duration = Duration::from_secs(10);
/// Processor time in a period that counts as little.
const LITTLE: Duration = Duration::from_millis(200);
/// Bytes more than usual that are worth giving back.
const WORTH: u64 = 1 << 20;

/// Periods with work between two looks at what the allocator holds: a minute.
const BUSY: u32 = 6;
/// Bytes more than the least there was that are worth giving back then.
const HELD: u64 = 4 << 20;

/// Waits until the engine is ready and gives back what parsing the command line, setting up TLS and reading the first configuration left
/// resident; then what later configurations and bursts of traffic leave, when it is quiet again, and most of it before. Ends when the agent
/// drains.
pub(crate) async fn give_back_when_quiet(engine: EngineHandle, readiness: Arc<Readiness>) {
    while !engine.not_ready().await.is_empty() {
        if readiness.state().draining {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(SETTLE).await;
    give_back();
    let (mut watch, mut before) = (Watch::Given, processor_time());
    let mut busy = Busy { least: anonymous(), periods: 0 };
    while !readiness.state().draining {
        tokio::time::sleep(PERIOD).await;
        let quiet = processor_time().saturating_sub(before) < LITTLE;
        before = processor_time();
        if quiet && watch.look(resident()) {
            give_back();
        } else if !quiet && busy.look(anonymous()) {
            give_free_memory_back();
            busy.least = busy.least.min(anonymous());
        }
    }
}

/// What is known of the memory that busy times need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Busy {
    /// The least that was no file's.
    least: u64,
    /// Since the last look.
    periods: u32,
}

impl Busy {
    /// A period with work is over; whether the allocator is to give back what is free of so much.
    fn look(&mut self, now: u64) -> bool {
        self.least = self.least.min(now);
        self.periods = self.periods.saturating_add(1);
        if self.periods < BUSY {
            return false;
        }
        self.periods = 0;
        now > self.least.saturating_add(HELD)
    }
}

/// What is known of the memory that quiet times need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Something was given back. What is resident then may be what was needed since: another configuration comes when it likes.
    Given,
    /// So much was resident at the first look, and was given back once more.
    Seen(u64),
    /// So much is needed.
    Known(u64),
}

impl Watch {
    /// Looks at what is resident in a quiet time; whether it is to be given back.
    fn look(&mut self, now: u64) -> bool {
        let (next, give) = match *self {
            Self::Given => (Self::Seen(now), true),
            Self::Seen(then) => (Self::Known(now.min(then)), false),
            Self::Known(needed) if now > needed.saturating_add(WORTH) => (Self::Given, true),
            Self::Known(needed) => (Self::Known(needed), false),
        };
        *self = next;
        give
    }
}

/// Resident bytes.
fn resident() -> u64 {
    pages(1)
}

/// Resident bytes that are no file's.
fn anonymous() -> u64 {
    pages(1).saturating_sub(pages(2))
}

/// Bytes of the pages that a word of `/proc/self/statm` counts (proc(5): the second is resident, the third what of that is shared, which
/// is what files hold).
fn pages(word: usize) -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(word).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages.saturating_mul(4096)
}

/// What all threads of the process have used so far.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
    Duration::new(seconds, nanos)
}

fn give_free_memory_back() {
    // SAFETY: no argument; frees only memory that nobody owns.
    unsafe { libc::malloc_trim(0) };
}

fn give_back() {
    give_free_memory_back();
    for (start, end) in unwritten_program(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: a private, read-only mapping of a file of which no page was ever written (relocated ones were):
        // dropped pages are read again from the file when they are touched.
        unsafe { libc::madvise(start as *mut c_void, end.saturating_sub(start), libc::MADV_DONTNEED) };
    }
}

/// The address ranges of private file mappings that cannot be written and hold no page of their own, in the form of `/proc/PID/smaps`
/// (proc(5)): program text and constants.
fn unwritten_program(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if first == "Anonymous:" {
            // The last word on whether a page was written: a written one is no longer the file's.
            if let Some(range) = candidate.take().filter(|_| second == "0") {
                found.push(range);
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let range = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            let file = words.nth(3).is_some_and(|file| file.starts_with('/'));
            candidate = range.filter(|_| file && matches!(second, "r-xp" | "r--p"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{BUSY, Busy, HELD, Watch, unwritten_program};

    #[test]
    fn only_what_was_never_written_is_named() {
        let smaps = "55d0c0000000-55d0c0010000 r--p 00000000 fe:00 12 /usr/bin/x\n\
                    Rss:  64 kB\nAnonymous:             0 kB\nVmFlags: rd mr\n\
                    55d0c0010000-55d0c0030000 r-xp 00010000 fe:00 12 /usr/bin/x\nAnonymous:             0 kB\n\
                    55d0c0030000-55d0c0038000 r--p 00030000 fe:00 12 /usr/bin/x\nAnonymous:            32 kB\n\
                    55d0c0038000-55d0c0040000 rw-p 00030000 fe:00 12 /usr/bin/x\nAnonymous:             0 kB\n\
                    7f0000000000-7f0000001000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n\
                    7f0000002000-7f0000003000 rwxp 00000000 00:00 0\nAnonymous:             0 kB\n\
                    nonsense\n";
        let wanted = [(0x55d0_c000_0000, 0x55d0_c001_0000), (0x55d0_c001_0000, 0x55d0_c003_0000)];
        assert_eq!(unwritten_program(smaps), wanted);
    }

    #[test]
    fn what_came_while_it_was_given_back_is_given_back_too() {
        let mb = |n: u64| n << 20;
        // Configured right after the first time; then quiet; then a burst, and quiet again.
        let (mut watch, mut given) = (Watch::Given, Vec::new());
        for resident in [20, 11, 11, 12, 30, 29, 11, 12, 11] {
            given.push(watch.look(mb(resident)));
        }
        assert_eq!(given, [true, false, false, false, true, true, false, false, false]);
        assert_eq!(watch, Watch::Known(mb(11)));
    }

    #[test]
    fn what_a_crowd_left_goes_while_there_is_work() {
        let mut busy = Busy { least: 6 << 20, periods: 0 };
        let mut minute = |now: u64| (0..BUSY).map(|_| busy.look(now)).collect::<Vec<_>>();
        assert!(!minute(7 << 20).contains(&true), "as ever");
        let crowd = minute((6 << 20) + HELD + 1);
        assert!(crowd.last() == Some(&true) && crowd.iter().filter(|given| **given).count() == 1, "once a minute");
        assert!(!minute(5 << 20).contains(&true));
        assert!(minute((5 << 20) + HELD + 1).contains(&true), "the least counts");
        assert!(super::anonymous() > 0 && super::anonymous() < super::resident());
    }

    #[test]
    fn a_process_that_gives_back_goes_on() {
        let before = std::fs::read_to_string("/proc/self/maps").unwrap();
        super::give_back();
        assert_eq!(before.lines().count() > 3, !std::fs::read_to_string("/proc/self/smaps").unwrap().is_empty());
        assert!(super::processor_time() > std::time::Duration::ZERO);
    }
}
