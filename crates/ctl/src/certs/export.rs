//! `carrick certs export`: one certificate as a bundle that a partner can use.
//!
//! Invariant: the file is its owner's alone from the first moment, and replaces another only on demand; a private key is in it only on
//! demand, and in a keystore only under a password that came from a file.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use carrick_api::{cert_manager::Certificate, timestamp::Timestamp};
use carrick_pki::{
    CertificateInfo, Identity,
    keystore::{self, Pkcs12Profile},
    pem,
};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};

/// What is exported, and how.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The Certificate's name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Form of the bundle.
    #[arg(long, value_enum, default_value = "pem")]
    format: Format,
    /// File with the keystore's password in its first line; needed for pkcs12 and jks.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Put the private key into the bundle.
    #[arg(long)]
    with_key: bool,
    /// The name of the entry in a keystore [default: the Certificate's name].
    #[arg(long, value_name = "ALIAS")]
    alias: Option<String>,
    /// Where the bundle goes; readable by its owner alone.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
}

/// Forms of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Certificate, intermediates and authority, one after the other.
    Pem,
    /// PKCS#12 (AES-256, SHA-256).
    Pkcs12,
    /// Java's keystore.
    Jks,
}

/// Writes the bundle.
///
/// # Errors
/// When there is no such certificate, a password is missing, or the file is there already.
pub async fn run(options: &Options, client: &Client) -> Result<()> {
    let password = password(options)?;
    ensure!(
        options.force || !options.output.exists(),
        "{} is there already; --force replaces it",
        options.output.display()
    );
    let parts = fetch(options, client).await?;
    let bytes = bundle(options, &parts, password.as_deref(), SystemTime::now())?;
    write(&options.output, &bytes, options.force)?;
    let info = CertificateInfo::read(parts.identity.chain.first().context("no certificate")?)?;
    let key = if options.with_key { "with its private key" } else { "without its private key" };
    let until = Timestamp::from_system(info.not_after);
    eprintln!("{}: serial {}, until {until}, {key}", options.output.display(), info.serial);
    Ok(())
}

/// What a certificate's Secret holds.
struct Parts {
    identity: Identity,
    authority: Option<Vec<u8>>,
}

async fn fetch(options: &Options, client: &Client) -> Result<Parts> {
    let (name, namespace) = (&options.name, &options.namespace);
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = api.get_opt(name).await.context("read the Certificate")?;
    let found = found.with_context(|| format!("there is no Certificate {name:?} in namespace {namespace:?}"))?;
    let certificate: Certificate = carrick_api::from_value(&serde_json::to_value(found)?)
        .map_err(|e| anyhow::anyhow!("Certificate {name:?}: {}", e.message))?;
    let ready = certificate.status.conditions.iter().find(|c| c.type_ == "Ready");
    let why = ready.filter(|c| c.status != "True").map(|c| format!(" ({}: {})", c.reason, c.message));
    let why = why.unwrap_or_default();
    let secret = &certificate.spec.secret_name;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get_opt(secret).await.context("read the Secret")?;
    let found = found.with_context(|| format!("Certificate {name:?} is not issued yet{why}"))?;
    let data = |key: &str| found.data.as_ref()?.get(key).map(|bytes| bytes.0.clone());
    let missing = |key: &str| format!("Secret {secret:?} of Certificate {name:?} has no {key} yet{why}");
    let chain = data("tls.crt").with_context(|| missing("tls.crt"))?;
    let key = data("tls.key").with_context(|| missing("tls.key"))?;
    let identity = Identity::from_pem(&chain, &key).with_context(|| format!("Secret {secret:?}"))?;
    Ok(Parts { identity, authority: data("ca.crt").filter(|bytes| !bytes.is_empty()) })
}

fn password(options: &Options) -> Result<Option<String>> {
    match (&options.password_file, options.format) {
        (None, Format::Pem) => Ok(None),
        (Some(_), Format::Pem) => bail!("--password-file is for pkcs12 and jks; a key in PEM is not encrypted"),
        (None, _) => bail!("a keystore needs a password: --password-file FILE"),
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let line = text.lines().next().unwrap_or_default().to_owned();
            ensure!(!line.is_empty(), "{}: the first line is empty", path.display());
            Ok(Some(line))
        }
    }
}

fn bundle(options: &Options, parts: &Parts, password: Option<&str>, now: SystemTime) -> Result<Vec<u8>> {
    let identity = &parts.identity;
    let authority = match &parts.authority {
        Some(text) => pem::certificates(text).context("ca.crt")?,
        None => Vec::new(),
    };
    let mut whole = identity.chain.clone();
    whole.extend(authority.into_iter().filter(|one| !identity.chain.contains(one)));
    let format = match options.format {
        Format::Pem => {
            let mut text = pem::encode_certificates(&whole);
            if options.with_key {
                text.push_str(&identity.key.to_pem());
            }
            return Ok(text.into_bytes());
        }
        Format::Pkcs12 => keystore::Format::Pkcs12(Pkcs12Profile::Modern2023),
        Format::Jks => keystore::Format::Jks,
    };
    let password = password.context("a keystore needs a password")?;
    let alias = options.alias.as_ref().unwrap_or(&options.name);
    Ok(match options.with_key {
        true => keystore::with_key(format, alias, &identity.key, &whole, password, now)?,
        false => keystore::trusted(format, alias, &whole, password, now)?,
    })
}

/// Writes it under another name first, so that the file is whole or not there.
fn write(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} is no file's name", path.display()))?;
    let new = path.with_file_name(format!(".{}.new-{}", name.to_string_lossy(), std::process::id()));
    let written = || -> Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .with_context(|| new.display().to_string())?;
        file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| new.display().to_string())?;
        if force {
            return std::fs::rename(&new, path).with_context(|| path.display().to_string());
        }
        // A link fails where something has come to be meanwhile; a rename would replace it.
        std::fs::hard_link(&new, path).with_context(|| path.display().to_string())?;
        std::fs::remove_file(&new).with_context(|| new.display().to_string())
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_pki::{KeyAlgorithm, PrivateKey, issue};

    fn options(format: Format, with_key: bool) -> Options {
        Options {
            name: "web".into(),
            namespace: "shop".into(),
            format,
            password_file: None,
            with_key,
            alias: None,
            output: "unused".into(),
            force: false,
        }
    }

    fn parts() -> Parts {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
        let profile = issue::Profile { common_name: "web".into(), is_ca: true, ..issue::Profile::default() };
        let now = SystemTime::now();
        let end = now + std::time::Duration::from_secs(3600);
        let chain = issue::self_signed(&key, &profile, now, end, None).expect("a certificate").chain;
        let identity = Identity::from_pem(chain.as_bytes(), key.to_pem().as_bytes()).expect("a pair");
        Parts { identity, authority: Some(chain.into_bytes()) }
    }

    #[test]
    fn a_key_is_in_it_on_demand_only() {
        let parts = parts();
        let text = |with_key| {
            let bytes = bundle(&options(Format::Pem, with_key), &parts, None, SystemTime::now()).expect("a bundle");
            String::from_utf8(bytes).expect("text")
        };
        assert!(!text(false).contains("PRIVATE KEY") && text(true).contains("PRIVATE KEY"));
        assert_eq!(text(false).matches("BEGIN CERTIFICATE").count(), 1, "a root that is its own leaf is there once");
        for format in [Format::Pkcs12, Format::Jks] {
            let sealed = |with_key| bundle(&options(format, with_key), &parts, Some("secret-word"), SystemTime::now());
            assert!(sealed(true).expect("a bundle").len() > 200);
            assert!(sealed(false).expect("a bundle").len() > 200);
            assert!(bundle(&options(format, true), &parts, None, SystemTime::now()).is_err());
        }
    }

    #[test]
    fn passwords_come_from_files() {
        assert!(password(&options(Format::Pkcs12, true)).unwrap_err().to_string().contains("--password-file"));
        assert_eq!(password(&options(Format::Pem, true)).expect("none"), None);
    }

    #[test]
    fn a_file_is_private_and_not_replaced_by_accident() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = std::env::temp_dir().join(format!("carrick-export-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let path = dir.join("bundle.pem");
        write(&path, b"one", false).expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert!(write(&path, b"two", false).is_err());
        assert_eq!(std::fs::read(&path).expect("there"), b"one");
        write(&path, b"three", true).expect("written");
        assert_eq!(std::fs::read(&path).expect("there"), b"three");
        assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 1, "nothing is left beside it");
        let _ = std::fs::remove_dir_all(&dir);
    }
}
