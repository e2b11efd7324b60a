//! Both sides of a connection with any bytes, for fuzzing.
//!
//! Invariant: nothing that comes makes it panic, and what is kept stays within the limits.

use super::core::{Core, Own, Side};
use super::fault::{Fault, Reason};
use super::hpack::decode::{Decoder, TABLE};
use super::stream::Stream;
use super::{PREFACE, frame};
use http::{Request, Response};

const OWN: Own = Own { table: 4096, streams: 10, window: 65535, connection: 65535, list: 8192, connect: true };

/// Reads bytes as a header block, as what a client says, and as what a server says to three requests.
pub fn anything(data: &[u8]) {
    let mut decoder = Decoder::new(TABLE);
    let _ = decoder.decode(data, |_, _| {});
    for side in [Side::Server, Side::Client] {
        let mut core = Core::new(side, OWN, None);
        let mut begin = Vec::new();
        match side {
            Side::Server => begin.extend_from_slice(PREFACE),
            Side::Client => (0..3).for_each(|_| ask(&mut core)),
        }
        frame::settings(&mut begin, &[]);
        core.input.extend_from_slice(&begin);
        for part in data.chunks(97) {
            core.input.extend_from_slice(part);
            core.parse();
            step(&mut core);
        }
        core.break_off(Fault::Ended);
        assert!(core.streams.len() <= 10 && core.output.len() < 64 << 20);
    }
}

fn ask(core: &mut Core) {
    let id = core.next;
    core.next = id.saturating_add(2);
    core.streams.insert(id, Stream { held: true, sent: true, receive_window: 65535, ..Stream::default() });
    core.ask(id, &Request::get("http://a/").body(()).unwrap_or_default().into_parts().0, true, None);
}

/// Answers, reads and gives up what there is.
fn step(core: &mut Core) {
    while let Some((id, request)) = core.arrived.pop_front() {
        let response = Response::new(()).into_parts().0;
        match request.headers().len() % 3 {
            0 => {
                core.respond(id, &response, true, None);
                core.sent(id);
            }
            1 => core.respond(id, &response, false, Some(3)),
            _ => core.reset(id, Reason::INTERNAL, Fault::Ended),
        }
        if id % 4 == 1 {
            core.release(id);
        }
    }
    let held: Vec<u32> = core.streams.keys().copied().collect();
    for id in held {
        while let Some(data) = core.streams.get_mut(&id).and_then(|s| s.chunks.pop()) {
            core.consume(id, data.len());
        }
        if core.streams.get(&id).is_some_and(|s| s.is_over() || s.fault.is_some()) {
            core.release(id);
        }
    }
}
