//! What a stranger says to a server's end of TLS, and what comes behind its handshake.

use carrick_pki::tls::{ClientAuth, Library, Opened, ServerAuth, Step, TlsOptions, client_config, server_config};
use carrick_pki::{Authority, CaOptions, Subject};
use rustls::{ClientConfig, ServerConfig};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

static CONFIGS: LazyLock<Option<Configs>> = LazyLock::new(configs);

fn configs() -> Option<Configs> {
    let (folder, now) = (tempfile::tempdir().ok()?, SystemTime::now());
    let authority = Authority::load_or_create(folder.path(), CaOptions::default(), now).ok()?;
    let subject = Subject::Workload("spiffe://cluster.local/ns/a/sa/b".parse().ok()?);
    let identity = authority.issue(&subject, None, now).ok()?;
    let options = TlsOptions { own_records: true, ..TlsOptions::default() };
    let server = server_config(&identity, ClientAuth::None, &["h2", "istio"], &options).ok()?;
    Some((client_config(None, ServerAuth::None, &["h2"], &options).ok()?, server))
}

/// A server hears these bytes from its first on, in pieces whose size is the first byte's.
pub fn handshake(data: &[u8]) {
    let (Some((_, server)), Some((size, data))) = (&*CONFIGS, data.split_first()) else { return };
    let Ok(mut server) = Library::server(Arc::clone(server)) else { return };
    let (mut read, mut out) = (Vec::new(), Vec::new());
    for piece in data.chunks(usize::from(*size).saturating_add(1)) {
        read.extend_from_slice(piece);
        if step(&mut server, &mut read, &mut out).is_none() {
            server.last_words(&mut out);
            return;
        }
    }
}

fn step(library: &mut Library, read: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<Step> {
    loop {
        let (done, step) = library.step(read, out, &mut Vec::new());
        read.drain(..done);
        match step.ok()? {
            Step::Again => {}
            step => return Some(step),
        }
    }
}

/// A server reads these bytes behind a handshake.
pub fn records(data: &[u8]) {
    let Some((client, server)) = &*CONFIGS else { return };
    let name = rustls_pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let made = (Library::client(Arc::clone(client), name), Library::server(Arc::clone(server)));
    let (Ok(mut client), Ok(mut server)) = made else { return };
    let (mut up, mut down) = (Vec::new(), Vec::new());
    while client.state().is_handshaking() || server.state().is_handshaking() {
        let both = step(&mut client, &mut down, &mut up).and_then(|_| step(&mut server, &mut up, &mut down));
        assert!(both.is_some(), "the handshake ends");
    }
    let Ok(Ok(mut records)) = server.into_records() else { panic!("TLS 1.3") };
    let mut bytes = data.to_vec();
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..) {
        match records.open(rest) {
            Ok(Opened::Data { .. } | Opened::Nothing { .. } | Opened::Closed) => panic!("nobody sealed that"),
            Ok(Opened::More) => return,
            Err(_) => at += rest.len().max(1),
        }
    }
}
