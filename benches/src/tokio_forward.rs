//! Bytes both ways on tokio and tokio-rustls, as one would write it first.
//!
//! Invariant: one connection in is one connection out; nothing is looked at.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Carries, Door, Side, tls};

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// Either end, behind one type.
struct End(Box<dyn Both>);

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

pub(crate) fn run(side: Side, doors: Vec<Door>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut serving = tokio::task::JoinSet::new();
        for door in doors {
            ensure!(door.carries == Carries::Bytes, "HTTP is not carried on tokio");
            let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], door.listen))).await?;
            serving.spawn(serve(side.clone(), listener, door.to));
        }
        serving.join_next().await;
        Ok(())
    })
}

async fn serve(side: Side, listener: TcpListener, to: SocketAddr) {
    let side = Arc::new(side);
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let side = side.clone();
                open.spawn(async move {
                    let _ = carry(&side, stream, to).await;
                });
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn carry(side: &Side, stream: TcpStream, to: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let dial = async {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        anyhow::Ok(stream)
    };
    let (mut down, mut up) = match side {
        Side::Client(config) => {
            let connector = TlsConnector::from(config.clone());
            let up = connector.connect(tls::server_name()?, dial.await?).await?;
            (End(Box::new(stream)), End(Box::new(up)))
        }
        Side::Server(config) => {
            let accept = async { anyhow::Ok(TlsAcceptor::from(config.clone()).accept(stream).await?) };
            let (down, up) = tokio::try_join!(accept, dial)?;
            (End(Box::new(down)), End(Box::new(up)))
        }
    };
    tokio::io::copy_bidirectional_with_sizes(&mut down, &mut up, 16 * 1024, 16 * 1024).await?;
    Ok(())
}
