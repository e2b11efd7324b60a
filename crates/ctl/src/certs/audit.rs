//! `carrick certs audit`: does what was issued, what is held and what is served fit together?
//!
//! Invariant: reading only. The ledger is read from its files, from the first record to the last, whether a control plane
//! runs or not; each finding names the certificate and where it was seen. Errors make the exit code 1, warnings do not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use carrick_api::timestamp::Timestamp;
use carrick_ledger::{ScanError, scan};
use carrick_pki::CertificateInfo;
use clap::Args;
use serde_json::{Value, json};

use super::known::{self, Known, Row};
use super::{Place, dial};
use crate::output::{self, Format};
use crate::table::Table;

/// What is compared.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Also ask what is served: HOST:PORT, or NAME@HOST:PORT; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    dial: Vec<String>,
    /// The ledger's folder [default: DATA_DIR/ledger].
    #[arg(long, value_name = "DIR")]
    ledger: Option<PathBuf>,
    /// Only read the ledger's files.
    #[arg(long)]
    offline: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    debug_port: u16,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Error,
    Warning,
    Info,
}

impl Level {
    fn text(self) -> &'static str {
        match self {
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Info => "Info",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    serial: String,
    place: String,
    message: String,
}

fn finding(level: Level, serial: &str, place: &str, message: impl Into<String>) -> Finding {
    Finding { level, serial: serial.to_owned(), place: place.to_owned(), message: message.into() }
}

/// A signature takes no longer; an intent that is older was forgotten by its process.
const SIGNING: Duration = Duration::from_secs(60);

pub(super) async fn run(options: &Options, place: &Place) -> Result<u8> {
    let now = SystemTime::now();
    let dir = options.ledger.clone().unwrap_or_else(|| crate::up::ledger_dir(&place.data_dir));
    let mut findings = vec![chain(&dir)];
    if !options.offline {
        let known = known::ask(place, options.debug_port).await;
        findings.extend(compare(&known, now));
        for place in &options.dial {
            match dial::served(place).await {
                Ok(info) => findings.push(served(&known, place, &info, now)),
                Err(error) => findings.push(finding(Level::Error, "", place, format!("{error:#}"))),
            }
        }
    }
    findings.sort_by(|a, b| (a.level, &a.place, &a.serial).cmp(&(b.level, &b.place, &b.serial)));
    print!("{}", shown(&findings, options.output)?);
    Ok(u8::from(findings.iter().any(|f| f.level == Level::Error)))
}

/// The ledger by itself.
fn chain(dir: &Path) -> Finding {
    let place = dir.display().to_string();
    let (mut issued, mut first, mut last) = (0_u64, None, None);
    let read = scan(dir, |record| {
        first.get_or_insert(record.time);
        last = Some(record.time);
        if matches!(record.entry, carrick_ledger::Entry::Issued { .. }) {
            issued = issued.saturating_add(1);
        }
    });
    match read {
        Ok(scan) => {
            let day = |t: Option<u64>| {
                let seconds = t.and_then(|t| i64::try_from(t).ok()).unwrap_or_default();
                Timestamp::from_seconds(seconds).to_string()
            };
            let mut text = format!("{} records hold together, {issued} certificates", scan.records);
            if scan.records > 0 {
                text += &format!(" from {} to {}, head {}", day(first), day(last), scan.head);
            }
            if scan.begins_at > 1 {
                text += &format!("; it begins at record {}: older segments were put away", scan.begins_at);
            }
            match scan.torn {
                None => finding(Level::Info, "", &place, text),
                Some(torn) => {
                    let text = format!("{text}; {} bytes of a last record are incomplete", torn.bytes);
                    finding(Level::Warning, "", &place, text)
                }
            }
        }
        Err(ScanError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            finding(Level::Warning, "", &place, "there is no ledger here")
        }
        Err(error) => finding(Level::Error, "", &place, error.to_string()),
    }
}

/// What is issued beside what is held.
fn compare(known: &Known, now: SystemTime) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        known.missing.iter().map(|what| finding(Level::Warning, "", "not asked", what.clone())).collect();
    let ledger = !known.ledger.is_null();
    for row in &known.rows {
        let names = row.names.join(", ");
        for holder in &row.held_by {
            let found = |level, message: &str| finding(level, &row.serial, holder, format!("{message}: {names}"));
            let proxy = !holder.starts_with("secret ");
            if let Some(entry) = &row.revoked {
                findings.push(found(Level::Warning, &format!("holds a certificate that is revoked ({entry})")));
            }
            if row.not_after <= now {
                findings.push(found(Level::Error, "holds a certificate that has ended"));
            } else if row.used(now) >= 90 {
                findings.push(found(Level::Warning, &format!("has used {}% of its life", row.used(now))));
            }
            if ledger && proxy && row.state.is_empty() {
                findings.push(found(Level::Error, "holds a certificate that is not in the ledger"));
            }
        }
        let age = now.duration_since(row.signed).unwrap_or_default();
        if row.state == "intended" && age > SIGNING {
            let message = format!("was to be signed and has no end: {names}");
            findings.push(finding(Level::Error, &row.serial, "ledger", message));
        }
    }
    let page = &known.quarantine;
    for proxy in page["proxies"].as_array().into_iter().flatten() {
        let name = proxy["proxy"].as_str().unwrap_or_default();
        if proxy["generation"].as_u64() < page["generation"].as_u64() {
            findings.push(finding(Level::Warning, "", name, "does not have the newest quarantine"));
        }
    }
    if let Some(problem) = page["problem"].as_str() {
        findings.push(finding(Level::Error, "", "quarantine", problem));
    }
    findings
}

/// What is served beside what was issued.
fn served(known: &Known, place: &str, info: &CertificateInfo, now: SystemTime) -> Finding {
    let row: Option<&Row> = known.rows.iter().find(|row| row.serial == info.serial);
    let newer = row.and_then(|row| {
        let same = known.rows.iter().filter(|other| other.names == row.names && other.state != "intended");
        same.filter(|other| other.not_after > row.not_after).max_by_key(|other| other.not_after)
    });
    let found = |level, message: String| finding(level, &info.serial, place, message);
    if info.not_after <= now {
        return found(Level::Error, "serves a certificate that has ended".to_owned());
    }
    match (row, newer) {
        (Some(row), _) if row.revoked.is_some() => {
            found(Level::Error, "serves a certificate that is revoked".to_owned())
        }
        (Some(_), Some(newer)) => {
            found(Level::Error, format!("serves an old certificate: {} was issued for the same names", newer.serial))
        }
        (Some(row), None) if row.state.is_empty() => {
            found(Level::Info, format!("serves what {} holds, issued elsewhere", holders(row)))
        }
        (Some(row), None) => found(Level::Info, format!("serves the newest certificate for {}", row.names.join(", "))),
        (None, _) => found(Level::Warning, "serves a certificate that nobody here knows".to_owned()),
    }
}

fn holders(row: &Row) -> String {
    row.held_by.iter().cloned().collect::<Vec<_>>().join(", ")
}

fn shown(findings: &[Finding], format: Format) -> Result<String> {
    let json =
        |f: &Finding| json!({"level": f.level.text(), "serial": f.serial, "place": f.place, "message": f.message});
    if let Some(text) = output::machine(&Value::from_iter(findings.iter().map(json)), format)? {
        return Ok(text);
    }
    let mut table = Table::new(3, ["LEVEL", "PLACE", "SERIAL", "FINDING"]);
    for f in findings {
        let serial = if f.serial.is_empty() { "-" } else { &f.serial };
        table.row([f.level.text(), &f.place, serial, &f.message]);
    }
    let errors = findings.iter().filter(|f| f.level == Level::Error).count();
    let warnings = findings.iter().filter(|f| f.level == Level::Warning).count();
    Ok(format!("{table}{errors} errors, {warnings} warnings\n"))
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::known;
    use super::*;

    #[test]
    fn what_does_not_fit_is_found() {
        let known = known();
        let now = known.rows[0].not_after - Duration::from_secs(1);
        let findings = compare(&known, now);
        let of = |serial: &str| -> Vec<(Level, &str)> {
            findings.iter().filter(|f| f.serial == serial).map(|f| (f.level, f.place.as_str())).collect()
        };
        assert_eq!(of("42"), []);
        assert_eq!(of("99"), [(Level::Warning, "proxy odd.shop"), (Level::Error, "proxy odd.shop")]);
        let text = shown(&findings, Format::Short).unwrap();
        assert!(text.contains("holds a certificate that is not in the ledger: spiffe://td/ns/shop/sa/odd"), "{text}");
        assert!(text.ends_with("1 errors, 1 warnings\n"), "{text}");
    }

    #[test]
    fn a_broken_ledger_is_an_error_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(chain(&folder.path().join("none")).level, Level::Warning);
        std::fs::write(folder.path().join("ledger-00000001.log"), "junk\n").unwrap();
        let found = chain(folder.path());
        assert_eq!(found.level, Level::Error);
        assert!(found.message.contains("ledger-00000001.log: record 1 (line 1)"), "{}", found.message);
    }
}
