//! Follows the quarantine: who is not to be talked with, the revocation lists of the mesh's roots, and the roots of other trust domains.
//!
//! Invariant: a stream of its own, so that no configuration is in its way; what cannot be read is refused and the last good
//! list stays, also when the control plane is away or knows of no list. What is done with it is the engine's, through the
//! secret store. The stream is made anew with each certificate, and tells its serial.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use carrick_base::TrustDomain;
use carrick_pki::quarantine::{LISTS, Quarantine, RESOURCE};
use carrick_pki::trust::{Domains, FEDERATION};
use carrick_pki::{Identity, TrustBundle};
use carrick_runtime::drain::Drain;
use carrick_xds::client::{ClientOptions, Connector, Handler, Interest, Nack, Token, Update};
use carrick_xds::node::text;
use carrick_xds::{Any, Node, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, SpiffeCertValidatorConfig, secret::Type};
use prost::Message as _;
use tracing::{debug, info, warn};

use crate::kept::Keeper as Kept;
use crate::names::DEFAULT_SECRET;
use crate::secrets::SecretStore;

/// What the control plane knows such a stream by.
const GENERATOR: &str = "carrick-trust";

/// Puts what was kept in force. What cannot be read is told in the log; it was read before it was kept.
pub fn restore(store: &Arc<SecretStore>, kept: &Kept) {
    for update in kept.updates() {
        let _ = Keeper(Arc::clone(store), None).apply(update);
    }
}

/// Follows until drained; what is taken over is kept as well.
pub async fn follow(
    node: Node,
    connector: Connector,
    token: Token,
    store: Arc<SecretStore>,
    kept: Option<Arc<Kept>>,
    drain: Drain,
) {
    let mut secrets = store.subscribe();
    loop {
        let identity = {
            // Without a certificate the control plane would only refuse.
            let there = secrets.wait_for(|s| s.identity(DEFAULT_SECRET).is_some());
            tokio::select! {
                () = drain.graceful() => return,
                found = there => match found {
                    Ok(found) => found.identity(DEFAULT_SECRET).cloned(),
                    Err(_) => return,
                },
            }
        };
        let Some(identity) = identity else { continue };
        let mut options = ClientOptions::new(connector.clone(), with(&node, &identity));
        options.token = Some(token.clone());
        let stream = carrick_xds::client::run(options, Keeper(Arc::clone(&store), kept.clone()), drain.clone());
        let renewed = secrets.wait_for(|s| s.identity(DEFAULT_SECRET).is_some_and(|i| i.serial != identity.serial));
        tokio::select! {
            _ = stream => return,
            _ = renewed => debug!("the quarantine is followed with the new certificate"),
        }
    }
}

/// The node, with the certificate it holds.
fn with(node: &Node, identity: &Identity) -> Node {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
    let mut node = node.clone();
    node.metadata.get_or_insert_default().fields.extend([
        ("GENERATOR".to_owned(), text(GENERATOR)),
        ("CARRICK_SERIAL".to_owned(), text(identity.serial.as_str())),
        ("CARRICK_NOT_BEFORE".to_owned(), text(seconds(identity.not_before))),
        ("CARRICK_NOT_AFTER".to_owned(), text(seconds(identity.not_after))),
    ]);
    node
}

struct Keeper(Arc<SecretStore>, Option<Arc<Kept>>);

impl Handler for Keeper {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        vec![(TypeUrl::Secret, Interest::Names(BTreeSet::from([RESOURCE.into(), LISTS.into(), FEDERATION.into()])))]
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        let copy = self.1.as_ref().map(|_| update.clone());
        let result = self.take(update);
        if let (Some(kept), Some(mut update), Ok(())) = (&self.1, copy, &result) {
            // A list that is not there any more stays in force, so it stays here too.
            update.removed.retain(|name| **name == *LISTS);
            kept.take(&update);
            kept.write();
        }
        result
    }
}

impl Keeper {
    fn take(&self, update: Update) -> Result<(), Nack> {
        let mut complaints = Vec::new();
        for resource in update.upserts {
            let taken = match &*resource.name {
                RESOURCE => quarantine(&resource.body).map(|list| {
                    info!(empty = list.is_empty(), version = &*resource.version, "quarantine");
                    self.0.set_quarantine(list);
                }),
                LISTS => lists(&resource.body).map(|lists| self.0.set_lists(lists)),
                FEDERATION => domains(&resource.body).map(|domains| self.0.set_domains(domains)),
                _ => Err("not asked for".to_owned()),
            };
            if let Err(reason) = taken {
                complaints.push(format!("{}: {reason}", resource.name));
            }
        }
        // Only the revocation lists may go: without its quarantine a control plane is one that knows of none.
        if update.removed.iter().any(|name| **name == *LISTS) {
            self.0.set_lists(TrustBundle::default());
        }
        if complaints.is_empty() {
            return Ok(());
        }
        let message = complaints.join("; ");
        warn!(message, "the quarantine is refused; the last good one stays");
        Err(Nack { message })
    }
}

fn secret(body: &Any) -> Result<Type, String> {
    let secret = Secret::decode(body.value.as_slice()).map_err(|_| "not a Secret".to_owned())?;
    secret.r#type.ok_or_else(|| "type: missing".to_owned())
}

fn inline(field: &str, source: Option<DataSource>) -> Result<Vec<u8>, String> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        _ => Err(format!("{field}: inline data expected")),
    }
}

fn quarantine(body: &Any) -> Result<Quarantine, String> {
    let Type::GenericSecret(secret) = secret(body)? else { return Err("generic_secret expected".to_owned()) };
    let bytes = inline("generic_secret.secret", secret.secret)?;
    let text = String::from_utf8(bytes).map_err(|_| "generic_secret.secret: not text".to_owned())?;
    Quarantine::parse(&text).map_err(|e| format!("generic_secret.secret: {e}"))
}

fn lists(body: &Any) -> Result<TrustBundle, String> {
    let Type::ValidationContext(context) = secret(body)? else { return Err("validation_context expected".to_owned()) };
    let leaves_only = context.only_verify_leaf_cert_crl;
    let bytes = inline("validation_context.crl", context.crl)?;
    let lists = TrustBundle::default().with_revocations(&bytes).map_err(|e| format!("validation_context.crl: {e}"))?;
    Ok(if leaves_only { lists.for_leaves_only() } else { lists })
}

/// Domains with roots are others; those without are our own, whose roots come otherwise.
fn domains(body: &Any) -> Result<Domains, String> {
    let Type::ValidationContext(context) = secret(body)? else { return Err("validation_context expected".to_owned()) };
    let config = context.custom_validator_config.and_then(|config| config.typed_config);
    let config = config.ok_or("validation_context.custom_validator_config: missing")?;
    let config = SpiffeCertValidatorConfig::decode(config.value.as_slice());
    let mut domains = Domains { own: BTreeSet::new(), others: BTreeMap::new() };
    for entry in config.map_err(|_| "custom_validator_config: not a SPIFFECertValidatorConfig")?.trust_domains {
        let fail = |reason: &dyn std::fmt::Display| format!("trust_domains {:?}: {reason}", entry.name);
        let domain = TrustDomain::new(&entry.name).map_err(|e| fail(&e))?;
        match entry.trust_bundle.clone() {
            None => {
                domains.own.insert(domain);
            }
            Some(source) => {
                let bytes = inline("trust_bundle", Some(source))?;
                domains.others.insert(domain, TrustBundle::from_pem_with_lists(&bytes).map_err(|e| fail(&e))?);
            }
        }
    }
    Ok(domains)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_xds::Resource;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{CertificateValidationContext, GenericSecret};

    fn update(text: &str) -> Update {
        let source = DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() };
        let generic = GenericSecret { secret: Some(source), ..GenericSecret::default() };
        let message = Secret { name: RESOURCE.to_owned(), r#type: Some(Type::GenericSecret(generic)) };
        let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: message.encode_to_vec() };
        Update { type_url: TypeUrl::Secret, upserts: vec![Resource::new(RESOURCE, body)], removed: Vec::new() }
    }

    #[test]
    fn a_garbled_list_is_refused_and_a_missing_one_changes_nothing() {
        const EVIL: &str = "spiffe://cluster.local/ns/a/sa/evil";
        let store = SecretStore::new("/nonexistent".into());
        let mut keeper = Keeper(Arc::clone(&store), None);
        let on_it = || store.subscribe().borrow().quarantine.finds([EVIL], "1").is_some();
        keeper.apply(update(&format!("carrick-quarantine 1\nidentity {EVIL}\n"))).unwrap();
        assert!(on_it());
        let refused = keeper.apply(update("carrick-quarantine 1\nidentity nobody\n")).unwrap_err();
        assert!(refused.message.starts_with("carrick-quarantine: generic_secret.secret: line 2"), "{refused}");
        let gone = Update { type_url: TypeUrl::Secret, upserts: Vec::new(), removed: vec![RESOURCE.into()] };
        keeper.apply(gone).unwrap();
        assert!(on_it());
        keeper.apply(update("carrick-quarantine 1\n")).unwrap();
        assert!(!on_it());
    }

    #[test]
    fn a_machine_that_comes_back_alone_still_refuses() {
        const EVIL: &str = "spiffe://cluster.local/ns/a/sa/evil";
        let path = std::env::temp_dir().join(format!("carrick-bans-{}", std::process::id()));
        let kept = || Kept::quarantine(crate::identity::Folder::new(&path));
        let mut keeper = Keeper(SecretStore::new("/nonexistent".into()), Some(kept()));
        keeper.apply(update(&format!("carrick-quarantine 1\nidentity {EVIL}\n"))).unwrap();
        let gone = Update { type_url: TypeUrl::Secret, upserts: Vec::new(), removed: vec![RESOURCE.into()] };
        keeper.apply(gone).unwrap();
        let store = SecretStore::new("/nonexistent".into());
        restore(&store, &kept());
        assert!(store.subscribe().borrow().quarantine.finds([EVIL], "1").is_some());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn lists_of_the_authority_count_in_the_meshs_roots_and_go_with_it() {
        use carrick_pki::{Authority, CaOptions};
        let folder = std::env::temp_dir().join(format!("carrick-lists-{}", std::process::id()));
        let now = SystemTime::now();
        let authority = Authority::load_or_create(&folder, CaOptions::default(), now).unwrap();
        let store = SecretStore::new(folder.join("root-cert.pem"));
        let mut keeper = Keeper(Arc::clone(&store), None);
        let revocations = || store.subscribe().borrow().trust("ROOTCA").unwrap().revocations_pem();
        assert_eq!(revocations(), "");
        let pem = authority.revocation_list(&[("4a".to_owned(), now)], 1, now).unwrap().unwrap();
        let context = CertificateValidationContext {
            crl: Some(DataSource { specifier: Some(Specifier::InlineString(pem)), ..DataSource::default() }),
            ..CertificateValidationContext::default()
        };
        let message = Secret { name: LISTS.to_owned(), r#type: Some(Type::ValidationContext(context)) };
        let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: message.encode_to_vec() };
        let upserts = vec![Resource::new(LISTS, body)];
        keeper.apply(Update { type_url: TypeUrl::Secret, upserts, removed: Vec::new() }).unwrap();
        assert!(revocations().starts_with("-----BEGIN X509 CRL-----"));
        let gone = Update { type_url: TypeUrl::Secret, upserts: Vec::new(), removed: vec![LISTS.into()] };
        keeper.apply(gone).unwrap();
        assert_eq!(revocations(), "");
        let _ = std::fs::remove_dir_all(folder);
    }
}
