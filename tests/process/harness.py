# SPDX-License-Identifier: Apache-2.0
"""Shared by the process tests: a temporary directory, a text, dilocox as a process, waits.

Meson sets DILOCOX (the program), SOURCE_ROOT and BUILD_ROOT. No test sleeps for a fixed time: it
waits for a line, a file or an exit, with a deadline that only a broken program reaches."""
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

DILOCOX = os.environ["DILOCOX"]
SOURCE_ROOT = os.environ["SOURCE_ROOT"]
BUILD_ROOT = os.environ["BUILD_ROOT"]
SKIPPED = 77  # Meson's exit code for "skipped"

with open(DILOCOX, "rb") as program:
    SANITIZED = b"__asan_init" in program.read()
SLOWER = 5 if SANITIZED else 1  # factor of time limits
DEADLINE_S = 120

SMALL = {
    "model": {"family": "llama", "layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "mlp_width": 64, "context": 32,
              "vocabulary": 256},
    "train": {"tokens": 10240, "batch": 4, "micro_batch": 4, "optimizer": "adamw", "learning_rate": "5e-3",
              "warmup_tokens": 1000, "eval_tokens": 1500, "precision": "f32"},
    "sync": {"overlap": "carry", "inner_steps": 10, "pace": "constant", "adaptation": "paper", "compression": {"rank": 4}},
}


# as root, with more ranks than cores
MPIRUN = ("mpirun", "-q", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none")


def merge(base, changes):
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


class Process:
    """dilocox as a process in a session of its own; its output is kept by line."""

    def __init__(self, arguments, cwd, env=None, prefix=()):
        self.arguments = list(arguments)
        self.lines = {"stdout": [], "stderr": []}
        self.raw = {"stdout": bytearray(), "stderr": bytearray()}
        self.changed = threading.Condition()
        self.popen = subprocess.Popen([*prefix, DILOCOX, *self.arguments], cwd=cwd, env={**os.environ, **(env or {})},
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      start_new_session=True)
        self.readers = [threading.Thread(target=self._read, args=(name, getattr(self.popen, name)), daemon=True)
                        for name in self.lines]
        for reader in self.readers:
            reader.start()

    def _read(self, name, stream):
        for line in stream:
            with self.changed:
                self.raw[name] += line
                self.lines[name].append(line.decode(errors="replace").rstrip("\n"))
                self.changed.notify_all()
        stream.close()

    @property
    def pid(self):
        return self.popen.pid

    def text(self, name):
        with self.changed:
            return "\n".join(self.lines[name])

    def everything(self):
        return f"dilocox {' '.join(self.arguments)}\n--- stdout\n{self.text('stdout')}\n--- stderr\n{self.text('stderr')}"

    def wait_line(self, pattern, deadline_s=DEADLINE_S):
        """The match of the first matching line, past or future, of either stream."""
        until = time.monotonic() + deadline_s
        with self.changed:
            while True:
                for line in self.lines["stdout"] + self.lines["stderr"]:
                    match = re.search(pattern, line)
                    if match:
                        return match
                left = until - time.monotonic()
                ended = not any(reader.is_alive() for reader in self.readers)
                if left <= 0 or ended:
                    break
                self.changed.wait(min(left, 0.5))
        raise AssertionError(f"no line like '{pattern}'\n{self.everything()}")

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self, deadline_s=DEADLINE_S):
        try:
            code = self.popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s} s\n{self.everything()}") from None
        for reader in self.readers:
            reader.join(5)
        return code

    def end(self):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for reader in self.readers:
            reader.join(5)


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="dilocox-test-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.processes = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for process in self.processes:
            process.end()
        for pid in self.pids():  # left by a broken launch
            os.kill(pid, signal.SIGKILL)

    # ---- files

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def write(self, name, text, mode=0o644):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(text if isinstance(text, bytes) else text.encode())
        os.chmod(path, mode)
        return path

    def license_text(self):
        with open(os.path.join(SOURCE_ROOT, "LICENSE"), "rb") as text:
            return text.read()

    def prepare_data(self, text=None):
        """data.train.tokens and data.validation.tokens of the licence, or of `text`."""
        self.write("text.txt", text or self.license_text())
        self.call("tokenize", "text.txt", self.path("data"), "--validation-every", "4", "--block", "1024")

    def config(self, name="config.yaml", **changes):
        """A small run's config, changed by section."""
        base = merge(SMALL, {"run": {"name": "test", "dir": self.path("run")},
                             "data": {"train": self.path("data.train.tokens"),
                                      "validation": self.path("data.validation.tokens")}})
        return self.write(name, json.dumps(merge(base, changes), indent=1))  # JSON is YAML

    # ---- processes

    def start(self, *arguments, env=None, cwd=None, prefix=()):
        process = Process([str(a) for a in arguments], cwd or self.directory, env, prefix)
        self.processes.append(process)
        return process

    def call(self, *arguments, code=0, env=None, cwd=None, prefix=()):
        """Waits for the exit and checks its code."""
        process = self.start(*arguments, env=env, cwd=cwd, prefix=prefix)
        got = process.wait()
        self.assertEqual(got, code, process.everything())
        return process

    def ranks(self, count, *arguments, code=0, env=None):
        """dilocox as one MPI job of `count` ranks, to its end."""
        return self.call(*arguments, code=code, env=env, prefix=(*MPIRUN, "-n", str(count)))

    def refused(self, pattern, *arguments, code=2, **options):
        """Exits with this code and a message of dilocox's own that matches."""
        process = self.call(*arguments, code=code, **options)
        self.assertRegex(process.text("stderr"), pattern)
        self.assertTrue(process.text("stderr").startswith("dilocox: "), process.everything())
        return process

    def pids(self):
        """Processes with this test's directory on the command line: also launch's children."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as line, open(f"/proc/{entry}/stat") as stat:
                    if self.directory.encode() in line.read() and stat.read().rsplit(")", 1)[1].split()[0] != "Z":
                        found.append(int(entry))
            except OSError:
                pass
        return found

    def pid_of(self, *words):
        """The one process of this test with these words on its command line."""
        found = []
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    given = line.read().decode().split("\0")
            except OSError:
                continue
            if all(word in given for word in words):
                found.append(pid)
        self.assertEqual(len(found), 1, f"{words}: {found}")
        return found[0]

    def assert_nothing_left(self):
        self.assertEqual(self.pids(), [], "processes are left")

    def wait_until(self, what, happened, deadline_s=DEADLINE_S):
        """The first true answer, polled fifty times per second: files send no events."""
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            answer = happened()
            if answer:
                return answer
            time.sleep(0.02)
        self.fail(f"not within {deadline_s} s: {what}\n" + "\n".join(p.everything() for p in self.processes))

    def wait_for_event(self, path, accept):
        """Until a line of a growing metrics.jsonl is accepted."""
        return self.wait_until(f"a line of {path}", lambda: os.path.exists(path) and
                               next((e for e in events(path, partial=True) if accept(e)), None))

    def wait_for_exit_of_one(self, processes):
        return self.wait_until("one exits", lambda: next((p for p in processes if p.popen.poll() is not None), None))

    def wait_for_success(self, *processes):
        """Of each; the first that fails says why, though others may wait for it."""
        running = list(processes)
        while running:
            process = self.wait_for_exit_of_one(running)
            running.remove(process)
            self.assertEqual(process.wait(), 0, process.everything())

    def wait_until_nothing_is_left(self):
        self.wait_until("all processes have ended", lambda: not self.pids(), 10 * SLOWER)

    # ---- a run without launch

    def keys(self, names):
        """Makes keys of coordinator and sites, and their roster.txt."""
        roster = ""
        for name in ["coordinator", *names]:
            roster += f"{name} {self.call('keygen', f'{name}.key').text('stdout')}\n"
        return self.write("roster.txt", roster)

    def secured(self, name):
        return ["--set", f"wan.key={self.path(name + '.key')}", "--set", f"wan.roster={self.path('roster.txt')}"]

    def start_coordinator(self, config, sites, *more, secure=True):
        """The process and its endpoint."""
        security = self.secured("coordinator") if secure else ["--set", "wan.security=none"]
        process = self.start("coordinator", config, "--sites", sites, "--listen", "127.0.0.1:0", *security, *more)
        return process, process.wait_line(r"^listening (\S+)$").group(1)

    def start_site(self, config, name, coordinator, *more, env=None, secure=True, ranks=1):
        security = self.secured(name) if secure else ["--set", "wan.security=none"]
        prefix = (*MPIRUN, "-n", str(ranks)) if ranks > 1 else ()
        return self.start("train", config, "--site", name, "--coordinator", coordinator, *security, *more, env=env,
                          prefix=prefix)

    def records(self, store):
        """The committed rounds in a coordinator's store, as docs/formats.md has them; of a copy, which may have to be
        rolled back."""
        copy = self.path("copy.db")
        for end in ("", "-journal"):
            if os.path.exists(copy + end):
                os.remove(copy + end)
            if os.path.exists(store + end):
                shutil.copy(store + end, copy + end)
        if not os.path.exists(copy):
            return  # the run is over
        database = sqlite3.connect(copy)
        for (text,) in database.execute("SELECT bytes FROM record ORDER BY round").fetchall():
            count, _, round, tokens, *_ = struct.unpack_from("<HHQQIIQB", text)
            members = [struct.unpack_from("<HBQQ", text, 37 + 19 * i) for i in range(count)]
            yield {"round": round, "tokens": tokens,
                   "members": [{"site": site, "voided": voided, "tokens": own} for site, voided, own, _ in members]}
        database.close()


def events(path, kind=None, partial=False):
    """The lines of a metrics.jsonl; partial: the last one may be incomplete."""
    with open(path) as lines:
        text = lines.read()
    complete = text[:text.rfind("\n") + 1]
    if not partial and complete != text:
        raise AssertionError(f"{path}: the last line is incomplete")
    parsed = [json.loads(line) for line in complete.splitlines()]
    return [event for event in parsed if kind is None or event["event"] == kind]


class Growing:
    """A metrics.jsonl while it is written."""

    def __init__(self, path):
        self.path, self.read_bytes = path, 0

    def more(self, *kinds):
        """The events of these kinds that were written since the last call."""
        if not os.path.exists(self.path):
            return []
        with open(self.path, "rb") as lines:
            lines.seek(self.read_bytes)
            text = lines.read()
        complete = text[:text.rfind(b"\n") + 1]
        self.read_bytes += len(complete)
        words = [f'"{kind}"'.encode() for kind in kinds]  # most lines are of other kinds
        return [event for line in complete.splitlines() if any(word in line for word in words)
                and (event := json.loads(line))["event"] in kinds]


def summary(directory):
    with open(os.path.join(directory, "summary.json")) as text:
        return json.load(text)


def skip(reason):
    """Ends the file's tests as skipped."""
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


class AtOnce:
    """A runner of cases in threads of their own; each one's output is kept together."""

    def __init__(self, threads):
        self.threads = threads
        self.printing = threading.Lock()
        self.succeeded = True

    def cases(self, suite):
        return [suite] if isinstance(suite, unittest.TestCase) else [case for part in suite for case in self.cases(part)]

    def run_case(self, case):
        said = io.StringIO()
        result = unittest.TextTestRunner(said, verbosity=2).run(case)
        with self.printing:
            sys.stderr.write(said.getvalue())
            self.succeeded &= result.wasSuccessful()

    def run(self, suite):
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self.run_case, self.cases(suite)))  # raises what a case could not report
        return self

    def wasSuccessful(self):
        return self.succeeded


def main(at_once=1):
    """Runs the file's cases. More of them at once where most of the time is waiting: each has its
    own directory and processes."""
    unittest.main(verbosity=2, testRunner=AtOnce(at_once) if at_once > 1 else None)
