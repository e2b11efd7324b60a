//! What is known of certificates: the ledger's, by the control plane; those in Secrets, by the API; those of proxies.
//!
//! Invariant: a certificate is one row however many hold it; who holds it is told by the holders. Nothing secret is read:
//! of a Secret only its certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use carrick_api::timestamp::Timestamp;
use carrick_pki::{CertificateInfo, pem};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

use super::Place;
use crate::proxy_status::get;

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) serial: String,
    pub(super) names: Vec<String>,
    pub(super) not_before: SystemTime,
    /// When it was signed, which is later than `not_before`, since certificates are dated back; `not_before` where it is unknown.
    pub(super) signed: SystemTime,
    pub(super) not_after: SystemTime,
    /// Who asked for it; empty where the ledger does not have it.
    pub(super) asked_by: String,
    /// `issued`, `imported`, `intended`; empty where the ledger does not have it.
    pub(super) state: String,
    pub(super) held_by: BTreeSet<String>,
    /// Under which entry of the quarantine it falls.
    pub(super) revoked: Option<String>,
    /// A newer one for the same names was issued, and nobody is known to hold this one.
    pub(super) replaced: bool,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) rows: Vec<Row>,
    /// What the control plane says of its ledger.
    pub(super) ledger: Value,
    pub(super) quarantine: Value,
    /// What could not be asked.
    pub(super) missing: Vec<String>,
}

impl Row {
    /// Percent of its life.
    pub(super) fn used(&self, now: SystemTime) -> u64 {
        let seconds = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default().as_secs();
        let whole = seconds(self.signed, self.not_after).max(1);
        seconds(self.signed, now).saturating_mul(100) / whole
    }

    /// Whether somebody works with it as far as is known.
    pub(super) fn in_use(&self) -> bool {
        !self.replaced && self.state != "intended"
    }

    pub(super) fn status(&self, now: SystemTime) -> &'static str {
        match () {
            () if self.revoked.is_some() => "revoked",
            () if self.not_after <= now => "ended",
            () if self.state == "intended" => "intended",
            () if self.replaced => "replaced",
            () if self.state.is_empty() => "foreign",
            () => "valid",
        }
    }

    pub(super) fn json(&self, now: SystemTime) -> Value {
        let time = |time| Timestamp::from_system(time).to_string();
        json!({
            "serial": self.serial,
            "names": self.names,
            "notBefore": time(self.not_before),
            "notAfter": time(self.not_after),
            "usedPercent": self.used(now),
            "askedBy": self.asked_by,
            "heldBy": self.held_by,
            "status": self.status(now),
        })
    }
}

/// Asks everybody. Without a control plane, only Secrets are known.
pub(super) async fn ask(place: &Place, debug_port: u16) -> Known {
    let mut known = Known::default();
    match page(debug_port).await {
        Ok(page) => known.take_page(&page),
        Err(error) => known.missing.push(format!("the control plane: {error:#}")),
    }
    match secrets(place).await {
        Ok(held) => held.into_iter().for_each(|(holder, info)| known.hold(&holder, &info)),
        Err(error) => known.missing.push(format!("Secrets: {error:#}")),
    }
    known.compare();
    known
}

async fn page(debug_port: u16) -> Result<Value> {
    let (status, body) = get(debug_port, "/debug/certificates")
        .await
        .with_context(|| format!("nothing answers on 127.0.0.1:{debug_port} (is `carrick up` running?)"))?;
    ensure!(status == 200, "it answered with HTTP status {status}");
    serde_json::from_slice(&body).context("its answer is not JSON")
}

/// Leaves in Secrets, with who holds them.
async fn secrets(place: &Place) -> Result<Vec<(String, CertificateInfo)>> {
    let client = place.client.clone().context("no API is known")?;
    let all = Api::<Secret>::all(client).list(&ListParams::default()).await?;
    let mut found = Vec::new();
    for secret in all {
        let holder = format!("secret {}/{}", secret.namespace().unwrap_or_default(), secret.name_any());
        for key in ["tls.crt", "cert"] {
            let Some(text) = secret.data.as_ref().and_then(|data| data.get(key)) else { continue };
            let Ok(chain) = pem::certificates(&text.0) else { continue };
            found.extend(chain.first().and_then(|leaf| CertificateInfo::read(leaf).ok()).map(|i| (holder.clone(), i)));
        }
    }
    Ok(found)
}

impl Known {
    fn take_page(&mut self, page: &Value) {
        self.ledger = page["ledger"].clone();
        self.quarantine = page["quarantine"].clone();
        for one in page["certificates"].as_array().into_iter().flatten() {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            let names = one["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let mut names: Vec<String> = names.map(str::to_owned).collect();
            if names.is_empty() {
                names.push(text("subject"));
            }
            self.rows.push(Row {
                serial: text("serial"),
                names,
                not_before: time(&text("notBefore")),
                signed: time(&text("askedAt")).max(time(&text("notBefore"))),
                not_after: time(&text("notAfter")),
                asked_by: text("askedBy"),
                state: text("state"),
                held_by: BTreeSet::new(),
                revoked: None,
                replaced: false,
            });
        }
        for proxy in page["quarantine"]["proxies"].as_array().into_iter().flatten() {
            let text = |field: &str| proxy[field].as_str().unwrap_or_default().to_owned();
            let seconds = |field: &str| UNIX_EPOCH + Duration::from_secs(proxy[field].as_u64().unwrap_or_default());
            let kind = if proxy["gateway"] == true { "gateway" } else { "proxy" };
            if !text("serial").is_empty() {
                let (from, to) = (seconds("notBefore"), seconds("notAfter"));
                self.held(&text("serial"), format!("{kind} {}", text("proxy")), vec![text("identity")], from, to);
            }
        }
    }

    fn hold(&mut self, holder: &str, info: &CertificateInfo) {
        let names = info.uris.iter().chain(&info.dns).chain(&info.emails).cloned();
        let mut names: Vec<String> = names.chain(info.ips.iter().map(ToString::to_string)).collect();
        if names.is_empty() {
            names.push(info.subject.clone());
        }
        self.held(&info.serial, holder.to_owned(), names, info.not_before, info.not_after);
    }

    fn held(&mut self, serial: &str, holder: String, names: Vec<String>, from: SystemTime, to: SystemTime) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.serial == serial) {
            row.held_by.insert(holder);
            return;
        }
        self.rows.push(Row {
            serial: serial.to_owned(),
            names,
            not_before: from,
            signed: from,
            not_after: to,
            asked_by: String::new(),
            state: String::new(),
            held_by: BTreeSet::from([holder]),
            revoked: None,
            replaced: false,
        });
    }

    /// Puts the quarantine and newer certificates beside each.
    fn compare(&mut self) {
        let entries = self.quarantine["entries"].as_array().cloned().unwrap_or_default();
        let listed = |entry: &Value| entry["identity"].as_str().or(entry["serial"].as_str()).map(str::to_owned);
        let listed: BTreeSet<String> = entries.iter().filter_map(listed).collect();
        let mut newest: BTreeMap<Vec<String>, SystemTime> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.state != "intended") {
            let known = newest.entry(row.names.clone()).or_insert(row.not_after);
            *known = (*known).max(row.not_after);
        }
        for row in &mut self.rows {
            row.revoked = row.names.iter().chain([&row.serial]).find(|name| listed.contains(*name)).cloned();
            let newer = newest.get(&row.names).is_some_and(|newest| *newest > row.not_after);
            row.replaced = newer && row.held_by.is_empty();
        }
        self.rows.sort_by(|a, b| (a.not_after, &a.serial).cmp(&(b.not_after, &b.serial)));
    }
}

fn time(text: &str) -> SystemTime {
    let seconds = Timestamp::parse(text).and_then(|time| u64::try_from(time.seconds()).ok());
    UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A page with a proxy on its newest certificate, one on a foreign one, and an identity that is revoked.
    pub(in crate::certs) fn page() -> Value {
        let certificate = |serial: &str, name: &str, from: &str, to: &str, by: &str| {
            json!({"serial": serial, "subject": "", "names": [name], "notBefore": from, "notAfter": to,
                "askedBy": by, "state": "issued"})
        };
        let web = "spiffe://td/ns/shop/sa/web";
        let proxy = |proxy: &str, identity: &str, serial: &str| {
            json!({"proxy": proxy, "identity": identity, "serial": serial, "notBefore": 1_767_225_600_u64,
                "notAfter": 1_767_312_000_u64, "gateway": false, "engine": "native", "generation": 2})
        };
        json!({
            "ledger": {"records": 8},
            "certificates": [
                certificate("41", web, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", web),
                certificate("42", web, "2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z", web),
                certificate("43", "evil", "2026-01-01T12:00:00Z", "2026-01-02T12:00:00Z", "CertificateRequest a/b-1"),
            ],
            "quarantine": {
                "generation": 2,
                "entries": [{"serial": "43", "reason": "", "by": "", "since": ""}],
                "proxies": [proxy("web.shop", web, "42"), proxy("odd.shop", "spiffe://td/ns/shop/sa/odd", "99")],
            },
        })
    }

    pub(in crate::certs) fn known() -> Known {
        let mut known = Known::default();
        known.take_page(&page());
        known.compare();
        known
    }

    #[test]
    fn holders_and_issues_are_put_together() {
        let now = time("2026-01-02T00:00:00Z") - Duration::from_secs(1);
        let known = known();
        let told = |serial: &str| {
            let row = known.rows.iter().find(|row| row.serial == serial).unwrap();
            (row.status(now), row.used(now), row.held_by.iter().cloned().collect::<Vec<_>>())
        };
        assert_eq!(told("41"), ("replaced", 99, vec![]));
        assert_eq!(told("42"), ("valid", 49, vec!["proxy web.shop".to_owned()]));
        assert_eq!(told("43").0, "revoked");
        assert_eq!(told("99"), ("foreign", 99, vec!["proxy odd.shop".to_owned()]));
    }
}
