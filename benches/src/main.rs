//! `carrick-floor`: what the kernel and the TLS library cost by themselves, as the mark that a proxy is held against; and the load that
//! keeps its pace.
//!
//! Invariant: one thread, TLS 1.3 with AES-128-GCM and X25519, both certificates verified, every handshake a full one. It does what must be
//! done to carry bytes, or to take an HTTP/1.1 request apart and put it together again, and nothing else: no limits, no time-outs, no
//! counting. It is no product: what it cannot carry ends the connection.

mod epoll;
mod forward;
mod http;
mod pace;
mod tls;
mod tokio_forward;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// What a door carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    Bytes,
    Http,
}

/// A port, and where what comes in there goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    pub(crate) carries: Carries,
    pub(crate) listen: u16,
    pub(crate) to: SocketAddr,
}

/// Which side of the mesh it stands on, with what it proves itself by.
#[derive(Clone)]
pub(crate) enum Side {
    Client(std::sync::Arc<rustls::ClientConfig>),
    Server(std::sync::Arc<rustls::ServerConfig>),
}

const USAGE: &str = "carrick-floor epoll|tokio client|server CERTIFICATES {bytes|http}:PORT=ADDRESS…\ncarrick-floor pace HOST:PORT RATE SECONDS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carrick-floor: {error:#}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    if let Some(("pace", arguments)) = arguments.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return pace::run(arguments);
    }
    let [kind, side, certificates, doors @ ..] = arguments else { bail!("too few arguments") };
    let side = match side.as_str() {
        "client" => Side::Client(tls::client(certificates)?),
        "server" => Side::Server(tls::server(certificates)?),
        other => bail!("{other:?} is no side"),
    };
    let doors: Vec<Door> = doors.iter().map(|door| read_door(door)).collect::<Result<_>>()?;
    match kind.as_str() {
        "epoll" => http::run(&side, &doors),
        "tokio" => tokio_forward::run(side, doors),
        other => bail!("{other:?} is no kind"),
    }
}

fn read_door(text: &str) -> Result<Door> {
    let (kind, rest) = text.split_once(':').with_context(|| format!("door {text:?}"))?;
    let (listen, to) = rest.split_once('=').with_context(|| format!("door {text:?}"))?;
    let carries = match kind {
        "bytes" => Carries::Bytes,
        "http" => Carries::Http,
        other => bail!("{other:?} is not carried"),
    };
    Ok(Door { carries, listen: listen.parse()?, to: to.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_read() {
        let door = read_door("http:15001=10.0.0.1:15011").unwrap();
        assert_eq!((door.carries, door.listen, door.to.port()), (Carries::Http, 15001, 15011));
        for bad in ["15001=10.0.0.1:15011", "tcp:1=10.0.0.1:2", "http:x=10.0.0.1:2", "http:1=somewhere:2"] {
            assert!(read_door(bad).is_err(), "{bad}");
        }
    }
}
