//! Tools of these tests: a throw-away folder, an authority, odd certificates, and a handshake in memory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::tls::{PeerPolicy, SanMatch};
use carrick_pki::{Authority, CaOptions, Identity, KeyAlgorithm, PrivateKey, Subject, TrustBundle, csr};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, SanType};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

/// A folder that goes away.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("carrick-pki-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn authority(folder: &Folder, algorithm: KeyAlgorithm) -> Authority {
    authority_at(folder, algorithm, SystemTime::now())
}

pub fn authority_at(folder: &Folder, algorithm: KeyAlgorithm, now: SystemTime) -> Authority {
    let options = CaOptions { algorithm, ..CaOptions::default() };
    Authority::load_or_create(&folder.path().join("ca"), options, now).unwrap()
}

pub fn spiffe(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::istio(&TrustDomain::default(), namespace, account)
}

pub fn workload(ca: &Authority, id: &SpiffeId) -> Identity {
    workload_at(ca, id, SystemTime::now(), Duration::from_secs(3600))
}

pub fn workload_at(ca: &Authority, id: &SpiffeId, now: SystemTime, ttl: Duration) -> Identity {
    let (key, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
    let issued = ca.sign(&request, &Subject::Workload(id.clone()), Some(ttl), now).unwrap();
    Identity::from_pem(issued.chain.concat().as_bytes(), key.to_pem().as_bytes()).unwrap()
}

/// A leaf the authority would never sign, made with its key from the folder.
pub fn odd_leaf(folder: &Folder, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let read = |name: &str| std::fs::read_to_string(folder.path().join("ca").join(name)).unwrap();
    let signer = rcgen::KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca-cert.pem"), signer).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
    Identity::new(vec![certificate.der().clone()], key).unwrap()
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub fn mesh_policy(roots: &TrustBundle) -> PeerPolicy {
    PeerPolicy::new(roots.clone(), vec![SanMatch::Prefix("spiffe://cluster.local/".into())])
}

/// Both ends of a connection after their handshake, or the first error and who had it.
pub fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    sni: &str,
) -> Result<(ClientConnection, ServerConnection), (&'static str, rustls::Error)> {
    let name = rustls_pki_types::ServerName::try_from(sni.to_owned()).unwrap();
    let mut c = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut s = ServerConnection::new(Arc::clone(server)).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while c.wants_write() {
            c.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            s.read_tls(&mut read).unwrap();
            s.process_new_packets().map_err(|e| ("server", e))?;
        }
        let mut wire = Vec::new();
        while s.wants_write() {
            s.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            c.read_tls(&mut read).unwrap();
            c.process_new_packets().map_err(|e| ("client", e))?;
        }
        if !c.is_handshaking() && !s.is_handshaking() && !c.wants_write() && !s.wants_write() {
            return Ok((c, s));
        }
    }
    panic!("the handshake does not end");
}

/// Runs OpenSSL's command line; the tests' independent judge.
pub fn openssl(args: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(args).output().expect("openssl is needed by these tests");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}
