//! The signing set of the cluster, followed: another `cacerts` is taken over without a restart (spec §19.6).
//!
//! Invariant: at no moment is a leaf signed that the published roots do not cover, or are roots published that do not cover what the
//! set in force has signed. What cannot be taken over so changes nothing and is told with its reason. Every replica follows by itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carrick_pki::{Authority, CaSet};
use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::key;
use crate::metrics::ControlMetrics;
use crate::quarantine::Board;
use crate::roots::Published;

/// A moment to gather what comes together.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a set that was refused is judged again: what is in force may have changed, or the time may have come.
const AGAIN: Duration = Duration::from_secs(60);

/// Whose set it is, and who is told.
pub(crate) struct Reload {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) authority: Arc<Authority>,
    pub(crate) published: watch::Sender<Published>,
    pub(crate) quarantine: Arc<Board>,
    pub(crate) metrics: ControlMetrics,
}

impl Reload {
    /// Follows until drained.
    pub(crate) async fn run(self, drain: Drain) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let named = |name: &str| {
            watcher(secrets.clone(), watcher::Config::default().fields(&format!("metadata.name={name}"))).boxed()
        };
        let mut events = futures_util::stream::select(named(key::PLUGGED), named(key::OWN));
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let (mut due, mut refused) = (false, None::<String>);
        loop {
            let pause = if due { SETTLE } else { AGAIN };
            tokio::select! {
                () = drain.graceful() => return,
                event = events.next() => match event {
                    Some(Ok(watcher::Event::InitDone)) => backoff.reset(),
                    Some(Ok(watcher::Event::Init)) => {}
                    Some(Ok(_)) => due = true,
                    Some(Err(error)) => {
                        debug!(%error, "the authority's Secrets");
                        backoff.wait().await;
                    }
                    None => return,
                },
                () = tokio::time::sleep(pause), if due || refused.is_some() => {
                    due = false;
                    let outcome = self.look().await;
                    if let Err(reason) = &outcome
                        && refused.as_ref() != Some(reason)
                    {
                        error!(reason, "the signing set in the cluster is not taken over; the one in force stays");
                    }
                    refused = outcome.err();
                }
            }
        }
    }

    async fn look(&self) -> Result<(), String> {
        let found = key::found(&self.client, &self.namespace).await.map_err(|error| error.to_string())?;
        let Some((place, secret)) = found else {
            warn!("there is no signing set in the cluster any more; the one in force stays until the replicas end");
            return Ok(());
        };
        let set = key::set(&place, secret).map_err(|error| error.to_string())?;
        let id = set.id().to_owned();
        if !take(&self.authority, set, SystemTime::now())? {
            return Ok(());
        }
        info!(place, id, "another signing set, or other roots, are in force");
        let end = self.authority.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.root_expiry.set(i64::try_from(end).unwrap_or(i64::MAX));
        self.quarantine.refresh();
        self.published.send_modify(|published| {
            published.epoch = published.epoch.saturating_add(1);
            published.order.roots = self.authority.roots().to_pem();
        });
        Ok(())
    }
}

/// Takes a set over, with its roots; gives whether anything is other than before.
///
/// # Errors
/// What would not be trusted; nothing is changed then.
fn take(authority: &Authority, set: CaSet, now: SystemTime) -> Result<bool, String> {
    let before = authority.set();
    if before.id() == set.id() && before.crl() == set.crl() && authority.roots() == *set.roots() {
        return Ok(false);
    }
    let roots = set.roots().clone();
    set.prove(&authority.roots(), now).map_err(|_| {
        "it leads to no root that is published yet: put its root beside those in root-cert.pem of the set in force first".to_owned()
    })?;
    before.prove(&roots, now).map_err(|_| {
        "what the set in force has signed would not be trusted by its roots: keep the old root in root-cert.pem until then"
            .to_owned()
    })?;
    let words = |error: carrick_pki::ca::CaError| error.to_string();
    authority.switch(Arc::new(set), now).map_err(words)?;
    authority.publish(roots, now).map_err(words)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_pki::{CaOptions, SetTexts};

    fn texts(now: SystemTime) -> SetTexts {
        SetTexts::self_signed(&CaOptions::default(), "", now).expect("a set")
    }

    /// The set of `own` with the roots of `roots`.
    fn set(own: &SetTexts, roots: &[&SetTexts], now: SystemTime) -> CaSet {
        let pem: Vec<u8> = roots.iter().flat_map(|texts| texts.cert.bytes.iter().copied()).collect();
        let data =
            [("ca-cert.pem", own.cert.bytes.to_vec()), ("ca-key.pem", own.key.bytes.to_vec()), ("root-cert.pem", pem)];
        let data = data.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        let texts = SetTexts::of_secret("test", &data).expect("texts").expect("a set");
        CaSet::check(&texts, now).expect("checked")
    }

    #[test]
    fn a_root_takes_over_in_three_steps_and_in_no_less() {
        let now = SystemTime::now();
        let (old, new) = (texts(now), texts(now));
        let authority = Authority::new(set(&old, &[&old], now), CaOptions::default());
        let id = authority.set().id().to_owned();
        for step in [set(&new, &[&new], now), set(&new, &[&old, &new], now)] {
            let refused = take(&authority, step, now).unwrap_err();
            assert!(refused.contains("no root that is published"), "{refused}");
        }
        assert_eq!((authority.set().id(), authority.roots().roots().len()), (id.as_str(), 1), "nothing has changed");
        assert_eq!(take(&authority, set(&old, &[&old], now), now), Ok(false));

        assert_eq!(take(&authority, set(&old, &[&old, &new], now), now), Ok(true));
        assert_eq!(authority.roots().roots().len(), 2);
        let refused = take(&authority, set(&new, &[&new], now), now).unwrap_err();
        assert!(refused.contains("would not be trusted"), "{refused}");
        assert_eq!(take(&authority, set(&new, &[&old, &new], now), now), Ok(true));
        assert_eq!(take(&authority, set(&new, &[&new], now), now), Ok(true));
        assert_eq!(authority.roots(), *set(&new, &[&new], now).roots());
    }
}
