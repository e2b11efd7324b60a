//! The agent's file: which certificates, where to, whom to tell, and where they must be seen.
//!
//! Invariant: strict: an unknown field, a wrong type or a set that could not be replaced as a whole is an error that names the field; all
//! errors are told at once. A [`DeliveryConfig`] can be carried out as it is, but for what only the machine knows (accounts, folders).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::{duration, host_port};

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryConfig {
    /// Where metrics and readiness are; nowhere unless told.
    pub metrics: Option<SocketAddr>,
    /// Longest time between two times the control plane is asked, whatever it has pushed.
    pub ask_every: Duration,
    /// One for each consumer.
    pub certificates: Vec<Spec>,
}

/// One certificate for one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What it is called in logs, metrics and reports.
    pub name: String,
    /// The Secret, in the agent's namespace.
    pub secret: String,
    /// The folder of the set.
    pub directory: Option<PathBuf>,
    /// The files.
    pub files: Vec<FileSpec>,
    /// What is run when they have changed.
    pub reload: Option<Reload>,
    /// Where the certificate must be seen.
    pub proof: Option<Proof>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    /// What is in it.
    pub content: Content,
    /// Where it is.
    pub place: Place,
    /// Permissions.
    pub mode: u32,
    /// Owner; the agent's own user unless told.
    pub owner: Option<Account>,
    /// Group; the agent's own unless told.
    pub group: Option<Account>,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the folder, replaced together with the others there.
    InSet(String),
    /// Alone, replaced by a rename.
    Alone(PathBuf),
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The leaf.
    Certificate,
    /// The leaf and its intermediates.
    Chain,
    /// The private key.
    Key,
    /// The authority's certificates.
    Ca,
    /// Chain and key in one, as HAProxy reads them.
    Combined,
    /// The Secret's `keystore.p12`.
    Pkcs12,
    /// The Secret's `keystore.jks`.
    Jks,
    /// The Secret's `truststore.p12`.
    TrustPkcs12,
    /// The Secret's `truststore.jks`.
    TrustJks,
}

impl Content {
    const ALL: [(&'static str, Self); 9] = [
        ("certificate", Self::Certificate),
        ("chain", Self::Chain),
        ("key", Self::Key),
        ("ca", Self::Ca),
        ("combined", Self::Combined),
        ("pkcs12", Self::Pkcs12),
        ("jks", Self::Jks),
        ("truststore-pkcs12", Self::TrustPkcs12),
        ("truststore-jks", Self::TrustJks),
    ];

    /// Its word in the file.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, content)| *content == self).map_or("", |(word, _)| word)
    }

    /// Whether a private key is in it.
    pub fn is_private(self) -> bool {
        matches!(self, Self::Key | Self::Combined | Self::Pkcs12 | Self::Jks)
    }
}

/// What is run when files have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// It is ended after this long.
    pub timeout: Duration,
}

/// Where the certificate must be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// `host:port`.
    pub address: String,
    /// The name asked for (SNI).
    pub server_name: String,
    /// How TLS begins.
    pub start_tls: Option<StartTls>,
    /// How often it is looked at, and how long a consumer may take to serve the new one.
    pub period: Duration,
}

/// A protocol in which TLS is asked for first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// PostgreSQL's SSLRequest.
    Postgres,
}

const DEFAULT_ASK: Duration = Duration::from_secs(10 * 60);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_PERIOD: Duration = Duration::from_secs(60);
/// The shortest period and question interval.
const SHORTEST: Duration = Duration::from_secs(1);

/// Reads a file.
///
/// # Errors
/// Every mistake, with the file's name and the field.
pub fn load(path: &Path) -> Result<DeliveryConfig, Vec<String>> {
    let of = |error: String| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| vec![of(error.to_string())])?;
    parse(&text).map_err(|errors| errors.into_iter().map(of).collect())
}

/// Reads its text.
///
/// # Errors
/// Every mistake, with its field.
pub fn parse(text: &str) -> Result<DeliveryConfig, Vec<String>> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| vec![format!("not YAML: {e}")])?;
    let mut errors = Vec::new();
    let config = read(&value, &mut errors);
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(errors),
    }
}

/// A mapping with its path, of which every field must be known.
struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(path: &str, value: &'a Value, known: &[&str], errors: &mut Vec<String>) -> Option<Self> {
        let Some(map) = value.as_object() else {
            errors.push(format!("{path}: must be a mapping"));
            return None;
        };
        let of = Self { path: path.to_owned(), map };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            errors.push(format!("{}: unknown field; known are {}", of.at(key), known.join(", ")));
        }
        Some(of)
    }

    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(&self, key: &str, errors: &mut Vec<String>, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = match self.get(key)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => {
                errors.push(format!("{}: must be a text", self.at(key)));
                return None;
            }
        };
        match read(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                errors.push(format!("{}: {reason}", self.at(key)));
                None
            }
        }
    }

    fn must<T>(&self, key: &str, errors: &mut Vec<String>, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.get(key).is_none() {
            errors.push(format!("{}: missing", self.at(key)));
        }
        self.read(key, errors, read)
    }

    fn list(&self, key: &str, errors: &mut Vec<String>) -> Vec<&'a Value> {
        match self.get(key) {
            Some(Value::Array(items)) if !items.is_empty() => items.iter().collect(),
            Some(_) => {
                errors.push(format!("{}: must be a list that is not empty", self.at(key)));
                Vec::new()
            }
            None => {
                errors.push(format!("{}: missing", self.at(key)));
                Vec::new()
            }
        }
    }
}

fn read(value: &Value, errors: &mut Vec<String>) -> Option<DeliveryConfig> {
    let top = Fields::of("", value, &["metrics", "askEvery", "certificates"], errors)?;
    let metrics = top.read("metrics", errors, |t| t.parse().map_err(|_| format!("{t:?} is no address:port")));
    let ask_every = top.read("askEvery", errors, span).unwrap_or(DEFAULT_ASK);
    let mut certificates = Vec::new();
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, item) in top.list("certificates", errors).into_iter().enumerate() {
        let path = format!("certificates[{i}]");
        let Some(spec) = spec(&path, item, errors) else { continue };
        if !names.insert(spec.name.clone()) {
            errors.push(format!("{path}.name: {:?} is the name of another one too", spec.name));
        }
        for file in spec.files.iter().filter_map(|file| spec.path(file)) {
            if !paths.insert(file.clone()) {
                errors.push(format!("{path}: {} is written twice", file.display()));
            }
        }
        certificates.push(spec);
    }
    Some(DeliveryConfig { metrics, ask_every, certificates })
}

impl Spec {
    /// Where a file is, as its readers name it.
    pub fn path(&self, file: &FileSpec) -> Option<PathBuf> {
        match &file.place {
            Place::InSet(name) => Some(self.directory.as_ref()?.join(name)),
            Place::Alone(path) => Some(path.clone()),
        }
    }
}

fn spec(path: &str, value: &Value, errors: &mut Vec<String>) -> Option<Spec> {
    let known = ["name", "secret", "directory", "owner", "group", "files", "reload", "proof"];
    let of = Fields::of(path, value, &known, errors)?;
    let secret = of.must("secret", errors, kubernetes_name);
    let name = of.read("name", errors, kubernetes_name).or_else(|| secret.clone());
    let directory = of.read("directory", errors, absolute);
    let owner = of.read("owner", errors, account);
    let group = of.read("group", errors, account);
    let mut files = Vec::new();
    for (i, item) in of.list("files", errors).into_iter().enumerate() {
        let defaults = (directory.is_some(), owner.clone(), group.clone());
        files.extend(file(&format!("{path}.files[{i}]"), item, defaults, errors));
    }
    together(path, &files, errors);
    let reload = of.get("reload").and_then(|value| reload(&of.at("reload"), value, errors));
    let proof = of.get("proof").and_then(|value| proof(&of.at("proof"), value, errors));
    Some(Spec { name: name?, secret: secret?, directory, files, reload, proof })
}

/// Key and certificate in files of their own must change at the same moment, which only a folder can.
fn together(path: &str, files: &[FileSpec], errors: &mut Vec<String>) {
    let pair = |f: &&FileSpec| matches!(f.content, Content::Key | Content::Chain | Content::Certificate);
    let alone = |f: &&FileSpec| matches!(f.place, Place::Alone(_));
    let key = files.iter().any(|f| f.content == Content::Key);
    let chain = files.iter().any(|f| matches!(f.content, Content::Chain | Content::Certificate));
    if key && chain && files.iter().filter(pair).any(|f| alone(&f)) {
        errors.push(format!(
            "{path}.files: key and certificate must be replaced together: give a directory, and names in it instead of paths \
             (or content: combined)"
        ));
    }
}

fn file(
    path: &str,
    value: &Value,
    (in_folder, owner, group): (bool, Option<Account>, Option<Account>),
    errors: &mut Vec<String>,
) -> Option<FileSpec> {
    let of = Fields::of(path, value, &["content", "name", "path", "mode", "owner", "group"], errors)?;
    let content = of.must("content", errors, |text| {
        let known = Content::ALL.iter().find(|(word, _)| *word == text).map(|(_, content)| *content);
        let words = Content::ALL.map(|(word, _)| word).join(", ");
        known.ok_or_else(|| format!("{text:?} is none of {words}"))
    });
    let name = of.read("name", errors, file_name);
    let place = match (name, of.read("path", errors, absolute)) {
        (Some(_), Some(_)) => {
            errors.push(format!("{path}: name (in the directory) or path (alone), not both"));
            None
        }
        (Some(name), None) if in_folder => Some(Place::InSet(name)),
        (Some(_), None) => {
            errors.push(format!("{}: needs a directory beside files", of.at("name")));
            None
        }
        (None, Some(path)) => Some(Place::Alone(path)),
        (None, None) => {
            if of.get("name").is_none() && of.get("path").is_none() {
                errors.push(format!("{path}: needs a name in the directory, or a path"));
            }
            None
        }
    };
    let mode = of.read("mode", errors, mode);
    if let (Some(content), Some(mode)) = (content, mode)
        && content.is_private()
        && mode & 0o007 != 0
    {
        errors.push(format!("{}: {mode:04o} lets everybody at a private key", of.at("mode")));
    }
    let owner = of.read("owner", errors, account).or(owner);
    let group = of.read("group", errors, account).or(group);
    let content = content?;
    let mode = mode.unwrap_or(if content.is_private() { 0o600 } else { 0o644 });
    Some(FileSpec { content, place: place?, mode, owner, group })
}

fn reload(path: &str, value: &Value, errors: &mut Vec<String>) -> Option<Reload> {
    let of = Fields::of(path, value, &["command", "timeout"], errors)?;
    let mut command = Vec::new();
    for (i, item) in of.list("command", errors).into_iter().enumerate() {
        match item.as_str() {
            Some(text) if i > 0 || !text.is_empty() => command.push(text.to_owned()),
            _ => errors.push(format!("{path}.command[{i}]: must be a text")),
        }
    }
    let timeout = of.read("timeout", errors, span).unwrap_or(DEFAULT_TIMEOUT);
    (!command.is_empty()).then_some(Reload { command, timeout })
}

fn proof(path: &str, value: &Value, errors: &mut Vec<String>) -> Option<Proof> {
    let of = Fields::of(path, value, &["address", "serverName", "startTls", "period"], errors)?;
    let address = of.must("address", errors, host_port);
    let host =
        address.as_ref().and_then(|a| a.rsplit_once(':')).map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    let server_name = of.read("serverName", errors, server_name).or(host);
    let start_tls = of.read("startTls", errors, |text| match text {
        "postgres" => Ok(StartTls::Postgres),
        _ => Err(format!("{text:?} is not postgres")),
    });
    let period = of.read("period", errors, span).unwrap_or(DEFAULT_PERIOD);
    Some(Proof { address: address?, server_name: server_name?, start_tls, period })
}

fn server_name(text: &str) -> Result<String, String> {
    let name = rustls::pki_types::ServerName::try_from(text);
    name.map(|_| text.to_owned()).map_err(|_| format!("{text:?} cannot be a server's name"))
}

fn span(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    if span >= SHORTEST { Ok(span) } else { Err(format!("{text:?} is less than a second")) }
}

fn kubernetes_name(text: &str) -> Result<String, String> {
    crate::config::name(text)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    if path.is_absolute() && plain && path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        Err(format!("{text:?} is no absolute path"))
    }
}

fn file_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && !text.contains('/') && !text.starts_with("..") && text != ".";
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no file's name")) }
}

fn mode(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no mode like \"0640\"");
    let digits = text.strip_prefix("0o").unwrap_or(text);
    // YAML reads 0640 as a number in some versions; in quotes it is what it looks like.
    let mode = u32::from_str_radix(digits, 8).map_err(|_| wrong())?;
    if mode <= 0o777 && mode & 0o400 != 0 { Ok(mode) } else { Err(wrong()) }
}

fn account(text: &str) -> Result<Account, String> {
    if let Ok(id) = text.parse() {
        return Ok(Account::Id(id));
    }
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits { Ok(Account::Name(text.to_owned())) } else { Err(format!("{text:?} is no account")) }
}

#[cfg(test)]
mod tests;
