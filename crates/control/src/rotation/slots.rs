//! Signing sets on disk, and what is in force of them: `state.json`, and a folder for each set that did not come first.
//!
//! Invariant: a set is whole on disk before the state names it; the state is replaced in one step and is durable when a
//! call returns; keys are readable by their owner alone and are never removed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use carrick_certs::rotation::{Rotation, Trust};
use carrick_pki::ca::{CaError, texts};
use carrick_pki::{Authority, CaOptions, CaSet, SetTexts, TrustBundle};
use serde::{Deserialize, Serialize};

use super::population::Known;
use super::tokens::Tokens;

const STATE: &str = "state.json";
const KNOWN: &str = "proxies.json";
const SETS: &str = "sets";

/// Why sets cannot be opened or kept.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// A set is not usable, or a file cannot be written.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The state is not readable.
    #[error("{path}: {reason}")]
    State {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Where a set is kept and came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// Folder below that of the authority; empty for the first.
    path: String,
    /// Who made it, in words.
    pub(crate) source: String,
    /// It was made here, so another may be made here.
    pub(crate) own: bool,
}

/// How the last rotation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) back: bool,
    pub(crate) started: SystemTime,
    pub(crate) ended: SystemTime,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The set in force outside of a rotation.
    pub(crate) issuer: String,
    pub(crate) slots: BTreeMap<String, Slot>,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) last: Option<Ended>,
}

/// What is opened.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The authority's folder.
    pub dir: &'a Path,
    /// The folder of a plugged-in set (`cacerts`).
    pub plugged: Option<PathBuf>,
    /// The key of the plugged-in set's certificate, where it is in a token: a PKCS#11 URI.
    pub token: Option<String>,
    /// What authorities' tokens are reached by.
    pub tokens: Tokens,
    /// What the authority grants.
    pub options: CaOptions,
}

/// Where plugged-in sets come from, besides the Secret.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) folder: PathBuf,
    /// Where its key is, if it is in a token and the folder does not say so itself.
    pub(crate) token: Option<String>,
}

impl Source {
    /// What is in it; `None` when there is no set.
    pub(crate) fn read(&self) -> Result<Option<SetTexts>, CaError> {
        match &self.token {
            Some(uri) => SetTexts::read_with_token(&self.folder, uri),
            None => SetTexts::read(&self.folder),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Slots {
    dir: PathBuf,
    pub(crate) plugged: Option<Source>,
    pub(crate) tokens: Tokens,
    pub(crate) state: State,
    sets: BTreeMap<String, Arc<CaSet>>,
    options: CaOptions,
}

impl Slots {
    /// Opens the authority as it was left; at the first start with the plugged-in set, else with a self-signed one.
    ///
    /// # Errors
    /// A set that is in force cannot be used, or the state cannot be read.
    pub fn open(opening: Opening<'_>, now: SystemTime) -> Result<(Self, Authority), SlotsError> {
        let Opening { dir, plugged, token, tokens, options } = opening;
        texts::private_folder(dir)?;
        let mut slots = Self {
            dir: dir.to_owned(),
            plugged: plugged.map(|folder| Source { folder, token }),
            tokens,
            state: State { issuer: String::new(), slots: BTreeMap::new(), rotation: None, last: None },
            sets: BTreeMap::new(),
            options,
        };
        match slots.read(STATE)? {
            Some(state) => slots.state = state,
            None => slots.first(now)?,
        }
        let authority = slots.authority(now)?;
        Ok((slots, authority))
    }

    fn first(&mut self, now: SystemTime) -> Result<(), SlotsError> {
        let started_before = SetTexts::read(&self.dir)?.is_some();
        if let Some(source) = self.plugged.clone().filter(|_| !started_before) {
            let missing =
                || CaError::File { path: source.folder.display().to_string(), reason: "no ca-cert.pem in it".into() };
            let texts = source.read()?.ok_or_else(missing)?;
            let set = CaSet::open(&texts, &self.tokens, now)?;
            self.state.issuer = set.id().to_owned();
            self.keep(&texts, set, &of_source(folder_source(&source.folder), &texts), false)?;
        } else {
            let made = Authority::load_or_create(&self.dir, self.options.clone(), now)?.set();
            self.state.issuer = made.id().to_owned();
            // Whoever put files there before the first start plugged them in; a set made here is signed by itself.
            let own = made.path().is_empty();
            let source = if own { "self-signed".to_owned() } else { folder_source(&self.dir) };
            self.state.slots.insert(made.id().to_owned(), Slot { path: String::new(), source, own });
        }
        self.save()
    }

    /// The authority as the state has it.
    fn authority(&mut self, now: SystemTime) -> Result<Authority, SlotsError> {
        let signer = self.state.rotation.as_ref().map_or(self.state.issuer.clone(), |r| r.signer().to_owned());
        let set = self.set(&signer, now)?;
        let trust = self.trust(now)?;
        let authority = Authority::new(set, self.options.clone());
        authority.publish(trust, now)?;
        Ok(authority)
    }

    /// The roots that the state wants published.
    pub(crate) fn trust(&mut self, now: SystemTime) -> Result<TrustBundle, SlotsError> {
        let Some(rotation) = self.state.rotation.clone() else {
            return Ok(self.set(&self.state.issuer.clone(), now)?.roots().clone());
        };
        let (from, to) = (self.set(&rotation.from, now)?, self.set(&rotation.to, now)?);
        Ok(match rotation.trust() {
            Trust::From => from.roots().clone(),
            Trust::To => to.roots().clone(),
            Trust::Both => from.roots().union(to.roots()),
        })
    }

    /// A set that is kept here.
    pub(crate) fn set(&mut self, id: &str, now: SystemTime) -> Result<Arc<CaSet>, SlotsError> {
        if let Some(set) = self.sets.get(id) {
            return Ok(Arc::clone(set));
        }
        let set = Arc::new(CaSet::open(&self.texts(id)?, &self.tokens, now)?);
        if set.id() != id {
            let reason = format!("holds the signing set {}, and {id} is expected", set.id());
            return Err(SlotsError::State { path: self.folder(id).display().to_string(), reason });
        }
        self.sets.insert(id.to_owned(), Arc::clone(&set));
        Ok(set)
    }

    /// The sets that are kept and can still sign.
    pub(crate) fn all(&mut self, now: SystemTime) -> Vec<Arc<CaSet>> {
        let ids: Vec<String> = self.state.slots.keys().cloned().collect();
        let open = |id: &String| {
            let set = self.set(id, now);
            set.inspect_err(|error| tracing::debug!(id, %error, "a set of before")).ok()
        };
        ids.iter().filter_map(open).collect()
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.state.slots.get(id).map_or_else(|| self.dir.join(SETS).join(id), |slot| self.dir.join(&slot.path))
    }

    fn texts(&self, id: &str) -> Result<SetTexts, SlotsError> {
        let folder = self.folder(id);
        let missing = || SlotsError::State { path: folder.display().to_string(), reason: "no signing set".to_owned() };
        SetTexts::read(&folder)?.ok_or_else(missing)
    }

    /// Keeps a checked set; the state that names it is still to be saved.
    pub(crate) fn keep(&mut self, texts: &SetTexts, set: CaSet, source: &str, own: bool) -> Result<(), SlotsError> {
        let id = set.id().to_owned();
        if !self.state.slots.contains_key(&id) {
            let path = Path::new(SETS).join(&id);
            texts::private_folder(&self.dir.join(SETS))?;
            texts.write(&self.dir.join(&path))?;
            let path = path.display().to_string();
            self.state.slots.insert(id.clone(), Slot { path, source: source.to_owned(), own });
        }
        self.sets.insert(id, Arc::new(set));
        Ok(())
    }

    /// Keeps newer texts of a set that is kept already.
    pub(crate) fn replace(&mut self, texts: &SetTexts, set: CaSet) -> Result<Arc<CaSet>, SlotsError> {
        texts.write(&self.folder(set.id()))?;
        let set = Arc::new(set);
        self.sets.insert(set.id().to_owned(), Arc::clone(&set));
        Ok(set)
    }

    /// A new self-signed set, kept. Its root's name has a part of its own.
    pub(crate) fn make(&mut self, now: SystemTime) -> Result<String, SlotsError> {
        let days = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let texts = SetTexts::self_signed(&self.options, &format!("root {days}"), now)?;
        let set = CaSet::check(&texts, now)?;
        let id = set.id().to_owned();
        self.keep(&texts, set, "self-signed", true)?;
        Ok(id)
    }

    /// Makes the state durable.
    pub(crate) fn save(&self) -> Result<(), SlotsError> {
        self.write(STATE, &self.state)
    }

    /// The proxies that were known when somebody last wrote them down.
    pub(crate) fn known(&self) -> Vec<Known> {
        let known = self.read::<Vec<Known>>(KNOWN);
        known
            .inspect_err(|error| tracing::warn!(%error, "the proxies that were known"))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Writes down which proxies are known.
    pub(crate) fn save_known(&self, known: &[Known]) -> Result<(), SlotsError> {
        self.write(KNOWN, &known)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SlotsError> {
        let path = self.dir.join(name);
        let fail = |reason: String| SlotsError::State { path: path.display().to_string(), reason };
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| fail(e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(fail(e.to_string())),
        }
    }

    fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), SlotsError> {
        let path = self.dir.join(name);
        let fail = |reason: String| SlotsError::State { path: path.display().to_string(), reason };
        let text = serde_json::to_vec_pretty(value).map_err(|e| fail(e.to_string()))?;
        Ok(texts::write(&path, &text)?)
    }
}

/// Where a set came from, and where its key is if it is in a token.
pub(crate) fn of_source(source: String, texts: &SetTexts) -> String {
    match texts.token_uri() {
        Some(uri) => format!("{source}, key in {}", texts::without_pin(uri)),
        None => source,
    }
}

pub(crate) fn folder_source(folder: &Path) -> String {
    format!("folder {}", folder.display())
}
