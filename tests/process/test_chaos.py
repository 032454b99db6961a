# SPDX-License-Identifier: Apache-2.0
"""Faults at random moments: sites, ranks of sites and the coordinator are killed, stopped for a while, interrupted,
in rounds and at the end; the rest of the run goes on, and all that is there has the same anchor after every round.

    test_chaos.py --seconds 90 --seed 7
    test_chaos.py --kills 200                kill -9 only, at so many moments

The same seed makes the same choices; what they hit in a process differs from run to run. A process can't rejoin, so
a run that is down to its last site is ended, and another one begins. Some runs come to the end of their tokens, and
somebody is killed while the sites evaluate, save and report. Much of the time is waiting: some runs go at once."""
import argparse
import os
import random
import re
import signal
import statistics
import sys
import threading
import time

from harness import Case, Growing, events, main, summary

TIMEOUT_S = 2
PATIENCE_S = 120  # a run that has not gone on by then hangs
SITES = ("oslo", "paris", "quito", "tokyo")
H, BATCH, CONTEXT = 20, 8, 64
SITE_TOKENS = H * BATCH * CONTEXT  # of a round
OVERLAPS = ("none", "delayed", "eager", "carry")
EVAL_TOKENS = 40000
ENDING_S = 0.8  # about as long as sites evaluate, save and report

options = argparse.Namespace(seconds=90, kills=0, at_once=1, seed=None)


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return line.read().decode().split("\0")
    except OSError:
        return None  # it has ended


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


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
        fragments = self.random.choice((1, 3)) if overlap in ("none", "carry") else 1
        self.ranks = self.random.choice((1, 1, 2))
        names = SITES[:self.random.choice((3, 4)) if self.ranks == 1 else 3]
        shape = {"stages": 2, "replicas": 1} if self.random.random() < 0.5 else {"stages": 1, "replicas": 2}
        self.target = len(names) * SITE_TOKENS * self.random.randint(6, 16) if self.random.random() < 0.5 else None
        self.file = case.config(f"config-{number}.yaml", run={"dir": self.directory},
                                model={"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 128, "context": CONTEXT},
                                train={"tokens": self.target or "1e12", "batch": BATCH, "micro_batch": BATCH // self.ranks,
                                       "eval_tokens": EVAL_TOKENS},
                                site=shape if self.ranks > 1 else {},
                                sync={"overlap": overlap, "inner_steps": H, "inner_steps_max": H, "adaptation": "off",
                                      "fragments": fragments},
                                wan={"timeout_s": TIMEOUT_S})
        self.count = len(names)
        self.known = {}  # committed rounds: anchor, committed tokens
        self.changed = self.newest = self.newest_tokens = 0
        self.restarts = 0
        self.whole = False  # all that run were in a round since who runs has last changed
        self.coordinator_runs = False
        self.endpoint, self.sites, self.live = None, [], []
        case.run_now = self
        self.start_coordinator()
        self.sites = [Site(name, case.start_site(self.file, name, self.endpoint, secure=self.secure, ranks=self.ranks),
                           os.path.join(self.directory, name, "metrics.jsonl")) for name in names]
        self.live = list(self.sites)
        ranks = f" of 2 {'stages' if shape['stages'] > 1 else 'replicas'}" if self.ranks > 1 else ""
        end = f", {self.target // (self.count * SITE_TOKENS)} rounds" if self.target else ""
        case.say(f"run {number}: {self.count} sites{ranks}, {overlap}, {'curve' if self.secure else 'no security'}{end}")
        self.wait(lambda: self.whole and self.newest >= 3, "the first rounds")

    def start_coordinator(self):
        process, endpoint = self.case.start_coordinator(self.file, self.count, secure=self.secure)
        self.case.assertIn(self.endpoint, (None, endpoint))
        self.coordinator, self.endpoint, self.coordinator_runs = process, endpoint, True

    # ---- what is seen

    def running(self):
        return [site for site in self.live if not site.stopped]

    def is_ending(self):
        """All tokens are committed: the sites evaluate, save and report."""
        return self.target is not None and self.newest_tokens >= self.target

    def note(self, site, event):
        rounds, tokens = event["committed_rounds"], event["committed_tokens"]
        self.case.assertGreaterEqual((rounds, tokens), (site.rounds, site.tokens), f"{site.name} went back")
        site.rounds, site.tokens, site.submitted = rounds, tokens, site.submitted + event["submitted"]
        if rounds == 0:
            return
        seen = self.known.setdefault(rounds, (event["anchor_hash"], tokens))
        self.case.assertEqual((event["anchor_hash"], tokens), seen, f"{site.name} after round {rounds} is not as another site")
        self.newest, self.newest_tokens = max(self.newest, rounds), max(self.newest_tokens, tokens)
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
            if process.popen.poll() not in ((None, 0) if self.is_ending() else (None,)):
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

    def kill_rank(self, site):
        """Its other rank ends with it."""
        workers = self.case.workers(site.name)
        if not workers:
            return False  # they have just ended
        self.live.remove(site)
        os.kill(self.random.choice(workers), signal.SIGKILL)
        self.case.assertNotEqual(site.process.wait(), 0, site.process.everything())
        self.changes()
        return True

    def kill_site(self, site):
        if self.ranks > 1:
            return self.kill_rank(site)
        self.lose(site, signal.SIGKILL, -signal.SIGKILL)
        return True

    def kill_coordinator(self):
        self.coordinator_runs = False
        self.coordinator.signal(signal.SIGKILL)
        self.case.assertEqual(self.coordinator.wait(), -signal.SIGKILL)
        self.check_records()

    def start_coordinator_again(self):
        self.restarts += 1
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

    def end(self):
        """The tokens are committed, and somebody has been killed since: all that is left ends well, but for a site that
        was away when the run ended, and waits for its coordinator."""
        if not self.coordinator_runs and os.path.exists(self.store()):
            self.start_coordinator_again()
        if self.coordinator_runs:
            self.case.assertEqual(self.coordinator.wait(), 0, self.coordinator.everything())
        away = {site["site"] for site in summary(self.directory)["dropped"]}
        for site in self.live:
            if site.name in away and site.process.popen.poll() is None:
                site.process.signal(signal.SIGINT)
            self.case.assertIn(site.process.wait(), (0, 1) if site.name in away else (0,), site.process.everything())
        self.live = [site for site in self.live if site.name not in away]
        self.look()
        self.live, self.coordinator_runs = [], False
        self.case.assertFalse(os.path.exists(self.store()))
        s = summary(self.directory)
        self.case.assertGreaterEqual(s["tokens"], self.target)
        self.case.assertEqual(s["tokens"], self.newest_tokens)
        self.case.assertIsNotNone(s["val_loss"])
        for name in ["the run", *(site["site"] for site in s["per_site"])]:
            of = s if name == "the run" else summary(os.path.join(self.directory, name))
            self.case.assertEqual((of["rounds"], of["anchor_hash"]), (self.newest, self.known[self.newest][0]), name)
        self.case.assertTrue(any(os.path.exists(os.path.join(self.directory, "weights", name))
                                 for name in ("model.safetensors", "model.safetensors.index.json")))
        self.check_notices()
        self.case.wait_until_nothing_is_left()

    def check_notices(self):
        """A life of the coordinator that was killed leaves no part of a line; it may have had no time for any."""
        notices = [e["text"] for e in events(os.path.join(self.directory, "metrics.jsonl"), "notice")]
        again = [text for text in notices if text.startswith("goes on with run ")]
        self.case.assertLessEqual(len(again), self.restarts, notices)

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
        self.case.assertFalse(os.path.exists(self.store()))
        self.check_notices()
        self.case.wait_until_nothing_is_left()

    def store(self):
        return os.path.join(self.directory, "coordinator.db")

    def check_records(self):
        """Each round's tokens are its members'; none counts for more rounds than it has submitted."""
        self.look()
        counted, before = [0] * self.count, 0
        for record in self.case.records(self.store()):
            self.case.assertEqual(record["tokens"] - before, sum(m["tokens"] for m in record["members"]), record)
            # A last round is as long as those who begin it need; if one of them is lost, there is another one.
            near_end = self.target is not None and before + self.count * SITE_TOKENS > self.target
            before = record["tokens"]
            self.case.assertIn(self.known.get(record["round"], (None, before))[1], (before,), record)
            for member in record["members"]:
                counted[member["site"]] += 1
                if near_end:
                    self.case.assertLessEqual(member["tokens"], SITE_TOKENS, record)
                else:
                    self.case.assertIn(member["tokens"], (0, SITE_TOKENS) if member["voided"] else (SITE_TOKENS,), record)
        for site, rounds in zip(self.sites, counted):  # one that was killed may not have written its last one
            self.case.assertLessEqual(rounds, site.submitted + 1, f"{site.name} counts more often than it has submitted")


class Fault:
    """One that was done, until the rest has gone on. `since_s`: from when that counts, None before;
    `before`: the rounds that were committed then."""

    def __init__(self, kind):
        self.kind, self.since_s, self.before = kind, None, None


class Totals:
    """Of all that run at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.begun_s = time.monotonic()
        self.rounds = self.runs = self.left = 0
        self.faults, self.times_s = {}, {}

    def count(self, kind):
        with self.lock:
            self.faults[kind] += 1

    def time(self, kind, seconds):
        with self.lock:
            self.times_s[kind].append(seconds)

    def kills(self):
        return sum(count for kind, count in self.faults.items() if kind.startswith("kill"))

    def is_over(self):
        if options.kills:
            return self.kills() >= options.kills
        return time.monotonic() - self.begun_s >= options.seconds

    def show(self):
        print(f"seed {options.seed}: {time.monotonic() - self.begun_s:.0f} s, {self.runs} runs, {self.rounds} rounds committed, "
              f"{self.kills()} kills\n"
              f"{'fault':<32}{'count':>6}{'alone':>7}{'median':>9}{'worst':>9}   until a round that began after it has "
              "committed; at the end, until all have ended")
        for kind, count in self.faults.items():
            times = self.times_s[kind]
            shown = f"{statistics.median(times):>7.2f} s{max(times):>7.2f} s" if times else ""
            print(f"{kind:<32}{count:>6}{len(times):>7}{shown}", flush=True)


totals = Totals()


class Chaos(Case):
    KILLS = {"kill a site": 4, "kill a rank": 4, "kill the coordinator": 3}
    KINDS = {**KILLS, "interrupt a site": 1, "stop a site": 2, "stop the coordinator": 1}
    AT_THE_END = ("kill a site at the end", "kill the coordinator at the end")

    def say(self, text):
        which = f"{self.index}: " if options.at_once > 1 else ""
        print(f"{time.monotonic() - totals.begun_s:7.2f}  {which}{text}", flush=True)

    def chaos(self, index):
        self.index = index
        self.random = random.Random(f"{options.seed}/{index}")
        self.kinds = self.KILLS if options.kills else self.KINDS
        self.number = 0
        self.ended = {}  # kind of fault at the end: when
        self.run_now = None
        try:
            self.prepare_data(30 * self.license_text())
            self.keys(SITES)
            while not totals.is_over():
                self.one_run()
        except BaseException:
            self.keep_logs()
            raise
        with totals.lock:
            totals.left -= 1
            if totals.left == 0:
                totals.show()

    def workers(self, name):
        """The processes of a site's ranks: each is the child of one that is called alike."""
        called = {pid: (parent, line) for pid in self.pids() if (line := command_line(pid)) and (parent := parent_of(pid))
                  and name in line}
        return sorted(pid for pid, (parent, line) in called.items() if called.get(parent, (0, None))[1] == line)

    def one_run(self):
        self.number += 1
        run = Run(self, self.number)
        self.later = []  # (when, what): ends of faults
        self.fault = None
        while len(run.live) > 1 and not totals.is_over() and not run.is_ending():
            self.do(self.choose())
            if self.random.random() < 0.6:  # else the next one comes before the rest goes on
                run.wait(lambda: self.fault is None, f"a round after '{self.fault and self.fault.kind}'", self.step)
            self.pass_time(self.random.uniform(0, 0.5))
        run.wait(lambda: not self.later and self.fault is None, "the end of the faults", self.step)
        if run.target is None:
            run.finish()
        else:
            self.end(run)
        with totals.lock:
            totals.runs += 1
            totals.rounds += run.newest

    def end(self, run):
        """Somebody is killed between the last commit and the end, or both are."""
        run.wait(run.is_ending, "the last round")
        begun_s = time.monotonic()
        kinds = self.random.choice((("site",), ("coordinator",), ("coordinator",), ("coordinator", "site"), ("site", "coordinator")))
        for kind in kinds:
            self.pass_time(self.random.uniform(0, ENDING_S))
            if kind == "coordinator":
                if run.coordinator.popen.poll() is None:
                    self.note_end(self.AT_THE_END[1])
                    run.kill_coordinator()
            else:
                alive = [site for site in run.live if site.process.popen.poll() is None]
                if len(alive) > 1 and len(alive) == len(run.live) and run.whole:
                    site = self.random.choice(alive)
                    if run.kill_site(site):
                        self.note_end(self.AT_THE_END[0], site.name)
        run.end()
        self.say(f"    the rest ended after {time.monotonic() - begun_s:.2f} s")
        for kind in self.ended:
            totals.time(kind, time.monotonic() - self.ended[kind])
        self.ended = {}

    def note_end(self, kind, name=None):
        self.say(kind + (f": {name}" if name else ""))
        totals.count(kind)
        self.ended[kind] = time.monotonic()

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
        if fault is not None and run.is_ending():
            self.fault = None  # there is no round after it
        elif fault is not None and fault.since_s is not None and run.newest >= fault.before + 2:
            totals.time(fault.kind, now - fault.since_s)
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
        run, kinds = self.run_now, dict(self.kinds)
        kinds["kill a rank" if run.ranks == 1 else "kill a site"] = 0
        if run.ranks > 1:
            kinds = {kind: weight for kind, weight in kinds.items() if kind not in ("stop a site", "interrupt a site")}
        if not run.coordinator_runs:
            kinds["kill the coordinator"] = kinds["stop the coordinator"] = 0
        if len(run.running()) < 2:
            kinds["stop a site"] = 0
        spare = 1 if run.target is None else 2  # one of them at the end
        if len(run.running()) <= spare or not run.whole or run.is_ending():
            kinds["kill a site"] = kinds["kill a rank"] = kinds["interrupt a site"] = 0
        kinds = {kind: weight for kind, weight in kinds.items() if kind in self.kinds}
        weights = list(kinds.values())
        return self.random.choices(list(kinds), weights)[0] if any(weights) else None

    def do(self, kind):
        run = self.run_now
        if kind is None:
            return
        totals.count(kind)
        self.fault = fault = Fault(kind)
        if kind in ("kill a site", "kill a rank", "interrupt a site"):
            site = self.random.choice(run.running())
            self.say(f"{kind}: {site.name}")
            if kind == "interrupt a site":
                run.lose(site, signal.SIGINT, 1)
            else:
                run.kill_site(site)
            self.hits(fault)
        elif kind == "stop a site":
            site, seconds = self.random.choice(run.running()), TIMEOUT_S * self.random.uniform(0.5, 2)
            self.say(f"{kind}: {site.name}, for {seconds:.1f} s")
            run.stop(site)
            self.hits(fault)
            self.after(seconds, lambda: self.go_on(site))
        elif kind == "kill the coordinator":
            seconds = self.random.uniform(0, 1 if options.kills else 3)
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

    def keep_logs(self):
        for site in self.run_now.sites if self.run_now else []:
            if site.stopped and site.process.popen.poll() is None:
                site.process.signal(signal.SIGCONT)
        for process in [p for p in self.processes if p.arguments[0] in ("coordinator", "train")]:
            self.write(re.sub(r"\W", "-", f"{process.arguments[0]}-{process.pid}") + ".log", process.everything())
        print(f"seed {options.seed} failed; logs are in {self.directory}", flush=True)
        self._cleanups = [(f, a, k) for f, a, k in self._cleanups if a != (self.directory,)]


def case_of(index):
    return lambda self: self.chaos(index)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--kills", type=int, default=0, help="kill only, so often, however long it takes")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    options, rest = parser.parse_known_args()
    print(f"seed {options.seed}, {f'{options.kills} kills' if options.kills else f'{options.seconds:.0f} s'}", flush=True)
    totals.left = options.at_once
    totals.faults = {kind: 0 for kind in (*(Chaos.KILLS if options.kills else Chaos.KINDS), *Chaos.AT_THE_END)}
    totals.times_s = {kind: [] for kind in totals.faults}
    for i in range(1, options.at_once + 1):
        setattr(Chaos, f"test_{i}", case_of(i))
    sys.argv = [sys.argv[0], *rest]
    main(options.at_once)
