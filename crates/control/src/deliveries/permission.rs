//! Whether a service account may get a Secret: asked of the API, as its role bindings have it (SubjectAccessReview).
//!
//! Invariant: only an answer of the API allows anything, and no answer is believed for longer than [`ALLOWED`].

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tracing::debug;

/// How long a yes is believed.
pub(super) const ALLOWED: Duration = Duration::from_secs(5);
/// How long a no is believed: who has just been allowed does not wait long.
const DENIED: Duration = Duration::from_secs(2);

/// What the API said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Allowed,
    Denied,
    /// It could not be asked.
    Unknown,
}

/// Answers of late, by namespace, service account and Secret.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    recent: BTreeMap<(String, String, String), (Answer, SystemTime)>,
    /// What was last said, to tell news.
    last: BTreeMap<(String, String, String), Answer>,
}

impl Permissions {
    /// Drops what is too old to be believed. A clock that went back makes everything old.
    pub(super) fn forget(&mut self, now: SystemTime) {
        self.recent.retain(|_, (answer, at)| {
            let believed = if *answer == Answer::Allowed { ALLOWED } else { DENIED };
            now.duration_since(*at).is_ok_and(|age| age < believed)
        });
    }

    /// The answer, and whether it is another than last time.
    pub(super) async fn ask(
        &mut self,
        client: &kube::Client,
        of: &(String, String, String),
        now: SystemTime,
    ) -> (Answer, bool) {
        if let Some((answer, _)) = self.recent.get(of) {
            return (*answer, false);
        }
        let answer = review(client, of).await;
        if answer != Answer::Unknown {
            self.recent.insert(of.clone(), (answer, now));
        }
        let news = self.last.insert(of.clone(), answer) != Some(answer);
        (answer, news)
    }
}

async fn review(client: &kube::Client, (namespace, account, secret): &(String, String, String)) -> Answer {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{account}")),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.clone()),
                verb: Some("get".to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("secrets".to_owned()),
                name: Some(secret.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    match tokio::time::timeout(super::LIMIT, api.create(&PostParams::default(), &review)).await {
        Ok(Ok(answer)) => match answer.status {
            Some(status) if status.allowed && status.denied != Some(true) => Answer::Allowed,
            Some(_) => Answer::Denied,
            None => Answer::Unknown,
        },
        Ok(Err(error)) => {
            debug!(%error, "access review");
            Answer::Unknown
        }
        Err(_) => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_believed_for_a_while() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let key = |name: &str| ("ns".to_owned(), "sa".to_owned(), name.to_owned());
        let fresh = || Permissions {
            recent: [(key("a"), (Answer::Allowed, start)), (key("d"), (Answer::Denied, start))].into(),
            ..Permissions::default()
        };
        let left = |after: i64| {
            let mut all = fresh();
            let now = if after < 0 {
                start - Duration::from_secs(after.unsigned_abs())
            } else {
                start + Duration::from_secs(after.unsigned_abs())
            };
            all.forget(now);
            all.recent.into_keys().map(|k| k.2).collect::<String>()
        };
        assert_eq!((left(0), left(3), left(5)), ("ad".into(), "a".into(), String::new()));
        assert_eq!(left(-1), "", "a clock that went back");
    }
}
