//! `carrick vm token`: made for one WorkloadGroup, listed without secrets, revoked.
//!
//! Invariant: what is stored is a digest; the token itself goes to standard output once, and nothing else does.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use carrick_control::machines::{TokenRecord, TokenStore};
use carrick_pki::join::{Invitation, JoinToken, fingerprint};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};

use super::Around;
use crate::{output::Format, table::Table};

/// The ConfigMap that holds the mesh's roots in every namespace.
pub(super) const ROOTS: &str = "istio-ca-root-cert";

/// What can be done about tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token for one machine of a WorkloadGroup, and print it.
    Create(Create),
    /// List the tokens that are known.
    List(List),
    /// Revoke tokens by their names. What has joined by them stays.
    Revoke {
        /// Names, as `list` shows them.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// `token create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The WorkloadGroup.
    #[arg(long, value_name = "NAME")]
    group: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// How long the token may be used.
    #[arg(long, default_value = "1h", value_parser = crate::duration::parse, value_name = "DURATION")]
    ttl: Duration,
    /// Where the machine reaches the control plane; written into the token.
    #[arg(long, value_name = "HOST:15012")]
    server: Option<String>,
}

/// `token list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only those for groups of this namespace.
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
}

pub(super) async fn run(command: Command, around: &Around) -> Result<()> {
    let client = around.client().await?;
    let store = TokenStore::new(client.clone(), &around.root_namespace);
    match command {
        Command::Create(options) => {
            let account = account(&client, &options.namespace, &options.group).await?;
            let token = JoinToken::generate()?;
            let group = [options.namespace.as_str(), options.group.as_str(), account.as_str()];
            let record = TokenRecord::new(&token, group, SystemTime::now(), options.ttl);
            store.create(&token, &record).await.context("the token cannot be kept")?;
            let fingerprint = root_fingerprint(&client, &around.root_namespace).await?;
            eprintln!(
                "token {} for one machine of {}/{} (service account {account}), until {}",
                token.id(),
                options.namespace,
                options.group,
                record.expires
            );
            let invitation = Invitation { token, fingerprint: Some(fingerprint), server: options.server };
            println!("{}", *invitation.to_text());
        }
        Command::List(options) => {
            let kept = store.list(options.namespace.as_deref()).await?;
            let records: Vec<(String, TokenRecord)> = kept.into_iter().map(|kept| (kept.id, kept.record)).collect();
            print!("{}", show(&records, options.output, SystemTime::now())?);
        }
        Command::Revoke { names } => {
            for name in names {
                if !store.delete(&name).await? {
                    bail!("there is no token {name}");
                }
                println!("token {name} revoked");
            }
        }
    }
    Ok(())
}

/// The service account of a group.
async fn account(client: &kube::Client, namespace: &str, name: &str) -> Result<String> {
    let group = group(client, namespace, name).await?;
    let account = group.pointer("/spec/template/serviceAccount").and_then(Value::as_str).filter(|a| !a.is_empty());
    Ok(account.unwrap_or("default").to_owned())
}

/// A WorkloadGroup.
pub(crate) async fn group(client: &kube::Client, namespace: &str, name: &str) -> Result<Value> {
    let resource = ApiResource {
        group: "networking.istio.io".into(),
        version: "v1".into(),
        api_version: "networking.istio.io/v1".into(),
        kind: "WorkloadGroup".into(),
        plural: "workloadgroups".into(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = api.get_opt(name).await?;
    let found = found.with_context(|| format!("there is no WorkloadGroup {name} in namespace {namespace}"))?;
    Ok(serde_json::to_value(found)?)
}

/// The mesh's roots, PEM.
pub(crate) async fn roots(client: &kube::Client, root_namespace: &str) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), root_namespace);
    let found = maps.get_opt(ROOTS).await?.and_then(|map| map.data?.remove("root-cert.pem"));
    found
        .filter(|text| !text.is_empty())
        .with_context(|| format!("no ConfigMap {ROOTS} in {root_namespace}: is the control plane running?"))
}

async fn root_fingerprint(client: &kube::Client, root_namespace: &str) -> Result<String> {
    let roots = roots(client, root_namespace).await?;
    let roots = carrick_pki::pem::certificates(roots.as_bytes()).context(ROOTS)?;
    Ok(fingerprint(roots.first().context("the mesh has no root")?))
}

fn show(records: &[(String, TokenRecord)], format: Format, now: SystemTime) -> Result<String> {
    if format != Format::Short {
        let all: Vec<Value> = records
            .iter()
            .map(|(name, record)| {
                let mut value = json!(record);
                // A digest is of no use to people, and of some to others.
                if let Some(fields) = value.as_object_mut() {
                    fields.remove("digest");
                    fields.insert("name".into(), json!(name));
                    fields.insert("state".into(), json!(record.state(now)));
                }
                value
            })
            .collect();
        return match format {
            Format::Json => Ok(format!("{}\n", serde_json::to_string_pretty(&all)?)),
            _ => Ok(serde_saphyr::to_string(&all)?),
        };
    }
    let mut table = Table::new(5, ["NAME", "NAMESPACE", "GROUP", "SERVICE ACCOUNT", "STATE", "EXPIRES", "USED FROM"]);
    for (name, record) in records {
        let used = record.used.as_ref().map(|used| format!("{} at {}", used.from, used.at)).unwrap_or_default();
        let cells = [name, &record.namespace, &record.group, &record.service_account];
        let rest = [record.state(now), &record.expires, &used];
        table.row(cells.into_iter().map(String::as_str).chain(rest));
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_tells_no_secret() {
        let token = JoinToken::generate().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let record = TokenRecord::new(&token, ["gopay", "ledger", "ledger"], now, Duration::from_secs(60));
        let all = [(token.id().to_owned(), record)];
        let short = show(&all, Format::Short, now).unwrap();
        assert!(short.contains("unused") && short.contains(token.id()), "{short}");
        for format in [Format::Short, Format::Json, Format::Yaml] {
            let text = show(&all, format, now).unwrap();
            assert!(!text.contains(&token.digest()), "{text}");
        }
        assert!(show(&all, Format::Short, now + Duration::from_secs(60)).unwrap().contains("expired"));
    }
}
