//! `carrick x workload …`: a WorkloadGroup as a manifest, and the files by which a machine joins, as `istioctl` writes them (spec §11.9).
//!
//! Invariant: nothing is changed in the cluster; the only secret that is written is the token that was asked for, for its owner alone.

mod files;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Service, ServiceAccount},
};
use kube::{Api, api::PostParams};
use serde_json::{Map, Value, json};

use crate::vm::{self, Around};

/// The audience of tokens for the certificate service.
const AUDIENCE: &str = "istio-ca";

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// WorkloadGroups.
    #[command(subcommand)]
    Group(Group),
    /// Files for machines.
    #[command(subcommand)]
    Entry(Entry),
}

/// About groups.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// Print a WorkloadGroup as YAML.
    Create(Create),
}

/// About entries.
#[derive(Debug, Subcommand)]
pub enum Entry {
    /// Write the files by which a machine of a WorkloadGroup joins: cluster.env, mesh.yaml, root-cert.pem, istio-token, hosts.
    Configure(Box<Configure>),
}

/// `group create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Its name.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Its namespace.
    #[arg(short, long, value_name = "NS")]
    namespace: String,
    /// Labels of its machines.
    #[arg(short, long, value_delimiter = ',', value_parser = crate::flags::key_value, value_name = "K=V")]
    labels: Vec<(String, String)>,
    /// Annotations of its machines.
    #[arg(short, long, value_delimiter = ',', value_parser = crate::flags::key_value, value_name = "K=V")]
    annotations: Vec<(String, String)>,
    /// Ports of its machines.
    #[arg(short, long, value_delimiter = ',', value_parser = port, value_name = "NAME=PORT")]
    ports: Vec<(String, u16)>,
    /// Their identity.
    #[arg(short, long = "serviceAccount", alias = "service-account", default_value = "default", value_name = "SA")]
    service_account: String,
    /// Their network.
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Where they stand: REGION/ZONE/SUBZONE.
    #[arg(long, value_name = "PLACE")]
    locality: Option<String>,
    /// Their share of traffic.
    #[arg(short, long, value_name = "WEIGHT")]
    weight: Option<u32>,
}

/// `entry configure`.
#[derive(Debug, Args)]
pub struct Configure {
    /// The WorkloadGroup as a file.
    #[arg(short, long, required_unless_present = "name", value_name = "FILE")]
    file: Option<PathBuf>,
    /// The WorkloadGroup's name in the cluster.
    #[arg(long, conflicts_with = "file", value_name = "NAME")]
    name: Option<String>,
    /// Its namespace.
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Folder for the files.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// What the cluster is called.
    #[arg(long = "clusterID", alias = "cluster-id", default_value = "Kubernetes", value_name = "ID")]
    cluster_id: String,
    /// Seconds that the token may be used.
    #[arg(long = "tokenDuration", alias = "token-duration", default_value_t = 3600, value_name = "SECONDS")]
    token_duration: i64,
    /// The Service by which machines reach the control plane.
    #[arg(
        long = "ingressService",
        alias = "ingress-service",
        default_value = "istio-eastwestgateway",
        value_name = "NAME"
    )]
    ingress_service: String,
    /// The address by which they do, instead of that Service's.
    #[arg(long = "ingressIP", alias = "ingress-ip", value_name = "IP")]
    ingress_ip: Option<IpAddr>,
    /// The machine's WorkloadEntry is made when it connects.
    #[arg(long)]
    autoregister: bool,
    /// Names of the mesh are resolved on the machine.
    #[arg(long = "capture-dns", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    capture_dns: bool,
    /// The machine's address within its network.
    #[arg(long = "internalIP", alias = "internal-ip", value_name = "IP")]
    internal_ip: Option<IpAddr>,
    /// The machine's address for others.
    #[arg(long = "externalIP", alias = "external-ip", value_name = "IP")]
    external_ip: Option<IpAddr>,
    /// Revision of the control plane.
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,
}

fn port(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{text:?} is not NAME=PORT");
    let (name, number) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), number.parse().map_err(|_| wrong())?))
}

/// Runs one of them; gives what is printed.
///
/// # Errors
/// Whatever it could not do.
pub async fn run(command: Command, around: &Around) -> Result<String> {
    match command {
        Command::Group(Group::Create(options)) => Ok(serde_saphyr::to_string(&options.group())?),
        Command::Entry(Entry::Configure(options)) => options.configure(around).await,
    }
}

impl Create {
    fn group(&self) -> Value {
        let texts = |all: &[(String, String)]| all.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>();
        let mut metadata = Map::new();
        for (key, all) in [("annotations", &self.annotations), ("labels", &self.labels)] {
            if !all.is_empty() {
                metadata.insert(key.into(), Value::Object(texts(all)));
            }
        }
        let mut template = Map::from_iter([("serviceAccount".to_owned(), json!(self.service_account))]);
        if !self.ports.is_empty() {
            let ports: BTreeMap<&str, u16> = self.ports.iter().map(|(name, port)| (name.as_str(), *port)).collect();
            template.insert("ports".into(), json!(ports));
        }
        for (key, value) in [("network", &self.network), ("locality", &self.locality)] {
            if let Some(value) = value {
                template.insert(key.into(), json!(value));
            }
        }
        if let Some(weight) = self.weight {
            template.insert("weight".into(), json!(weight));
        }
        let mut spec = Map::new();
        if !metadata.is_empty() {
            spec.insert("metadata".into(), Value::Object(metadata));
        }
        spec.insert("template".into(), Value::Object(template));
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadGroup",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        })
    }
}

impl Configure {
    async fn configure(&self, around: &Around) -> Result<String> {
        let client = around.client().await?;
        let group = self.group(&client).await?;
        let facts = files::Facts {
            mesh: mesh(&client, &around.root_namespace).await?,
            cluster: self.cluster_id.clone(),
            autoregister: self.autoregister,
            capture_dns: self.capture_dns,
            // Who is reached by another address than its own is told by the outer one.
            ip: self.external_ip.or(self.internal_ip),
            server: self.server_name(),
        };
        let written = files::of(&group, &facts)?;
        let roots = vm::roots(&client, &around.root_namespace).await?;
        let token = self.token(&client, &written.namespace, &written.service_account).await?;
        let ingress = self.ingress(&client, &around.root_namespace).await?;
        let hosts = ingress.as_ref().map(|ip| format!("{ip} {}\n", self.server_name())).unwrap_or_default();
        std::fs::create_dir_all(&self.output).with_context(|| self.output.display().to_string())?;
        for (name, text, mode) in [
            ("cluster.env", &written.cluster_env, 0o644),
            ("mesh.yaml", &written.mesh_yaml, 0o644),
            ("root-cert.pem", &roots, 0o644),
            ("istio-token", &token, 0o600),
            ("hosts", &hosts, 0o644),
        ] {
            write(&self.output.join(name), text, mode)?;
        }
        let mut told = String::new();
        if ingress.is_none() {
            told += &format!(
                "Warning: service {}.{} has no address: put one into {}, or give --ingressIP\n",
                self.ingress_service,
                around.root_namespace,
                self.output.join("hosts").display(),
            );
        }
        told += &format!("Configuration generation into directory {} was successful\n", self.output.display());
        Ok(told)
    }

    async fn group(&self, client: &kube::Client) -> Result<Value> {
        let Some(file) = &self.file else {
            let name = self.name.as_deref().unwrap_or_default();
            return vm::group(client, self.namespace.as_deref().unwrap_or("default"), name).await;
        };
        let objects = carrick_api::parse::objects(&std::fs::read(file).with_context(|| file.display().to_string())?);
        let objects = objects.map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        let mut groups = objects.into_iter().filter(|o| o["kind"] == "WorkloadGroup");
        let mut group = groups.next().with_context(|| format!("{} holds no WorkloadGroup", file.display()))?;
        ensure!(groups.next().is_none(), "{} holds several WorkloadGroups: one is needed", file.display());
        if let Some(namespace) = &self.namespace {
            group["metadata"]["namespace"] = json!(namespace);
        }
        Ok(group)
    }

    fn server_name(&self) -> String {
        match self.revision.as_deref().filter(|revision| !matches!(*revision, "" | "default")) {
            Some(revision) => format!("istiod-{revision}.istio-system.svc"),
            None => "istiod.istio-system.svc".to_owned(),
        }
    }

    async fn token(&self, client: &kube::Client, namespace: &str, account: &str) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let spec = TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(self.token_duration),
            ..Default::default()
        };
        let request = TokenRequest { spec, ..Default::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.with_context(|| format!("a token of service account {namespace}/{account}"))?;
        Ok(answer.status.context("the API gave no token")?.token)
    }

    /// The address by which machines reach the control plane.
    async fn ingress(&self, client: &kube::Client, root: &str) -> Result<Option<String>> {
        if let Some(ip) = self.ingress_ip {
            return Ok(Some(ip.to_string()));
        }
        let services: Api<Service> = Api::namespaced(client.clone(), root);
        let service = services.get_opt(&self.ingress_service).await?;
        let balancer = service.and_then(|service| service.status?.load_balancer?.ingress?.into_iter().next());
        Ok(balancer.and_then(|ingress| ingress.ip.or(ingress.hostname)))
    }
}

/// The mesh's configuration as it was written; empty where nobody wrote one.
async fn mesh(client: &kube::Client, root: &str) -> Result<Value> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), root);
    let text = maps.get_opt("istio").await?.and_then(|map| map.data?.remove("mesh"));
    match text {
        Some(text) => serde_saphyr::from_str(&text).context("the mesh configuration (ConfigMap istio)"),
        None => Ok(Value::Null),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let written = || {
        let _ = std::fs::remove_file(path);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        std::io::Write::write_all(&mut file, text.as_bytes())
    };
    written().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn a_group_as_a_manifest() {
        let line = "x group create --name ledger -n gopay -l app=ledger,tier=books -a team=pay -p http=8080,grpc=8082 -s books -w 2";
        let Command::Group(Group::Create(create)) = Typed::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("not a group");
        };
        let group = create.group();
        assert_eq!(
            group["spec"]["template"],
            json!({"ports": {"http": 8080, "grpc": 8082}, "serviceAccount": "books", "weight": 2})
        );
        assert_eq!(
            group["spec"]["metadata"],
            json!({"labels": {"app": "ledger", "tier": "books"}, "annotations": {"team": "pay"}})
        );
        let text = serde_saphyr::to_string(&group).unwrap();
        let again = carrick_api::parse::objects(text.as_bytes()).unwrap();
        assert_eq!(again.len(), 1);
        for line in ["x group create --name a", "x group create --name a -n b -p http", "x entry configure -o d"] {
            assert!(Typed::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
