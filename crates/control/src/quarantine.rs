//! Who is quarantined: read from a ConfigMap, kept in the ledger, told to every proxy on a stream of its own.
//!
//! Invariant: an entry is in force (no new certificates) before it is told to proxies, and it stays in force until a list
//! that can be read leaves it out: a broken list, a missing one, and a restart change nothing. The stream waits for no
//! configuration, so that a large push does not hold a cut up. What a proxy does with the list is the proxy's.

mod envoy;
mod told;

use crate::objects::identify;
use crate::source::Change;
use carrick_api::EnvoyFilter;
use carrick_api::timestamp::Timestamp;
use carrick_base::SpiffeId;
use carrick_ledger::list::{self, Listed};
use carrick_ledger::{Ledger, Target};
use carrick_pki::ca::CaError;
use carrick_pki::quarantine::{self, Quarantine};
use carrick_pki::trust::{Domains, FEDERATION};
use carrick_pki::{Authority, CaSet};
use carrick_xds::{Resource, ResourceSet, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain as Entry;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;
use tracing::{error, info, warn};

use told::Listener;

pub(crate) use told::GENERATOR;

/// The type of the configuration of Envoy's validator of SPIFFE IDs.
const VALIDATOR: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// See the module.
pub(crate) struct Board {
    ledger: Option<Arc<Ledger>>,
    authority: Arc<Authority>,
    inner: Mutex<Inner>,
    /// What native proxies are sent.
    native: watch::Sender<ResourceSet>,
    /// What Envoys' agents are sent.
    envoy: watch::Sender<ResourceSet>,
    /// The same for our own port.
    refused: watch::Sender<Arc<Quarantine>>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<Target, Listed>,
    generation: u64,
    /// Version of the ConfigMap that was read last.
    seen: u64,
    problem: Option<String>,
    /// The authority's roots, and its plugged-in lists, when these were published.
    trust: String,
    /// There are other clusters, whose authorities sign below our roots.
    others: bool,
    /// Other trust domains; `None` until they are known.
    domains: Option<Domains>,
    listeners: BTreeMap<u64, Listener>,
    next: u64,
}

impl Board {
    /// With what the ledger has in force.
    pub(crate) fn new(ledger: Option<Arc<Ledger>>, authority: Arc<Authority>) -> Arc<Self> {
        let known = ledger.iter().flat_map(|ledger| ledger.revocations());
        let entries = known.map(|(target, reason, by, since)| {
            let since = Timestamp::from_system(since).to_string();
            (target.clone(), Listed { target, reason, by, since })
        });
        let inner = Inner { entries: entries.collect(), ..Inner::default() };
        let sets = || watch::channel(ResourceSet::default()).0;
        let board = Arc::new(Self {
            ledger,
            authority,
            inner: Mutex::new(inner),
            native: sets(),
            envoy: sets(),
            refused: watch::channel(Arc::default()).0,
        });
        board.publish(&mut board.lock());
        board
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who gets no connection, now and later.
    pub(crate) fn refused(&self) -> watch::Receiver<Arc<Quarantine>> {
        self.refused.subscribe()
    }

    /// Why an identity gets no certificate.
    pub(crate) fn refuses(&self, identity: &SpiffeId) -> Option<String> {
        let inner = self.lock();
        let entry = inner.entries.get(&Target::Identity(identity.to_string()))?;
        Some(format!("{identity} is quarantined: {}", entry.reason))
    }

    /// Takes a change of config maps over. Gives whether somebody came or went.
    pub(crate) fn take_maps(&self, root_namespace: &str, change: &Change) -> bool {
        let ours = |value: &&Value| {
            let ((namespace, name), _) = identify(value);
            namespace == root_namespace && name == list::CONFIG_MAP
        };
        let object = match change {
            Change::Apply(value) if ours(&value) => value,
            Change::Replace(all) => match all.iter().find(ours) {
                Some(value) => value,
                None => return false,
            },
            Change::Delete(value) if ours(&value) => {
                warn!("the ConfigMap {} is gone; whoever is quarantined stays so", list::CONFIG_MAP);
                return false;
            }
            Change::Apply(_) | Change::Delete(_) => return false,
        };
        let text = object.pointer("/data").and_then(|data| data.get(list::KEY)).and_then(Value::as_str);
        let mut inner = self.lock();
        inner.seen = identify(object).1;
        let read = text.ok_or_else(|| format!("there is no key {:?}", list::KEY)).and_then(list::read);
        match read {
            Ok(all) => self.take(&mut inner, all),
            Err(reason) => {
                warn!(reason, "the ConfigMap {} cannot be read; the last good list stays", list::CONFIG_MAP);
                inner.problem = Some(reason);
                false
            }
        }
    }

    fn take(&self, inner: &mut Inner, all: Vec<Listed>) -> bool {
        inner.problem = None;
        let wanted: BTreeMap<Target, Listed> = all.into_iter().map(|listed| (listed.target.clone(), listed)).collect();
        let mut changed = false;
        for (target, listed) in &wanted {
            changed |= !inner.entries.contains_key(target);
            if inner.entries.get(target) == Some(listed) {
                continue;
            }
            let kept = self.ledger.as_ref().map(|ledger| ledger.revoke(target, &listed.reason, &listed.by));
            if let Some(Err(problem)) = kept {
                // In force nevertheless, for as long as this process lives.
                error!(%problem, %target, "a revocation could not be written down");
                inner.problem = Some(format!("{target}: {problem}"));
            }
            info!(%target, reason = listed.reason, by = listed.by, "quarantined");
            inner.entries.insert(target.clone(), listed.clone());
        }
        let gone: Vec<Target> = inner.entries.keys().filter(|target| !wanted.contains_key(target)).cloned().collect();
        for target in gone {
            match self.ledger.as_ref().map(|ledger| ledger.restore(&target, list::CONFIG_MAP)) {
                Some(Err(problem)) => {
                    error!(%problem, %target, "the end of a quarantine could not be written down; it stays");
                    inner.problem = Some(format!("{target}: {problem}"));
                }
                _ => {
                    info!(%target, "no longer quarantined");
                    inner.entries.remove(&target);
                    changed = true;
                }
            }
        }
        if changed {
            self.publish(inner);
        }
        changed
    }

    /// Publishes again when the authority has other roots: a list of one root would have Envoys refuse what is signed under
    /// another.
    pub(crate) fn refresh(&self) {
        let mut inner = self.lock();
        if inner.trust != self.trust() {
            self.publish(&mut inner);
        }
    }

    /// Tells whether there are other clusters in the mesh.
    pub(crate) fn set_others(&self, others: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.others, others) != others {
            self.publish(&mut inner);
        }
    }

    /// Takes over which other trust domains there are.
    pub(crate) fn set_domains(&self, domains: Domains) {
        let mut inner = self.lock();
        if inner.domains.as_ref() != Some(&domains) {
            inner.domains = Some(domains);
            self.publish(&mut inner);
        }
    }

    fn trust(&self) -> String {
        let held = self.authority.held().join(" ");
        self.authority.roots().to_pem() + self.authority.set().crl().unwrap_or_default() + &held
    }

    fn publish(&self, inner: &mut Inner) {
        inner.trust = self.trust();
        inner.generation = inner.generation.saturating_add(1);
        let (mut identities, mut serials) = (Vec::new(), Vec::new());
        for target in inner.entries.keys() {
            match target {
                Target::Identity(id) => identities.push(id.clone()),
                Target::Serial(serial) => serials.push(serial.clone()),
            }
        }
        let lists = self.lists(inner);
        let list = Arc::new(Quarantine::new(identities, serials));
        let text = list.to_text();
        // Told in any case: lists that came with the authority may be others.
        self.refused.send_replace(list);
        let list = generic(quarantine::RESOURCE, text);
        let (generation, version) = (inner.generation, inner.generation.to_string());
        let set = |resources: Vec<Resource>| {
            let resources = resources.into_iter().map(|resource| (TypeUrl::Secret, resource));
            ResourceSet::from_resources(generation, version.as_str(), resources)
        };
        // What came with a plugged-in authority covers all of its signers, and is for every engine.
        let plugged = self.authority.set().crl().map(|pem| context(quarantine::LISTS, pem.to_owned(), false));
        let lists = plugged.clone().or(lists);
        let list = || std::iter::once(list.clone()).chain(inner.domains.as_ref().map(federation));
        self.native.send_replace(set(list().chain(plugged).collect()));
        self.envoy.send_replace(set(list().chain(lists).collect()));
    }

    /// Every living certificate that is revoked, by itself or by its identity.
    fn serials<'a>(&self, targets: impl IntoIterator<Item = &'a Target>) -> BTreeSet<String> {
        let of = |target: &Target| match (target, &self.ledger) {
            (Target::Serial(serial), _) => vec![serial.clone()],
            (Target::Identity(id), Some(ledger)) => ledger.serials_of(id),
            (Target::Identity(_), None) => Vec::new(),
        };
        targets.into_iter().flat_map(of).collect()
    }

    /// The authority's revocation list as it is now, PEM; `None` where it makes none of its own.
    ///
    /// # Errors
    /// The authority cannot sign it.
    pub(crate) fn list(&self) -> Result<Option<String>, CaError> {
        let (serials, number) = {
            let inner = self.lock();
            (self.serials(inner.entries.keys()), inner.generation)
        };
        self.sign(serials, number)
    }

    fn sign(&self, serials: BTreeSet<String>, number: u64) -> Result<Option<String>, CaError> {
        let now = SystemTime::now();
        let revoked: Vec<(String, SystemTime)> = serials.into_iter().map(|serial| (serial, now)).collect();
        self.authority.revocation_list(&revoked, number, now)
    }

    /// The revocation list for Envoys, which know no identities at that place.
    fn lists(&self, inner: &Inner) -> Option<Resource> {
        let serials = self.serials(inner.entries.keys());
        if serials.is_empty() {
            return None;
        }
        if !has_lists_found(&self.authority.set()) {
            warn!(
                "the signing certificate's subject key identifier is another than our lists have: Envoys are given none"
            );
            return None;
        }
        match self.sign(serials.clone(), inner.generation) {
            Ok(Some(pem)) => Some(context(quarantine::LISTS, pem, false)),
            Ok(None) => self.lists_of_leaves(serials, inner),
            Err(problem) => {
                error!(%problem, "revocation list");
                None
            }
        }
    }

    /// The same where the authority is no single root: of leaves alone, from every set that signed some.
    fn lists_of_leaves(&self, serials: BTreeSet<String>, inner: &Inner) -> Option<Resource> {
        let now = SystemTime::now();
        let revoked: Vec<(String, SystemTime)> = serials.into_iter().map(|serial| (serial, now)).collect();
        let of_mesh = |c: &carrick_ledger::Certificate| c.names.iter().any(|name| name.starts_with("spiffe://"));
        let living = self.ledger.iter().flat_map(|ledger| ledger.living());
        let issuers =
            living.filter(|c| c.state == carrick_ledger::State::Issued && of_mesh(c)).map(|c| c.issuer).collect();
        let lists = match inner.others {
            true => Ok(None),
            false => self.authority.revocation_lists(&revoked, &issuers, inner.generation, now),
        };
        match lists {
            Ok(Some(pem)) => Some(context(quarantine::LISTS, pem, true)),
            Ok(None) => {
                warn!("others sign below the mesh's roots too, so Envoys are given no revocation list");
                None
            }
            Err(problem) => {
                error!(%problem, "revocation lists");
                None
            }
        }
    }

    /// What keeps quarantined identities out where the proxy is Envoy.
    pub(crate) fn barrier(&self, root_namespace: &str) -> Option<Arc<EnvoyFilter>> {
        let inner = self.lock();
        let identities: Vec<&str> = inner
            .entries
            .keys()
            .filter_map(|target| match target {
                Target::Identity(id) => Some(id.as_str()),
                Target::Serial(_) => None,
            })
            .collect();
        envoy::barrier(root_namespace, &identities)
    }

    /// `/debug/quarantine`.
    pub(crate) fn page(&self) -> Value {
        let inner = self.lock();
        let entries: Vec<Value> = inner
            .entries
            .values()
            .map(|listed| {
                let (kind, value) = match &listed.target {
                    Target::Identity(id) => ("identity", id),
                    Target::Serial(serial) => ("serial", serial),
                };
                json!({kind: value, "reason": listed.reason, "by": listed.by, "since": listed.since})
            })
            .collect();
        json!({
            "resourceVersion": inner.seen.to_string(),
            "generation": inner.generation,
            "problem": inner.problem,
            "entries": entries,
            "proxies": inner.listeners.values().map(Listener::shown).collect::<Vec<_>>(),
        })
    }
}

/// Whether verifiers find a list of this set: OpenSSL and its kin look for one whose authority key identifier is the signer's subject key
/// identifier, and our lists have the digest of the key (RFC 7093) there, which others' certificates need not have.
pub(crate) fn has_lists_found(set: &CaSet) -> bool {
    let digest = set.key_id();
    let digits = digest.get(..40).unwrap_or_default().as_bytes().chunks(2);
    let id: Option<Vec<u8>> = digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    id.is_some_and(|id| set.signer().windows(id.len().max(1)).any(|part| part == id))
}

/// A text as a resource.
fn generic(name: &str, text: String) -> Resource {
    let source = DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() };
    let secret = tls::GenericSecret { secret: Some(source), ..tls::GenericSecret::default() };
    let message = tls::Secret { name: name.to_owned(), r#type: Some(tls::secret::Type::GenericSecret(secret)) };
    let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: message.encode_to_vec() };
    Resource::new(name, body)
}

/// The other trust domains as a resource: ours by name alone, since their roots go another way.
fn federation(domains: &Domains) -> Resource {
    let text = |text: String| DataSource { specifier: Some(Specifier::InlineString(text)), ..DataSource::default() };
    let entry = |name: String, trust_bundle| Entry { name, trust_bundle, ..Entry::default() };
    let own = domains.own.iter().map(|domain| entry(domain.to_string(), None));
    let others = domains.others.iter();
    let others = others.map(|(domain, bundle)| entry(domain.to_string(), Some(text(bundle.to_pem_with_lists()))));
    let config = tls::SpiffeCertValidatorConfig { trust_domains: own.chain(others).collect(), ..Default::default() };
    let typed = Any { type_url: VALIDATOR.to_owned(), value: config.encode_to_vec() };
    let extension =
        TypedExtensionConfig { name: "envoy.tls.cert_validator.spiffe".to_owned(), typed_config: Some(typed) };
    let context = tls::CertificateValidationContext { custom_validator_config: Some(extension), ..Default::default() };
    let r#type = Some(tls::secret::Type::ValidationContext(context));
    let message = tls::Secret { name: FEDERATION.to_owned(), r#type };
    let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: message.encode_to_vec() };
    Resource::new(FEDERATION, body)
}

/// Revocation lists as a resource.
fn context(name: &str, pem: String, only_verify_leaf_cert_crl: bool) -> Resource {
    let source = DataSource { specifier: Some(Specifier::InlineString(pem)), ..DataSource::default() };
    let context =
        tls::CertificateValidationContext { crl: Some(source), only_verify_leaf_cert_crl, ..Default::default() };
    let message = tls::Secret { name: name.to_owned(), r#type: Some(tls::secret::Type::ValidationContext(context)) };
    let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: message.encode_to_vec() };
    Resource::new(name, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "spiffe://cluster.local/ns/a/sa/evil";

    fn map(namespace: &str, text: &str) -> Change {
        Change::Apply(json!({
            "metadata": {"name": list::CONFIG_MAP, "namespace": namespace, "resourceVersion": "7"},
            "data": {list::KEY: text},
        }))
    }

    fn authority(folder: &std::path::Path) -> Arc<Authority> {
        let opened = Authority::load_or_create(&folder.join("ca"), Default::default(), SystemTime::now());
        Arc::new(opened.expect("an authority"))
    }

    fn evil() -> SpiffeId {
        EVIL.parse().expect("an identity")
    }

    #[test]
    fn only_a_list_that_can_be_read_lets_anybody_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let board = Board::new(None, authority(folder.path()));
        let text = format!(r#"[{{"identity": "{EVIL}", "reason": "stolen"}}]"#);
        assert!(!board.take_maps("istio-system", &map("elsewhere", &text)));
        assert!(board.take_maps("istio-system", &map("istio-system", &text)));
        assert!(!board.take_maps("istio-system", &map("istio-system", &text)), "nothing new");
        let generation = board.page()["generation"].clone();
        for broken in ["[", "{}", r#"[{"identity": "web"}]"#] {
            assert!(!board.take_maps("istio-system", &map("istio-system", broken)), "{broken}");
            assert!(board.refuses(&evil()).is_some_and(|why| why.ends_with("quarantined: stolen")), "{broken}");
            assert!(board.page()["problem"].is_string(), "{broken}");
        }
        let Change::Apply(object) = map("istio-system", &text) else { unreachable!() };
        assert!(!board.take_maps("istio-system", &Change::Delete(object)));
        assert!(!board.take_maps("istio-system", &Change::Replace(Vec::new())));
        assert!(board.refuses(&evil()).is_some());
        assert_eq!(board.page()["generation"], generation);
        assert!(board.take_maps("istio-system", &map("istio-system", "[]")));
        assert!(board.refuses(&evil()).is_none());
        assert!(board.page()["problem"].is_null());
    }

    #[test]
    fn a_restart_with_a_broken_list_keeps_everybody_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("ledger");
        let options = || carrick_ledger::LedgerOptions::new(carrick_runtime::clock::SystemClock::shared());
        let open = || Arc::new(Ledger::open(&ledger, options()).expect("opens"));
        let board = Board::new(Some(open()), authority(folder.path()));
        let text = format!(r#"[{{"identity": "{EVIL}", "reason": "stolen"}}, {{"serial": "4a"}}]"#);
        assert!(board.take_maps("istio-system", &map("istio-system", &text)));
        drop(board);
        let board = Board::new(Some(open()), authority(folder.path()));
        assert!(!board.take_maps("istio-system", &map("istio-system", "garbage")));
        assert!(board.refuses(&evil()).is_some());
        assert_eq!(board.page()["entries"].as_array().map(Vec::len), Some(2));
        assert!(board.barrier("istio-system").is_some());
        let (native, envoy) = (board.native.borrow().clone(), board.envoy.borrow().clone());
        assert!(native.get(&TypeUrl::Secret, quarantine::RESOURCE).is_some());
        assert!(native.get(&TypeUrl::Secret, quarantine::LISTS).is_none(), "serials are enough");
        assert!(envoy.get(&TypeUrl::Secret, quarantine::LISTS).is_some());
    }

    #[test]
    fn a_plugged_in_list_goes_to_every_engine() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemTime::now();
        let list = authority(folder.path()).revocation_list(&[("4a".to_owned(), now)], 1, now);
        let list = list.expect("signs").expect("one root");
        std::fs::write(folder.path().join("ca/ca-crl.pem"), &list).expect("written");
        let board = Board::new(None, authority(folder.path()));
        for sets in [&board.native, &board.envoy] {
            assert!(sets.borrow().get(&TypeUrl::Secret, quarantine::LISTS).is_some());
        }
        let generation = board.page()["generation"].clone();
        board.refresh();
        assert_eq!(board.page()["generation"], generation, "nothing is different");
    }
}
