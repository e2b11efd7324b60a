//! Plugged-in signing sets: a folder, or the Secret `cacerts` of the control plane's namespace (spec §19.6), looked at again
//! and again.
//!
//! Invariant: a set is judged only when it was found the same twice, so that one that is being written is left alone. What
//! cannot be used changes nothing and is told once, with its reason. Presence of the Secret wins over the folder.

use std::time::SystemTime;

use carrick_pki::ca::CaError;
use carrick_pki::{CaSet, SetTexts};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::slots::{Source, folder_source, of_source};
use super::tokens::Tokens;

/// The Secret's name.
const CACERTS: &str = "cacerts";

/// What was found.
pub(crate) struct Found {
    /// Where.
    pub(crate) source: String,
    /// Checked, or why it cannot be used.
    pub(crate) set: Result<(SetTexts, CaSet), String>,
}

/// See the module.
pub(crate) struct Plugged {
    folder: Option<Source>,
    tokens: Tokens,
    secrets: Option<(Api<Secret>, String)>,
    /// What was there at the last look, and whether it was judged.
    seen: Option<(Vec<u8>, bool)>,
}

impl Plugged {
    pub(crate) fn new(folder: Option<Source>, tokens: Tokens, client: Option<kube::Client>, namespace: &str) -> Self {
        let secrets = client.map(|client| (Api::namespaced(client, namespace), namespace.to_owned()));
        Self { folder, tokens, secrets, seen: None }
    }

    /// Looks; gives what is there when it is to be judged: found the same twice, and not judged yet.
    pub(crate) async fn look(&mut self, now: SystemTime) -> Option<Found> {
        let (source, texts) = self.read().await?;
        let texts = match texts {
            Ok(texts) => texts,
            Err(error) => {
                let text = error.to_string();
                return self.is_due(text.as_bytes()).then(|| Found { source, set: Err(text) });
            }
        };
        if !self.is_due(&texts.digest()) {
            return None;
        }
        let set = CaSet::open(&texts, &self.tokens, now).map_err(|e| e.to_string());
        Some(Found { source: of_source(source, &texts), set: set.map(|set| (texts, set)) })
    }

    /// Judges the same again at the next look.
    pub(crate) fn again(&mut self) {
        if let Some((_, judged)) = &mut self.seen {
            *judged = false;
        }
    }

    fn is_due(&mut self, digest: &[u8]) -> bool {
        match &mut self.seen {
            Some((seen, judged)) if seen == digest => !std::mem::replace(judged, true),
            _ => {
                self.seen = Some((digest.to_vec(), false));
                false
            }
        }
    }

    async fn read(&self) -> Option<(String, Result<SetTexts, CaError>)> {
        if let Some((secrets, namespace)) = &self.secrets
            && let Ok(Some(secret)) = secrets.get_opt(CACERTS).await
        {
            let place = format!("Secret {namespace}/{CACERTS}");
            let data = secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
            if let Some(texts) = SetTexts::of_secret(&place, &data).transpose() {
                return Some((place, texts));
            }
        }
        let folder = self.folder.as_ref()?;
        let texts = folder.read().transpose()?;
        Some((folder_source(&folder.folder), texts))
    }
}
