//! How a client secures the connections of one cluster, and of one endpoint (semantics §3).
//!
//! Invariant: plaintext is only ever chosen because a rule, a policy or the absence of a sidecar says so. Where a rule asks for TLS that
//! cannot be built, the cluster is refused; Istio sends plaintext there.

use std::sync::Arc;

use carrick_api::protocol::Class;

use crate::{
    Settings,
    model::{
        ClientTls, MtlsMode, Port, Resolution, Service,
        policy::{ClientTlsMode, LoadBalancer},
    },
    names,
    parts::{
        ClientSocket, ClusterKind, MeshTls, UpstreamHttp, UserTls,
        cluster::{MeshAlpn, PlainReason},
    },
    proxy::FileCerts,
    read::destination_rule::refusal,
    snapshot::Snapshot,
};

/// What decides a cluster's socket.
#[derive(Debug)]
pub struct Question<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a Port,
    /// The subset; empty for the default cluster.
    pub subset: &'a str,
    /// How its endpoints are found.
    pub kind: ClusterKind,
    /// What HTTP it speaks.
    pub http: UpstreamHttp,
    /// TLS of the applicable rule for this port and subset.
    pub tls: Option<&'a ClientTls>,
    /// Whether secrets of the cluster can be used: at gateways, and by rules with a workload selector.
    pub secrets: bool,
    /// Certificate files of the proxy.
    pub files: Option<&'a FileCerts>,
}

/// The kind of a cluster (§6.2): ORIGINAL_DST without a virtual address or with a rule's PASSTHROUGH. A subset always has endpoints of
/// its own, and so has a gateway, whose clients never chose an address of the mesh.
pub fn kind(service: &Service, load_balancer: &LoadBalancer, subset: &str, gateway: bool) -> ClusterKind {
    if *load_balancer == LoadBalancer::Passthrough {
        return ClusterKind::OriginalDst;
    }
    match service.resolution {
        Resolution::Headless if subset.is_empty() && !gateway => ClusterKind::OriginalDst,
        Resolution::Passthrough if !gateway => ClusterKind::OriginalDst,
        Resolution::Dns => ClusterKind::StrictDns,
        Resolution::DnsRoundRobin => ClusterKind::LogicalDns,
        Resolution::DynamicDns => ClusterKind::DynamicForward,
        Resolution::ClusterIp
        | Resolution::Headless
        | Resolution::ExternalName(_)
        | Resolution::Passthrough
        | Resolution::Static => ClusterKind::Eds,
    }
}

/// How a cluster's connections are secured (§3.2, §3.6, §3.8, §3.9).
pub fn socket(snapshot: &Snapshot, question: &Question<'_>) -> ClientSocket {
    match question.tls {
        Some(tls) => by_rule(snapshot, question, tls),
        None => automatic(snapshot, question),
    }
}

fn automatic(snapshot: &Snapshot, question: &Question<'_>) -> ClientSocket {
    let service = question.service;
    if service.external {
        return ClientSocket::Plain(PlainReason::External);
    }
    if !snapshot.settings().auto_mtls {
        return ClientSocket::Plain(PlainReason::AutoMtlsOff);
    }
    if question.kind == ClusterKind::OriginalDst {
        let facts = snapshot.facts_of(service).and_then(|f| f.ports.get(&question.port.slot));
        if !facts.is_some_and(|f| f.all_in_mesh) {
            return ClientSocket::Plain(PlainReason::NotAllInMesh);
        }
    }
    let named = snapshot.legacy().of_port(service, question.port).map(|p| p.mode);
    let hint = named.unwrap_or_else(|| snapshot.peer_auth().namespace_hint(service.namespace()).mode);
    if hint == MtlsMode::Disable {
        return ClientSocket::Plain(PlainReason::Policy);
    }
    let tls = mesh_tls(snapshot, question, None);
    // An address that the client chose carries no metadata to match on.
    if question.kind == ClusterKind::OriginalDst { ClientSocket::Mesh(tls) } else { ClientSocket::Auto(tls) }
}

fn by_rule(snapshot: &Snapshot, question: &Question<'_>, tls: &ClientTls) -> ClientSocket {
    let own_files = question.files.filter(|_| !question.service.external);
    match tls.mode {
        ClientTlsMode::Disable => ClientSocket::Plain(PlainReason::Rule),
        ClientTlsMode::IstioMutual => ClientSocket::Mesh(mesh_tls(snapshot, question, Some(tls))),
        ClientTlsMode::Mutual if own_files.is_some() => ClientSocket::Mesh(mesh_tls(snapshot, question, Some(tls))),
        ClientTlsMode::Simple | ClientTlsMode::Mutual => match refusal(tls, question.secrets) {
            Some(reason) => ClientSocket::Refused(reason.into()),
            None => ClientSocket::User(user_tls(question, tls)),
        },
    }
}

fn mesh_tls(snapshot: &Snapshot, question: &Question<'_>, rule: Option<&ClientTls>) -> MeshTls {
    let settings = snapshot.settings();
    let sni = match rule {
        Some(tls) if !tls.sni.is_empty() => tls.sni.clone(),
        _ => names::server_name(question.port.number, question.subset, &question.service.hostname),
    };
    let sans = match rule {
        Some(tls) if !tls.subject_alt_names.is_empty() => {
            let mut sans = tls.subject_alt_names.clone();
            sans.sort();
            sans.dedup();
            sans
        }
        _ => identities(snapshot, question.service),
    };
    MeshTls {
        sni,
        sans,
        min_tls13: settings.min_tls13,
        cipher_suites: settings.cipher_suites.clone(),
        files: question.files.cloned(),
        alpn: alpn(question),
    }
}

fn alpn(question: &Question<'_>) -> MeshAlpn {
    match (question.port.protocol.class(), question.http) {
        (Class::Tcp | Class::Udp, _) => MeshAlpn::Tcp,
        // What is not HTTP goes to the same cluster, so HTTP's list is set by its route.
        (Class::Auto, _) | (Class::Http, UpstreamHttp::Downstream) => MeshAlpn::ByRequest,
        (Class::Http, UpstreamHttp::Http1) => MeshAlpn::Http1,
        (Class::Http, UpstreamHttp::Http2) => MeshAlpn::Http2,
    }
}

/// Secure naming: whom a server of this service may be (§5.4), in every alias of the trust domain, sorted.
pub fn identities(snapshot: &Snapshot, service: &Service) -> Vec<Arc<str>> {
    let facts = snapshot.facts_of(service);
    let mut all = service.identities.clone();
    all.extend(facts.into_iter().flat_map(|f| f.identities.iter().cloned()));
    expand_aliases(snapshot.settings(), &mut all);
    all.into_iter().collect()
}

fn expand_aliases(settings: &Settings, all: &mut std::collections::BTreeSet<Arc<str>>) {
    let prefix = format!("spiffe://{}/", settings.trust_domain);
    let own: Vec<_> = all.iter().filter_map(|id| id.strip_prefix(prefix.as_str()).map(str::to_owned)).collect();
    for alias in &settings.trust_domain_aliases {
        all.extend(own.iter().map(|rest| Arc::from(format!("spiffe://{alias}/{rest}"))));
    }
}

fn user_tls(question: &Question<'_>, tls: &ClientTls) -> UserTls {
    let given = |text: &Arc<str>| (!text.is_empty()).then(|| text.clone());
    let named = given(&tls.credential_name);
    let mutual = tls.mode == ClientTlsMode::Mutual;
    let roots = match (&named, given(&tls.ca_certificates)) {
        _ if tls.insecure_skip_verify => None,
        // Only what is made of the Gateway API's objects has a certificate and an authority of different places.
        (Some(_), Some(path)) if path.contains("://") => Some(names::cluster_roots(&path)),
        (Some(_), Some(path)) if *path == *"system" => Some(names::SECRET_SYSTEM_ROOTS.into()),
        (Some(name), _) => Some(names::cluster_roots(name)),
        (None, Some(path)) => Some(names::file_root(&path)),
        (None, None) => Some(names::SECRET_SYSTEM_ROOTS.into()),
    };
    let certificate = mutual.then(|| match &named {
        Some(name) => names::cluster_secret(name),
        None => names::file_cert(&tls.client_certificate, &tls.private_key),
    });
    let sni = given(&tls.sni);
    let speaks_http = question.port.protocol.class() != Class::Tcp;
    let sans = match tls.subject_alt_names.is_empty() {
        true => question.service.subject_alt_names.clone(),
        false => tls.subject_alt_names.clone(),
    };
    UserTls {
        auto_san: sni.is_none() && speaks_http && sans.is_empty() && roots.is_some(),
        auto_sni: sni.is_none() && speaks_http,
        sni,
        sans,
        crl: given(&tls.ca_crl).filter(|_| roots.is_some()),
        roots,
        certificate,
    }
}

/// Whether endpoints that have a sidecar keep their mark (§3.4): `Some` when the rule decides for all of them.
pub fn endpoints_by_rule(tls: Option<&ClientTls>) -> Option<bool> {
    tls.map(|tls| tls.mode == ClientTlsMode::IstioMutual)
}
