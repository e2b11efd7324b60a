//! Keystores beside a certificate: which are wanted, with which password, and what is in them.
//!
//! Invariant: a keystore holds the same key and certificates as the rest of its secret; without its password it is not made,
//! and neither is anything else delivered. A password is in nothing but the keystore.

use std::collections::BTreeMap;
use std::time::SystemTime;

use carrick_api::cert_manager::{Keystore, Keystores};
use carrick_pki::keystore::{self, Format, Pkcs12Profile};
use carrick_pki::{PrivateKey, pem};

use crate::objects::{ObjectError, Objects};

/// Names in a secret: of the store with the key, and of the one with what is trusted.
const JKS: [&str; 2] = ["keystore.jks", "truststore.jks"];
const PKCS12: [&str; 2] = ["keystore.p12", "truststore.p12"];
/// What the entries are called unless a name is given.
const ALIAS: &str = "certificate";
const TRUSTED: &str = "ca";

/// One that is wanted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    format: Format,
    names: [&'static str; 2],
    alias: String,
    password: String,
}

/// Those that are wanted; else why one cannot be had.
pub(crate) async fn wanted(
    objects: &Objects,
    namespace: &str,
    spec: &Keystores,
) -> Result<Result<Vec<Wanted>, String>, ObjectError> {
    let mut list = Vec::new();
    for (field, store, names) in [("jks", &spec.jks, JKS), ("pkcs12", &spec.pkcs12, PKCS12)] {
        let Some(store) = store.as_ref().filter(|store| store.create) else { continue };
        let format = match field {
            "jks" => Format::Jks,
            _ => match Pkcs12Profile::by_name(&store.profile) {
                Some(profile) => Format::Pkcs12(profile),
                None => {
                    return Ok(Err(format!("spec.keystores.pkcs12.profile: {:?} is unknown", store.profile)));
                }
            },
        };
        let password = match password(objects, namespace, store).await? {
            Ok(password) => password,
            Err(why) => return Ok(Err(format!("spec.keystores.{field}: {why}"))),
        };
        let alias = if store.alias.is_empty() { ALIAS } else { &store.alias }.to_owned();
        list.push(Wanted { format, names, alias, password });
    }
    Ok(Ok(list))
}

async fn password(objects: &Objects, namespace: &str, store: &Keystore) -> Result<Result<String, String>, ObjectError> {
    let Some(reference) = &store.password_secret_ref else {
        return Ok(store.password.clone().ok_or_else(|| "there is no password".to_owned()));
    };
    let field = if reference.key.is_empty() { "password" } else { &reference.key };
    let secret = objects.secret(namespace, &reference.name).await?;
    let found = secret.and_then(|secret| secret.data?.remove(field));
    Ok(found
        .and_then(|bytes| String::from_utf8(bytes.0).ok())
        .ok_or_else(|| format!("the secret {namespace}/{} has no text {field:?}", reference.name)))
}

/// A mark of what the stores of a key and chain were made with; it tells nothing of the password to who lacks the key.
pub(crate) fn mark(wanted: &[Wanted], key: &PrivateKey, chain: &str, ca: &str) -> String {
    let mut parts = vec![chain.to_owned(), ca.to_owned()];
    for store in wanted {
        parts.extend([format!("{:?}", store.format), store.alias.clone(), store.password.clone()]);
    }
    keystore::mark(key, &parts)
}

/// The values of a secret.
pub(crate) fn made(
    wanted: &[Wanted],
    key: &PrivateKey,
    chain: &str,
    ca: &str,
    now: SystemTime,
) -> Result<BTreeMap<&'static str, Vec<u8>>, String> {
    let mut values = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(values);
    }
    let chain = pem::certificates(chain.as_bytes()).map_err(|e| e.to_string())?;
    let ca = pem::certificates(ca.as_bytes()).unwrap_or_default();
    for store in wanted {
        let [own, trusted] = store.names;
        let bytes = keystore::with_key(store.format, &store.alias, key, &chain, &store.password, now);
        values.insert(own, bytes.map_err(|e| e.to_string())?);
        if !ca.is_empty() {
            let bytes = keystore::trusted(store.format, TRUSTED, &ca, &store.password, now);
            values.insert(trusted, bytes.map_err(|e| e.to_string())?);
        }
    }
    Ok(values)
}

/// All names that a keystore may have in a secret.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    JKS.into_iter().chain(PKCS12)
}
