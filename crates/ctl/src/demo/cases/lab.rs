//! The mesh that all cases share: for each pair a client and a server in two versions, one pod outside, one partner.
//!
//! Invariant: what is started here stays as it is from the first case to the last; cases add and remove objects only.

use std::{
    collections::BTreeMap, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, str::FromStr, time::Duration,
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use carrick_pod::{Engine, options::GATEWAY_LABEL};
use serde_json::Value;

use super::file::Request;
use crate::demo::{
    certificates,
    curl::{Answer, Curl},
    mesh::{MESH_CONFIG, Mesh, PodSpec, serve_command},
};

/// The namespace of all pods of the lab.
const NAMESPACE: &str = "lab";
/// Names in the certificate of the partner.
const PARTNER_NAMES: [&str; 4] = ["partner.example.com", "partner", "partner.lab", "partner.lab.svc.cluster.local"];
/// How long Envoy may take from the acknowledgement to running it.
const WARM_LIMIT: Duration = Duration::from_secs(3);
/// Requests at once at most to use up connections.
const MOST_FLUSHED: usize = 24;

/// The data planes of client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    client: Engine,
    server: Engine,
}

impl Pair {
    /// Two letters.
    pub fn short(self) -> &'static str {
        match (self.client, self.server) {
            (Engine::Native, Engine::Native) => "nn",
            (Engine::Native, Engine::Envoy) => "ne",
            (Engine::Envoy, Engine::Native) => "en",
            (Engine::Envoy, Engine::Envoy) => "ee",
        }
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.client.as_str(), self.server.as_str())
    }
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (client, server) = text.split_once('-').ok_or_else(|| format!("{text:?}: want CLIENT-SERVER"))?;
        Ok(Self { client: client.parse()?, server: server.parse()? })
    }
}

/// What the placeholders of a case stand for.
#[derive(Debug, Clone)]
pub struct Names {
    /// The client's pod, service, app label and service account.
    pub client: String,
    /// The server's service, app label and service account; its pods are called after it.
    pub server: String,
    /// The gateway's pod and service, and the value of its `istio` label.
    pub gateway: String,
    /// The server whose packets keep their addresses: pod, service, app label and service account.
    pub transparent: String,
    /// The client's address.
    client_ip: String,
    /// The folder of certificates.
    certificates: String,
    /// The partner's address.
    partner: String,
}

impl Names {
    /// The names of a pair; folder and address are the lab's to add.
    pub fn of(pair: Pair) -> Self {
        let short = pair.short();
        Self {
            client: format!("client-{short}"),
            server: format!("server-{short}"),
            gateway: format!("gateway-{short}"),
            transparent: format!("transparent-{short}"),
            client_ip: "192.0.2.2".into(),
            certificates: "/certs".into(),
            partner: "192.0.2.1".into(),
        }
    }

    /// Names to read a case with before there is a lab.
    pub fn example() -> Self {
        Self::of(Pair { client: Engine::Native, server: Engine::Native })
    }

    /// The text with the names in place.
    pub fn put(&self, text: &str) -> String {
        let text = text
            .replace("$client_ip", &self.client_ip)
            .replace("$client", &self.client)
            .replace("$server", &self.server)
            .replace("$gateway", &self.gateway)
            .replace("$transparent", &self.transparent)
            .replace("$certs", &self.certificates)
            .replace("$partner_ip", &self.partner);
        self.put_files(&text)
    }

    /// What is made of a file of the certificates; see [`of_file`]. Without a lab there is no such file.
    fn put_files(&self, text: &str) -> String {
        let folder = Path::new(&self.certificates);
        let mut out = text.to_owned();
        for form in ["$pem(", "$base64(", "$spki(", "$hash("] {
            let whole = out;
            let mut parts = whole.split(form);
            out = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let (file, rest) = part.split_once(')').unwrap_or((part, ""));
                out += &of_file(form, &folder.join(file)).unwrap_or_default();
                out += rest;
            }
        }
        out
    }
}

/// `$pem(…` is a text for the inside of a quoted one, `$base64(…` the content as Secrets have it, `$spki(…` and `$hash(…` the pins of
/// the first certificate.
fn of_file(form: &str, path: &Path) -> Option<String> {
    let content = std::fs::read(path).ok()?;
    let first = || x509_parser::pem::parse_x509_pem(&content).ok().map(|(_, pem)| pem.contents);
    match form {
        "$pem(" => Some(String::from_utf8(content).ok()?.replace('\n', "\\n")),
        "$base64(" => Some(STANDARD.encode(content)),
        "$spki(" => {
            let certificate = rustls::pki_types::CertificateDer::from(first()?);
            Some(STANDARD.encode(carrick_pki::CertificateInfo::read(&certificate).ok()?.spki_sha256))
        }
        _ => {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &first()?);
            Some(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
        }
    }
}

/// The running lab.
pub struct Lab {
    mesh: Mesh,
    curls: BTreeMap<String, Curl>,
    envoys: Vec<String>,
    /// What was started when a case asked for it.
    asked: BTreeMap<String, Result<(), String>>,
    certificates: String,
    addresses: BTreeMap<String, Ipv4Addr>,
}

/// Settings of the mesh: a name it had before, and external authorizers that cases may name: the partner, which answers with the
/// status its path begins with.
const MESH_SETTINGS: &str = "\
trustDomainAliases: [old.example]
extensionProviders:
- name: consents
  envoyExtAuthzHttp:
    service: partner.lab.svc.cluster.local
    port: 8080
    timeout: 5s
    pathPrefix: /status/200
    includeRequestHeadersInCheck: [x-key]
    headersToUpstreamOnAllow: [content-type]
- {name: refuses, envoyExtAuthzHttp: {service: partner.lab.svc.cluster.local, port: 8080, timeout: 5s, pathPrefix: /status/401}}
- {name: silent, envoyExtAuthzHttp: {service: partner.lab.svc.cluster.local, port: 8080, timeout: 0.2s, pathPrefix: /delay/3000, statusOnError: \"503\"}}
- {name: silent-open, envoyExtAuthzHttp: {service: partner.lab.svc.cluster.local, port: 8080, timeout: 0.2s, pathPrefix: /delay/3000, failOpen: true}}
- {name: broken, envoyExtAuthzGrpc: {service: partner.lab.svc.cluster.local, port: 8080, timeout: 5s}}
- {name: broken-open, envoyExtAuthzGrpc: {service: partner.lab.svc.cluster.local, port: 8080, timeout: 5s, failOpen: true}}
";

/// Who may be told of requests: two files, and the partner as a collector of traces.
fn observers(logs: &Path) -> String {
    let logs = logs.display();
    format!(
        "\
- {{name: text-log, envoyFileAccessLog: {{path: {logs}/text}}}}
- name: json-log
  envoyFileAccessLog:
    path: {logs}/json
    logFormat: {{labels: {{code: \"%RESPONSE_CODE%\", path: \"%REQ(:PATH)%\", route: {{cluster: \"%UPSTREAM_CLUSTER%\"}}}}}}
- {{name: traces, opentelemetry: {{service: partner.lab.svc.cluster.local, port: 8080, http: {{path: /v1/traces, timeout: 2s}}}}}}
"
    )
}

impl Lab {
    /// Starts the mesh and the pods of these pairs.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start(dir: &Path, pairs: &[Pair]) -> Result<Self> {
        let certs = dir.join("certs");
        certificates::fill(&certs, &PARTNER_NAMES)?;
        let mesh_dir = dir.join("mesh");
        std::fs::create_dir_all(&mesh_dir)?;
        // Every sidecar writes its own access logs there.
        let logs = certs.join("logs");
        std::fs::create_dir_all(&logs)?;
        std::fs::set_permissions(&logs, std::fs::Permissions::from_mode(0o777))?;
        let authority = std::fs::read_to_string(certs.join("ca.pem"))?;
        let settings = format!("{MESH_SETTINGS}{}caCertificates: [{{pem: {authority:?}}}]\n", observers(&logs));
        std::fs::write(mesh_dir.join(MESH_CONFIG), settings)?;
        let mut mesh = Mesh::start(&mesh_dir).await?;
        mesh.apply(&objects(pairs)).await?;
        let mut pods = vec!["outside".to_owned(), "partner".to_owned()];
        let mut envoys = Vec::new();
        mesh.spawn(&outsider("outside", &[]))?;
        let partner = [
            "--tls-port",
            "8443",
            "--mutual-tls-port",
            "8444",
            "--proxied-port",
            "8445",
            "--certificates",
            &certs.display().to_string(),
        ];
        mesh.spawn(&outsider("partner", &partner))?;
        for pair in pairs {
            let names = Names::of(*pair);
            let mut start = |name: String, app: &str, engine: Engine, version: Option<&str>| -> Result<()> {
                mesh.spawn(&member(&name, app, engine, version))?;
                if engine == Engine::Envoy {
                    envoys.push(name.clone());
                }
                pods.push(name);
                Ok(())
            };
            start(names.client.clone(), &names.client, pair.client, None)?;
            for version in ["v1", "v2"] {
                start(format!("{}-{version}", names.server), &names.server, pair.server, Some(version))?;
            }
        }
        let mut lab = Self {
            mesh,
            curls: BTreeMap::new(),
            envoys,
            asked: BTreeMap::new(),
            certificates: certs.display().to_string(),
            addresses: BTreeMap::new(),
        };
        for pod in pods {
            let address = lab.mesh.ready(NAMESPACE, &pod).await?;
            lab.addresses.insert(pod.clone(), address);
            let curl = Curl::enter(&lab.mesh, NAMESPACE, &pod)?;
            lab.curls.insert(pod, curl);
        }
        lab.mesh.converged().await?;
        Ok(lab)
    }

    /// What the placeholders stand for.
    pub fn names(&self, pair: Pair) -> Names {
        let names = Names::of(pair);
        let address = |pod: &str| self.addresses.get(pod).map(ToString::to_string).unwrap_or_default();
        let (partner, client_ip) = (address("partner"), address(&names.client));
        Names { certificates: self.certificates.clone(), partner, client_ip, ..names }
    }

    /// Starts the pair's server whose packets keep their addresses if it does not run yet; it is tried once.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn transparent(&mut self, pair: Pair) -> Result<()> {
        let name = Names::of(pair).transparent;
        if let Some(before) = self.asked.get(&name) {
            return before.clone().map_err(anyhow::Error::msg);
        }
        let started = self.start_transparent(&name, pair.server).await;
        self.asked.insert(name, started.as_ref().copied().map_err(|error| format!("{error:#}")));
        started
    }

    async fn start_transparent(&mut self, name: &str, engine: Engine) -> Result<()> {
        self.mesh.apply(&service_objects(name, SERVER_PORTS)).await?;
        let mut pod = member(name, name, engine, None);
        pod.more.extend(["--annotation", "sidecar.istio.io/interceptionMode=TPROXY"].map(str::to_owned));
        self.mesh.spawn(&pod)?;
        self.mesh.ready(NAMESPACE, name).await?;
        let curl = Curl::enter(&self.mesh, NAMESPACE, name)?;
        self.curls.insert(name.to_owned(), curl);
        if engine == Engine::Envoy {
            self.envoys.push(name.to_owned());
        }
        self.mesh.converged().await
    }

    /// Starts the gateway of a pair if it does not run yet; it is tried once.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn gateway(&mut self, pair: Pair) -> Result<()> {
        let name = Names::of(pair).gateway;
        if let Some(before) = self.asked.get(&name) {
            return before.clone().map_err(anyhow::Error::msg);
        }
        let started = self.start_gateway(&name, pair.client).await;
        self.asked.insert(name, started.as_ref().copied().map_err(|error| format!("{error:#}")));
        started
    }

    async fn start_gateway(&mut self, name: &str, engine: Engine) -> Result<()> {
        self.mesh.apply(&gateway_objects(name)).await?;
        self.mesh.spawn(&PodSpec {
            namespace: NAMESPACE.into(),
            name: name.into(),
            app: name.into(),
            labels: vec![("istio".into(), name.into()), (GATEWAY_LABEL.into(), name.into())],
            ports: Vec::new(),
            engine,
            more: ["--gateway", "--service-account", name].map(str::to_owned).to_vec(),
            command: Vec::new(),
        })?;
        self.mesh.ready(NAMESPACE, name).await?;
        if engine == Engine::Envoy {
            self.envoys.push(name.to_owned());
        }
        Ok(())
    }

    /// Applies objects and waits until every proxy runs with them.
    ///
    /// # Errors
    /// When one is refused, or a proxy does not follow.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        if objects.is_empty() {
            return self.mesh.converged().await;
        }
        for object in objects {
            crate::apply::one(self.mesh.client(), object, NAMESPACE, false).await?;
            if object.get("status").is_some() {
                crate::apply::status(self.mesh.client(), object, NAMESPACE).await?;
            }
        }
        self.mesh.converged().await
    }

    /// Deletes objects; what is gone already is fine.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn delete(&self, objects: &[Value]) -> Result<()> {
        for object in objects.iter().rev() {
            crate::apply::delete(self.mesh.client(), object, NAMESPACE).await?;
        }
        Ok(())
    }

    /// The status of an object, null where it has none.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn status(&self, object: &Value) -> Result<Value> {
        let there = crate::apply::get(self.mesh.client(), object, NAMESPACE).await?;
        let mut there = there.with_context(|| format!("{object} is not there"))?;
        Ok(there["status"].take())
    }

    /// Waits until no Envoy has a listener or cluster that it acknowledged and is still warming.
    pub async fn settled(&self) {
        let start = std::time::Instant::now();
        for pod in &self.envoys {
            while self.warming(pod).await.unwrap_or(0) > 0 && start.elapsed() < WARM_LIMIT {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn warming(&self, pod: &str) -> Result<u64> {
        let path = "/stats?filter=(total_listeners_warming|warming_clusters)";
        let answer = carrick_pod::http_get_in_pod(self.mesh.data_dir(), NAMESPACE, pod, 15000, path).await?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok(text.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum())
    }

    /// Uses up pooled connections of before: what was drained ends with its next answer. An idle connection hears nothing of it, so each
    /// that an Envoy of the server's has open gets a request at the same time as the others.
    pub async fn flush(&self, pair: Pair) {
        let server = Names::of(pair).server;
        let mut open = 0;
        for pod in self.envoys.iter().filter(|pod| pod.strip_prefix(&server).is_some_and(|rest| rest.starts_with('-')))
        {
            open += self.inbound(pod).await.unwrap_or(0);
        }
        let url = format!("http://{server}:8080/{}", if open > 2 { "delay/50" } else { "" });
        let args = ["-m", "2", &url].map(str::to_owned).to_vec();
        if open > 2 {
            // The two servers do not share them evenly.
            let many = open.saturating_mul(2).min(MOST_FLUSHED);
            let _ = self.curl(pair, None, &vec![args; many]).await;
        } else {
            for _ in 0..2 {
                let _ = self.curl(pair, None, std::slice::from_ref(&args)).await;
            }
        }
    }

    /// Connections to an Envoy's workload.
    async fn inbound(&self, pod: &str) -> Result<usize> {
        let path = "/stats?filter=^listener.0.0.0.0_15006.downstream_cx_active";
        let answer = carrick_pod::http_get_in_pod(self.mesh.data_dir(), NAMESPACE, pod, 15000, path).await?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok(text.lines().filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<usize>().ok()).sum())
    }

    /// curl in a pod of the lab, the pair's client when none is named; several at the same time.
    ///
    /// # Errors
    /// When there is no such pod or curl cannot be run there.
    pub async fn curl(&self, pair: Pair, from: Option<&str>, many: &[Vec<String>]) -> Result<Vec<Answer>> {
        self.within(pair, from)?.together(many).await
    }

    /// A request of a case, once for each of these arguments of curl: at the same time by curl, else one after the other.
    ///
    /// # Errors
    /// As [`Lab::curl`].
    pub async fn ask(&self, pair: Pair, request: &Request, many: &[Vec<String>]) -> Result<Vec<Answer>> {
        let pod = self.within(pair, request.from.as_deref())?;
        let Some(call) = request.call() else { return pod.together(many).await };
        let mut answers = Vec::new();
        for _ in many {
            answers.push(pod.call(&call).await?);
        }
        Ok(answers)
    }

    fn within(&self, pair: Pair, from: Option<&str>) -> Result<&Curl> {
        let client = Names::of(pair).client;
        let from = from.unwrap_or(&client);
        self.curls.get(from).with_context(|| format!("from: {from}: the lab has no such pod"))
    }

    /// Ends everything.
    ///
    /// # Errors
    /// When a process cannot be waited for.
    pub async fn stop(self) -> Result<()> {
        drop(self.curls);
        self.mesh.stop().await
    }
}

const SERVER_PORTS: &str = "{name: http, port: 8080}, {name: tcp, port: 8081}, {name: grpc, port: 8082}";

/// Service and account of a pod.
fn service_objects(name: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{ports}]}}\n"
    )
}

fn objects(pairs: &[Pair]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n"
    );
    let mut service = |name: &str, ports: &str| {
        text += "---\n";
        text += &service_objects(name, ports);
    };
    let http = "{name: http, port: 8080}";
    service("outside", http);
    service(
        "partner",
        &format!(
            "{http}, {{name: http-tls, port: 8443}}, {{name: http-mutual, port: 8444}}, {{name: http-proxied, port: 8445}}"
        ),
    );
    for pair in pairs {
        let names = Names::of(*pair);
        service(&names.client, http);
        service(&names.server, SERVER_PORTS);
    }
    text
}

/// Service and account of a gateway; the ports that a Gateway names are the service's.
fn gateway_objects(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec:\n  selector: {{app: {name}}}\n  ports:\n  - {{name: http, port: 80, targetPort: 8080}}\n  \
         - {{name: https, port: 443, targetPort: 8443}}\n  - {{name: tls, port: 15443}}\n  - {{name: tcp, port: 31400}}\n"
    )
}

fn member(name: &str, app: &str, engine: Engine, version: Option<&str>) -> PodSpec {
    let ports = ["http=8080", "tcp=8081", "grpc=8082"];
    // Clients stand where the first version stands.
    let zone = if version == Some("v2") { "east.two" } else { "east.one" };
    let mut labels = vec![("istio-locality".to_owned(), zone.to_owned())];
    labels.extend(version.map(|version| ("version".to_owned(), version.to_owned())));
    PodSpec {
        namespace: NAMESPACE.into(),
        name: name.into(),
        app: app.into(),
        labels,
        ports: ports.map(str::to_owned).to_vec(),
        engine,
        more: ["--service-account", app].map(str::to_owned).to_vec(),
        command: serve_command(name, &["--port", "8081", "--port", "8082"]),
    }
}

fn outsider(name: &str, more: &[&str]) -> PodSpec {
    PodSpec {
        namespace: NAMESPACE.into(),
        name: name.into(),
        app: name.into(),
        labels: Vec::new(),
        ports: vec!["http=8080".into()],
        engine: Engine::Native,
        more: ["--service-account", name, "--no-sidecar"].map(str::to_owned).to_vec(),
        command: serve_command(name, more),
    }
}
