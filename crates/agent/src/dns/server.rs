//! The sockets: UDP and TCP on one loopback address.
//!
//! Invariant: the number of questions in work is bounded, and a question of the mesh never waits for one that goes outside.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::drain::Drain;
use hickory_proto::op::{Message, ResponseCode};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Outcome, answer, reply_to};
use super::upstream::{Upstream, read_framed, write_framed};
use super::{DnsConfig, Names};

/// Questions in work at once; more are dropped, and the resolver asks again.
const IN_WORK: usize = 512;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// The bound sockets, and what is answered on them.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    responder: Arc<Responder>,
}

#[derive(Debug)]
struct Responder {
    names: Names,
    upstream: Upstream,
}

impl Server {
    /// Binds.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn bind(config: &DnsConfig, names: Names) -> io::Result<Self> {
        let udp = UdpSocket::bind(config.address).await?;
        let address: SocketAddr = udp.local_addr()?;
        let tcp = TcpListener::bind(address).await?;
        let upstream = Upstream::new(config.resolv_conf.clone(), address);
        Ok(Self { udp, tcp, responder: Arc::new(Responder { names, upstream }) })
    }

    /// Where it answers.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until drained.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => {}
            () = self.serve() => {}
        }
    }

    async fn serve(self) {
        let Self { udp, tcp, responder } = self;
        let udp = Arc::new(udp);
        let permits = Arc::new(Semaphore::new(IN_WORK));
        let mut work = JoinSet::new();
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut buffer) => {
                    // A client that went away shows as an error on the next receive; the socket itself is fine.
                    let Ok((length, client)) = received else { continue };
                    let permit = Arc::clone(&permits).try_acquire_owned();
                    let (Some(packet), Ok(permit)) = (buffer.get(..length), permit) else { continue };
                    let (packet, udp, responder) = (packet.to_vec(), Arc::clone(&udp), Arc::clone(&responder));
                    work.spawn(async move {
                        if let Some(reply) = responder.respond(&packet, false).await {
                            let _ = udp.send_to(&reply, client).await;
                        }
                        drop(permit);
                    });
                }
                accepted = tcp.accept() => {
                    let Ok((stream, _)) = accepted else {
                        // Out of descriptors: give others the time to close some.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    };
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                    let responder = Arc::clone(&responder);
                    work.spawn(async move {
                        let _ = responder.connection(stream).await;
                        drop(permit);
                    });
                }
                Some(_) = work.join_next(), if !work.is_empty() => {}
            }
        }
    }
}

impl Responder {
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let packet = timeout(IDLE, read_framed(&mut stream)).await??;
            let Some(reply) = self.respond(&packet, true).await else { return Ok(()) };
            timeout(IDLE, write_framed(&mut stream, &reply)).await??;
        }
    }

    /// The bytes to send back; `None` for what is no question at all.
    async fn respond(&self, packet: &[u8], stream: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(packet).ok()?;
        let reply = match answer(&self.names.current(), &query, rand::random::<u16>().into()) {
            Outcome::Reply(reply) => reply,
            Outcome::Forward => match self.upstream.ask(packet, stream).await {
                Some(raw) => return Some(raw),
                None => reply_to(&query, ResponseCode::ServFail),
            },
        };
        let bytes = reply.to_vec().ok()?;
        if !stream && bytes.len() > usize::from(query.max_payload()) {
            return reply.truncate().to_vec().ok();
        }
        Some(bytes)
    }
}
