"""Informers of other people's client libraries on the embedded API: do they stay, or list again and again?

    run.py CARRICK [--seconds N] [--writes PER_SECOND] [--restart] [--without NAME,…]

An API of its own, one writer with a modest churn, and beside it Python's `kubernetes` (its Watch in a loop, and its SharedInformer),
`informer` of `@kubernetes/client-node`, and two reflectors of the Rust library `kube` (with a list, and with a streamed one). Every write
that was acknowledged has a number; what each client tells is held against it: nothing missed, nothing twice, nothing out of order, and no
list but the first. With --restart the server is stopped and started once in the middle.

Needs `kubernetes` (PYTHONPATH, or CARRICK_INFORMERS_PYTHON as the interpreter that has it) and, for `node`, a NODE_PATH or a folder
CARRICK_INFORMERS_NODE in which `npm install @kubernetes/client-node` was done.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from kubernetes import client, config

HERE = os.path.dirname(os.path.abspath(__file__))
NAMESPACE = "churn"
NAMES = 60


class Watcher:
    """One client, and what it told."""

    def __init__(self, name, command, env, folder):
        self.name, self.lines, self.lock = name, [], threading.Lock()
        self.log = open(os.path.join(folder, f"{name}.log"), "wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=env, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.lock:
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.lines.append({"event": "error", "error": line.strip()})

    def told(self):
        with self.lock:
            return list(self.lines)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.reader.join(5)


def judge(written, told):
    """What a client told, held against what was written; only the writes after its first list must be seen each."""
    lists = sum(line["event"] == "list" for line in told)
    errors = [line["error"] for line in told if line["event"] == "error"]
    # The namespace's own map (istio-ca-root-cert) has no number.
    events = [(line["event"], int(line["n"])) for line in told if line["event"] in ("put", "gone") and line["n"]]
    name_of = {line["n"]: line["name"] for line in told if line["event"] == "put"}
    wanted = set(written)
    seen, last, doubled, reordered, invented = set(), {}, 0, 0, 0
    for event in events:
        doubled += event in seen
        invented += event not in wanted
        seen.add(event)
        name = name_of.get(str(event[1]))
        reordered += event[1] < last.get(name, -1)
        last[name] = max(event[1], last.get(name, -1))
    return {"seen": len(events), "lists": lists, "missed": len(wanted - seen), "doubled": doubled, "reordered": reordered,
            "invented": invented, "errors": len(errors), "first errors": errors[:3]}


class Server:
    def __init__(self, carrick, folder):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.carrick, self.folder, self.process = carrick, folder, None
        self.kubeconfig = os.path.join(folder, "data", "kubeconfig")

    def start(self):
        log = open(os.path.join(self.folder, "server.log"), "ab")
        self.process = subprocess.Popen(
            [self.carrick, "--data-dir", os.path.join(self.folder, "data"), "up", "--api-only", "--no-network", "--log", "warn",
             "--api-port", str(self.port)], stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.process.stdout:
            if "ready" in line:
                return
        sys.exit("the server did not become ready")

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()


def counted(api):
    """Requests answered so far, by verb."""
    answer = api.rest_client.pool_manager.request("GET", api.configuration.host + "/metrics", headers=dict(
        {"authorization": token} if (token := api.configuration.get_api_key_with_prefix("authorization")) else {}))
    found = {}
    for line in answer.data.decode().splitlines():
        if line.startswith("apiserver_request_total{") and 'resource="configmaps"' in line:
            verb = line.split('verb="')[1].split('"')[0]
            found[verb] = found.get(verb, 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


def churn(core, seconds, rate, at_half):
    """Writes until the time is over; what was acknowledged, by the number it is known by."""
    written, there, chance, began = [], {}, random.Random(7), time.monotonic()
    number = 0
    while (now := time.monotonic()) < began + seconds:
        if at_half and now > began + seconds / 2:
            at_half()
            at_half = None
        name = f"map-{chance.randrange(NAMES)}"
        body = {"metadata": {"name": name}, "data": {"n": str(number)}}
        if name in there and chance.random() < 0.2:
            core.delete_namespaced_config_map(name, NAMESPACE)
            written.append(("gone", there.pop(name)))
        else:
            if name in there:
                core.replace_namespaced_config_map(name, NAMESPACE, body)
            else:
                core.create_namespaced_config_map(NAMESPACE, body)
            there[name] = number
            written.append(("put", number))
        number += 1
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
    return written


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("carrick")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--writes", type=float, default=5)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--without", default="")
    options = parser.parse_args()
    python = os.environ.get("CARRICK_INFORMERS_PYTHON", sys.executable)
    node = os.environ.get("CARRICK_INFORMERS_NODE")
    folder = tempfile.mkdtemp(prefix="carrick-informers-")
    server = Server(os.path.abspath(options.carrick), folder)
    server.start()
    watchers = []
    try:
        config.load_kube_config(server.kubeconfig)
        core = client.CoreV1Api()
        core.create_namespace({"metadata": {"name": NAMESPACE}})
        env = {**os.environ, "KUBECONFIG": server.kubeconfig}
        script = os.path.join(HERE, "watch.py")
        rust = [server.carrick, "bench", "informer", "--kubeconfig", server.kubeconfig, "--namespace", NAMESPACE]
        commands = {
            "python-watch": [python, script, "watch", NAMESPACE],
            "python-informer": [python, script, "informer", NAMESPACE],
            "kube": rust,
            "kube-streaming": [*rust, "--streaming"],
        }
        if node:
            # Modules are looked up beside the script, so it has to lie where they are.
            shutil.copy(os.path.join(HERE, "informer.mjs"), node)
            commands["node"] = ["node", os.path.join(node, "informer.mjs"), NAMESPACE]
        for name, command in commands.items():
            if name not in options.without.split(","):
                watchers.append(Watcher(name, command, env, folder))
        end = time.monotonic() + 20
        while any(not w.told() for w in watchers) and time.monotonic() < end and all(w.process.poll() is None for w in watchers):
            time.sleep(0.1)
        time.sleep(0.5)
        before, began = counted(core.api_client), time.monotonic()

        def restart():
            server.stop()
            server.start()

        written = churn(core, options.seconds, options.writes, restart if options.restart else None)
        end = time.monotonic() + 10
        while time.monotonic() < end and any(judge(written, w.told())["missed"] for w in watchers):
            time.sleep(0.2)
        minutes = (time.monotonic() - began) / 60
        after = counted(core.api_client)
        requests = {verb: round((count - (0 if options.restart else before.get(verb, 0))) / minutes, 2) for verb, count in after.items()}
        print(f"{len(written)} writes in {minutes:.1f} minutes; requests a minute on the server: {json.dumps(requests)}")
        bad = 0
        for w in watchers:
            found = judge(written, w.told())
            bad += found["missed"] + found["reordered"] + found["invented"]
            if not options.restart:
                bad += found["doubled"] + found["errors"] + (found["lists"] > 1)
            print(f"{w.name:16} {json.dumps(found)}", flush=True)
            if found["missed"] or found["errors"]:
                with open(w.log.name, errors="replace") as log:
                    print(log.read()[-2000:])
        return 1 if bad else 0
    finally:
        for w in watchers:
            w.stop()
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


sys.exit(main())
