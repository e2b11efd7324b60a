//! The sockets, and the way from a packet to the packet that answers it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::upstream::{read_framed, write_framed};

/// Ports that are tried where any will do.
const TRIES: usize = 16;
/// Questions in work at once; more are dropped, and the resolver asks again.
const IN_WORK: usize = 512;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// A question, and how it came.
#[derive(Debug)]
pub struct Asked {
    /// Decoded.
    pub query: Message,
    /// As it came.
    pub packet: Vec<u8>,
    /// Who asks.
    pub client: SocketAddr,
    /// Over TCP: an answer may be of any length.
    pub stream: bool,
}

/// What is sent back.
#[derive(Debug)]
pub enum Answer {
    /// Cut short where the asker cannot take all of it.
    Message(Message),
    /// As somebody else gave it.
    Raw(Vec<u8>),
}

/// Knows names.
pub trait Answers: Send + Sync + 'static {
    /// The answer to one question.
    fn answer(&self, asked: &Asked) -> impl Future<Output = Answer> + Send;
}

/// Bound sockets of one address.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds in the calling thread's network namespace; port 0 takes one that is free for both.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        for _ in 0..TRIES {
            let udp = UdpSocket::bind(address).await?;
            match TcpListener::bind(udp.local_addr()?).await {
                // The port is free for the one and not for the other.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && address.port() == 0 => {}
                tcp => return Ok(Self { udp, tcp: tcp? }),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Where they are.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Answers until dropped.
pub async fn serve(sockets: Sockets, answers: Arc<impl Answers>) {
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
                let permit = Arc::clone(&permits).try_acquire_owned();
                let (Some(packet), Ok(permit)) = (buffer.get(..length), permit) else { continue };
                let (packet, udp, answers) = (packet.to_vec(), Arc::clone(&udp), Arc::clone(&answers));
                work.spawn(async move {
                    if let Some(reply) = respond(&*answers, packet, client, false).await {
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
                let answers = Arc::clone(&answers);
                work.spawn(async move {
                    let _ = connection(stream, client, &*answers).await;
                    drop(permit);
                });
            }
            Some(_) = work.join_next(), if !work.is_empty() => {}
        }
    }
}

async fn connection(mut stream: TcpStream, client: SocketAddr, answers: &impl Answers) -> io::Result<()> {
    loop {
        let packet = timeout(IDLE, read_framed(&mut stream)).await??;
        let Some(reply) = respond(answers, packet, client, true).await else { return Ok(()) };
        timeout(IDLE, write_framed(&mut stream, &reply)).await??;
    }
}

/// The bytes to send back; `None` for what is no question at all.
async fn respond(answers: &impl Answers, packet: Vec<u8>, client: SocketAddr, stream: bool) -> Option<Vec<u8>> {
    let asked = Asked { query: Message::from_vec(&packet).ok()?, packet, client, stream };
    let reply = match answers.answer(&asked).await {
        Answer::Message(reply) => reply,
        Answer::Raw(raw) => return Some(raw),
    };
    let bytes = reply.to_vec().ok()?;
    if !stream && bytes.len() > usize::from(asked.query.max_payload()) {
        return reply.truncate().to_vec().ok();
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Query, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    /// Has as many addresses for each name as its first label says.
    struct Many;

    impl Answers for Many {
        async fn answer(&self, asked: &Asked) -> Answer {
            let mut reply = crate::reply_to(&asked.query, ResponseCode::NoError);
            let Some(question) = asked.query.queries.first() else { return Answer::Raw(Vec::new()) };
            let count: u8 = question.name().to_ascii().split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let record = |n| Record::from_rdata(question.name().clone(), 5, RData::A(A::new(192, 0, 2, n)));
            reply.add_answers((0..count).map(record));
            Answer::Message(reply)
        }
    }

    fn question(name: &str) -> Vec<u8> {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        query.to_vec().unwrap()
    }

    #[tokio::test]
    async fn what_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
        let sockets = Sockets::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = sockets.local_addr().unwrap();
        let serving = tokio::spawn(serve(sockets, Arc::new(Many)));
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 4096];
        // What is no question is not answered, and harms nobody.
        udp.send_to(b"?", address).await.unwrap();
        for (name, cut, records) in [("2.example.", false, 2), ("99.example.", true, 0)] {
            udp.send_to(&question(name), address).await.unwrap();
            let length = timeout(IDLE, udp.recv(&mut buffer)).await.unwrap().unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!((answer.metadata.truncation, answer.answers.len()), (cut, records), "{name}");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            write_framed(&mut stream, &question("99.example.")).await.unwrap();
            let answer = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
            assert_eq!((answer.metadata.truncation, answer.answers.len()), (false, 99));
        }
        serving.abort();
    }
}
