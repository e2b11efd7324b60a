"""The mesh in a cluster that has nodes: the control plane as its Deployment, two applications, their sidecars, and rules between them.

HUB (and TAG) name a registry with the images of `make image`; the application is the image APP, which has to have python3. Without HUB or
without nodes this is left out.
"""

import json
import os

from cluster import SYSTEM, until

APP = os.environ.get("APP", "docker.io/library/python:3-slim")
ASK = "import urllib.request as u, urllib.error as e\ntry: print(u.urlopen('http://server:8080/', timeout=5).status)\nexcept e.HTTPError as x: print(x.code)\nexcept Exception as x: print('none')"


def deployment(name, injected):
    labels = {"app": name, "sidecar.istio.io/inject": "true" if injected else "false"}
    app = {"name": "app", "image": APP, "command": ["python3", "-m", "http.server", "8080"], "workingDir": "/etc", "ports": [{"containerPort": 8080}]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": name}},
                     "template": {"metadata": {"labels": labels}, "spec": {"containers": [app], "terminationGracePeriodSeconds": 1}}}}


def run(run, before):
    hub, tag = os.environ.get("HUB"), os.environ.get("TAG")
    if not run.nodes:
        return "left out, there are no nodes"
    if not hub:
        return "left out, HUB names no registry with the images of `make image`"
    images = ["--set", f"hub={hub}"] + (["--set", f"tag={tag}"] if tag else [])
    run.own("install", "-y", "--set", "profile=minimal", *images)
    run.make("shop")
    run.kubectl("label", "namespace", "shop", "istio-injection=enabled")
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "shop"},
               "spec": {"selector": {"app": "server"}, "ports": [{"name": "http", "port": 8080}]}}
    objects = [deployment("server", True), deployment("client", True), deployment("outside", False), service]
    run.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    for name in ("server", "client", "outside"):
        run.kubectl("rollout", "status", f"deployment/{name}", "-n", "shop", "--timeout=300s")

    def asked(by):
        return run.kubectl("exec", f"deployment/{by}", "-n", "shop", "-c", "app", "--", "python3", "-c", ASK).strip()

    def policy(kind, spec):
        made = {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "e2e", "namespace": "shop"}, "spec": spec}
        run.kubectl("apply", "-f", "-", text=json.dumps(made))

    until("both are answered", lambda: (asked("client"), asked("outside")) == ("200", "200"))
    policy("PeerAuthentication", {"mtls": {"mode": "STRICT"}})
    until("who is outside of the mesh is refused", lambda: (asked("client"), asked("outside")) == ("200", "none"))
    policy("AuthorizationPolicy", {"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})
    until("a rule denies", lambda: asked("client") == "403")
    run.drop("shop")
    run.own("uninstall", "--purge", "-y")
    if f"Namespace <none> {SYSTEM}" not in before:
        run.no_more(SYSTEM)
    return "mutual TLS and a rule between pods"
