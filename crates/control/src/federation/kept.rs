//! The bundles that were read last, on disk, so that a restart while an endpoint is away changes nothing.
//!
//! Invariant: the file is whole or as before; one that cannot be read is as none, which is told. Bundles are public.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carrick_base::TrustDomain;
use carrick_pki::TrustBundle;
use carrick_pki::ca::texts;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::fetch::Fetched;

const FILE: &str = "federation.json";

/// A bundle of another trust domain.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    url: String,
    pub(super) roots: TrustBundle,
    pub(super) sequence: Option<u64>,
    pub(super) refresh: Option<Duration>,
    pub(super) fetched: SystemTime,
}

/// The same as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    url: String,
    pem: String,
    sequence: Option<u64>,
    refresh_seconds: Option<u64>,
    fetched: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    path: Option<PathBuf>,
    all: BTreeMap<TrustDomain, Bundle>,
}

impl Kept {
    pub(super) fn open(dir: Option<&Path>) -> Self {
        let path = dir.map(|dir| dir.join(FILE));
        let all = match path.as_ref().map(std::fs::read) {
            Some(Ok(text)) => read(&text).unwrap_or_else(|reason| {
                warn!(reason, "the bundles of other trust domains that were kept cannot be read");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        Self { path, all }
    }

    pub(super) fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.all.get(domain)
    }

    /// Forgets whoever is not wanted any more, by domain and URL.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&TrustDomain, &str) -> bool) {
        let before = self.all.len();
        self.all.retain(|domain, bundle| is_wanted(domain, &bundle.url));
        if self.all.len() != before {
            self.save();
        }
    }

    /// Takes a bundle that was read. Gives whether its roots are other ones.
    pub(super) fn take(&mut self, domain: &TrustDomain, url: &str, fetched: Fetched) -> Result<bool, String> {
        let known = self.all.get(domain);
        let before = known.and_then(|bundle| bundle.sequence);
        if let (Some(before), Some(now)) = (before, fetched.sequence)
            && now < before
        {
            return Err(format!("its bundle has the sequence number {now}, and {before} was there before"));
        }
        let changed = known.is_none_or(|bundle| bundle.roots != fetched.roots);
        let is_new = changed || before != fetched.sequence;
        let Fetched { roots, sequence, refresh } = fetched;
        let bundle = Bundle { url: url.to_owned(), roots, sequence, refresh, fetched: SystemTime::now() };
        self.all.insert(domain.clone(), bundle);
        if is_new {
            self.save();
        }
        Ok(changed)
    }

    fn save(&self) {
        let Some(path) = &self.path else { return };
        let written: BTreeMap<&str, Written> = self.all.iter().map(|(domain, b)| (domain.as_str(), write(b))).collect();
        let text = serde_json::to_vec_pretty(&written).unwrap_or_default();
        if let Err(error) = texts::write(path, &text) {
            error!(%error, "the bundles of other trust domains are not kept");
        }
    }
}

fn write(bundle: &Bundle) -> Written {
    Written {
        url: bundle.url.clone(),
        pem: bundle.roots.to_pem(),
        sequence: bundle.sequence,
        refresh_seconds: bundle.refresh.map(|refresh| refresh.as_secs()),
        fetched: bundle.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

fn read(text: &[u8]) -> Result<BTreeMap<TrustDomain, Bundle>, String> {
    let all: BTreeMap<String, Written> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let one = |(name, written): (String, Written)| {
        let domain = TrustDomain::new(&name).map_err(|e| e.to_string())?;
        let bundle = Bundle {
            url: written.url,
            roots: TrustBundle::from_pem(written.pem.as_bytes()).map_err(|e| e.to_string())?,
            sequence: written.sequence,
            refresh: written.refresh_seconds.map(Duration::from_secs),
            fetched: UNIX_EPOCH.checked_add(Duration::from_secs(written.fetched)).unwrap_or(UNIX_EPOCH),
        };
        Ok((domain, bundle))
    };
    all.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use carrick_pki::{CaOptions, SetTexts};

    use super::*;

    #[test]
    fn what_was_read_survives_and_nothing_older_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let domain = TrustDomain::new("partner").unwrap();
        let fetched = |name: &str, sequence| {
            let texts = SetTexts::self_signed(&CaOptions::default(), name, SystemTime::now()).unwrap();
            Fetched { roots: TrustBundle::from_pem(&texts.cert.bytes).unwrap(), sequence, refresh: None }
        };
        let mut kept = Kept::open(Some(folder.path()));
        let first = fetched("one", Some(7));
        assert_eq!(kept.take(&domain, "https://a", first.clone()), Ok(true));
        assert_eq!(kept.take(&domain, "https://a", first.clone()), Ok(false));
        let told = kept.take(&domain, "https://a", fetched("older", Some(6))).unwrap_err();
        assert!(told.contains("sequence number 6"), "{told}");
        let mut again = Kept::open(Some(folder.path()));
        assert_eq!(again.get(&domain).unwrap().roots, first.roots);
        assert_eq!(again.get(&domain).unwrap().sequence, Some(7));
        again.retain(|_, url| url == "https://b");
        assert!(Kept::open(Some(folder.path())).get(&domain).is_none());
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Kept::open(Some(folder.path())).get(&domain).is_none());
    }
}
