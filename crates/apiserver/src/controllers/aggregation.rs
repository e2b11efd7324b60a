//! Cluster roles made of others: `aggregationRule` says by which labels.
//!
//! Invariant: such a role holds exactly the rules of the roles that it selects, each once, whatever somebody wrote into it.

use serde_json::Value;
use tracing::{debug, warn};

use super::follow::Follower;
use crate::error::{ApiError, ApiResult};
use crate::rbac::aggregated;
use crate::store::{Intent, Store, WriteOptions, name_of};

const ROLES: &str = "clusterroles.rbac.authorization.k8s.io";

/// Runs until the store is closed.
pub async fn run(store: Store) {
    if let Err(error) = follow(&store).await {
        debug!(%error, "aggregation loop ended");
    }
}

async fn follow(store: &Store) -> ApiResult<()> {
    let mut roles = Follower::new(store, ROLES);
    loop {
        roles.next().await?;
        while roles.ready()?.is_some() {}
        let mut all = store.list(ROLES, None).items;
        all.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        for role in &all {
            let Some(rules) = aggregated(role, &all) else { continue };
            if role.get("rules") == Some(&rules) {
                continue;
            }
            match write(store, name_of(role), rules).await {
                Ok(()) | Err(ApiError::NotFound(_)) => {}
                Err(error @ ApiError::Unavailable(_)) => return Err(error),
                Err(error) => warn!(role = name_of(role), %error, "an aggregated role could not be written"),
            }
        }
    }
}

async fn write(store: &Store, name: &str, rules: Value) -> ApiResult<()> {
    let change = |old: Option<&Value>| {
        let Some(old) = old.filter(|old| old.get("aggregationRule").is_some()) else { return Ok(Intent::Keep) };
        let mut new = old.clone();
        if let Some(map) = new.as_object_mut() {
            map.insert("rules".into(), rules.clone());
        }
        Ok(Intent::Put(new))
    };
    store.modify(ROLES, "", name, WriteOptions::default(), change).await.map(drop)
}
