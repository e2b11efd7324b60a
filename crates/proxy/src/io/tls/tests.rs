//! Streams against each other over loopback, and against a wire that gives little or forges.

use super::*;
use carrick_pki::tls::{
    ClientAuth, ServerAuth, TicketKeys, TlsOptions, TlsVersion, TrustDigest, client_config, server_config, with_tickets,
};
use carrick_pki::{Authority, CaOptions, Identity, Subject};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn identity() -> Identity {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let authority = Authority::load_or_create(folder.path(), CaOptions::default(), now).unwrap();
    let subject = Subject::Workload("spiffe://cluster.local/ns/a/sa/b".parse().unwrap());
    authority.issue(&subject, None, now).unwrap()
}

fn sides(max_version: TlsVersion, tickets: usize) -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    let options = TlsOptions { own_records: true, max_version, ..TlsOptions::default() };
    let server = server_config(&identity(), ClientAuth::None, &["a"], &options).unwrap();
    let server = match tickets {
        0 => server,
        _ => with_tickets(server, &Arc::new(TicketKeys::default()), TrustDigest::of([&b""[..]])),
    };
    (client_config(None, ServerAuth::None, &["a"], &options).unwrap(), server)
}

async fn shake(client: TcpStream, server: TcpStream, max_version: TlsVersion) -> (TlsStream, TlsStream) {
    let (client_side, server_side) = sides(max_version, 0);
    let finish = |tcp, library| Handshake::new(Socket::new(tcp)).finish(library, |_| Ok(()));
    let client = finish(client, Library::client(client_side, "a.example".try_into().unwrap()).unwrap());
    let server = finish(server, Library::server(server_side).unwrap());
    let (client, server) = tokio::try_join!(client, server).unwrap();
    (client.0, server.0)
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

async fn pair(version: TlsVersion) -> (TlsStream, TlsStream) {
    let (client, server) = sockets().await;
    shake(client, server, version).await
}

/// A pair whose bytes from the client to the server go through our hands.
async fn tapped() -> (TlsStream, TlsStream, TcpStream, TcpStream) {
    let ((client, mut from_client), (mut to_server, server)) = (sockets().await, sockets().await);
    let carry = tokio::spawn(async move {
        let (mut seen, mut back) = ([0; 4096], [0; 4096]);
        // Until the server has heard the client's second flight.
        for _ in 0..2 {
            let count = from_client.read(&mut seen).await.unwrap();
            to_server.write_all(&seen[..count]).await.unwrap();
            if count < 1000 {
                break;
            }
            let count = to_server.read(&mut back).await.unwrap();
            from_client.write_all(&back[..count]).await.unwrap();
        }
        (from_client, to_server)
    });
    let (client, server) = shake(client, server, TlsVersion::V1_3).await;
    let (from_client, to_server) = carry.await.unwrap();
    (client, server, from_client, to_server)
}

fn is_at_rest(stream: &TlsStream) -> bool {
    stream.incoming.buffer.is_none() && stream.incoming.held.is_empty() && stream.waiting.0.is_empty()
}

#[tokio::test]
async fn much_goes_both_ways_at_once_and_nothing_is_held_afterwards() {
    for version in [TlsVersion::V1_3, TlsVersion::V1_2] {
        let (mut client, mut server) = pair(version).await;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut up, mut down) = (vec![0; sent.len()], vec![0; sent.len()]);
        {
            let (mut client_reads, mut client_writes) = tokio::io::split(&mut client);
            let (mut server_reads, mut server_writes) = tokio::io::split(&mut server);
            tokio::try_join!(
                async {
                    client_writes.write_all(&sent).await?;
                    client_writes.flush().await
                },
                async {
                    server_writes.write_all(&sent).await?;
                    server_writes.flush().await
                },
                client_reads.read_exact(&mut down),
                server_reads.read_exact(&mut up),
            )
            .unwrap();
        }
        assert!(up == sent && down == sent);
        assert!(is_at_rest(&client) && is_at_rest(&server), "{client:?} {server:?}");
        // The client ends; what the server still says comes.
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0, "and again");
        server.write_all(b"after").await.unwrap();
        server.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"after", "{version:?}");
        assert_eq!(client.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

/// Its last flight, a request and its end come to the server at once.
#[tokio::test]
async fn what_comes_with_the_end_of_the_handshake_is_not_lost() {
    for (text, tickets) in [("", 0), ("hello", 0), ("", 1), ("hello", 1)] {
        let ((client, mut from_client), (mut to_server, server)) = (sockets().await, sockets().await);
        let (client_side, server_side) = sides(TlsVersion::V1_3, tickets);
        let client = async {
            let library = Library::client(client_side, "a.example".try_into().unwrap()).unwrap();
            let mut client = Handshake::new(Socket::new(client)).finish(library, |_| Ok(())).await.unwrap().0;
            client.write_all(text.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        };
        let server = async {
            let library = Library::server(server_side).unwrap();
            let mut server = Handshake::new(Socket::new(server)).finish(library, |_| Ok(())).await.unwrap().0;
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            server.write_all(&all).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let carry = async {
            let mut piece = [0; 8192];
            let count = from_client.read(&mut piece).await.unwrap();
            to_server.write_all(&piece[..count]).await.unwrap();
            let count = to_server.read(&mut piece).await.unwrap();
            from_client.write_all(&piece[..count]).await.unwrap();
            let mut rest = Vec::new();
            from_client.read_to_end(&mut rest).await.unwrap();
            to_server.write_all(&rest).await.unwrap();
            tokio::io::copy(&mut to_server, &mut from_client).await.unwrap();
            from_client.shutdown().await.unwrap();
        };
        let (back, (), ()) = tokio::join!(client, server, carry);
        assert_eq!(back, text.as_bytes(), "{tickets}");
    }
}

#[tokio::test]
async fn an_end_without_a_word_is_told_apart() {
    let (client, mut server) = pair(TlsVersion::V1_3).await;
    drop(client);
    for _ in 0..2 {
        assert_eq!(server.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_record_that_comes_byte_by_byte_holds_its_bytes_and_no_buffer() {
    let (mut client, mut server, mut from_client, mut to_server) = tapped().await;
    let pieces = [io::IoSlice::new(b"one "), io::IoSlice::new(b"record")];
    assert_eq!(client.write_vectored(&pieces).await.unwrap(), b"one record".len());
    let mut sealed = [0; 100];
    let count = from_client.read(&mut sealed).await.unwrap();
    assert_eq!(count, b"one record".len() + OVERHEAD, "one record for all pieces");
    let mut got = [0; 100];
    for (at, byte) in sealed[..count].iter().enumerate() {
        to_server.write_all(&[*byte]).await.unwrap();
        let mut buf = ReadBuf::new(&mut got);
        let last = at + 1 == count;
        // Until the kernel has passed the byte on.
        let read = poll_fn(|cx| {
            let read = Pin::new(&mut server).poll_read(cx, &mut buf);
            if read.is_ready() || server.incoming.held.len() > at { Poll::Ready(read) } else { Poll::Pending }
        });
        assert_eq!(read.await.is_ready(), last, "{at}");
        assert!(server.incoming.buffer.is_none(), "{at}");
    }
    assert_eq!(&got[..10], b"one record");
    assert!(is_at_rest(&server));
}

#[tokio::test]
async fn who_forges_is_told_and_nothing_goes_on() {
    let (mut client, mut server, mut from_client, mut to_server) = tapped().await;
    client.write_all(b"true").await.unwrap();
    let mut sealed = [0; 100];
    let count = from_client.read(&mut sealed).await.unwrap();
    sealed[count - 1] ^= 1;
    to_server.write_all(&sealed[..count]).await.unwrap();
    for _ in 0..2 {
        let error = server.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.get_ref().unwrap().to_string(), Error::DecryptError.to_string());
    }
    assert_eq!(server.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let count = to_server.read(&mut sealed).await.unwrap();
    from_client.write_all(&sealed[..count]).await.unwrap();
    let told = client.read(&mut [0; 9]).await.unwrap_err();
    assert_eq!(told.get_ref().unwrap().to_string(), "received fatal alert: BadRecordMac");
}
