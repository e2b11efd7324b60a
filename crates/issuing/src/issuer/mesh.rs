//! The mesh's own authority as an issuer: `ca.secretName` of `istio-ca-secret` or `cacerts` in the control plane's namespace,
//! where Istio keeps its authority.
//!
//! Invariant: it is the running authority that signs, wherever its key is, so that its rotation and its records count for these
//! certificates too. It signs servers' names, and identities of the request's own namespace: whoever may only write in one
//! namespace gets nobody else's identity, and nobody gets an authority below the mesh's root.

use std::collections::BTreeSet;
use std::time::SystemTime;

use carrick_api::cert_manager::{CaIssuer, CertificateRequest};
use carrick_base::SpiffeId;
use carrick_pki::issue::{Profile, Signed};
use carrick_pki::{Authority, Subject};

use super::{Order, Outcome, failed};

/// The names of Istio's secrets.
const SECRETS: [&str; 2] = ["istio-ca-secret", "cacerts"];

/// Whether an issuer means the mesh's authority. `namespace` is that of its secrets.
pub(super) fn is_meant(issuer: &CaIssuer, namespace: &str, root_namespace: &str) -> bool {
    namespace == root_namespace && SECRETS.contains(&issuer.secret_name.as_str())
}

pub(super) fn sign(authority: &Authority, request: &CertificateRequest, order: &Order, now: SystemTime) -> Outcome {
    let subject = match subject(&order.profile, authority, &request.metadata.namespace) {
        Ok(subject) => subject,
        Err(why) => return Outcome::Never(why),
    };
    let life = order.not_after.duration_since(order.not_before).ok();
    match authority.sign(&order.csr, &subject, life, now) {
        Ok(issued) => {
            Outcome::Signed(Signed { chain: issued.chain.concat(), ca: issued.root_bundle, serial: issued.serial })
        }
        Err(error) => failed(&error),
    }
}

/// Whom the authority is to name; else why it does not.
fn subject(profile: &Profile, authority: &Authority, namespace: &str) -> Result<Subject, String> {
    if profile.is_ca {
        return Err("spec.isCA: the mesh's authority signs no other authorities".to_owned());
    }
    if !profile.subject.is_empty() || !profile.emails.is_empty() {
        return Err(
            "spec.subject and spec.emailAddresses: the mesh's authority signs DNS names, addresses and identities"
                .to_owned(),
        );
    }
    let names: BTreeSet<&str> = profile.dns.iter().map(String::as_str).collect();
    if !profile.common_name.is_empty() && !names.contains(profile.common_name.as_str()) {
        return Err("spec.commonName: with the mesh's authority it has to be one of spec.dnsNames".to_owned());
    }
    match profile.uris.as_slice() {
        [] => {
            let mut dns = profile.dns.clone();
            // The first name is the common name of what is signed.
            if let Some(at) = dns.iter().position(|name| *name == profile.common_name) {
                dns.swap(0, at);
            }
            Ok(Subject::Server { dns, ips: profile.ips.clone() })
        }
        [uri] if profile.dns.is_empty() && profile.ips.is_empty() => identity(uri, authority, namespace),
        _ => Err("spec.uris: the mesh's authority signs one identity, or DNS names and addresses, not both".to_owned()),
    }
}

fn identity(uri: &str, authority: &Authority, namespace: &str) -> Result<Subject, String> {
    let id: SpiffeId = uri.parse().map_err(|error| format!("spec.uris: {uri:?}: {error}"))?;
    let own = &authority.options().trust_domain;
    if id.trust_domain() == *own && id.namespace() == Some(namespace) && id.service_account().is_some() {
        return Ok(Subject::Workload(id));
    }
    Err(format!("spec.uris: {uri:?} is no identity of this namespace: spiffe://{own}/ns/{namespace}/sa/ACCOUNT"))
}
