//! Row 8, the partner's half: the partner changes its authority, and the gateway's Secret holds both for a while.
//!
//! Invariant: calls never pause while Secrets change, and every one of them must be answered; at the end the old authority's
//! certificates are refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{PARTNER, Pay};
use crate::demo::stage::{Want, secret};

/// Calls at the same time.
const CALLS: usize = 4;
/// How long each state is called in: Envoy's workers may lag behind what it acknowledged.
const STAY: Duration = Duration::from_millis(700);

impl Pay {
    pub(super) async fn partner_changes_its_authority(&self) -> Result<String> {
        let (old, new) = (self.read("ca.pem")?, self.read("other-ca.pem")?);
        let both = [old.clone(), new.clone()].concat();
        let (switched, ended, calls) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        let calling = async {
            while !ended.load(Ordering::Relaxed) {
                // The partner's certificate of the new authority is called `stranger` in the folder.
                let certificate = if switched.load(Ordering::Relaxed) { "stranger" } else { "client" };
                let answers = self.stage.together(PARTNER, &vec![self.call(certificate); CALLS]).await?;
                if let Some(failed) = answers.iter().find(|answer| answer.status != 200) {
                    anyhow::bail!("{certificate}: {failed}");
                }
                calls.fetch_add(CALLS as u64, Ordering::Relaxed);
            }
            Ok(())
        };
        let changing = async {
            tokio::time::sleep(STAY).await;
            self.trusts(&both).await?;
            tokio::time::sleep(STAY).await;
            switched.store(true, Ordering::Relaxed);
            tokio::time::sleep(STAY).await;
            self.trusts(&new).await?;
            tokio::time::sleep(STAY).await;
            ended.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let told = tokio::try_join!(calling, changing).context("while the partner changes its authority");
        if told.is_ok() {
            self.calls_in(PARTNER, "client", Want::NoAnswer).await.context("of the authority that is gone")?;
        }
        self.trusts(&old).await?;
        told?;
        let calls = calls.into_inner();
        ensure!(calls > 0, "no call was made");
        Ok(format!("{calls} calls of a partner that changes its authority, 0 failed"))
    }

    /// What the gateway verifies partners with.
    async fn trusts(&self, authorities: &[u8]) -> Result<()> {
        let data = [
            ("tls.crt", self.read("server.pem")?),
            ("tls.key", self.read("server-key.pem")?),
            ("ca.crt", authorities.to_vec()),
        ];
        self.stage.mesh.apply(&secret("istio-system", "gopay-api", "Opaque", &data)).await.map(|_| ())
    }
}
