"""What a control plane weighs in a large cluster, and whether it outlives its API server: a command, not a test.

    size.py CARRICK [--pods 10000] [--services 2000] [--away SECONDS] [--kubeconfig FILE --server PID]

Starts the embedded API with so many pods and services (an EndpointSlice each), and one `carrick control` beside it; tells the control plane's
memory with nothing in the cluster and with everything, the bytes for an object, and how long it took until it was ready. With --away the
API server is stopped (SIGSTOP) for so long; then a change has to reach the control plane, which has to have been ready all the time.

With --kubeconfig another API server of this machine, whose process --server names, takes the place of the embedded one. It is to be without
controllers, which would remove pods of nodes that are not there, and is left with all that was made.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import KUBECTL, Failed, free_port, until  # noqa: E402


class Server:
    """An API server that somebody else started."""

    def __init__(self, pid):
        self.pid = pid

    def send_signal(self, what):
        os.kill(self.pid, what)

    def end(self):
        pass


class Embedded(subprocess.Popen):
    """The embedded API."""

    def end(self):
        self.terminate()
        self.wait(timeout=30)


def memory(process):
    """Resident bytes."""
    with open(f"/proc/{process.pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


class Api:
    """Writes to the API by connections that stay."""

    def __init__(self, folder):
        config = json.loads(subprocess.run([KUBECTL, "config", "view", "--raw", "--flatten", "-o", "json"], capture_output=True, check=True,
                                           env={**os.environ, "KUBECONFIG": f"{folder}/kubeconfig"}).stdout)
        import base64
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self.headers = {"content-type": "application/json"}
        if "token" in user:
            self.headers["authorization"] = f"Bearer {user['token']}"
        else:
            for name in ("certificate", "key"):
                with open(f"{folder}/size-{name}.pem", "wb") as file:
                    file.write(base64.b64decode(user[f"client-{name}-data"]))
            self.context.load_cert_chain(f"{folder}/size-certificate.pem", f"{folder}/size-key.pem")
        self.address, self.held = urllib.parse.urlsplit(cluster["server"]), threading.local()

    def call(self, method, path, body):
        connection = getattr(self.held, "connection", None)
        if connection is None:
            connection = self.held.connection = http.client.HTTPSConnection(self.address.hostname, self.address.port, timeout=60, context=self.context)
        headers = self.headers if method == "POST" else {**self.headers, "content-type": "application/merge-patch+json"}
        connection.request(method, path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 300 and answer.status != 409:
            raise Failed(f"{method} {path}: {answer.status} {text[:300]}")


def names(number):
    return f"ns-{number % 50}"


def service(api, number, pods):
    """One service with its pods and their endpoints."""
    namespace, name, labels = names(number), f"app-{number}", {"app": f"app-{number}", "version": "v1"}
    api.call("POST", f"/api/v1/namespaces/{namespace}/services", {
        "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
    endpoints = []
    for pod in pods:
        ip = f"10.{pod // 65536 + 32}.{pod // 256 % 256}.{pod % 256}"
        api.call("POST", f"/api/v1/namespaces/{namespace}/pods", {
            "metadata": {"name": f"{name}-{pod}", "labels": {**labels, "security.istio.io/tlsMode": "istio"}},
            "spec": {"nodeName": f"node-{pod % 100}", "serviceAccountName": "default", "containers": [
                {"name": "app", "image": "example.org/app:1", "ports": [{"containerPort": 8080}]},
                {"name": "istio-proxy", "image": "example.org/proxyv2:1"}]}})
        api.call("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}-{pod}/status", {
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}})
        endpoints.append({"addresses": [ip], "conditions": {"ready": True},
                          "targetRef": {"kind": "Pod", "name": f"{name}-{pod}", "namespace": namespace}})
    api.call("POST", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", {
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})


class Control:
    """One control plane against the API in `folder`."""

    def __init__(self, carrick, folder, name):
        self.health, self.metrics, begun = free_port(), free_port(), time.monotonic()
        self.log = open(os.path.join(folder, f"{name}.log"), "wb")
        self.process = subprocess.Popen([
            carrick, "control", f"--kubeconfig={folder}/kubeconfig", f"--name={name}", f"--data-dir={folder}/{name}",
            f"--xds-port={free_port()}", f"--webhook-port={free_port()}", f"--debug-port={free_port()}",
            f"--health-address=127.0.0.1:{self.health}", f"--metrics-address=127.0.0.1:{self.metrics}", "--server-ip=127.0.0.1"],
            stdout=self.log, stderr=subprocess.STDOUT)
        try:
            until("the control plane is ready", self.ready, 120)
        except Failed:
            self.end()
            raise
        self.took = time.monotonic() - begun

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


def settled(process, still=3.0):
    """Memory when it has not grown for a while."""
    most, since = memory(process), time.monotonic()
    while time.monotonic() - since < still:
        time.sleep(0.2)
        now = memory(process)
        if now > most * 1.01:
            most, since = now, time.monotonic()
    return memory(process)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("carrick")
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=2_000)
    parser.add_argument("--away", type=float, default=0)
    parser.add_argument("--kubeconfig")
    parser.add_argument("--server", type=int, help="the process of its API server")
    arguments = parser.parse_args()
    if bool(arguments.kubeconfig) != bool(arguments.server):
        parser.error("--kubeconfig and --server go together")
    carrick = os.path.abspath(arguments.carrick)
    with tempfile.TemporaryDirectory(prefix="carrick-size-") as folder:
        if arguments.kubeconfig:
            shutil.copyfile(arguments.kubeconfig, f"{folder}/kubeconfig")
            server = Server(arguments.server)
        else:
            with open(f"{folder}/api.log", "wb") as log:
                server = Embedded([carrick, "up", "--api-only", f"--data-dir={folder}", f"--api-port={free_port()}"],
                                  stdout=log, stderr=subprocess.STDOUT)
        control = None
        try:
            env = {**os.environ, "KUBECONFIG": f"{folder}/kubeconfig"}
            answers = lambda: subprocess.run([KUBECTL, "get", "ns"], capture_output=True, env=env).returncode == 0
            until("the API answers", lambda: os.path.exists(f"{folder}/kubeconfig") and answers(), 60)
            subprocess.run([KUBECTL, "create", "ns", "istio-system"], env=env, capture_output=True)
            control = Control(carrick, folder, "empty")
            empty = settled(control.process)
            control.end()

            api, begun = Api(folder), time.monotonic()
            for number in range(50):
                api.call("POST", "/api/v1/namespaces", {"metadata": {"name": names(number)}})
                api.call("POST", f"/api/v1/namespaces/{names(number)}/serviceaccounts", {"metadata": {"name": "default"}})
            shares = [range(n, arguments.pods, arguments.services) for n in range(arguments.services)]
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                for _ in pool.map(lambda n: service(api, n, shares[n]), range(arguments.services)):
                    pass
            objects = arguments.pods + 2 * arguments.services
            print(f"{objects} objects made in {time.monotonic() - begun:.0f} s; the API server holds {memory(server) / 2**20:.0f} MiB", flush=True)

            control = Control(carrick, folder, "full")
            full = settled(control.process)
            print(f"control plane: ready after {control.took:.1f} s, {empty / 2**20:.1f} MiB with nothing, {full / 2**20:.1f} MiB with "
                  f"{arguments.pods} pods and {arguments.services} services: {(full - empty) / objects:.0f} bytes an object", flush=True)
            if arguments.away:
                server.send_signal(signal.SIGSTOP)
                end, asked = time.monotonic() + arguments.away, 0
                try:
                    while time.monotonic() < end:
                        if not control.ready():
                            raise Failed("the control plane is not ready while its API server is away")
                        asked += 1
                        time.sleep(min(1.0, arguments.away / 10))
                finally:
                    server.send_signal(signal.SIGCONT)
                subprocess.run([KUBECTL, "create", "ns", "after"], env=env, check=True, capture_output=True)
                back = time.monotonic()
                until("the roots reach a namespace that was made after the absence", lambda: subprocess.run(
                    [KUBECTL, "get", "cm", "istio-ca-root-cert", "-n", "after"], env=env, capture_output=True).returncode == 0, 60)
                print(f"API server away for {arguments.away:.0f} s: ready all the time (asked {asked} times), followed "
                      f"{time.monotonic() - back:.1f} s after it was back; {memory(control.process) / 2**20:.1f} MiB", flush=True)
        except Failed as error:
            print(f"FAILED: {error}")
            for name in ("api.log", "empty.log", "full.log"):
                if os.path.exists(f"{folder}/{name}"):
                    with open(f"{folder}/{name}", errors="replace") as file:
                        print(f"--- {name}\n" + "".join(file.readlines()[-15:]))
            return 1
        finally:
            if control and control.process.poll() is None:
                control.end()
            server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
