//! Everything that exists because of one run, put together and taken apart.
//!
//! Invariant: [`Life::end`] removes what [`Life::start`] made, however far it came; what cannot be removed because the API is away is left
//! recorded for the next sweep.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrick_capture::netns::NetNs;
use carrick_capture::sidecar::Mode;
use carrick_dns::{Sockets, Upstream, serve};
use carrick_runtime::backoff::Backoff;
use carrick_runtime::tasks::TaskSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::console::{self, Console};
use super::credentials::Credentials;
use super::files::{PodFiles, SidecarPaths};
use super::sidecar::{Sidecar, tail};
use super::status::{self, now};
use super::{Plan, readiness, volumes};
use crate::dns::server::Responder;
use crate::dns::table::{self, TableFile};
use crate::network::Netlink;
use crate::object::{self, ContainerView, Observed};
use crate::options::{CLUSTER_DOMAIN, DNS_ADDRESS, PROXY_ID, host_name, run_dir};
use crate::output::{self, Outputs, Prepared};
use crate::sandbox::Sandbox;
use crate::state::{self, PodFolder};
use crate::sweep::{delete_object, dismantle};
use crate::template::PROXY;
use crate::terminal::Terminal;
use crate::{PodError, child};

/// Letters of generated names, without those that make words or are mistaken.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How long an API that answers with errors, or not at all, is asked to forget the pod before that is left to a sweep.
const FORGET: Duration = Duration::from_secs(3);
/// The same for an API that is merely slow.
const FORGET_SLOWLY: Duration = Duration::from_secs(15);

/// The pod as far as it exists.
pub(crate) struct Life {
    pub(crate) folder: PodFolder,
    pub(crate) pods: Api<Pod>,
    pub(crate) client: kube::Client,
    pub(crate) observed: watch::Sender<Observed>,
    pub(crate) grace: Duration,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) terminal: bool,
    network: crate::Network,
    sandbox: Option<Sandbox>,
    inside: Vec<JoinHandle<()>>,
    tasks: TaskSet,
    stop_sidecar: CancellationToken,
    sidecar: Option<JoinHandle<()>>,
    log: PathBuf,
    keep_log: bool,
    /// The command's output, and where it is kept.
    outputs: Option<Outputs>,
    app_log: Option<PathBuf>,
    /// The object was there before: it outlives the run, and says how that ended.
    claimed: bool,
}

impl Life {
    /// Claims an address.
    pub(crate) fn allocate(plan: &Plan) -> Result<Life, PodError> {
        let options = &plan.options;
        let folder = state::allocate(&options.data_dir, &options.network)?;
        let ip = folder.state.ip.map(|ip| ip.to_string()).unwrap_or_default();
        let observed = Observed {
            ip,
            host_ip: options.network.gateway.to_string(),
            app_container: plan.template.container.clone(),
            created_at: now(),
            proxy: plan.sidecar.as_ref().filter(|_| !options.gateway).map(|_| ContainerView::default()),
            ..Observed::default()
        };
        Ok(Life {
            folder,
            pods: Api::namespaced(plan.connection.client.clone(), &options.namespace),
            client: plan.connection.client.clone(),
            observed: watch::Sender::new(observed),
            grace: plan.template.grace,
            name: String::new(),
            uid: String::new(),
            terminal: false,
            network: options.network.clone(),
            sandbox: None,
            inside: Vec::new(),
            tasks: TaskSet::new(),
            stop_sidecar: CancellationToken::new(),
            sidecar: None,
            log: PathBuf::new(),
            keep_log: options.sidecar_log.is_some(),
            outputs: None,
            app_log: None,
            claimed: false,
        })
    }

    /// Makes the pod and starts the command in it; a gateway has none.
    pub(crate) async fn start(&mut self, plan: &Plan) -> Result<Option<Child>, PodError> {
        let options = &plan.options;
        self.register(plan).await?;
        tracing::debug!(pod = %self.name, "registered");
        let namespace = NetNs::create(&self.folder.state.netns)?;
        Netlink::open()?.attach(&self.network, &self.folder.state.link, &namespace).await?;
        let files = PodFiles::create(&self.folder)?;
        let host_name = plan.template.host_name.clone().unwrap_or_else(|| self.name.clone());
        let ip = self.folder.state.ip.ok_or_else(|| PodError::Request("the pod has no address".into()))?;
        let mut view = files.view(&options.namespace, &host_name, &ip.to_string())?;
        let paths = match &plan.sidecar {
            Some(sidecar) => {
                let annotations = &plan.template.annotations;
                volumes::mount(&self.client, &options.namespace, annotations, &files, &mut view).await?;
                Some(files.sidecar(&mut view, &plan.template, sidecar)?)
            }
            None => None,
        };
        let credentials = Credentials {
            client: self.client.clone(),
            files,
            namespace: options.namespace.clone(),
            service_account: plan.template.service_account.clone(),
            pod: (self.name.clone(), self.uid.clone()),
            injected: plan.sidecar.is_some(),
        };
        let (inside, fetched) =
            tokio::join!(self.go_inside(namespace.clone(), view, ip), credentials.fetch(&plan.connection.ca_pem));
        inside?;
        fetched?;
        tracing::debug!(pod = %self.name, "inside");
        self.tasks.spawn("credentials", credentials.keep());
        self.serve_dns(plan).await?;
        if let (Some(sidecar), Some(paths)) = (&plan.sidecar, paths) {
            // Rules first: connections older than connection tracking would be taken for new ones by it, and be redirected in mid-stream.
            if let Some(capture) = &sidecar.capture {
                let capture = capture.clone();
                let apply = move || namespace.run(|| carrick_capture::sidecar::apply(&capture));
                tokio::task::spawn_blocking(apply).await.map_err(|error| PodError::Request(error.to_string()))???;
            }
            self.start_sidecar(plan, paths).await?;
            tracing::debug!(pod = %self.name, "sidecar ready");
        }
        tracing::debug!(pod = %self.name, "network ready");
        self.remember_environment(plan)?;
        if options.gateway { Ok(None) } else { self.start_app(plan, ip).await.map(Some) }
    }

    /// The Pod object, and everything that keeps it true.
    async fn register(&mut self, plan: &Plan) -> Result<(), PodError> {
        let (options, template) = (&plan.options, &plan.template);
        let created = loop {
            let name = if template.exact_name {
                template.base_name.clone()
            } else {
                let base = plan.set.as_ref().map_or(&template.base_name, |set| &set.name);
                format!("{base}-{}", random_word(5))
            };
            let mut pod = object::pod(options, template, &name, &host_name(), plan.sidecar.is_some())
                .map_err(|error| PodError::Request(format!("the pod's object: {error}")))?;
            pod.metadata.owner_references = plan.set.as_ref().map(|set| vec![set.owner.clone()]);
            // Recorded before it exists: a pod that was created in the last moment before a kill is found by its name.
            self.folder.state.namespace.clone_from(&options.namespace);
            self.folder.state.name.clone_from(&name);
            self.folder.save()?;
            match self.pods.create(&PostParams::default(), &pod).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() && !template.exact_name => continue,
                Err(kube::Error::Api(status)) if status.is_already_exists() => match self.claim(&name, &pod).await? {
                    Some(claimed) => {
                        self.claimed = true;
                        break claimed;
                    }
                    None => {
                        self.folder.state.name.clear();
                        self.folder.save()?;
                        return Err(PodError::Request(format!(
                            "pod {name} already exists in namespace {}, and it is run: delete it first, or give another --name",
                            options.namespace
                        )));
                    }
                },
                Err(error) => {
                    // Somebody else's pod of that name is not ours to delete.
                    self.folder.state.name.clear();
                    self.folder.save()?;
                    return Err(PodError::api(format!("create pod {name} in namespace {}", options.namespace))(error));
                }
                Ok(created) => break created,
            }
        };
        self.name.clone_from(&self.folder.state.name);
        self.uid = created.metadata.uid.unwrap_or_default();
        self.folder.state.uid.clone_from(&self.uid);
        self.folder.state.engine = plan.sidecar.as_ref().map(|_| options.engine.as_str().to_owned());
        let logs = run_dir(&options.data_dir).join("logs");
        std::fs::create_dir_all(&logs).map_err(PodError::io(format!("create {}", logs.display())))?;
        self.log = match &options.sidecar_log {
            Some(log) => log.clone(),
            None => output::path(&options.data_dir, &options.namespace, &self.name, PROXY),
        };
        self.folder.state.sidecar_log.clone_from(&self.log);
        if !options.gateway {
            self.folder.state.container.clone_from(&template.container);
        }
        self.folder.save()?;
        let publish = status::publish(self.pods.clone(), self.name.clone(), self.observed.subscribe());
        self.tasks.spawn("status", publish);
        Ok(())
    }

    /// Takes over a pod of that name that nobody runs, as a node's agent does what was scheduled to it; `None` when somebody does. Its spec
    /// stays as it was written, but for the node and the sidecar.
    async fn claim(&self, name: &str, wanted: &Pod) -> Result<Option<Pod>, PodError> {
        let failed = || PodError::api(format!("take over pod {name}"));
        loop {
            let Some(mut pod) = self.pods.get_opt(name).await.map_err(failed())? else { return Ok(None) };
            let (Some(spec), Some(own)) = (pod.spec.as_mut(), wanted.spec.as_ref()) else { return Ok(None) };
            if spec.node_name.as_ref().is_some_and(|node| !node.is_empty()) || pod.metadata.deletion_timestamp.is_some()
            {
                return Ok(None);
            }
            spec.node_name.clone_from(&own.node_name);
            let there = |container: &k8s_openapi::api::core::v1::Container| {
                let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
                all.into_iter().any(|c| c.name == container.name)
            };
            let proxy: Vec<_> = own.containers.iter().filter(|c| c.name == PROXY && !there(c)).cloned().collect();
            spec.containers.extend(proxy);
            let labels = wanted.metadata.labels.clone().unwrap_or_default();
            pod.metadata.labels.get_or_insert_default().extend(labels);
            let annotations = wanted.metadata.annotations.clone().unwrap_or_default();
            pod.metadata.annotations.get_or_insert_default().extend(annotations);
            match self.pods.replace(name, &PostParams::default(), &pod).await {
                Ok(claimed) => return Ok(Some(claimed)),
                // Written to meanwhile; perhaps by another runner.
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                Err(error) => return Err(failed()(error)),
            }
        }
    }

    /// The thread inside, with addresses and routes.
    async fn go_inside(
        &mut self,
        namespace: NetNs,
        view: crate::sandbox::View,
        ip: std::net::Ipv4Addr,
    ) -> Result<(), PodError> {
        let sandbox = Sandbox::start(namespace, view).await?;
        let gateway = self.network.gateway;
        let configured =
            sandbox.run(async move { Netlink::open()?.configure_inside(ip, gateway, DNS_ADDRESS).await }).await;
        self.folder.state.thread = sandbox.thread();
        self.sandbox = Some(sandbox);
        configured??;
        self.folder.save()
    }

    fn sandbox(&self) -> Result<&Sandbox, PodError> {
        self.sandbox.as_ref().ok_or_else(|| PodError::Request("the pod has no inside yet".into()))
    }

    async fn serve_dns(&mut self, plan: &Plan) -> Result<(), PodError> {
        let responder = Arc::new(Responder {
            table: TableFile::new(table::path(&plan.options.data_dir)),
            domain: CLUSTER_DOMAIN.into(),
            mesh: self.folder.state.engine.is_some().then(|| plan.options.namespace.clone()),
            upstream: Upstream::new("/etc/resolv.conf", None),
            host: tokio::runtime::Handle::current(),
        });
        let sandbox = self.sandbox()?;
        let sockets =
            sandbox.run(Sockets::bind((DNS_ADDRESS, 53).into())).await?.map_err(PodError::io("bind the pod's DNS"))?;
        let serving = sandbox.handle().spawn(serve(sockets, responder));
        self.inside.push(serving);
        Ok(())
    }

    async fn start_sidecar(&mut self, plan: &Plan, paths: SidecarPaths) -> Result<(), PodError> {
        let gateway = plan.options.gateway;
        let sidecar = Sidecar {
            role: if gateway { "gateway" } else { "sidecar" },
            user: PROXY_ID,
            borrows_addresses: plan
                .sidecar
                .as_ref()
                .and_then(|sidecar| sidecar.capture.as_ref())
                .is_some_and(|c| c.mode == Mode::Tproxy),
            env: super::attend::sidecar_env(plan, &paths, &self.folder.state),
            program: paths.program,
            folder: paths.folder,
            log: self.log.clone(),
            bounded: !self.keep_log,
        };
        // The log folder is on the host; it is opened as root by a thread that still sees it.
        let view = watch::Sender::new(ContainerView::default());
        let mut changes = view.subscribe();
        let supervised = self.sandbox()?.handle().spawn(sidecar.supervise(view, self.stop_sidecar.clone()));
        self.sidecar = Some(supervised);
        let observed = self.observed.clone();
        self.tasks.spawn("sidecar status", {
            let mut changes = changes.clone();
            async move {
                while changes.changed().await.is_ok() {
                    let view = changes.borrow_and_update().clone();
                    observed.send_modify(|observed| match gateway {
                        true => observed.app = view,
                        false => observed.proxy = Some(view),
                    });
                }
            }
        });
        let limit = plan.options.sidecar_timeout;
        match tokio::time::timeout(limit, changes.wait_for(|view| view.ready)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(PodError::Sidecar {
                pod: self.name.clone(),
                seconds: limit.as_secs(),
                log: self.log.clone(),
                tail: tail(&self.log),
            }),
        }
    }

    /// What commands that are started later in the pod find as theirs.
    fn remember_environment(&mut self, plan: &Plan) -> Result<(), PodError> {
        let env = super::attend::app_env(plan, &self.folder.state);
        let own = |key: &str| env.iter().any(|(own, _)| own == key);
        let inherited: Vec<_> = std::env::vars().filter(|(key, _)| !own(key)).collect();
        self.folder.state.env = inherited.into_iter().chain(env).collect();
        self.folder.state.cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
        self.folder.save()
    }

    async fn start_app(&mut self, plan: &Plan, ip: std::net::Ipv4Addr) -> Result<Child, PodError> {
        let options = &plan.options;
        let (program, arguments) =
            plan.template.command.split_first().ok_or_else(|| PodError::Request("nothing to run".into()))?;
        let env = super::attend::app_env(plan, &self.folder.state);
        let (console, tty) = (plan.template.stdin, plan.template.tty);
        self.terminal = !console && !tty && child::has_terminal();
        let mut command = Command::new(program);
        command.args(arguments).envs(env).kill_on_drop(true);
        let log = output::path(&options.data_dir, &options.namespace, &self.name, &plan.template.container);
        let failed = PodError::io(format!("the log {}", log.display()));
        let (prepared, master) = match tty {
            true => {
                command.env("TERM", "xterm");
                let (prepared, master) = Prepared::terminal(&mut command, log.clone()).map_err(failed)?;
                (prepared, Some(master))
            }
            false => (Prepared::new(&mut command, log.clone()).map_err(failed)?, None),
        };
        match console || tty {
            true => child::as_console(&mut command, tty),
            false => child::as_app(&mut command, self.terminal),
        }
        if console && !tty {
            command.stdin(std::process::Stdio::piped());
        }
        self.app_log = Some(log);
        let spawned = self.sandbox()?.run(async move { command.spawn() }).await?;
        let mut child =
            spawned.map_err(|source| PodError::Command { program: program.to_string_lossy().into_owned(), source })?;
        if console {
            let input = match (master, child.stdin.take()) {
                (Some(master), _) => Terminal::new(master).map(Console::Terminal).map(Some),
                (None, pipe) => Ok(pipe.map(Console::Pipe)),
            };
            let listener = console::listen(self.folder.path());
            let (input, listener) =
                input.and_then(|input| Ok((input, listener?))).map_err(PodError::io("listen for what is typed"))?;
            if let Some(input) = input {
                self.tasks.spawn("input", console::serve(listener, input, plan.template.stdin_once, child.id()));
            }
        }
        self.outputs = Some(prepared.start(child.id()).map_err(PodError::io("start to read the command's output"))?);
        self.observed.send_modify(|observed| {
            observed.app.started_at = Some(now());
            observed.app.running = true;
        });
        let observed = self.observed.clone();
        let report = move |ready: bool| {
            observed.send_if_modified(|observed| {
                let changed = observed.app.ready != ready;
                observed.app.ready = ready;
                changed
            });
        };
        let watching = readiness::watch_app(ip, plan.template.ports.clone(), plan.template.readiness.clone(), report);
        let watching = self.sandbox()?.handle().spawn(watching);
        self.inside.push(watching);
        Ok(child)
    }

    /// Writes into an object that was there before the run how the run has ended; whether it stays.
    async fn told(&self) -> bool {
        if !self.claimed || self.observed.borrow().ended.is_none() {
            return false;
        }
        let write = async {
            let there = self.pods.get_opt(&self.name).await.ok()??;
            if there.metadata.uid.as_deref() != Some(&self.uid) || there.metadata.deletion_timestamp.is_some() {
                return None;
            }
            let last = object::status(&self.observed.borrow().clone(), &mut object::Transitions::default(), &now());
            self.pods.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&last)).await.ok()
        };
        tokio::time::timeout(FORGET, write).await.is_ok_and(|written| written.is_some())
    }

    /// Tells those who follow the command's log how it ended.
    pub(crate) async fn app_ended(&self, code: i32) {
        if let Some(outputs) = &self.outputs {
            outputs.ended(code).await;
        }
    }

    /// Takes everything apart.
    pub(crate) async fn end(mut self) {
        if self.terminal {
            child::take_terminal_back(child::stdin_fd());
        }
        std::mem::take(&mut self.tasks).abort().await;
        let forgotten = self.folder.state.name.is_empty() || self.told().await || self.forget().await;
        self.stop_sidecar.cancel();
        if let Some(sidecar) = self.sidecar.take() {
            let _ = sidecar.await;
        }
        self.inside.iter().for_each(JoinHandle::abort);
        drop(self.sandbox.take());
        let dismantled = dismantle(&self.folder.state).await;
        // Nobody is left who could write: what has been written is shown.
        if let Some(outputs) = self.outputs.take() {
            outputs.finish().await;
        }
        if let Some(log) = &self.app_log {
            output::remove(log);
        }
        if let Err(error) = dismantled {
            tracing::error!(%error, pod = %self.name, "not everything removed");
            return;
        }
        if !forgotten {
            tracing::warn!(pod = %self.name, "the API is away: the Pod object goes with the next sweep");
            return;
        }
        if !self.keep_log && !self.log.as_os_str().is_empty() {
            output::remove(&self.log);
        }
        if let Err(error) = self.folder.remove() {
            tracing::error!(%error, "not everything removed");
        }
    }

    async fn forget(&self) -> bool {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let begin = Instant::now();
        let until_gone = async {
            while let Err(error) = delete_object(&self.client, &self.folder.state).await {
                tracing::warn!(%error, pod = %self.name, "pod not deleted");
                if begin.elapsed() >= FORGET {
                    return false;
                }
                backoff.wait().await;
            }
            true
        };
        // An API that is slow is waited for longer than one that is not there.
        tokio::time::timeout(FORGET_SLOWLY, until_gone).await.unwrap_or(false)
    }
}

fn random_word(length: usize) -> String {
    (0..length)
        .filter_map(|_| LETTERS.get(rand::random_range(0..LETTERS.len())).map(|byte| char::from(*byte)))
        .collect()
}
