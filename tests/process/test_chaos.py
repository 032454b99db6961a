# SPDX-License-Identifier: Apache-2.0
"""Faults at random moments: sites and the coordinator are killed, stopped for a while, interrupted;
the rest of the run goes on, and all that is there has the same anchor after every round.

    test_chaos.py --seconds 90 --seed 7

The same seed makes the same choices; what they hit in a process differs from run to run. A process can't rejoin, so
a run that is down to its last site is ended, and another one begins."""
import argparse
import os
import random
import re
import signal
import sqlite3
import statistics
import struct
import sys
import time

from harness import Case, Growing, main, summary

TIMEOUT_S = 2
PATIENCE_S = 120  # a run that has not gone on by then hangs
SITES = ("oslo", "paris", "quito", "tokyo")
H, BATCH, CONTEXT = 20, 8, 64
SITE_TOKENS = H * BATCH * CONTEXT  # of a round
OVERLAPS = ("none", "delayed", "eager", "carry")

options = argparse.Namespace(seconds=90, seed=None)


class Site:
    def __init__(self, name, process, path):
        self.name, self.process, self.metrics = name, process, Growing(path)
        self.rounds = self.tokens = self.submitted = 0
        self.stopped = False


class Run:
    """A coordinator and its sites, started one by one, and what is known of them."""

    def __init__(self, case, number):
        self.case, self.random = case, case.random
        self.secure = self.random.random() < 0.5
        self.directory = case.path(f"run-{number}")
        overlap = self.random.choice(OVERLAPS)
        names = SITES[:self.random.choice((3, 4))]
        self.file = case.config(f"config-{number}.yaml", run={"dir": self.directory},
                                model={"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 128, "context": CONTEXT},
                                train={"tokens": "1e12", "batch": BATCH, "micro_batch": BATCH},
                                sync={"overlap": overlap, "inner_steps": H, "inner_steps_max": H, "adaptation": "off"},
                                wan={"timeout_s": TIMEOUT_S})
        self.count = len(names)
        self.known = {}  # committed rounds: anchor, committed tokens
        self.changed = self.newest = 0
        self.whole = False  # all that run were in a round since who runs has last changed
        self.coordinator_runs = False
        self.endpoint, self.sites, self.live = None, [], []
        case.run_now = self
        self.start_coordinator()
        self.sites = [Site(name, case.start_site(self.file, name, self.endpoint, secure=self.secure),
                           os.path.join(self.directory, name, "metrics.jsonl")) for name in names]
        self.live = list(self.sites)
        case.say(f"run {number}: {self.count} sites, {overlap}, {'curve' if self.secure else 'no security'}")
        self.wait(lambda: self.whole and self.newest >= 3, "the first rounds")

    def start_coordinator(self):
        process, endpoint = self.case.start_coordinator(self.file, self.count, secure=self.secure)
        self.case.assertIn(self.endpoint, (None, endpoint))
        self.coordinator, self.endpoint, self.coordinator_runs = process, endpoint, True

    # ---- what is seen

    def running(self):
        return [site for site in self.live if not site.stopped]

    def note(self, site, event):
        rounds, tokens = event["committed_rounds"], event["committed_tokens"]
        self.case.assertGreaterEqual((rounds, tokens), (site.rounds, site.tokens), f"{site.name} went back")
        site.rounds, site.tokens, site.submitted = rounds, tokens, site.submitted + event["submitted"]
        if rounds == 0:
            return
        seen = self.known.setdefault(rounds, (event["anchor_hash"], tokens))
        self.case.assertEqual((event["anchor_hash"], tokens), seen, f"{site.name} after round {rounds} is not as another site")
        self.newest = max(self.newest, rounds)
        if rounds > self.changed + 1 and rounds - 1 in self.known:
            gained = tokens - self.known[rounds - 1][1]
            self.case.assertGreaterEqual(gained, 0, f"round {rounds}")
            self.whole = self.whole or gained == len(self.running()) * SITE_TOKENS

    def look(self):
        for site in self.sites:
            for event in site.metrics.more("round"):
                self.note(site, event)
        expected = [site.process for site in self.live] + [self.coordinator] * self.coordinator_runs
        for process in expected:
            if process.popen.poll() is not None:
                self.case.fail(f"it ended by itself, with {process.wait()}: {process.everything()}")

    def wait(self, happened, what, while_waiting=lambda: False):
        """Looks until it has happened; other things that happen meanwhile give it more time."""
        until = time.monotonic() + PATIENCE_S
        while not happened():
            if while_waiting():
                until = time.monotonic() + PATIENCE_S
            self.look()
            if time.monotonic() > until:
                self.case.fail(f"not within {PATIENCE_S} s: {what}; {self.state()}")
            time.sleep(0.02)

    def state(self):
        return ", ".join(f"{s.name} {'stopped' if s.stopped else 'runs' if s in self.live else 'gone'} at round {s.rounds}"
                         for s in self.sites) + ("" if self.coordinator_runs else ", no coordinator")

    def changes(self):
        self.look()
        self.changed, self.whole = self.newest, False

    # ---- faults

    def stop(self, site):
        site.process.signal(signal.SIGSTOP)
        site.stopped = True
        self.changes()

    def go_on(self, site):
        site.process.signal(signal.SIGCONT)
        site.stopped = False
        self.changes()

    def lose(self, site, number, code):
        self.live.remove(site)
        site.process.signal(number)
        self.case.assertEqual(site.process.wait(), code, site.process.everything())
        if number == signal.SIGINT:
            self.case.assertIn("dilocox: interrupted", site.process.text("stderr"))
        self.changes()

    def kill_coordinator(self):
        self.coordinator_runs = False
        self.coordinator.signal(signal.SIGKILL)
        self.case.assertEqual(self.coordinator.wait(), -signal.SIGKILL)

    def start_coordinator_again(self):
        self.start_coordinator()
        self.coordinator.wait_line("goes on with run [0-9a-f]+ at round [0-9]+, as term [0-9]+; waiting for its sites")
        self.changes()

    def stop_coordinator(self):
        self.coordinator_runs = False
        self.coordinator.signal(signal.SIGSTOP)

    def let_coordinator_go_on(self):
        self.coordinator.signal(signal.SIGCONT)
        self.coordinator_runs = True
        self.changes()

    # ---- the end

    def finish(self):
        """All that run are in rounds again; what is saved agrees with what they wrote; Ctrl-C ends
        the run for all."""
        self.wait(lambda: self.whole, "a round of all that run")
        self.coordinator_runs = False
        self.coordinator.signal(signal.SIGTERM)
        self.case.assertEqual(self.coordinator.wait(), 1, self.coordinator.everything())
        self.case.assertRegex(self.coordinator.text("stderr"), "^dilocox: the coordinator stopped at round [0-9]+, and its sites wait")
        self.check_records()
        self.start_coordinator_again()
        self.wait(lambda: self.whole, "a round after the coordinator was stopped")
        self.coordinator.signal(signal.SIGINT)
        for process in [self.coordinator, *(site.process for site in self.live)]:
            self.case.assertEqual(process.wait(), 1, process.everything())
            self.case.assertIn("the coordinator was interrupted", process.text("stderr"))
        self.live, self.coordinator_runs = [], False
        self.look()
        for site in self.sites:
            path = os.path.join(self.directory, site.name)
            if not os.path.exists(os.path.join(path, "summary.json")):
                continue
            s = summary(path)
            self.case.assertEqual(s["anchor_hash"], self.known.get(s["rounds"], (s["anchor_hash"],))[0], site.name)
        self.case.assertFalse(os.path.exists(os.path.join(self.directory, "coordinator.db")))
        self.case.wait_until_nothing_is_left()

    def check_records(self):
        """Each round's tokens are its members'; none counts for more rounds than it has submitted."""
        counted, before = [0] * self.count, 0
        for record in self.records():
            self.case.assertEqual(record["tokens"] - before, sum(m["tokens"] for m in record["members"]), record)
            before = record["tokens"]
            self.case.assertIn(self.known.get(record["round"], (None, before))[1], (before,), record)
            for member in record["members"]:
                counted[member["site"]] += 1
                self.case.assertIn(member["tokens"], (0, SITE_TOKENS) if member["voided"] else (SITE_TOKENS,), record)
        for site, rounds in zip(self.sites, counted):  # one that was killed may not have written its last one
            self.case.assertLessEqual(rounds, site.submitted + 1, f"{site.name} counts more often than it has submitted")

    def records(self):
        """As docs/formats.md has them."""
        store = sqlite3.connect(f"file:{os.path.join(self.directory, 'coordinator.db')}?mode=ro", uri=True)
        for (text,) in store.execute("SELECT bytes FROM record ORDER BY round"):
            count, _, round, tokens, *_ = struct.unpack_from("<HHQQIIQB", text)
            members = [struct.unpack_from("<HBQQ", text, 37 + 19 * i) for i in range(count)]
            yield {"round": round, "tokens": tokens,
                   "members": [{"site": site, "voided": voided, "tokens": own} for site, voided, own, _ in members]}
        store.close()


class Fault:
    """One that was done, until the rest has gone on. `since_s`: from when that counts, None before;
    `before`: the rounds that were committed then."""

    def __init__(self, kind):
        self.kind, self.since_s, self.before = kind, None, None


class Chaos(Case):
    KINDS = {"kill a site": 1, "interrupt a site": 1, "stop a site": 4, "kill the coordinator": 4, "stop the coordinator": 3}

    def say(self, text):
        print(f"{time.monotonic() - self.begun_s:7.2f}  {text}", flush=True)

    def runTest(self):
        self.seed = random.randrange(10 ** 6) if options.seed is None else options.seed
        print(f"seed {self.seed}, {options.seconds} s", flush=True)
        self.random = random.Random(self.seed)
        self.begun_s = time.monotonic()
        self.times_s = {kind: [] for kind in self.KINDS}
        self.faults = {kind: 0 for kind in self.KINDS}
        self.rounds = self.runs = 0
        self.run_now = None
        try:
            self.prepare_data()
            self.keys(SITES)
            while not self.is_over():
                self.one_run()
        except BaseException:
            self.keep_logs()
            raise
        self.show()

    def is_over(self):
        return time.monotonic() - self.begun_s >= options.seconds

    def one_run(self):
        self.runs += 1
        run = Run(self, self.runs)
        self.later = []  # (when, what): ends of faults
        self.fault = None
        while len(run.live) > 1 and not self.is_over():
            self.do(self.choose())
            if self.random.random() < 0.75:  # else the next one comes before the rest goes on
                run.wait(lambda: self.fault is None, f"a round after '{self.fault and self.fault.kind}'", self.step)
            self.pass_time(self.random.uniform(0, 2))
        run.wait(lambda: not self.later and self.fault is None, "the end of the faults", self.step)
        run.finish()
        self.rounds += run.newest

    # ---- time

    def pass_time(self, seconds):
        until = time.monotonic() + seconds
        self.run_now.wait(lambda: time.monotonic() >= until, "time", self.step)

    def step(self):
        """Ends faults whose time has come, and notices that the rest has gone on."""
        now, run = time.monotonic(), self.run_now
        for end in [end for end in self.later if end[0] <= now]:
            self.later.remove(end)
            end[1]()
            return True
        fault = self.fault
        if fault is not None and fault.since_s is not None and run.newest >= fault.before + 2:
            self.times_s[fault.kind].append(now - fault.since_s)
            self.say(f"    the rest went on after {now - fault.since_s:.2f} s")
            self.fault = None
        return False

    def hits(self, fault):
        """From now on it counts how long the rest takes to commit a round that has begun after this
        moment."""
        self.run_now.look()
        fault.since_s, fault.before = time.monotonic(), self.run_now.newest

    # ---- faults

    def choose(self):
        """A kind that the run can stand now: one site runs, and a process is lost only if another one
        surely has the last round's results."""
        run, kinds = self.run_now, dict(self.KINDS)
        if not run.coordinator_runs:
            kinds["kill the coordinator"] = kinds["stop the coordinator"] = 0
        if len(run.running()) < 2:
            kinds["stop a site"] = 0
        if len(run.running()) < 2 or not run.whole:
            kinds["kill a site"] = kinds["interrupt a site"] = 0
        weights = list(kinds.values())
        return self.random.choices(list(kinds), weights)[0] if any(weights) else None

    def do(self, kind):
        run = self.run_now
        if kind is None:
            return
        self.faults[kind] += 1
        self.fault = fault = Fault(kind)
        if kind in ("kill a site", "interrupt a site"):
            site = self.random.choice(run.running())
            self.say(f"{kind}: {site.name}")
            run.lose(site, *((signal.SIGKILL, -signal.SIGKILL) if kind == "kill a site" else (signal.SIGINT, 1)))
            self.hits(fault)
        elif kind == "stop a site":
            site, seconds = self.random.choice(run.running()), TIMEOUT_S * self.random.uniform(0.5, 2)
            self.say(f"{kind}: {site.name}, for {seconds:.1f} s")
            run.stop(site)
            self.hits(fault)
            self.after(seconds, lambda: self.go_on(site))
        elif kind == "kill the coordinator":
            seconds = self.random.uniform(0, 3)
            self.say(f"{kind}, for {seconds:.1f} s")
            run.kill_coordinator()
            self.after(seconds, lambda: self.coordinator_is_back(fault, run.start_coordinator_again))
        else:
            seconds = TIMEOUT_S * self.random.uniform(0.5, 2)
            self.say(f"{kind}, for {seconds:.1f} s")
            run.stop_coordinator()
            self.after(seconds, lambda: self.coordinator_is_back(fault, run.let_coordinator_go_on))

    def after(self, seconds, what):
        self.later.append((time.monotonic() + seconds, what))

    def go_on(self, site):
        self.say(f"    {site.name} goes on")
        self.run_now.go_on(site)

    def coordinator_is_back(self, fault, how):
        """Rounds can't go on before."""
        self.say("    the coordinator is back")
        for waits in {fault, self.fault} - {None}:
            self.hits(waits)
        how()

    # ---- what is shown

    def show(self):
        seconds = time.monotonic() - self.begun_s
        print(f"seed {self.seed}: {seconds:.0f} s, {self.runs} runs, {self.rounds} rounds committed\n"
              f"{'fault':<22}{'count':>6}{'alone':>7}{'median':>9}{'worst':>9}   until a round that began after it has committed")
        for kind, count in self.faults.items():
            times = self.times_s[kind]
            shown = f"{statistics.median(times):>7.2f} s{max(times):>7.2f} s" if times else ""
            print(f"{kind:<22}{count:>6}{len(times):>7}{shown}", flush=True)

    def keep_logs(self):
        for site in self.run_now.sites if self.run_now else []:
            if site.stopped and site.process.popen.poll() is None:
                site.process.signal(signal.SIGCONT)
        for process in [p for p in self.processes if p.arguments[0] in ("coordinator", "train")]:
            self.write(re.sub(r"\W", "-", f"{process.arguments[0]}-{process.pid}") + ".log", process.everything())
        print(f"seed {self.seed} failed; logs are in {self.directory}", flush=True)
        self._cleanups = [(f, a, k) for f, a, k in self._cleanups if a != (self.directory,)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--seed", type=int)
    options, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], *rest]
    main()
