//! Answers names of the mesh from the table, and passes others on to the machine's servers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use carrick_dns::{Answer, Answers, Asked, Sockets, Upstream, reply_to, serve};
use carrick_runtime::drain::Drain;
use hickory_proto::op::ResponseCode;

use super::answer::{Outcome, answer};
use super::{DnsConfig, Names};

/// The bound sockets, and what is answered on them.
#[derive(Debug)]
pub struct Server {
    sockets: Sockets,
    responder: Responder,
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
        let sockets = Sockets::bind(config.address).await?;
        let upstream = Upstream::new(&config.resolv_conf, Some(sockets.local_addr()?));
        Ok(Self { sockets, responder: Responder { names, upstream } })
    }

    /// Where it answers.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.local_addr()
    }

    /// Answers until drained.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => {}
            () = serve(self.sockets, Arc::new(self.responder)) => {}
        }
    }
}

impl Answers for Responder {
    async fn answer(&self, asked: &Asked) -> Answer {
        match answer(&self.names.current(), &asked.query, rand::random::<u16>().into()) {
            Outcome::Reply(reply) => Answer::Message(reply),
            Outcome::Forward => match self.upstream.ask(&asked.packet, asked.stream).await {
                Some(raw) => Answer::Raw(raw),
                None => Answer::Message(reply_to(&asked.query, ResponseCode::ServFail)),
            },
        }
    }
}
