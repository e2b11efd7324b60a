"""gRPC by grpcio through sidecars and gateways of both data planes, and as an xDS client: a mesh, servers and clients of its own.

Wants root, `carrick` (first argument) and a Python with grpcio (this one, or the one that PYTHONPATH helps). Prints a line for each
check and the sum; exit code 1 when one failed. Everything it starts it ends. One mesh at a time can live in a network namespace.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent import futures

HERE = pathlib.Path(__file__).resolve().parent
ENGINES = ["native", "envoy"]
NAMESPACE = "calls"


class Mesh:
    def __init__(self, carrick, folder):
        self.carrick, self.folder, self.children = carrick, folder, []

    def command(self, *args):
        return [self.carrick, "--data-dir", str(self.folder), *args]

    def start(self, name, *args):
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen(self.command(*args), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append((name, child))

    def until(self, what, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            for name, child in self.children:
                if child.poll() is not None:
                    sys.exit(f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-2000:]}")
            if time.monotonic() > end:
                sys.exit(f"late: {what}")
            time.sleep(0.1)

    def apply(self, manifests):
        subprocess.run(self.command("apply", "-f", "-"), input=manifests.encode(), check=True, stdout=subprocess.DEVNULL)

    def pod(self, name, app, *args, command=()):
        command = ["--", *command] if command else []
        self.start(name, "run", "-n", NAMESPACE, "--name", name, "-l", f"app={app}", *args, *command)

    def inside(self, pod, *command):
        return subprocess.run(self.command("exec", pod, "-n", NAMESPACE, "--", *command), capture_output=True, text=True)

    def ready(self, pod, probe):
        self.until(f"pod {pod}", lambda: self.inside(pod, *probe).returncode == 0)

    def stop(self):
        for _, child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for name, child in reversed(self.children):
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                print(f"{name} does not end", file=sys.stderr)
                child.kill()


READY = ["curl", "-sf", "-m", "2", "http://127.0.0.1:15021/healthz/ready"]


def answers(url):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=2).status == 200
    return False


def service(name):
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: grpc, port: 8082}}]}}
---"""


def mutual_tls(mode):
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {NAMESPACE}}}
spec: {{mtls: {{mode: {mode}}}}}
"""


def rules(mode):
    """A library asks for TLS where a rule says so: it knows no automatic one."""
    return "---".join(f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo-{engine}, namespace: {NAMESPACE}}}
spec: {{host: echo-{engine}, trafficPolicy: {{tls: {{mode: {mode}}}}}}}
""" for engine in ENGINES)


def bootstrap(folder):
    """What makes grpcio an xDS client of the control plane."""
    server = {"server_uri": "127.0.0.1:15010", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
    node = {"id": f"sidecar~127.0.0.1~checks.{NAMESPACE}~{NAMESPACE}.svc.cluster.local", "metadata": {"GENERATOR": "grpc"}}
    path = folder / "xds.json"
    path.write_text(json.dumps({"xds_servers": [server], "node": node}))
    return {**os.environ, "GRPC_XDS_BOOTSTRAP": str(path)}


def library(mesh):
    """A pod without a data plane: its agent serves the gRPC library, as in pods of the template `grpc-agent`."""
    mesh.apply(rules("ISTIO_MUTUAL"))
    folder = mesh.folder / "library"
    folder.mkdir()
    folder.chmod(0o777)
    told = {"DISABLE_ENVOY": "true", "ISTIO_META_GENERATOR": "grpc", "OUTPUT_CERTS": folder, "GRPC_XDS_BOOTSTRAP": folder / "bootstrap.json"}
    env = [word for name, value in told.items() for word in ("--sidecar-env", f"{name}={value}")]
    nothing = ["--annotation", "sidecar.istio.io/interceptionMode=NONE"]
    mesh.pod("library", "library", *nothing, *env, command=["sleep", "infinity"])
    return ["env", f"GRPC_XDS_BOOTSTRAP={folder / 'bootstrap.json'}"]


def gateway(engine, folder):
    """A gateway in the clear and with TLS, which sends each host name to the servers of that data plane."""
    routes = "".join(
        f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {server}-by-{engine}, namespace: {NAMESPACE}}}
spec:
  hosts: [{server}.example.com]
  gateways: [gateway-{engine}]
  http: [{{route: [{{destination: {{host: echo-{server}, port: {{number: 8082}}}}}}]}}]
---"""
        for server in ENGINES
    )
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: gateway-{engine}, namespace: {NAMESPACE}}}
spec: {{selector: {{app: gateway-{engine}}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: https, port: 443, targetPort: 8443}}]}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: gateway-{engine}, namespace: {NAMESPACE}}}
spec:
  selector: {{istio: gateway-{engine}}}
  servers:
  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: ["*"]
    tls: {{mode: SIMPLE, serverCertificate: {folder}/server.pem, privateKey: {folder}/server-key.pem}}
---{routes}"""


def runs():
    """Where from, where to: every pair of data planes, through sidecars and through gateways."""
    for client in ENGINES:
        for server in ENGINES:
            yield f"{client} sidecar, {server} sidecar", f"client-{client}", [f"echo-{server}:8082"]
    for edge in ENGINES:
        for server in ENGINES:
            name = ["--name", f"{server}.example.com"]
            yield f"{edge} gateway, {server} sidecar", "outside", [f"gateway-{edge}:80", *name]
            tls = [*name, "--ca", "CERTIFICATES/ca.pem"]
            yield f"{edge} gateway with TLS, {server} sidecar", "outside", [f"gateway-{edge}:443", *tls]


def prepare(mesh):
    certificates = mesh.folder / "certificates"
    names = [word for engine in ENGINES for word in ("--name", f"{engine}.example.com")]
    mesh.start("up", "up", "--plain-xds-port", "15010")
    mesh.until("carrick up", lambda: answers("http://127.0.0.1:15014/ready"))
    subprocess.run([mesh.carrick, "demo", "certificates", str(certificates), *names], check=True)
    labels = "istio-injection: enabled"
    manifests = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{{labels}}}}}\n---"
    for engine in ENGINES:
        manifests += service(f"echo-{engine}") + gateway(engine, certificates)
    mesh.apply(manifests + mutual_tls("STRICT"))
    python = [sys.executable, "-u"]
    sleep = ["sleep", "infinity"]
    for engine in ENGINES:
        for version in ("v1", "v2"):
            name = f"echo-{engine}-{version}"
            command = [*python, str(HERE / "echo_server.py"), "--name", name]
            mesh.pod(name, f"echo-{engine}", "--port", "grpc=8082", "--engine", engine, command=command)
        mesh.pod(f"client-{engine}", f"client-{engine}", "--engine", engine, command=sleep)
        mesh.pod(f"gateway-{engine}", f"gateway-{engine}", "-l", f"istio=gateway-{engine}", "--engine", engine, "--gateway")
    mesh.pod("outside", "outside", "--no-sidecar", command=sleep)
    by_agent = library(mesh)
    for engine in ENGINES:
        for name in (f"echo-{engine}-v1", f"echo-{engine}-v2", f"client-{engine}", f"gateway-{engine}"):
            mesh.ready(name, READY)
    mesh.ready("outside", ["true"])
    mesh.ready("library", READY)
    return certificates, by_agent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("carrick")
    parser.add_argument("--verbose", action="store_true", help="every check, not only those that fail")
    options = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="carrick-calls.") as folder:
        # Proxies are another user, and read the gateways' certificates there.
        os.chmod(folder, 0o755)
        mesh = Mesh(os.path.abspath(options.carrick), pathlib.Path(folder))
        try:
            certificates, by_agent = prepare(mesh)

            def one(run):
                what, pod, args = run
                args = [arg.replace("CERTIFICATES", str(certificates)) for arg in args]
                return what, mesh.inside(pod, sys.executable, "-u", str(HERE / "grpc_checks.py"), *args)

            def by_xds(engine):
                target = f"xds:///echo-{engine}.{NAMESPACE}.svc.cluster.local:8082"
                command = [sys.executable, "-u", str(HERE / "grpc_checks.py"), target]
                env = bootstrap(mesh.folder)
                done = subprocess.run(command, capture_output=True, text=True, env=env)
                return f"xds:/// without a proxy, {engine} sidecar", done

            def beside_agent(engine):
                target = f"xds:///echo-{engine}.{NAMESPACE}.svc.cluster.local:8082"
                checks = [sys.executable, "-u", str(HERE / "grpc_checks.py"), target, "--xds-credentials"]
                return f"xds:/// with the agent's certificate, {engine} sidecar", mesh.inside("library", *by_agent, *checks)

            def all_runs(pool):
                yield from pool.map(one, runs())
                yield from pool.map(beside_agent, ENGINES)
                # Such a client speaks in the clear, unless its program gives it certificates.
                mesh.apply(mutual_tls("PERMISSIVE") + "---" + rules("DISABLE"))
                yield from pool.map(by_xds, ENGINES)

            # Most of their time is waiting, for deadlines and for the other side.
            for what, done in all_runs(futures.ThreadPoolExecutor(4)):
                lines = done.stdout.splitlines()
                good = [line for line in lines if " ok " in line]
                bad = [line for line in lines if " ok " not in line]
                if done.returncode != 0 and not bad:
                    bad = [done.stderr[-1000:] or "no word"]
                print(f"{what}: {len(good)} passed, {len(bad)} failed", flush=True)
                for line in lines if options.verbose else bad:
                    print(f"  {line}")
                passed, failed = passed + len(good), failed + len(bad)
        finally:
            mesh.stop()
    print(f"gRPC by grpcio: {passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
