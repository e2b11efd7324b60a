//! Cluster DNS, answered in each pod by its own runner: the table, and what is said of it. Sockets are those of `carrick-dns`.

use hickory_proto::op::Message;

pub(crate) mod answer;
pub(crate) mod asker;
pub(crate) mod server;
pub(crate) mod table;

/// One entry for fuzzing: a packet through decoding and decision, over a table of one service.
#[doc(hidden)]
pub fn parse_query(packet: &[u8]) {
    let Ok(query) = Message::from_vec(packet) else { return };
    let service = table::DnsService { ips: vec![std::net::Ipv4Addr::new(10, 96, 1, 0)], ..Default::default() };
    let table = table::DnsTable { services: [("web.shop".to_owned(), service)].into(), ..Default::default() };
    if let answer::Outcome::Reply(reply) | answer::Outcome::Alias(reply, _) =
        answer::answer(Some(&table), "cluster.local", &query, usize::from(packet.len() > 64), Some("shop"))
    {
        let _ = reply.to_vec();
    }
}
