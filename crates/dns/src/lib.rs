//! Answering DNS on one address, UDP and TCP, and asking others what one does not know oneself.
//!
//! Invariant: the number of questions in work is bounded, and a question that is answered here never waits for one that goes elsewhere.
//! Which names exist is decided by the implementor of [`Answers`].

mod serve;
mod upstream;

use hickory_proto::op::{Edns, Message, ResponseCode};

pub use serve::{Answer, Answers, Asked, Sockets, serve};
pub use upstream::{Upstream, nameservers, read_framed, write_framed};

/// The largest answer over UDP that is offered to those who can take more than 512 bytes: what passes every path unbroken.
const PAYLOAD: u16 = 1232;

/// An answer without records to `query`.
pub fn reply_to(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.response_code = code;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        reply.set_edns(edns);
    }
    reply
}
