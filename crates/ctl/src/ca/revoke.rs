//! `carrick ca revoke`: nobody talks with an identity, or with one certificate, any more; or does again.
//!
//! Invariant: the list is one object of the API, changed as a whole against the version that was read, so that two who
//! revoke at the same time lose neither. The answer tells which proxies have it in force, in their own words. A list that
//! cannot be read is not written over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use carrick_api::timestamp::Timestamp;
use carrick_ledger::Target;
use carrick_ledger::list::{self, Listed};
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::{Value, json};

use crate::output::{self, Format};
use crate::proxy_status::get;
use crate::table::Table;

/// What is revoked, and how it is told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The identity: spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    #[arg(long, value_name = "SPIFFE-ID", required_unless_present_any = ["serial", "list"])]
    pub identity: Option<String>,
    /// The serial number of one certificate, in hexadecimal.
    #[arg(long, value_name = "SERIAL", conflicts_with = "identity")]
    pub serial: Option<String>,
    /// Why, for whoever is refused and for the ledger.
    #[arg(long, default_value = "revoked by hand", value_name = "TEXT")]
    pub reason: String,
    /// Take it back.
    #[arg(long)]
    pub undo: bool,
    /// Only show who is revoked, and which proxies know.
    #[arg(long, conflicts_with_all = ["identity", "serial", "undo"])]
    pub list: bool,
    /// How long to wait until every proxy has it in force.
    #[arg(long, default_value = "10s", value_parser = crate::duration::parse, value_name = "DURATION")]
    pub wait: Duration,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
    /// Debug port of the control plane on this machine.
    #[arg(long, default_value_t = 15014, value_name = "PORT")]
    pub debug_port: u16,
}

/// How often two that write at the same time try again.
const TRIES: usize = 20;
/// How often the control plane is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);

/// Runs the command; 1 when some proxy did not confirm in time.
///
/// # Errors
/// The list cannot be read or written.
pub async fn run(options: &Options, client: kube::Client, root_namespace: &str) -> Result<u8> {
    if options.list {
        let page = page(options.debug_port).await?;
        print!("{}", shown(&page, options.output)?);
        return Ok(0);
    }
    let target = match (&options.identity, &options.serial) {
        (Some(identity), _) => Target::identity(identity)?,
        (None, Some(serial)) => Target::serial(serial)?,
        (None, None) => bail!("name an identity or a serial"),
    };
    let start = Instant::now();
    let maps: Api<ConfigMap> = Api::namespaced(client, root_namespace);
    let version = write(&maps, &target, options).await?;
    let (page, complete) = follow(options, version, start).await;
    let took = start.elapsed();
    let report = report(&target, options.undo, &page, complete, took);
    match output::machine(&report, options.output)? {
        Some(text) => print!("{text}"),
        None => print!("{}", told(&target, options.undo, &page, took)?),
    }
    Ok(u8::from(!complete))
}

/// Changes the list; the version of the object that holds it now.
async fn write(maps: &Api<ConfigMap>, target: &Target, options: &Options) -> Result<u64> {
    let name = list::CONFIG_MAP;
    for _ in 0..TRIES {
        let there = maps.get_opt(name).await.with_context(|| format!("ConfigMap {name}"))?;
        let mut all = match &there {
            Some(map) => {
                let text = map.data.as_ref().and_then(|data| data.get(list::KEY)).map_or("", String::as_str);
                list::read(text)
                    .map_err(|e| anyhow::anyhow!("the ConfigMap {name} cannot be read: {e}: mend it first"))?
            }
            // The control plane knows whom an object that was deleted had listed; leaving them out would free them.
            None => page(options.debug_port).await.map(|page| entries(&page)).unwrap_or_default(),
        };
        all.retain(|listed| listed.target != *target);
        if !options.undo {
            all.push(Listed {
                target: target.clone(),
                reason: options.reason.clone(),
                by: std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default(),
                since: Timestamp::from_system(SystemTime::now()).to_string(),
            });
        }
        let mut map = there.clone().unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        });
        map.data = Some(BTreeMap::from([(list::KEY.to_owned(), list::write(&all))]));
        let written = match there {
            Some(_) => maps.replace(name, &PostParams::default(), &map).await,
            None => maps.create(&PostParams::default(), &map).await,
        };
        match written {
            Ok(map) => return Ok(map.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or_default()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("ConfigMap {name}")),
        }
    }
    bail!("the ConfigMap {name} is changed by others all the time")
}

async fn page(debug_port: u16) -> Result<Value> {
    let (status, body) = get(debug_port, "/debug/quarantine")
        .await
        .with_context(|| format!("no control plane answers on 127.0.0.1:{debug_port} (is `carrick up` running?)"))?;
    anyhow::ensure!(status == 200, "the control plane answered with HTTP status {status}");
    serde_json::from_slice(&body).context("the control plane's answer is not JSON")
}

fn entries(page: &Value) -> Vec<Listed> {
    let entry = |entry: &Value| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str);
        let target = match text("identity") {
            Some(id) => Target::Identity(id.to_owned()),
            None => Target::Serial(text("serial")?.to_owned()),
        };
        let owned = |field: &str| text(field).unwrap_or_default().to_owned();
        Some(Listed { target, reason: owned("reason"), by: owned("by"), since: owned("since") })
    };
    page["entries"].as_array().into_iter().flatten().filter_map(entry).collect()
}

fn proxies(page: &Value) -> &[Value] {
    page["proxies"].as_array().map_or(&[], Vec::as_slice)
}

fn in_force(page: &Value, proxy: &Value) -> bool {
    proxy["generation"].as_u64() >= page["generation"].as_u64()
}

/// Asks until the control plane has read the object and every proxy has the list, or the time is up.
async fn follow(options: &Options, version: u64, start: Instant) -> (Value, bool) {
    let mut last = Value::Null;
    while start.elapsed() < options.wait {
        if let Ok(page) = page(options.debug_port).await {
            let seen = page["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
            let complete = seen >= version && proxies(&page).iter().all(|proxy| in_force(&page, proxy));
            last = page;
            if complete {
                return (last, true);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    (last, false)
}

fn report(target: &Target, undo: bool, page: &Value, complete: bool, took: Duration) -> Value {
    json!({
        "target": target.to_string(),
        "revoked": !undo,
        "complete": complete,
        "seconds": took.as_secs_f64(),
        "proxies": proxies(page).len(),
        "behind": proxies(page).iter().filter(|p| !in_force(page, p)).map(|p| p["proxy"].clone()).collect::<Vec<_>>(),
        "envoys": proxies(page).iter().filter(|p| p["engine"] == "envoy").count(),
        "problem": page["problem"],
    })
}

fn told(target: &Target, undo: bool, page: &Value, took: Duration) -> Result<String> {
    let mut text = match undo {
        false => format!("{target} is revoked: no new certificates, no new connections, and open ones are cut.\n"),
        true => format!("{target} is no longer revoked.\n"),
    };
    if page.is_null() {
        text += "No control plane answers on this machine; it takes the list over when it runs.\n";
        return Ok(text);
    }
    if let Some(problem) = page["problem"].as_str() {
        text += &format!("Problem: {problem}\n");
    }
    let envoys = proxies(page).iter().filter(|p| p["engine"] == "envoy").count();
    if envoys > 0 && !undo {
        text += &format!(
            "{envoys} of the proxies are Envoy, which cuts no open connection at once (docs/certificates.md tells what it does).\n"
        );
    }
    let behind: Vec<&str> =
        proxies(page).iter().filter(|p| !in_force(page, p)).filter_map(|p| p["proxy"].as_str()).collect();
    let all = proxies(page).len();
    let have = all.saturating_sub(behind.len());
    text += &format!("In force on {have} of {all} proxies after {} ms.\n", took.as_millis());
    if !behind.is_empty() {
        text += &format!("Not yet: {}\n", behind.join(", "));
    }
    Ok(text)
}

fn shown(page: &Value, format: Format) -> Result<String> {
    if let Some(text) = output::machine(page, format)? {
        return Ok(text);
    }
    let mut table = Table::new(3, ["REVOKED", "SINCE", "BY", "REASON"]);
    for listed in entries(page) {
        table.row([listed.target.to_string(), listed.since, listed.by, listed.reason]);
    }
    let mut text = table.to_string();
    let behind = proxies(page).iter().filter(|proxy| !in_force(page, proxy));
    let behind: Vec<&str> = behind.filter_map(|proxy| proxy["proxy"].as_str()).collect();
    text += &format!("{} proxies listen", proxies(page).len());
    text += &match behind.len() {
        0 => ", all have the newest list\n".to_owned(),
        _ => format!("; without the newest list: {}\n", behind.join(", ")),
    };
    if let Some(problem) = page["problem"].as_str() {
        text += &format!("Problem: {problem}\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(generations: [u64; 2]) -> Value {
        json!({
            "generation": 4, "resourceVersion": "9", "problem": null,
            "entries": [
                {"identity": "spiffe://td/ns/a/sa/b", "reason": "stolen", "by": "ann", "since": "2026-01-01T00:00:00Z"},
                {"serial": "4a", "reason": "", "by": "", "since": ""},
            ],
            "proxies": [
                {"proxy": "web.shop", "engine": "native", "generation": generations[0]},
                {"proxy": "db.shop", "engine": "envoy", "generation": generations[1]},
            ],
        })
    }

    #[test]
    fn what_is_told_names_who_is_behind() {
        let target = Target::Serial("4a".to_owned());
        let text = told(&target, false, &page_of([4, 3]), Duration::from_millis(41)).unwrap();
        assert!(text.contains("In force on 1 of 2 proxies after 41 ms.\nNot yet: db.shop\n"), "{text}");
        assert!(text.contains("1 of the proxies are Envoy"), "{text}");
        let report = report(&target, false, &page_of([4, 3]), false, Duration::from_millis(41));
        assert_eq!(report["behind"], json!(["db.shop"]));
        let text = shown(&page_of([4, 4]), Format::Short).unwrap();
        assert!(text.contains("spiffe://td/ns/a/sa/b   2026-01-01T00:00:00Z   ann   stolen"), "{text}");
        assert!(text.contains("2 proxies listen, all have the newest list"), "{text}");
    }

    #[test]
    fn whom_a_lost_object_had_listed_is_listed_again() {
        let targets: Vec<Target> = entries(&page_of([4, 4])).into_iter().map(|listed| listed.target).collect();
        assert_eq!(targets, [Target::identity("spiffe://td/ns/a/sa/b").unwrap(), Target::serial("4a").unwrap()]);
    }
}
