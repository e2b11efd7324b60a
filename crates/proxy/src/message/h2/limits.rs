//! How much a peer may ask of us before it is taken for one that means no good. All such limits of HTTP/2 stand here.
//!
//! Invariant: what a peer can make us keep or do without a request's worth of its own is bounded. What is said of Envoy was measured, frame by
//! frame, with Envoy 1.40.0 and its defaults. Besides these: header lists by the connection manager's size (431), streams by its number
//! (refused; Envoy ends the connection).

use super::fault::{Fault, Reason};
use std::time::{Duration, Instant};

/// Frames that we owe the peer (acknowledgements, resets, windows) while it reads nothing. Envoy's `max_outbound_control_frames`.
pub const OWED: u32 = 1000;
/// Empty frames in a row that end nothing: DATA, HEADERS, CONTINUATION. As in Envoy the second is too many.
const EMPTY: u32 = 1;
/// PRIORITY for each stream, and one stream more; as in Envoy. Frames of an unknown kind count with them, which Envoy takes without end.
const PRIORITIES: u64 = 100;
/// WINDOW_UPDATE for each DATA that we send, and for each stream and some besides; as in Envoy.
const WINDOWS: u64 = 10;
/// SETTINGS within [`WHILE`]. Envoy has only the frames that it owes for them.
const SETTINGS: u32 = 100;
/// Streams that the peer opens and gives up before they are answered, within [`WHILE`], where they are most of all (CVE-2023-44487), and
/// streams that we have to reset for what it sends (CVE-2025-8671). Envoy, too, ends the connection at the 250th; it counts over the
/// connection's life and only what was given up within a second, and ends it at once for most of what we reset a stream for.
const GIVEN_UP: u32 = 249;
/// Time over which is counted.
const WHILE: Duration = Duration::from_secs(10);
/// Header blocks may be as large as this for each byte of the list that is allowed, and [`super::frame::LARGEST`] more: what is beyond is
/// not even read (CVE-2024-27316).
pub const BLOCK: usize = 2;
/// CONTINUATION of one header block; as in Envoy.
pub const CONTINUATIONS: u32 = 512;
/// Interim answers to one request. Envoy takes them without end.
pub const INTERIM: u32 = 32;
/// How long a peer that has told us its settings may leave ours without an acknowledgement (RFC 9113 §6.5.3). Envoy waits for ever.
const SETTLED: Duration = Duration::from_secs(30);
/// How long a server may take nothing of what is there for it: the time for which Envoy's streams may be idle. Envoy ends the streams only.
const STALLED: Duration = Duration::from_secs(300);
/// Closed streams of which we know that they were there.
pub const REMEMBERED: usize = 128;
/// What is gathered to be written before bodies are asked for more, bytes.
pub const GATHERED: usize = 64 * 1024;

/// How long we wait for a peer that does nothing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// While it takes nothing of what is there for it.
    pub stalled: Option<Duration>,
    /// Until it acknowledges our settings, once it has told us its own.
    pub settled: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { stalled: Some(STALLED), settled: SETTLED }
    }
}

/// How often something came lately.
#[derive(Debug, Default)]
struct Lately {
    since: Option<Instant>,
    count: u32,
}

impl Lately {
    /// Once more; how often that makes.
    fn again(&mut self) -> u32 {
        let now = Instant::now();
        if self.since.is_none_or(|since| now.duration_since(since) > WHILE) {
            *self = Lately { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// What a connection's peer has done so far.
#[derive(Debug, Default)]
pub struct Conduct {
    empty: u32,
    priorities: u64,
    windows: u64,
    settings: Lately,
    given_up: Lately,
    /// How many streams there had been when that count began.
    before: u64,
    /// Streams that were opened, by either side.
    pub streams: u64,
    /// DATA frames sent.
    pub data: u64,
}

type Checked = Result<(), Fault>;

fn calm(within: bool, what: &'static str) -> Checked {
    if within { Ok(()) } else { Err(Fault::Ours(Reason::CALM, what)) }
}

impl Conduct {
    /// A frame that carries something or nothing.
    pub fn carries(&mut self, nothing: bool) -> Checked {
        self.empty = if nothing { self.empty.saturating_add(1) } else { 0 };
        calm(self.empty <= EMPTY, "too many empty frames")
    }

    /// PRIORITY.
    pub fn priority(&mut self) -> Checked {
        self.priorities = self.priorities.saturating_add(1);
        let most = self.streams.saturating_add(1).saturating_mul(PRIORITIES);
        calm(self.priorities <= most, "too many PRIORITY frames")
    }

    /// WINDOW_UPDATE.
    pub fn window(&mut self) -> Checked {
        self.windows = self.windows.saturating_add(1);
        let most = self.data.saturating_mul(WINDOWS).saturating_add(self.streams).saturating_mul(2).saturating_add(5);
        calm(self.windows <= most, "too many WINDOW_UPDATE frames")
    }

    /// SETTINGS.
    pub fn settings(&mut self) -> Checked {
        calm(self.settings.again() <= SETTINGS, "too many SETTINGS frames")
    }

    /// A stream was given up before its answer had begun, by the peer or for its fault.
    pub fn give_up(&mut self) -> Checked {
        let count = self.given_up.again();
        if count == 1 {
            self.before = self.streams.saturating_sub(1);
        }
        // Who asks much may also give up much.
        let most = self.streams.saturating_sub(self.before) / 2;
        calm(count <= GIVEN_UP || u64::from(count) <= most, "too many streams given up")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(mut step: impl FnMut() -> Checked) -> usize {
        (1..100_000).find(|_| step().is_err()).unwrap_or(0)
    }

    #[test]
    fn each_has_its_end() {
        let mut c = Conduct::default();
        assert_eq!(until(|| c.carries(true)), 2);
        assert_eq!(until(|| c.priority()), 101);
        assert_eq!(until(|| c.window()), 6);
        assert_eq!(until(|| c.settings()), 101);
        assert_eq!(until(|| c.give_up()), 250);
        let mut c = Conduct { streams: 2, data: 10, ..Conduct::default() };
        assert_eq!(until(|| c.priority()), 301);
        assert_eq!(until(|| c.window()), 210);
        let mut asked = Conduct::default();
        let mut busy = || {
            asked.streams += 3;
            asked.give_up()
        };
        assert_eq!(until(&mut busy), 0);
        assert_eq!(until(|| c.carries(true).and_then(|()| c.carries(false))), 0);
    }
}
