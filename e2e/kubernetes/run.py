"""Installs Carrick into a Kubernetes API and takes it out again: everything that needs an API server and no nodes.

    run.py CARRICK [--kubeconfig FILE] [--address IP]

Without a kubeconfig the embedded API is started for the time of the run. Pods do not run here, since a bare API server has no nodes:
the control plane's replicas are processes on this machine, each with the service account (and so the rights) of the Deployment, and the
API server calls their webhooks at an ADDRESS that is tried first. Where there are nodes, and HUB names a registry with the images of
`make image`, pods run too (`pods.py`). Everything made is removed; what was there before is compared with what is there after.

What there is besides an API server is found out by `cluster.py`. An API server's caches are some moments old, so what depends on them
is tried until it holds.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pods
from cluster import HELM, KUBECTL, SYSTEM, Failed, Run, free_port, until
from processes import LEASE, WEBHOOKS, Gateway, Load, Replica, backend

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")


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
    minimal = ["--set", "profile=minimal"]
    if not run.address:
        # Nobody would answer: the webhooks of injection concern no pod, since no namespace asks for them; the others are left out.
        return [*minimal, "--set", "values.global.configValidation=false", "--set", "values.defaultRevision="]
    base = f"https://{run.address}:{WEBHOOKS[revision]}"
    return [*minimal, "--set", f"values.istiodRemote.injectionURL={base}/inject", "--set", f"values.base.validationURL={base}/validate"]


def install(run):
    generated = run.own("manifest", "generate", "--set", "profile=demo")
    if generated.count("\nkind: Deployment") != 3:
        raise Failed("manifest generate: not three Deployments")
    before = run.everything()
    run.own("install", "-y", "--dry-run", *where(run, "default"))
    left = run.everything() - before
    if left:
        raise Failed(f"a dry run has left {sorted(left)}")
    run.own("install", "-y", "--wait=false", *where(run, "default"))
    again = run.own("install", "-y", "--wait=false", *where(run, "default"))
    if "complete" not in again:
        raise Failed(f"installing twice: {again}")
    env = {"HELM_CONFIG_HOME": run.folder, "HELM_CACHE_HOME": run.folder, "HELM_DATA_HOME": run.folder}
    refused = run.call(HELM, "install", "istiod", f"{ROOT}/charts/istiod", "-n", SYSTEM, env=env, ok=False)
    if not refused.returncode or "ownership" not in refused.stderr:
        raise Failed(f"Helm wrote over what carrick installed: {refused.stdout}{refused.stderr}")


def kinds(run):
    there = {o["metadata"]["name"] for o in run.get("customresourcedefinitions")["items"]}
    wanted = {"virtualservices.networking.istio.io", "peerauthentications.security.istio.io", "telemetries.telemetry.istio.io",
              "wasmplugins.extensions.istio.io", "policies.authentication.istio.io"}
    if not wanted <= there:
        raise Failed(f"kinds are missing: {wanted - there}")
    until("the kinds are explained", lambda: "mode" in run.kubectl("explain", "peerauthentications.spec.mtls"))


def rules(run):
    run.make("shop")
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
        if run.address:
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
    # Nobody's scheduler: where there are nodes, thousands of pods without an image would be theirs.
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"schedulerName": "carrick-e2e", "containers": [{"name": "web", "image": "example.org/web:1"}]}}


def made_with_sidecar(run, name):
    """Makes a pod, gives whether it has a sidecar, and removes it."""
    made = json.loads(run.kubectl("create", "-f", "-", "-o", "json", text=json.dumps(pod_of(name))))
    run.kubectl("delete", "pod", name, "-n", "shop", "--grace-period=0", "--force", "--wait=false")
    return "istio-proxy" in [c["name"] for c in made["spec"]["containers"] + made["spec"].get("initContainers", [])]


def injected(run, replica, roots):
    """A pod that kubectl makes has a sidecar."""
    if not run.address:
        answer = replica.ask("/inject", {"operation": "CREATE", "namespace": "shop", "object": pod_of("web")}, roots)
        if not answer.get("allowed") or "istio-proxy" not in base64.b64decode(answer.get("patch", "")).decode():
            raise Failed(f"/inject: {answer}")
        return "asked by the suite itself"
    run.kubectl("label", "namespace", "shop", "istio-injection=enabled")
    tries = iter(range(1000))
    until("a pod has a sidecar", lambda: made_with_sidecar(run, f"web-{next(tries)}"))
    # As a Deployment's pods: named by the server, in the namespace of the request.
    nameless = pod_of("web")
    nameless["metadata"] = {"generateName": "web-", "labels": {"app": "web", "pod-template-hash": "5d8f"}}
    made = json.loads(run.kubectl("create", "-n", "shop", "-f", "-", "-o", "json", text=json.dumps(nameless)))
    run.kubectl("delete", "pod", made["metadata"]["name"], "-n", "shop", "--grace-period=0", "--force", "--wait=false")
    if "sidecar.istio.io/status" not in made["metadata"].get("annotations", {}):
        raise Failed("a pod without a name has no sidecar")
    return f"in version {json.loads(made['metadata']['annotations']['sidecar.istio.io/status'])['revision']}"


def statuses(run):
    def told():
        status = run.get("peerauthentication", "good", "-n", "shop").get("status", {})
        return any(c["status"] == "True" for c in status.get("conditions", []))

    until("a policy's status", told)


def gateways(run):
    """A Gateway gets an account, a Deployment whose pods need no webhook, and a Service; they go with it."""
    kinds = os.path.join(HERE, "gateway-kinds.yaml")
    own = not run.has("crd", "gateways.gateway.networking.k8s.io") and not run.has("gateways.gateway.networking.k8s.io", "-n", "shop")
    if own:
        run.kubectl("create", "-f", kinds)
        until("the kind is served", lambda: run.has("gateways.gateway.networking.k8s.io", "-n", "shop"))
    listeners = [{"name": "http", "port": 80, "protocol": "HTTP"}]
    gateway = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
               "metadata": {"name": "edge", "namespace": "shop", "annotations": {"networking.istio.io/service-type": "ClusterIP"}},
               "spec": {"gatewayClassName": "istio", "listeners": listeners}}
    run.kubectl("apply", "-f", "-", text=json.dumps(gateway))
    until("a gateway's Service", lambda: run.get("service", "edge-istio", "-n", "shop"))
    pod = until("a gateway's Deployment", lambda: run.get("deployment", "edge-istio", "-n", "shop"))["spec"]["template"]
    proxy = pod["spec"]["containers"][0]
    if proxy["image"] == "auto" or "router" not in proxy["args"] or pod["metadata"]["labels"]["sidecar.istio.io/inject"] != "false":
        raise Failed(f"not a gateway: {pod}")
    run.get("serviceaccount", pod["spec"]["serviceAccountName"], "-n", "shop")
    run.kubectl("delete", "gateways.gateway.networking.k8s.io", "edge", "-n", "shop")
    for kind in ("deployment", "service", "serviceaccount"):
        run.kubectl("delete", kind, "edge-istio", "-n", "shop", "--ignore-not-found", "--wait=false")
    if own:
        run.kubectl("delete", "-f", kinds)
        return "by definitions of the suite's own, since this API has no Gateways"
    return None


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

    loads = {"requests": Load(request), "writes": Load(write)}
    if run.address:
        loads["pods"] = Load(pod)
    try:
        run.own("install", "-y", "--wait=false", "--revision", "canary", *where(run, "canary"))
        canary = Replica(run, "canary", 0).ready()
        run.own("tag", "set", "prod", "--revision", "canary")
        if "prod" not in run.own("tag", "list"):
            raise Failed("tag list does not show the tag")
        if run.own("tag", "set", "prod", "--revision", "default", ok=False):
            raise Failed("a tag was moved without --overwrite")
        if run.address:
            run.own("tag", "set", "default", "--revision", "canary", "--overwrite")
            # Of the errors that analysis knows, one is that a pod is injected twice.
            if "IST0139" in run.own("analyze", "--all-namespaces", ok=False):
                raise Failed("webhooks of the two revisions overlap")
            until("the canary has the bundle", lambda: all(
                hook["clientConfig"].get("caBundle")
                for hook in run.get("mutatingwebhookconfigurations", "istio-revision-tag-default")["webhooks"]))
        # As the pods of a Deployment: the new ones serve before the old ones end.
        new = Gateway(run, canary, roots, ports["canary"]).ready()
        serving.append(new)
        # An API server hears of another's configuration, and of its own, some moments later.
        time.sleep(1)
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
    # A load balancer of a cloud is not wanted.
    plain = ["--set", "service.type=ClusterIP"]
    for chart, release, more in (("base", "istio-base", []), ("istiod", "istiod", []), ("gateway", "istio-ingressgateway", plain)):
        call("install", release, f"{ROOT}/charts/{chart}", "-n", SYSTEM, *more)

    def scaled():
        return run.get("hpa", "istiod", "-n", SYSTEM)["spec"]["minReplicas"]

    for asked, word in ((("install", "-y", "--wait=false"), "nothing was changed"), (("x", "precheck"), "does not take an installation")):
        done = run.call(run.carrick, *asked, ok=False)
        if not done.returncode or word not in done.stderr or "the Helm release istiod " not in done.stderr:
            raise Failed(f"carrick {asked[0]} beside Helm's releases: {done.stdout}{done.stderr}")
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


def uninstall(run, canary, before):
    """Everything goes, while a control plane still runs: pods of a Deployment that is gone have their time to end."""
    run.drop("shop")
    run.own("uninstall", "--purge", "-y")
    run.stop(canary.process)
    if f"Namespace <none> {SYSTEM}" not in before:
        run.no_more(SYSTEM)
    try:
        until("everything is gone", lambda: run.everything() <= before, 180)
    except Failed as error:
        raise Failed(f"left behind: {sorted(run.everything() - before)}") from error


def suite(run, step):
    """All steps; `step` is told each that went well."""
    before = run.everything()
    helm(run)
    step("Helm installs, upgrades, rolls back and uninstalls the charts, and nobody writes over them")
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
    step("a pod made by kubectl has a sidecar", injected(run, replicas[0], roots))
    statuses(run)
    step("a policy tells what became of it")
    step("a gateway gets what it runs on", gateways(run))
    replicas, took = leader_killed(run, replicas)
    step("the leader is killed, another writes", took)
    canary, counted = upgrade(run, replicas, roots)
    step("upgraded from one revision to another, with tags", counted)
    uninstall(run, canary, before)
    step("uninstalled: nothing is left")
    told = pods.run(run, before)
    step("pods of the nodes", told)
    if not told.startswith("left out"):
        until("everything is gone", lambda: run.everything() <= before, 180)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("carrick")
    parser.add_argument("--kubeconfig")
    parser.add_argument("--address", help="where the API server reaches this machine, or none; found out unless told")
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
                until("the embedded API", lambda: os.path.exists(run.kubeconfig) and run.has("ns"))
            for line in run.look():
                print(f"    {line}", flush=True)
            suite(run, step)
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
