"""Installs Carrick into a Kubernetes API and takes it out again: everything that needs an API server and no nodes.

    run.py CARRICK [--kubeconfig FILE] [--address IP]

Without a kubeconfig the embedded API is started for the time of the run. Pods do not run here, since a bare API server has no nodes:
the control plane's replicas are processes on this machine, each with the service account (and so the rights) of the Deployment, and the
API server reaches their webhooks at ADDRESS. Gateways are processes too, with tokens of an account of their own; `carrick-proxy` lies
beside CARRICK. Everything made is removed; what was there before is compared with what is there after.

Nothing but an API server is needed: where no controllers run (they make the account `default` of a namespace, and end namespaces), their
part is done here after a while. An API server's caches are some moments old, so what depends on them is tried until it holds.
"""

import argparse
import base64
import http.client
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

KUBECTL = os.environ.get("CARRICK_KUBECTL", "kubectl")
HELM = os.environ.get("CARRICK_HELM", "helm")
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SYSTEM = "istio-system"
LEASE = 3.0
# Namespaces of this run.
OWN = (SYSTEM, "shop", "later")
# Kinds whose objects come and go by themselves, in every cluster.
RESTLESS = ("events", "endpointslices", "endpoints", "nodes", "componentstatuses", "leases", "ipaddresses", "csinodes", "csistoragecapacities",
            "volumeattachments", "apiservices", "flowschemas", "prioritylevelconfigurations", "storageversions")


class Failed(Exception):
    pass


def until(what, holds, limit=30.0):
    end, last = time.monotonic() + limit, None
    while time.monotonic() < end:
        try:
            found = holds()
            if found:
                return found
        except Failed as error:
            last = error
        time.sleep(0.1)
    raise Failed(f"not in {limit:.0f} s: {what}" + (f" ({last})" if last else ""))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Run:
    def __init__(self, carrick, folder, address):
        self.carrick, self.folder, self.address = carrick, folder, address
        self.kubeconfig = None
        self.processes = []

    def call(self, *command, text=None, ok=True, env=None):
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=180,
                              env={**os.environ, "KUBECONFIG": self.kubeconfig or "", **(env or {})})
        if ok and done.returncode:
            raise Failed(f"{' '.join(command)}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def kubectl(self, *arguments, text=None):
        return self.call(KUBECTL, *arguments, text=text).stdout

    def refused(self, *arguments, text=None, word=""):
        done = self.call(KUBECTL, *arguments, text=text, ok=False)
        said = done.stdout + done.stderr
        if done.returncode == 0 or word not in said:
            raise Failed(f"kubectl {' '.join(arguments)} should be refused for {word!r}: {said}")

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def own(self, *arguments, ok=True):
        return self.call(self.carrick, *arguments, ok=ok).stdout

    def start(self, *command, log):
        out = open(os.path.join(self.folder, log), "wb")
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def stop(self, process, how=signal.SIGTERM):
        process.send_signal(how)
        process.wait(timeout=30)
        self.processes.remove(process)

    def listed(self, *scope):
        return [k for k in self.kubectl("api-resources", "--verbs=list", "-o", "name", *scope).split() if k.split(".")[0] not in RESTLESS]

    def everything(self):
        """The names of all objects of no namespace and of ours, but for those that come and go by themselves."""
        columns = "custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name"
        lines = self.kubectl("get", ",".join(self.listed()), "-A", "--no-headers", "--ignore-not-found", "-o", columns).splitlines()
        found = {tuple(line.split()) for line in lines if line.strip()}
        return {" ".join(line) for line in found if line[1] in OWN or line[1] == "<none>"}

    def is_gone(self, *what):
        done = self.call(KUBECTL, "get", *what, ok=False)
        return done.returncode != 0 and "NotFound" in done.stderr

    def no_more(self, namespace, patience=20.0):
        """Waits until a namespace that is being deleted is gone; ends it where no controller does."""
        try:
            until("the namespace is gone", lambda: self.is_gone("ns", namespace), patience)
            return
        except Failed:
            there = self.get("ns", namespace)
        if there.get("status", {}).get("conditions"):
            raise Failed(f"a controller does not end {namespace}: {there['status']['conditions']}")
        for kind in self.listed("--namespaced"):
            self.call(KUBECTL, "delete", kind, "--all", "-n", namespace, "--wait=false", "--grace-period=0", "--force", ok=False)
        there["spec"]["finalizers"] = []
        self.kubectl("replace", "--raw", f"/api/v1/namespaces/{namespace}/finalize", "-f", "-", text=json.dumps(there))
        until("the namespace is gone", lambda: self.is_gone("ns", namespace))

    def drop(self, namespace):
        self.kubectl("delete", "namespace", namespace, "--wait=false")
        self.no_more(namespace)

    def account(self, namespace):
        """The account of a namespace's pods: a controller makes it, if there are any."""
        there = lambda: self.call(KUBECTL, "get", "sa", "default", "-n", namespace, ok=False).returncode == 0
        try:
            until("the account of the namespace", there, 10)
        except Failed:
            self.call(KUBECTL, "create", "sa", "default", "-n", namespace, ok=False)
            until("the account of the namespace", there)


class Replica:
    """One process in the place of one of the Deployment's pods."""

    def __init__(self, run, revision, number):
        self.run, self.revision, self.number = run, revision, number
        account = "istiod" if revision == "default" else f"istiod-{revision}"
        token = run.kubectl("create", "token", account, "-n", SYSTEM, "--duration=1h").strip()
        name = f"{account}-{number}"
        config = json.loads(run.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        config["users"] = [{"name": account, "user": {"token": token}}]
        config["contexts"][0]["context"]["user"] = account
        path = os.path.join(run.folder, f"{name}.kubeconfig")
        with open(path, "w") as file:
            json.dump(config, file)
        self.port, self.health = WEBHOOKS[revision] if number == 0 else free_port(), free_port()
        self.metrics, self.xds = free_port(), free_port()
        self.process = run.start(
            run.carrick, "control", f"--kubeconfig={path}", f"--revision={revision}", f"--name={name}",
            f"--data-dir={run.folder}/{name}", f"--xds-port={self.xds}", f"--webhook-port={self.port}",
            f"--debug-port={free_port()}", f"--health-address=127.0.0.1:{self.health}",
            f"--metrics-address=127.0.0.1:{self.metrics}", f"--server-ip={run.address}", f"--lease={LEASE:.0f}s", log=f"{name}.log")

    def page(self, port, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError) as error:
            raise Failed(f"{path}: {error}") from error

    def ready(self):
        until(f"{self.revision} is ready", lambda: self.page(self.health, "/ready"), 60)
        return self

    def leads(self):
        return json.loads(self.page(self.metrics, "/version"))["leads"]

    def ask(self, path, request, roots):
        context = ssl.create_default_context(cadata=roots)
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", **request}}
        asked = urllib.request.Request(f"https://{self.run.address}:{self.port}{path}", json.dumps(review).encode(),
                                       {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
                return json.loads(answer.read())["response"]
        except urllib.error.HTTPError as error:
            return {"status": {"code": error.code}}


WEBHOOKS = {}


class Gateway:
    """A gateway of a revision, as its pod would be."""

    def __init__(self, run, replica, roots, port):
        self.run, self.port, self.health = run, port, free_port()
        name = f"edge-{replica.revision}"
        folder = os.path.join(run.folder, name)
        os.makedirs(folder)
        token = run.kubectl("create", "token", "edge", "-n", "shop", "--audience=istio-ca", "--duration=1h").strip()
        for file, text in (("token", token), ("roots.pem", roots), ("labels", f'istio="{name}"\n')):
            with open(os.path.join(folder, file), "w") as out:
                out.write(text)
        account = "istiod" if replica.revision == "default" else f"istiod-{replica.revision}"
        self.process = run.start(
            os.path.join(os.path.dirname(run.carrick), "carrick-proxy"), "gateway", "--engine=native", f"--pod-name={name}-1",
            "--pod-namespace=shop", "--service-account=edge", f"--instance-ip={run.address}", "--bind-address=127.0.0.1",
            f"--discovery-address=127.0.0.1:{replica.xds}", f"--control-plane-name={account}.{SYSTEM}.svc",
            f"--root-file={folder}/roots.pem", f"--token-file={folder}/token", f"--labels-file={folder}/labels",
            f"--state-dir={folder}/s", f"--admin-port={free_port()}", f"--status-port={free_port()}",
            f"--health-port={self.health}", f"--prometheus-port={free_port()}", "--drain-duration=5s", log=f"{name}.log")

    def ready(self):
        def answers():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz/ready", timeout=2) as answer:
                    return answer.status == 200 and self.ask() == "shown"
            except OSError as error:
                raise Failed(error) from error

        until(f"the gateway at {self.port} serves", answers, 60)
        return self

    def ask(self):
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/", headers={"host": "web.example.org"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read().decode()


class Load:
    """Something done again and again in a thread of its own; `failed` says what went wrong."""

    def __init__(self, once):
        self.once, self.count, self.failed, self.done = once, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def loop(self):
        while not self.done.is_set():
            try:
                self.once(self.count)
            except (Failed, OSError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
                self.failed.append(f"{time.strftime('%H:%M:%S')} {error}")
            self.count += 1

    def end(self):
        self.done.set()
        self.thread.join()


def backend():
    """What is behind the gateways."""

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"shown")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def edges(ports, behind):
    """One route behind a gateway of each revision."""
    def made(kind, name, spec):
        return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}

    gateways = [made("Gateway", f"edge-{revision}", {
        "selector": {"istio": f"edge-{revision}"},
        "servers": [{"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": ["web.example.org"]}],
    }) for revision, port in ports.items()]
    entry = made("ServiceEntry", "behind", {
        "hosts": ["behind.example.org"], "location": "MESH_EXTERNAL", "resolution": "STATIC",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "127.0.0.1", "ports": {"http": behind}}],
    })
    route = made("VirtualService", "web", {
        "hosts": ["web.example.org"], "gateways": [f"edge-{revision}" for revision in ports],
        "http": [{"route": [{"destination": {"host": "behind.example.org", "port": {"number": 80}}}]}],
    })
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [*gateways, entry, route]})


def policy(name, namespace, spec):
    return json.dumps({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                       "metadata": {"name": name, "namespace": namespace}, "spec": spec})


def where(run, revision):
    WEBHOOKS.setdefault(revision, free_port())
    base = f"https://{run.address}:{WEBHOOKS[revision]}"
    return ["--set", "profile=minimal", "--set", f"values.istiodRemote.injectionURL={base}/inject",
            "--set", f"values.base.validationURL={base}/validate"]


def install(run):
    generated = run.own("manifest", "generate", "--set", "profile=demo")
    if generated.count("\nkind: Deployment") != 3:
        raise Failed("manifest generate: not three Deployments")
    before = run.everything()
    run.own("install", "-y", "--dry-run", *where(run, "default"))
    if run.everything() != before:
        raise Failed("a dry run has left something")
    run.own("install", "-y", "--wait=false", *where(run, "default"))
    again = run.own("install", "-y", "--wait=false", *where(run, "default"))
    if "complete" not in again:
        raise Failed(f"installing twice: {again}")


def kinds(run):
    there = {o["metadata"]["name"] for o in run.get("customresourcedefinitions")["items"]}
    wanted = {"virtualservices.networking.istio.io", "peerauthentications.security.istio.io", "telemetries.telemetry.istio.io",
              "wasmplugins.extensions.istio.io", "policies.authentication.istio.io"}
    if not wanted <= there:
        raise Failed(f"kinds are missing: {wanted - there}")
    until("the kinds are explained", lambda: "mode" in run.kubectl("explain", "peerauthentications.spec.mtls"))


def rules(run):
    run.kubectl("create", "namespace", "shop")
    run.kubectl("apply", "-f", "-", text=policy("good", "shop", {"mtls": {"mode": "STRICT"}}))
    run.refused("apply", "-f", "-", text=policy("bad", "shop", {"mtls": {"mode": "LOOSE"}}), word="mode")
    run.refused("apply", "-f", "-", text=policy("bad", "shop", {"mtlss": {}}), word="mtlss")
    run.refused("apply", "-f", "-", text=policy("bad", "shop", {"portLevelMtls": {"80": {"mode": "STRICT"}}}), word="portLevelMtls")


def roots_of(run, namespace):
    found = run.call(KUBECTL, "get", "configmap", "istio-ca-root-cert", "-n", namespace, "-o", "json", ok=False)
    return None if found.returncode else json.loads(found.stdout)["data"]["root-cert.pem"]


def bundles(run, replicas):
    roots = until("the roots are in a namespace", lambda: roots_of(run, "shop"))
    wanted = base64.b64encode(roots.encode()).decode()

    def fresh():
        hooks = run.get("mutatingwebhookconfigurations", "istio-sidecar-injector")["webhooks"]
        hooks += run.get("validatingwebhookconfigurations", f"istio-validator-{SYSTEM}")["webhooks"]
        return all(hook["clientConfig"].get("caBundle") == wanted for hook in hooks)

    until("the webhooks have the bundle", fresh)
    run.kubectl("patch", "mutatingwebhookconfiguration", "istio-sidecar-injector", "--type=json", "-p",
                '[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]')
    until("the bundle is put right", fresh)
    judged = json.loads(policy("x", "shop", {"portLevelMtls": {"80": {}}}))
    for replica in replicas:
        answer = replica.ask("/validate", {"operation": "CREATE", "object": judged}, roots)
        if answer.get("allowed") is not False:
            raise Failed(f"/validate: {answer}")
    return roots


def pod_of(name):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"containers": [{"name": "web", "image": "example.org/web:1"}]}}


def made_with_sidecar(run, name):
    """Makes a pod, gives whether it has a sidecar, and removes it."""
    made = json.loads(run.kubectl("create", "-f", "-", "-o", "json", text=json.dumps(pod_of(name))))
    run.kubectl("delete", "pod", name, "-n", "shop", "--grace-period=0", "--force", "--wait=false")
    return "istio-proxy" in [c["name"] for c in made["spec"]["containers"] + made["spec"].get("initContainers", [])]


def injected(run):
    """A pod that kubectl makes has a sidecar; it does not run, since there are no nodes."""
    run.kubectl("label", "namespace", "shop", "istio-injection=enabled")
    run.account("shop")
    tries = iter(range(1000))
    until("a pod has a sidecar", lambda: made_with_sidecar(run, f"web-{next(tries)}"))


def statuses(run):
    def told():
        status = run.get("peerauthentication", "good", "-n", "shop").get("status", {})
        return any(c["status"] == "True" for c in status.get("conditions", []))

    until("a policy's status", told)


def gateways(run):
    """A Gateway gets an account, a Deployment whose pods need no webhook, and a Service; they go with it."""
    if run.call(KUBECTL, "get", "gateways.gateway.networking.k8s.io", "-n", "shop", ok=False).returncode:
        return "left out: this API has no Gateways"
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    gateway = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge", "namespace": "shop"},
               "spec": {"gatewayClassName": "istio", "listeners": listeners}}
    run.kubectl("apply", "-f", "-", text=json.dumps(gateway))
    until("a gateway's Service", lambda: run.get("service", "edge-istio", "-n", "shop"))
    pod = run.get("deployment", "edge-istio", "-n", "shop")["spec"]["template"]
    proxy = pod["spec"]["containers"][0]
    if proxy["image"] == "auto" or "router" not in proxy["args"] or pod["metadata"]["labels"]["sidecar.istio.io/inject"] != "false":
        raise Failed(f"not a gateway: {pod}")
    run.get("serviceaccount", pod["spec"]["serviceAccountName"], "-n", "shop")
    run.kubectl("delete", "gateways.gateway.networking.k8s.io", "edge", "-n", "shop")
    for kind in ("deployment", "service", "serviceaccount"):
        run.kubectl("delete", kind, "edge-istio", "-n", "shop", "--ignore-not-found", "--wait=false")


def leader_killed(run, replicas):
    leader = until("somebody leads", lambda: next((r for r in replicas if r.leads()), None))
    others = [r for r in replicas if r is not leader]
    run.stop(leader.process, signal.SIGKILL)
    killed = time.monotonic()
    run.kubectl("create", "namespace", "later")
    until("another writes", lambda: roots_of(run, "later"), LEASE * 4)
    took = time.monotonic() - killed
    until("another leads", lambda: any(r.leads() for r in others))
    run.drop("later")
    # A Deployment would replace it, and the Service lead there meanwhile to the others; here the webhooks' URL is that of the first.
    others.append(Replica(run, "default", leader.number).ready())
    return others, f"after {took:.1f} s, lease {LEASE:.0f} s"


def upgrade(run, replicas, roots):
    """Another revision beside the first, then in its place, under load of three kinds: requests, pods, policies."""
    ports = {"default": free_port(), "canary": free_port()}
    behind = backend()
    run.kubectl("create", "serviceaccount", "edge", "-n", "shop")
    run.kubectl("apply", "-f", "-", text=edges(ports, behind.server_port))
    old = Gateway(run, replicas[-1], roots, ports["default"]).ready()
    serving = [old]

    def request(number):
        gateway = serving[number % len(serving)]
        if gateway.ask() != "shown":
            raise Failed("another answer")

    def pod(number):
        if not made_with_sidecar(run, f"load-{number}"):
            raise Failed("a pod without a sidecar")

    def write(number):
        run.kubectl("apply", "-f", "-", text=policy("good", "shop", {"mtls": {"mode": ("STRICT", "PERMISSIVE")[number % 2]}}))

    loads = {"requests": Load(request), "pods": Load(pod), "writes": Load(write)}
    try:
        run.own("install", "-y", "--wait=false", "--revision", "canary", *where(run, "canary"))
        canary = Replica(run, "canary", 0).ready()
        run.own("tag", "set", "prod", "--revision", "canary")
        if "prod" not in run.own("tag", "list"):
            raise Failed("tag list does not show the tag")
        if run.own("tag", "set", "prod", "--revision", "default", ok=False):
            raise Failed("a tag was moved without --overwrite")
        run.own("tag", "set", "default", "--revision", "canary", "--overwrite")
        until("the canary has the bundle", lambda: all(
            hook["clientConfig"].get("caBundle")
            for hook in run.get("mutatingwebhookconfigurations", "istio-revision-tag-default")["webhooks"]))
        # As the pods of a Deployment: the new ones serve before the old ones end.
        new = Gateway(run, canary, roots, ports["canary"]).ready()
        serving.append(new)
        run.own("uninstall", "-y", "--revision", "default")
        # The pods of a Deployment that is gone end some seconds later, when the API server knows of their webhooks no more.
        time.sleep(3)
        for replica in replicas:
            run.stop(replica.process)
        until("the canary leads", canary.leads)
        run.own("upgrade", "-y", "--wait=false", "--revision", "canary", *where(run, "canary"), "--set", "meshConfig.accessLogFile=/dev/stdout")
        if "/dev/stdout" not in run.get("configmap", "istio-canary", "-n", SYSTEM)["data"]["mesh"]:
            raise Failed("upgrade did not change the mesh's settings")
        # The old gateway has had no control plane for a while.
        time.sleep(1)
        serving.remove(old)
        time.sleep(1)
        run.stop(old.process)
    finally:
        for load in loads.values():
            load.end()
        behind.shutdown()
    run.stop(new.process)
    for what, load in loads.items():
        if load.failed or not load.count:
            raise Failed(f"{len(load.failed)} of {load.count} {what} failed: {load.failed[:3]}")
    return canary, ", ".join(f"{load.count} {what}" for what, load in loads.items()) + ", 0 failed"


def helm(run):
    """The charts by Helm itself: install, upgrade, roll back, uninstall."""
    env = {"HELM_CONFIG_HOME": run.folder, "HELM_CACHE_HOME": run.folder, "HELM_DATA_HOME": run.folder}

    def call(*arguments):
        return run.call(HELM, *arguments, env=env).stdout

    made = run.call(KUBECTL, "create", "namespace", SYSTEM, ok=False).returncode == 0
    for chart, release in (("base", "istio-base"), ("istiod", "istiod"), ("gateway", "istio-ingressgateway")):
        call("install", release, f"{ROOT}/charts/{chart}", "-n", SYSTEM)

    def scaled():
        return run.get("hpa", "istiod", "-n", SYSTEM)["spec"]["minReplicas"]

    call("upgrade", "istiod", f"{ROOT}/charts/istiod", "-n", SYSTEM, "--set", "autoscaleMin=3")
    if scaled() != 3:
        raise Failed("helm upgrade changed nothing")
    call("rollback", "istiod", "1", "-n", SYSTEM)
    if scaled() != 2:
        raise Failed("helm rollback changed nothing")
    for release in ("istio-ingressgateway", "istiod", "istio-base"):
        call("uninstall", release, "-n", SYSTEM)
    # Helm keeps the kinds, as it is told to.
    run.kubectl("delete", "crd", "-l", "app.kubernetes.io/part-of=istio")
    if made:
        run.drop(SYSTEM)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("carrick")
    parser.add_argument("--kubeconfig")
    parser.add_argument("--address", default="127.0.0.1", help="where the API server reaches this machine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="carrick-e2e-") as folder:
        run = Run(os.path.abspath(arguments.carrick), folder, arguments.address)
        number = 0

        def step(what, extra=None):
            nonlocal number
            number += 1
            print(f"{number:2}. {what}" + (f": {extra}" if extra else ""), flush=True)

        try:
            if arguments.kubeconfig:
                run.kubeconfig = arguments.kubeconfig
            else:
                data = os.path.join(folder, "up")
                run.start(run.carrick, "up", "--api-only", f"--data-dir={data}", f"--api-port={free_port()}", log="up.log")
                run.kubeconfig = os.path.join(data, "kubeconfig")
                until("the embedded API", lambda: os.path.exists(run.kubeconfig) and run.call(KUBECTL, "get", "ns", ok=False).returncode == 0, 60)
            before = run.everything()
            helm(run)
            step("Helm installs, upgrades, rolls back and uninstalls the charts")
            install(run)
            step("carrick install, and once more; a dry run leaves nothing")
            kinds(run)
            step("the kinds of the mesh are there")
            replicas = [Replica(run, "default", number) for number in range(2)]
            for replica in replicas:
                replica.ready()
            step("two replicas are ready, with the rights of the Deployment's account")
            rules(run)
            step("objects are taken and refused by their schemas and rules")
            roots = bundles(run, replicas)
            step("roots are in namespaces, bundles in webhooks, and both are kept so")
            injected(run)
            step("a pod made by kubectl has a sidecar (it does not run: there are no nodes)")
            statuses(run)
            step("a policy tells what became of it")
            step("a gateway gets what it runs on", gateways(run))
            replicas, took = leader_killed(run, replicas)
            step("the leader is killed, another writes", took)
            canary, counted = upgrade(run, replicas, roots)
            step("upgraded from one revision to another, with tags", counted)
            run.stop(canary.process)
            run.drop("shop")
            run.own("uninstall", "--purge", "-y")
            if f"Namespace <none> {SYSTEM}" not in before:
                run.no_more(SYSTEM)
            try:
                until("everything is gone", lambda: run.everything() <= before)
            except Failed as error:
                raise Failed(f"left behind: {sorted(run.everything() - before)}") from error
            step("uninstalled: nothing is left")
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"FAILED after step {number}: {error}")
            for name in sorted(os.listdir(folder)):
                if name.endswith(".log"):
                    with open(os.path.join(folder, name), errors="replace") as file:
                        print(f"--- {name}\n" + "".join(file.readlines()[-25:]))
            return 1
        finally:
            for process in list(run.processes):
                run.stop(process)
    print("all steps passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
