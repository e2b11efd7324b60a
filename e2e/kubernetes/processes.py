"""What runs as processes of this machine in the place of a cluster's pods: replicas of the control plane, gateways, and load.

A replica has the service account, and so the rights, of the Deployment; a gateway an account of its own. `carrick-proxy` lies beside CARRICK.
"""

import http.client
import http.server
import json
import os
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

from cluster import SYSTEM, Failed, free_port, until

LEASE = 3.0


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
            f"--metrics-address=127.0.0.1:{self.metrics}", f"--server-ip={run.address or '127.0.0.1'}", f"--lease={LEASE:.0f}s", log=f"{name}.log")

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
        asked = urllib.request.Request(f"https://{self.run.address or '127.0.0.1'}:{self.port}{path}", json.dumps(review).encode(),
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
            "--pod-namespace=shop", "--service-account=edge", f"--instance-ip={run.address or '127.0.0.1'}", "--bind-address=127.0.0.1",
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
