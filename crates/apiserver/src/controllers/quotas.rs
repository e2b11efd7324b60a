//! The statuses of ResourceQuotas: what is allowed, and what of it is used.
//!
//! Invariant: a status says what was stored a moment ago; nothing is refused by it (`quota::check` counts for itself). Without quotas
//! this costs nothing.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use super::follow::Follower;
use crate::error::{ApiError, ApiResult};
use crate::quota::{QUOTAS, Usage, hard, used};
use crate::store::{Intent, Store, WriteOptions, name_of, namespace_of};

/// How often what is stored is counted again, while it changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    if let Err(error) = follow(&store).await {
        debug!(%error, "quota loop ended");
    }
}

async fn follow(store: &Store) -> ApiResult<()> {
    let mut quotas = Follower::new(store, QUOTAS);
    let mut counted = 0;
    loop {
        if store.engine().count(QUOTAS) == 0 {
            quotas.next().await?;
        } else {
            tokio::select! {
                news = quotas.next() => drop(news?),
                () = store.clock().sleep(PAUSE) => {}
            }
        }
        while quotas.ready()?.is_some() {}
        let revision = store.revision();
        if revision == counted {
            continue;
        }
        counted = revision;
        for quota in &store.list(QUOTAS, None).items {
            match update(store, quota).await {
                Ok(()) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => {}
                Err(error @ ApiError::Unavailable(_)) => return Err(error),
                Err(error) => warn!(quota = name_of(quota), %error, "a quota's status could not be written"),
            }
        }
    }
}

fn shown(usage: &Usage) -> Map<String, Value> {
    usage.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect()
}

async fn update(store: &Store, quota: &Value) -> ApiResult<()> {
    let namespace = namespace_of(quota);
    let status = json!({"hard": shown(&hard(quota)), "used": shown(&used(store, quota, namespace))});
    if quota.get("status") == Some(&status) {
        return Ok(());
    }
    let change = |old: Option<&Value>| {
        let Some(old) = old else { return Err(ApiError::not_found(QUOTAS, name_of(quota))) };
        let mut new = old.clone();
        if let Some(map) = new.as_object_mut() {
            map.insert("status".into(), status.clone());
        }
        Ok(Intent::Put(new))
    };
    store.modify(QUOTAS, namespace, name_of(quota), WriteOptions::default(), change).await.map(drop)
}
