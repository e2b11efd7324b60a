//! What a pod's resolver is told: names of the cluster from the table, others by the host's own servers.
//!
//! Invariant: others are asked from the host's network namespace, since the pod's traffic is its sidecar's.

use carrick_dns::{Answer, Answers, Asked, Upstream, reply_to};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Name;
use tokio::runtime::Handle;

use super::answer::{Outcome, answer};
use super::asker;
use super::table::TableFile;

/// What the responder answers from.
#[derive(Debug)]
pub(crate) struct Responder {
    pub(crate) table: TableFile,
    pub(crate) domain: String,
    /// The pod's namespace if it has a sidecar: its ServiceEntries count.
    pub(crate) mesh: Option<String>,
    pub(crate) upstream: Upstream,
    /// A runtime whose threads are in the host's network namespace.
    pub(crate) host: Handle,
}

impl Answers for Responder {
    async fn answer(&self, asked: &Asked) -> Answer {
        let Asked { query, packet, client, stream } = asked;
        let table = self.table.current();
        let entries = table.as_ref().is_some_and(|table| !table.hosts.is_empty());
        let mesh =
            self.mesh.as_deref().filter(|_| entries && !asker::is_user(*client, *stream, crate::options::PROXY_ID));
        match answer(table.as_deref(), &self.domain, query, rand::random::<u16>().into(), mesh) {
            Outcome::Reply(reply) => Answer::Message(reply),
            Outcome::Forward => match self.outside(packet.clone(), *stream).await {
                Some(raw) => Answer::Raw(raw),
                None => Answer::Message(reply_to(query, ResponseCode::ServFail)),
            },
            Outcome::Alias(mut reply, target) => {
                match self.resolve(query, target).await {
                    Some(answer) => {
                        reply.metadata.response_code = answer.metadata.response_code;
                        reply.add_answers(answer.answers);
                    }
                    None => reply.metadata.response_code = ResponseCode::ServFail,
                }
                Answer::Message(reply)
            }
        }
    }
}

impl Responder {
    async fn outside(&self, packet: Vec<u8>, stream: bool) -> Option<Vec<u8>> {
        let upstream = self.upstream.clone();
        self.host.spawn(async move { upstream.ask(&packet, stream).await }).await.ok().flatten()
    }

    async fn resolve(&self, query: &Message, target: Name) -> Option<Message> {
        let mut asked = Message::query();
        asked.metadata.recursion_desired = true;
        asked.add_query(Query::query(target, query.queries.first()?.query_type()));
        let raw = self.outside(asked.to_vec().ok()?, false).await?;
        Message::from_vec(&raw).ok()
    }
}
