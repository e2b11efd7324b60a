"""The same transcript on two API servers: what differs, beyond what docs/embedded-api.md states.

    run.py record FILE KUBECONFIG [--only PART,…]      runs the transcript and keeps the answers
    run.py compare FILE FILE [--all] [--unused]        what differs between two recordings; exit code 1 if anything does
    run.py answers FILE [OURS]                         the refusals of a recording, as apiserver's tests read them

A transcript (`*.txt` beside this file) is a list of steps: `$ kubectl …` (or `$ kubectl-1.20 …`) runs a command, `$~` repeats it until it
works, `GET /path`, `POST /path type` and so on make a request of their own; `|` is what is typed in or sent, `@` a header of the request
(`@token ID` leaves the administrator's certificate out). `{HOOK}` and `{CA}` stand for a webhook that this program serves.

What is never the same is made the same first: uids, times, revisions, addresses, ports of nodes, generated names; and the order in which
several mistakes are told, which is random in Kubernetes. `stated.txt` names what is allowed to differ, below the row of docs/embedded-api.md
that says so: a row that the page does not have is an error, and so is with `--unused` a rule that nothing needs.
"""

import argparse
import base64
import difflib
import fnmatch
import http.client
import http.server
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
HEADERS = ("content-type", "warning", "allow", "retry-after", "www-authenticate", "location", "vary")


class Step:
    def __init__(self, part, line, head):
        self.part, self.line, self.head, self.input, self.headers = part, line, head, [], []

    @property
    def body(self):
        return "".join(f"{line}\n" for line in self.input)


def steps(part):
    found = []
    with open(os.path.join(HERE, f"{part}.txt")) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if not line or line.startswith("#"):
                continue
            if line.startswith("|"):
                found[-1].input.append(line[2:])
            elif line.startswith("@"):
                found[-1].headers.append(line[1:].strip())
            elif line.startswith("$") or line.split(" ")[0] in METHODS:
                found.append(Step(part, number, line))
            else:
                sys.exit(f"{part}.txt:{number}: begins with neither $, a method, | nor @")
    return found


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook: what it answers is in the path."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = review["request"]
        answer = {"uid": request["uid"], "allowed": True}
        path = urllib.parse.urlparse(self.path).path.strip("/")
        if path == "deny":
            answer.update(allowed=False, status={"message": "not this one", "code": 418})
        elif path == "deny-plain":
            answer.update(allowed=False)
        elif path == "warn":
            answer["warnings"] = ["from the webhook"]
        elif path == "label":
            patch = [{"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}]
            answer.update(patchType="JSONPatch", patch=base64.b64encode(json.dumps(patch).encode()).decode())
        elif path == "broken-patch":
            patch = [{"op": "remove", "path": "/nothing"}]
            answer.update(patchType="JSONPatch", patch=base64.b64encode(json.dumps(patch).encode()).decode())
        elif path == "slow":
            time.sleep(3)
        elif path == "wrong-uid":
            answer["uid"] = "other"
        elif path == "error":
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"broken")
            return
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
        if path == "nonsense":
            body = b"{}"
        try:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            # Whoever asked has given up, as it is to.
            pass


def serve_hook(folder):
    key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out",
                    certificate, "-days", "2", "-subj", "/CN=hook", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(certificate, "rb") as file:
        return f"https://127.0.0.1:{server.server_port}", base64.b64encode(file.read()).decode()


class Target:
    """One API server, as kubectl and as plain HTTP reach it."""

    def __init__(self, kubeconfig, folder, kubectl):
        self.kubeconfig, self.folder, self.kubectl = kubeconfig, folder, kubectl
        view = subprocess.run([kubectl, "--kubeconfig", kubeconfig, "config", "view", "--raw", "-o", "json"], check=True, capture_output=True)
        config = json.loads(view.stdout)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.address = urllib.parse.urlparse(cluster["server"])
        self.token = user.get("token")

        def file(name, data, path):
            if not data:
                return path
            target = os.path.join(folder, name)
            with open(target, "wb") as out:
                out.write(base64.b64decode(data))
            return target

        ca = file("ca.pem", cluster.get("certificate-authority-data"), cluster.get("certificate-authority"))
        self.anybody = ssl.create_default_context(cafile=ca)
        self.anybody.check_hostname = False
        self.admin = ssl.create_default_context(cafile=ca)
        self.admin.check_hostname = False
        certificate = file("user.pem", user.get("client-certificate-data"), user.get("client-certificate"))
        if certificate:
            self.admin.load_cert_chain(certificate, file("user-key.pem", user.get("client-key-data"), user.get("client-key")))
        self.hook, self.hook_ca = serve_hook(folder)
        self.saved = {}
        self.environment = dict(os.environ, KUBECONFIG=kubeconfig, KUBECACHEDIR=os.path.join(folder, "cache"), HOME=folder,
                                EDITOR="sed -i s/REPLACE-ME/replaced/", KUBE_EDITOR="sed -i s/REPLACE-ME/replaced/", TZ="UTC")

    def fill(self, text):
        text = text.replace("{HOOK}", self.hook).replace("{CA}", self.hook_ca)
        return re.sub(r"\{saved:(\w+)\}", lambda m: self.saved.get(m[1], "?"), text)

    def command(self, step):
        line = self.fill(step.head.lstrip("$").lstrip("~").strip())
        save = re.match(r"(\w+)=(kubectl.*)", line)
        # JSON is one word, with its quotes.
        words = shlex.split(re.sub(r"(?<= )([\[{]\S*)", r"'\1'", save[2] if save else line))
        program = self.kubectl if words[0] == "kubectl" else os.path.join(os.path.dirname(self.kubectl), words[0])
        deadline = time.monotonic() + 30
        while True:
            try:
                done = subprocess.run([program] + words[1:], input=self.fill(step.body), env=self.environment, capture_output=True, text=True,
                                      timeout=40, cwd=self.folder)
            except subprocess.TimeoutExpired as late:
                return {"exit": "timeout", "out": (late.stdout or b"").decode(), "err": (late.stderr or b"").decode()}
            if not step.head.startswith("$~") or done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        if save:
            self.saved[save[1]] = done.stdout.strip()
            return {"exit": done.returncode, "out": "", "err": done.stderr}
        if step.head.startswith("$~"):
            return {"exit": done.returncode, "out": "", "err": ""}
        return {"exit": done.returncode, "out": done.stdout, "err": done.stderr}

    def request(self, step):
        words = self.fill(step.head).split(" ")
        method, path = words[0], words[1]
        headers = {"Accept": "application/json", "User-Agent": "same"}
        if len(words) > 2:
            headers["Content-Type"] = " ".join(words[2:])
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        context = self.admin
        for header in step.headers:
            if header == "anonymous":
                context = self.anybody
                continue
            name, value = self.fill(header).split(":", 1)
            headers[name] = value.strip()
            if name.lower() == "authorization":
                context = self.anybody
        body = self.fill(step.body).encode() if step.input else None
        connection = http.client.HTTPSConnection(self.address.hostname, self.address.port, context=context, timeout=40)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read().decode(errors="replace")
        except OSError as error:
            return {"exit": "none", "out": "", "err": str(error)}
        finally:
            connection.close()
        shown = [f"{name}: {value}" for name, value in sorted((n.lower(), v) for n, v in answer.getheaders()) if name in HEADERS]
        return {"exit": answer.status, "out": content, "err": "\n".join(shown)}

    def run(self, step):
        return self.command(step) if step.head.startswith("$") else self.request(step)


UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
LONG_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+A-Z0-9]+")
SHORT_DATE = re.compile(r"\d{4}[-/]\d\d[-/]\d\d \d\d:\d\d:\d\d(\.\d+)?( \+0000( UTC)?)?")
ADDRESS = re.compile(r"\b(10|172|192|127)\.\d+\.\d+\.\d+(:\d+)?\b")
FIXED = re.compile(r"\b\d+\.\d+\.\d+\.0/\d+")
TOKEN = re.compile(r"ey[\w-]{20,}\.[\w-]+\.[\w-]+")
LETTERS = "[bcdfghjklmnpqrstvwxz2456789]"
GENERATED = re.compile(rf"\b((?:gen|auto|web|app|run|job|fromcj|sel|noselector|api-access|Bad)-(?:[a-z]+-)?){LETTERS}{{5}}\b")
HASH = re.compile(rf"\b((?:web|app|dep|ssa|idle|owned)[a-z-]*-|pod-template-hash[=:] ?\"?){LETTERS}{{8,10}}\b")
REVISION = re.compile(r"(\bcurrent: |\bresource version to be 1, was |\bin record \(|\bResource Version: +|resourceVersion\\+\": ?\\+\")\d+")


def plain(text):
    for pattern, instead in ((UID, "UID"), (STAMP, "TIME"), (LONG_DATE, "DATE"), (SHORT_DATE, "DATE"), (TOKEN, "TOKEN")):
        text = pattern.sub(instead, text)
    text = re.sub(r"/tmp/(LIVE|MERGED)-\d+", r"/tmp/\1", text)
    text = re.sub(r"/tmp/tmp\w{8}", "/tmp/FOLDER", text)
    text = re.sub(r"\bW\d{4} [\d:.]+ +\d+ ", "W ", text)
    text = re.sub(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", "CERTIFICATE", text, flags=re.S)
    text = re.sub(r"(caBundle: )\S+", r"\1CA", text)
    text = re.sub(r"X509SHA256=\w+", "X509SHA256=HASH", text)
    text = re.sub(r"https://127\.0\.0\.1:\d+", "https://SERVER", text)
    text = re.sub(r'(resourceVersion"?: ?)"?\d+"?', r"\1RV", text)
    text = ADDRESS.sub("IP", text)
    text = GENERATED.sub(r"\1NAME", text)
    text = HASH.sub(r"\1HASH", text)
    text = re.sub(rf"(-HASH-){LETTERS}{{5}}\b", r"\1NAME", text)
    text = REVISION.sub(r"\1RV", text)
    text = re.sub(r"\b3[0-2]\d{3}\b", "NODEPORT", text)
    text = re.sub(r"(?<![\w.-])(\d+[smhd]){1,2}(?![\w-])(?= |$|\n)", "AGE", text, flags=re.M)
    text = re.sub(r"(BC|continue=|\"continue\": ?\")[\w=%-]{10,}", r"\1CONTINUE", text)
    return text


OPAQUE = {"uid": "UID", "resourceVersion": "RV", "caBundle": "CA", "continue": "CONTINUE", "pod-template-hash": "HASH"}


def value(node, key=""):
    if isinstance(node, dict):
        return {k: value(node[k], k) for k in sorted(node)}
    if isinstance(node, list):
        return [value(item, key) for item in node]
    if isinstance(node, str):
        if key in OPAQUE and node:
            return OPAQUE[key]
        return plain(node)
    return node


def made_same(out):
    """Text with everything random replaced; JSON laid out line by line."""
    stripped = out.strip()
    if stripped[:1] in "{[" and stripped:
        try:
            return json.dumps(value(json.loads(stripped)), indent=1).split("\n")
        except ValueError:
            pass
        try:
            lines = [json.dumps(value(json.loads(line)), indent=1).split("\n") for line in stripped.split("\n")]
            return [text for line in lines for text in line]
        except ValueError:
            pass
    return [re.sub(r"\s+$", "", re.sub(r" {2,}", "  ", line)) for line in plain(out).split("\n") if line.strip()]


def parts(only):
    found = sorted(name[:-4] for name in os.listdir(HERE) if name.endswith(".txt") and name != "stated.txt")
    return [part for part in found if not only or part in only.split(",")]


def record(arguments):
    recording = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Target(os.path.abspath(arguments.kubeconfig), folder, arguments.kubectl)
        for part in parts(arguments.only):
            began = time.monotonic()
            for step in steps(part):
                answer = target.run(step)
                recording[f"{part}:{step.line}"] = {"step": step.head, "exit": answer["exit"], "err": made_same(answer["err"]),
                                                    "out": made_same(answer["out"])}
            print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if arguments.only and os.path.exists(arguments.file):
        with open(arguments.file) as file:
            kept = {key: answer for key, answer in json.load(file).items() if key.split(":")[0] not in parts(arguments.only)}
            recording = {**kept, **recording}
    with open(arguments.file, "w") as out:
        json.dump(recording, out, indent=1)
        out.write("\n")


def stated():
    """Rules of `stated.txt`: `PART:STEP-PATTERN  LINE-PATTERN` or `PART:LINE-NUMBER  LINE-PATTERN`, below the row of the page (`## ROW`) that
    says so."""
    with open(os.path.join(HERE, "../../docs/embedded-api.md")) as file:
        rows = {line.split("|")[1].strip().replace("`", "") for line in file if line.startswith("| ")}
    rules, row = [], None
    with open(os.path.join(HERE, "stated.txt")) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            if line.startswith("## "):
                row = line[3:]
                if row not in rows:
                    sys.exit(f"stated.txt:{number}: docs/embedded-api.md has no row {row!r}")
            elif line and not line.startswith("#"):
                step, tab, pattern = line.partition("\t")
                if not tab or row is None:
                    sys.exit(f"stated.txt:{number}: no rule of a row")
                rules.append([step, re.compile(pattern), 0, number])
    return rules


def in_order(lines):
    """Several mistakes (`* …`, with the lines that belong to each) in the order of the alphabet."""
    done, points = [], []
    for line in lines:
        if line.startswith("* "):
            points.append([line])
        elif points:
            points[-1].append(line)
        else:
            done.append(line)
    return done + [line for point in sorted(points) for line in point]


def compare(arguments):
    with open(arguments.left) as left, open(arguments.right) as right:
        left, right = json.load(left), json.load(right)
    rules, differing, same, missing = [] if arguments.all else stated(), 0, 0, 0

    def allowed(key, step, line):
        for rule in rules:
            if (key == rule[0] or fnmatch.fnmatchcase(step, rule[0])) and rule[1].search(line):
                rule[2] += 1
                return True
        return False

    for key, here in left.items():
        there = right.get(key)
        if there is None:
            missing += 1
        if there is None or (arguments.only and key.split(":")[0] not in arguments.only.split(",")):
            continue
        name = f"{key.split(':')[0]}:{here['step']}"
        both = [[f"= {answer['exit']}"] + [f"! {line}" for line in in_order(answer["err"])] + answer["out"] for answer in (here, there)]
        lines = [line for line in difflib.unified_diff(*both, lineterm="", n=2)][2:]
        changes = [line for line in lines if line[0] in "+-" and not allowed(key, name, line)]
        # A comma at a line's end says only that something follows.
        bare = {sign: [line[1:].rstrip(",") for line in changes if line[0] == sign] for sign in "+-"}
        if bare["+"] != bare["-"]:
            differing += 1
            print(f"\n## {key} {here['step']}")
            print("\n".join(lines[: arguments.lines]))
            if len(lines) > arguments.lines:
                print(f"… {len(lines) - arguments.lines} more lines")
        else:
            same += 1
    print(f"\n{same} steps the same or differing as stated, {differing} differ otherwise")
    if missing:
        print(f"{missing} steps of the first are not in the second")
    unused = [rule for rule in rules if not rule[2]] if arguments.unused else []
    for rule in unused:
        print(f"stated.txt:{rule[3]}: nothing needs it: {rule[0]} {rule[1].pattern}")
    return 1 if differing or unused or missing else 0


def told_by(answer):
    try:
        status = json.loads("\n".join(answer["out"]))
        return status.get("message", "") if status.get("kind") == "Status" else ""
    except ValueError:
        return " ".join(answer["out"])


def answers(arguments):
    """What `crates/apiserver/tests/it/same.txt` is made of: refusals that hold nothing random, and what was taken in a dry run; with a
    second recording only those that are the same in both."""
    with open(arguments.file) as file:
        recording = json.load(file)
    with open(arguments.other or arguments.file) as file:
        other = json.load(file)
    random = re.compile(r"\b(UID(?!:)|TIME|RV|NODEPORT|CONTINUE|IP|AGE|TOKEN|HASH|NAME)\b")
    print("# Requests and what kube-apiserver 1.36.2 answered (code and message), made by e2e/same/run.py. `|` is the body, `@` a header,")
    print("# `>` the answer. A ConfigMap `a` is there.")
    for part in ("http", "rules", "rbac"):
        for step in steps(part):
            answer = recording.get(f"{part}:{step.line}")
            # What is about an object that another step made is not there for the tests.
            made = re.search(r"/configmaps/[bs]\b", step.head)
            told_who = any(header.split(":")[0] in ("anonymous", "Authorization", "Accept") for header in step.headers)
            if step.head.startswith("$") or told_who or made or not answer or not isinstance(answer["exit"], int):
                continue
            told = told_by(answer)
            here = re.sub(r'"(web-http|rb)"', '"default"', told)
            there = other.get(f"{part}:{step.line}")
            if not there or (there["exit"], told_by(there)) != (answer["exit"], told):
                continue
            if random.search(told) or (answer["exit"] < 400 and "dryRun=All" not in step.head):
                continue
            print(re.sub(r"\bweb-http\b|(?<=namespaces/)rb\b", "default", step.head))
            print("".join(f"| {line}\n" for line in step.input), end="")
            print("".join(f"@ {header}\n" for header in step.headers), end="")
            print(f"> {answer['exit']} {here}".replace("\n", "\\n").rstrip())
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("file")
    one.add_argument("kubeconfig")
    one.add_argument("--only", default="")
    one.add_argument("--kubectl", default=os.environ.get("CARRICK_KUBECTL", "kubectl"))
    two = commands.add_parser("compare")
    two.add_argument("left")
    two.add_argument("right")
    two.add_argument("--only", default="")
    two.add_argument("--all", action="store_true", help="also what is stated")
    two.add_argument("--unused", action="store_true", help="rules that nothing needs are errors")
    two.add_argument("--lines", type=int, default=60)
    three = commands.add_parser("answers")
    three.add_argument("file")
    three.add_argument("other", nargs="?")
    arguments = parser.parse_args()
    sys.exit({"record": record, "compare": compare, "answers": answers}[arguments.command](arguments))


if __name__ == "__main__":
    main()
