//! The responder's sockets: UDP and TCP on the cluster DNS address inside the pod.
//!
//! Invariant: the number of questions in work is bounded, and a question of the cluster never waits for one that goes outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Name;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::answer::{Outcome, answer, reply_to};
use super::asker;
use super::table::TableFile;
use super::upstream::{Upstream, read_framed, write_framed};

/// Questions in work at once; more are dropped, and the resolver asks again.
const IN_WORK: usize = 512;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);

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

/// The bound sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds in the calling thread's network namespace.
    pub(crate) async fn bind(address: Ipv4Addr, port: u16) -> io::Result<Sockets> {
        let address = SocketAddr::from((address, port));
        Ok(Sockets { udp: UdpSocket::bind(address).await?, tcp: TcpListener::bind(address).await? })
    }
}

/// Answers until dropped.
pub(crate) async fn serve(sockets: Sockets, responder: Arc<Responder>) {
    let Sockets { udp, tcp } = sockets;
    let udp = Arc::new(udp);
    let permits = Arc::new(Semaphore::new(IN_WORK));
    let mut work = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut buffer) => {
                // A client that went away shows as an error on the next receive; the socket itself is fine.
                let Ok((length, client)) = received else { continue };
                let (Some(packet), Ok(permit)) = (buffer.get(..length), Arc::clone(&permits).try_acquire_owned()) else { continue };
                let (packet, udp, responder) = (packet.to_vec(), Arc::clone(&udp), Arc::clone(&responder));
                work.spawn(async move {
                    if let Some(reply) = respond(&responder, packet, client, false).await {
                        let _ = udp.send_to(&reply, client).await;
                    }
                    drop(permit);
                });
            }
            accepted = tcp.accept() => {
                let Ok((stream, client)) = accepted else {
                    // Out of descriptors: give others the time to close some.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                let responder = Arc::clone(&responder);
                work.spawn(async move {
                    let _ = connection(stream, client, &responder).await;
                    drop(permit);
                });
            }
            Some(_) = work.join_next(), if !work.is_empty() => {}
        }
    }
}

async fn connection(mut stream: TcpStream, client: SocketAddr, responder: &Responder) -> io::Result<()> {
    loop {
        let packet = tokio::time::timeout(IDLE, read_framed(&mut stream)).await??;
        let Some(reply) = respond(responder, packet, client, true).await else { return Ok(()) };
        tokio::time::timeout(IDLE, write_framed(&mut stream, &reply)).await??;
    }
}

/// The bytes to send back; `None` for what is no question at all.
async fn respond(responder: &Responder, packet: Vec<u8>, client: SocketAddr, stream: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(&packet).ok()?;
    let table = responder.table.current();
    let entries = table.as_ref().is_some_and(|table| !table.hosts.is_empty());
    let mesh =
        responder.mesh.as_deref().filter(|_| entries && !asker::is_user(client, stream, crate::options::PROXY_ID));
    let reply = match answer(table.as_deref(), &responder.domain, &query, rand::random::<u16>().into(), mesh) {
        Outcome::Reply(reply) => reply,
        Outcome::Forward => match outside(responder, packet, stream).await {
            Some(raw) => return Some(raw),
            None => reply_to(&query, ResponseCode::ServFail),
        },
        Outcome::Alias(mut reply, target) => {
            match resolve(responder, &query, target).await {
                Some(answer) => {
                    reply.metadata.response_code = answer.metadata.response_code;
                    reply.add_answers(answer.answers);
                }
                None => reply.metadata.response_code = ResponseCode::ServFail,
            }
            reply
        }
    };
    let bytes = reply.to_vec().ok()?;
    if !stream && bytes.len() > usize::from(query.max_payload()) {
        return reply.truncate().to_vec().ok();
    }
    Some(bytes)
}

async fn outside(responder: &Responder, packet: Vec<u8>, stream: bool) -> Option<Vec<u8>> {
    let upstream = responder.upstream.clone();
    responder.host.spawn(async move { upstream.ask(packet, stream).await }).await.ok().flatten()
}

async fn resolve(responder: &Responder, query: &Message, target: Name) -> Option<Message> {
    let mut asked = Message::query();
    asked.metadata.recursion_desired = true;
    asked.add_query(Query::query(target, query.queries.first()?.query_type()));
    let raw = outside(responder, asked.to_vec().ok()?, false).await?;
    Message::from_vec(&raw).ok()
}
