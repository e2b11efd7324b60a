"""The documents' scenarios by kubectl alone, line by line (*.txt beside this), in a mesh of their own: python3 run.py CARRICK.

A transcript is what people type: `$` lines are run by bash, with variables kept from one to the next. `$56` must end with 56; `$?` is tried
again until it is as expected; `$&` runs on. `|` lines are what is typed in, `>` must be in what is printed, `~` must not.
`[new]` and `[old]` are for kubectl 1.35 and Debian's 1.20 alone. Only one mesh fits into a network namespace."""

import os, re, shutil, signal, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 20


class Step:
    def __init__(self, line, sign, command):
        self.line, self.sign, self.command = line, sign, command
        self.typed, self.shown, self.absent = "", [], []


def steps(path, version):
    found = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            skipped = re.match(r"\[(new|old)\] ", line)
            if skipped:
                if skipped[1] != version:
                    continue
                line = line[skipped.end():]
            command = re.match(r"\$(\d+|\?\d*|&|) (.*)", line)
            if command:
                found.append(Step(number, command[1], command[2]))
            elif line.startswith("|"):
                found[-1].typed += line[2:] + "\n"
            elif line[:1] in (">", "~"):
                (found[-1].shown if line[0] == ">" else found[-1].absent).append(line[2:])
            elif line and not line.startswith("#"):
                raise SystemExit(f"{path}:{number}: {line!r} is no line of a transcript")
    return found


class Session:
    def __init__(self, folder, env):
        self.folder, self.env, self.running = folder, env, []
        self.variables = os.path.join(folder, "variables")

    def once(self, step):
        script = f"[ -f {self.variables} ] && . {self.variables}\n{step.command}\ncode=$?\nexport -p > {self.variables}\nexit $code"
        try:
            done = subprocess.run(["timeout", "30", "bash", "-c", script], cwd=HERE, env=self.env, input=step.typed, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        except subprocess.TimeoutExpired as late:
            return ["it does not end"], (late.stdout or b"").decode()
        wanted = int(step.sign.lstrip("?") or 0)
        wrong = [f"not printed: {text}" for text in step.shown if text not in done.stdout]
        wrong += [f"printed: {text}" for text in step.absent if text in done.stdout]
        if done.returncode != wanted:
            wrong.append(f"exit code {done.returncode}, not {wanted}")
        return wrong, done.stdout

    def play(self, path, version):
        begun = time.monotonic()
        played = steps(path, version)
        for step in played:
            if step.sign == "&":
                log = open(os.path.join(self.folder, f"run-{len(self.running)}.log"), "wb")
                # It ends with this program however that ends.
                script = f"[ -f {self.variables} ] && . {self.variables}\nexec {step.command}"
                self.running.append(subprocess.Popen(["bash", "-c", script], cwd=HERE, env=self.env, stdin=subprocess.DEVNULL,
                                                     stdout=log, stderr=log))
                continue
            end = time.monotonic() + (PATIENCE if step.sign.startswith("?") else 0)
            while True:
                wrong, printed = self.once(step)
                if not wrong or time.monotonic() > end:
                    break
                time.sleep(0.1)
            if wrong:
                logs = "".join(open(os.path.join(self.folder, f)).read()[-1500:] for f in sorted(os.listdir(self.folder)) if f.endswith(".log"))
                raise SystemExit(f"{os.path.basename(path)}:{step.line}: {step.command}\n{printed}\n{'; '.join(wrong)}\n{logs}")
        print(f"{os.path.basename(path)} with kubectl {'1.35' if version == 'new' else '1.20'}: {len(played)} commands, {time.monotonic() - begun:.1f} s")
        self.end()

    def end(self):
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait(timeout=20)
        self.running = []


def main():
    carrick = os.path.abspath(sys.argv[1])
    only = sys.argv[2:]
    new = os.environ.get("CARRICK_KUBECTL") or shutil.which("kubectl")
    old = os.environ.get("CARRICK_KUBECTL_OLD") or shutil.which("kubectl-1.20")
    folder = tempfile.mkdtemp(prefix="carrick-documents-")
    data = os.path.join(folder, "data")
    for name, program in (("new", new), ("old", old)):
        if not program:
            raise SystemExit(f"no kubectl ({name}): `tools/install test` fetches it")
        os.makedirs(os.path.join(folder, name))
        os.symlink(program, os.path.join(folder, name, "kubectl"))
    base = {**os.environ, "HOME": folder, "CARRICK_DATA_DIR": data, "KUBECONFIG": os.path.join(data, "kubeconfig"),
            "W": os.path.join(HERE, "..", "..", "examples")}
    rest = f"{os.path.dirname(carrick)}:{os.environ['PATH']}"
    log = open(os.path.join(folder, "up.log"), "wb")
    up = subprocess.Popen([carrick, "up", "--no-host-names"], env=base, stdout=log, stderr=log)
    sessions = []
    try:
        end = time.monotonic() + 60
        while b"is ready" not in open(log.name, "rb").read():
            if up.poll() is not None or time.monotonic() > end:
                raise SystemExit("carrick up does not start:\n" + open(log.name).read())
            time.sleep(0.05)
        for name, version in (("banknext", "new"), ("product-stock", "old"), ("hipster", "new")):
            if only and name not in only:
                continue
            session = Session(tempfile.mkdtemp(dir=folder), {**base, "PATH": f"{os.path.join(folder, version)}:{rest}"})
            sessions.append(session)
            session.play(os.path.join(HERE, f"{name}.txt"), version)
    finally:
        for session in sessions:
            session.end()
        up.send_signal(signal.SIGTERM)
        up.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
