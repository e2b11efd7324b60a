"""The cluster that the suite runs in: kubectl, what is there, and what there is not.

Nothing but an API server is asked for. What else there is (controllers, nodes, a way back to this machine) is found out and told once; where
no controllers run, their part (the account `default` of a namespace, a namespace's end) is done here.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse


def tool(variable, name):
    """The program a variable names, else that of the path."""
    named = os.environ.get(variable, "")
    return named if named and (shutil.which(named) or os.path.exists(named)) else name


KUBECTL = tool("CARRICK_KUBECTL", "kubectl")
HELM = tool("CARRICK_HELM", "helm")
SYSTEM = "istio-system"
PROBE = "carrick-e2e"
# Namespaces of a run.
OWN = (SYSTEM, PROBE, "shop", "later")
# Kinds whose objects come and go by themselves, in every cluster.
RESTLESS = ("events", "endpointslices", "endpoints", "nodes", "componentstatuses", "leases", "leasecandidates", "ipaddresses", "csinodes",
            "csistoragecapacities", "volumeattachments", "apiservices", "flowschemas", "prioritylevelconfigurations", "storageversions",
            "certificatesigningrequests", "persistentvolumes", "resourceslices", "clustertrustbundles")


class Failed(Exception):
    pass


def until(what, holds, limit=60.0):
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
        self.carrick, self.folder = carrick, folder
        # Where the API server reaches this machine; None if it does not.
        self.address = address
        self.kubeconfig = None
        self.controllers, self.nodes = False, 0
        self.processes = []

    def call(self, *command, text=None, ok=True, env=None):
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600,
                                  env={**os.environ, "KUBECONFIG": self.kubeconfig or "", **(env or {})})
        except FileNotFoundError as error:
            raise Failed(f"there is no {command[0]}: `tools/install kubernetes` fetches kubectl and Helm") from error
        if ok and done.returncode:
            raise Failed(f"{' '.join(command)}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def kubectl(self, *arguments, text=None):
        return self.call(KUBECTL, *arguments, text=text).stdout

    def has(self, *what):
        return self.call(KUBECTL, "get", *what, ok=False).returncode == 0

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
        with open(os.path.join(self.folder, log), "wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def stop(self, process, how=signal.SIGTERM):
        process.send_signal(how)
        process.wait(timeout=30)
        self.processes.remove(process)

    def listed(self, *scope, verbs="list"):
        # An aggregated API that is away makes kubectl fail, after it has told all others.
        names = self.call(KUBECTL, "api-resources", f"--verbs={verbs}", "-o", "name", *scope, ok=False).stdout.split()
        if not names:
            raise Failed("the API server lists no kinds")
        return names

    def everything(self):
        """The names of all objects of no namespace and of ours, but for those that come and go by themselves."""
        kinds = [kind for kind in self.listed() if kind.split(".")[0] not in RESTLESS and not kind.endswith(".metrics.k8s.io")]
        columns = "custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name"
        lines = self.kubectl("get", ",".join(kinds), "-A", "--no-headers", "--ignore-not-found", "-o", columns).splitlines()
        found = {tuple(line.split()) for line in lines if line.strip()}
        return {" ".join(line) for line in found if line[1] in OWN or line[1] == "<none>"}

    def is_gone(self, *what):
        done = self.call(KUBECTL, "get", *what, ok=False)
        return done.returncode != 0 and "NotFound" in done.stderr

    def no_more(self, namespace):
        """Waits until a namespace that is being deleted is gone; ends it where no controller does."""
        gone = lambda: self.is_gone("ns", namespace)
        if not self.controllers and not gone():
            kinds = ",".join(self.listed("--namespaced", verbs="list,delete"))
            self.call(KUBECTL, "delete", kinds, "--all", "-n", namespace, "--wait=false", "--grace-period=0", "--force", ok=False)
            there = self.get("ns", namespace)
            there["spec"]["finalizers"] = []
            self.kubectl("replace", "--raw", f"/api/v1/namespaces/{namespace}/finalize", "-f", "-", text=json.dumps(there))
        # The pods of a namespace have their time to end.
        until(f"namespace {namespace} is gone", gone, 180)

    def drop(self, namespace):
        self.kubectl("delete", "namespace", namespace, "--wait=false")
        self.no_more(namespace)

    def make(self, namespace):
        """A namespace whose pods may be what injected pods are, whatever the cluster's default; with the account of its pods."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        self.kubectl("create", "-f", "-", text=json.dumps(made))
        if not self.controllers:
            self.kubectl("create", "sa", "default", "-n", namespace)
        until("the account of the namespace", lambda: self.has("sa", "default", "-n", namespace))

    def look(self):
        """What there is besides the API server; what is told."""
        there = [name for name in OWN if name != SYSTEM and self.has("ns", name)]
        there += [name for name in self.kubectl("get", "crd", "-o", "name").split() if name.endswith(".istio.io")]
        if there:
            raise Failed(f"the cluster has {', '.join(there)} already: this suite would remove it with its own. Nothing was changed")
        version = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        told = [f"API server {version}"]
        conditions = lambda node: [c for c in node.get("status", {}).get("conditions", []) if c["type"] == "Ready" and c["status"] == "True"]
        self.nodes = sum(bool(conditions(node)) for node in self.get("nodes")["items"])
        told.append(f"{self.nodes} nodes" if self.nodes else "no nodes: pods are made, and do not run")
        self.kubectl("create", "namespace", PROBE)
        try:
            until("the account of a namespace", lambda: self.has("sa", "default", "-n", PROBE), 5)
            self.controllers = True
        except Failed:
            told.append("no controllers: accounts and the ends of namespaces are this suite's work")
        if self.address == "none":
            self.address = None
        elif not self.address:
            self.address = self.reached()
        told.append(f"it reaches this machine at {self.address}" if self.address else
                    "it does not reach this machine (ADDRESS names one that it does): the suite asks the webhooks itself")
        self.drop(PROBE)
        return told

    def reached(self):
        """An address of this machine at which the API server calls a webhook. What is called closes at once; it is the call that counts."""
        server = self.kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
        candidates = ["127.0.0.1"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
            try:
                route.connect((urllib.parse.urlsplit(server).hostname, 443))
                candidates.append(route.getsockname()[0])
            except OSError:
                pass
        try:
            candidates += subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
        except OSError:
            pass
        candidates = [address for address in dict.fromkeys(candidates) if "." in address]
        called, sockets, hooks = set(), [], []

        def listen(address, listener):
            try:
                while True:
                    listener.accept()[0].close()
                    called.add(address)
            except OSError:
                pass

        for number, address in enumerate(candidates):
            listener = socket.create_server((address, 0))
            sockets.append(listener)
            threading.Thread(target=listen, args=(address, listener), daemon=True).start()
            hooks.append({
                "name": f"reach-{number}.carrick.example.org", "failurePolicy": "Ignore", "sideEffects": "None", "timeoutSeconds": 2,
                "admissionReviewVersions": ["v1"], "clientConfig": {"url": f"https://{address}:{listener.getsockname()[1]}/"},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": PROBE}},
            })
        configuration = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
                         "metadata": {"name": PROBE}, "webhooks": hooks}
        self.kubectl("create", "-f", "-", text=json.dumps(configuration))
        try:
            def asked():
                self.kubectl("create", "configmap", "reach", "-n", PROBE, "--dry-run=server")
                return called

            until("the API server calls", asked, 10)
            return next(address for address in candidates if address in called)
        except Failed:
            return None
        finally:
            self.kubectl("delete", "validatingwebhookconfiguration", PROBE)
            for listener in sockets:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
