# SPDX-License-Identifier: Apache-2.0
"""A run outlives its coordinator: what was killed, stopped, or could not write goes on when it is
started again with the same command; whatever is not the same run's coordinator is refused."""
import os
import resource
import shutil
import signal
import sqlite3
import statistics
import sys
import time

from harness import Case, events, main, summary

STEP_TOKENS = 4 * 32  # batch, context
SITE_TOKENS = 10 * STEP_TOKENS  # H
ROUNDS = 120
TOKENS = ROUNDS * 2 * SITE_TOKENS
SITES = ("paris", "tokyo")


class Coordinator(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.configure()

    def configure(self, tokens=TOKENS, inner_steps=10, **wan):
        self.file = self.config(train={"tokens": tokens}, sync={"overlap": "none", "inner_steps": inner_steps, "adaptation": "off"},
                                wan={"timeout_s": 2, **wan})

    # ---- a run

    def coordinator(self, *more):
        return self.start_coordinator(self.file, 2, *more, secure=False)

    def started(self):
        """A run in which rounds were committed: its coordinator, where it listens, and its sites."""
        coordinator, endpoint = self.coordinator()
        sites = [self.start_site(self.file, name, endpoint, secure=False) for name in SITES]
        self.wait_for_rounds(3)
        return coordinator, endpoint, sites

    def rounds(self, name):
        path = self.path("run", name, "metrics.jsonl")
        return [e for e in events(path, "round", partial=True) if e["applied"]] if os.path.exists(path) else []

    def wait_for_rounds(self, count):
        for name in SITES:
            self.wait_until(f"{count} rounds of {name}", lambda: any(e["committed_rounds"] >= count for e in self.rounds(name)))

    def committed(self):
        return max(e["committed_rounds"] for name in SITES for e in self.rounds(name))

    def kill(self, coordinator):
        coordinator.signal(signal.SIGKILL)
        self.assertEqual(coordinator.wait(), -signal.SIGKILL)

    def again(self, endpoint):
        """The same command: it goes on, at the port that the sites know."""
        coordinator, listening = self.coordinator()
        self.assertEqual(listening, endpoint)
        run_id = self.rounds_run_id()
        coordinator.wait_line(f"goes on with run {run_id} at round [0-9]+, as term [0-9]+; waiting for its sites")
        return coordinator

    def rounds_run_id(self):
        return events(self.path("run", SITES[0], "metrics.jsonl"), "run", partial=True)[0]["run_id"]

    def check_done(self, processes):
        self.wait_for_success(*processes)
        s = summary(self.path("run"))
        self.assertEqual(s["run_id"], self.rounds_run_id())
        self.assertEqual([site["site"] for site in s["per_site"]], list(SITES))
        self.assertEqual(s["dropped"], [])
        self.assertEqual(len({site["anchor_hash"] for site in s["per_site"]}), 1)
        self.assertEqual(s["anchor_hash"], s["per_site"][0]["anchor_hash"])
        self.assertEqual(s["status"], "done")
        self.check_counts(s)
        left = {name for name in os.listdir(self.path("run")) if ".part-" not in name}  # of a process that was killed
        self.assertEqual(left, {".lock", "summary.json", "metrics.jsonl", "weights", *SITES})
        self.check_notices()

    def check_notices(self):
        """What the coordinator's terminals have shown, in order, over all of its lives."""
        lines = events(self.path("run", "metrics.jsonl"))
        for line in lines:
            self.assertEqual(line["event"], "notice")
            self.assertRegex(line["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertGreaterEqual(line.get("round", 1), 1)  # a takeover has none before it begins
        self.assertEqual([line["time"] for line in lines], sorted(line["time"] for line in lines))
        texts = [line["text"] for line in lines]
        self.assertEqual({text.split("'")[1] for text in texts[:2]}, set(SITES))
        self.assertEqual(texts[-1], "the run is complete")
        lives = [p for p in self.processes if p.arguments[0] == "coordinator" and "goes on with run" in p.text("stdout")]
        self.assertEqual(sum(text.startswith("goes on with run ") for text in texts), len(lives), texts)

    def check_counts(self, s):
        """Each round counts what its members trained on, once: a run that was never disturbed has as
        many, unless a site was not back in time for a round."""
        alone = 0
        for name in SITES:
            seen = {e["committed_rounds"]: e["committed_tokens"] for e in self.rounds(name)}
            for round, tokens in seen.items():
                if round - 1 in seen:
                    self.assertIn(tokens - seen[round - 1], (SITE_TOKENS, 2 * SITE_TOKENS), f"{name}, round {round}")
            if len(seen) > alone:
                alone = max(alone, 2 * max(seen) - seen[max(seen)] // SITE_TOKENS)
        self.assertEqual(s["tokens"], TOKENS + alone % 2 * SITE_TOKENS)
        self.assertEqual(s["rounds"], ROUNDS + (alone + 1) // 2)


class GoesOn(Coordinator):
    def test_undisturbed(self):
        coordinator, _, sites = self.started()
        self.check_done([coordinator, *sites])
        self.assertIn("validation loss", coordinator.text("stdout"))
        self.assertEqual(summary(self.path("run"))["tokens"], TOKENS)

    def test_killed(self):
        """Three times."""
        coordinator, endpoint, sites = self.started()
        for _ in range(3):
            self.kill(coordinator)
            before = self.committed()
            coordinator = self.again(endpoint)
            self.wait_for_rounds(before + 5)
        self.check_done([coordinator, *sites])

    def test_killed_under_allreduce(self):
        """Each inner step is a round, and the store does not wait for the disk."""
        tokens = 2 * TOKENS
        self.file = self.config(train={"tokens": tokens}, sync={"overlap": "allreduce"}, wan={"timeout_s": 2})
        coordinator, endpoint = self.coordinator()
        sites = [self.start_site(self.file, name, endpoint, secure=False) for name in SITES]
        metrics = self.path("run", SITES[0], "metrics.jsonl")
        self.wait_until("some steps", lambda: os.path.exists(metrics) and len(events(metrics, "step", partial=True)) > 20)
        self.kill(coordinator)
        coordinator = self.again(endpoint)
        self.wait_for_success(coordinator, *sites)
        self.assertIn("goes on with run", coordinator.text("stdout"))
        s = summary(self.path("run"))
        self.assertEqual((s["tokens"], s["rounds"]), (tokens, tokens // (2 * STEP_TOKENS)))

    def test_killed_while_sites_report(self):
        """Whenever it is killed, the summary has both sites."""
        coordinator, endpoint, sites = self.started()
        self.wait_until("a site's summary", lambda: any(os.path.exists(self.path("run", name, "summary.json")) for name in SITES))
        coordinator.signal(signal.SIGKILL)
        coordinator.wait()
        if os.path.exists(self.path("run", "coordinator.db")):
            coordinator = self.again(endpoint)
            self.assertEqual(coordinator.wait(), 0, coordinator.everything())
        self.check_done(sites)

    def test_stopped(self):
        coordinator, endpoint, sites = self.started()
        coordinator.signal(signal.SIGTERM)
        self.assertEqual(coordinator.wait(), 1, coordinator.everything())
        self.assertRegex(coordinator.text("stderr"), r"^dilocox: the coordinator stopped at round [0-9]+, and its sites wait for it "
                         r"\(wan\.orphan_s\); go on with the same command, here or where '.*/coordinator\.db' is moved to$")
        self.assertFalse(os.path.exists(self.path("run", "coordinator.db-journal")))
        for site in sites:
            site.wait_line("no message from the coordinator at .*; training on, then waiting for it, up to 1800 s")
        coordinator = self.again(endpoint)
        for site in sites:
            site.wait_line("the coordinator at .* is back")
        self.check_done([coordinator, *sites])

    def test_moved(self):
        """After a clean stop the file may be elsewhere."""
        coordinator, endpoint, sites = self.started()
        coordinator.signal(signal.SIGTERM)
        self.assertEqual(coordinator.wait(), 1, coordinator.everything())
        shutil.copy(self.path("run", "coordinator.db"), self.path("copy"))
        os.remove(self.path("run", "coordinator.db"))
        os.rename(self.path("copy"), self.path("run", "coordinator.db"))
        self.check_done([self.again(endpoint), *sites])

    def check_unwritable(self, coordinator, pattern):
        self.assertEqual(coordinator.wait(), 1, coordinator.everything())
        self.assertRegex(coordinator.text("stderr"), rf"^dilocox: .*/coordinator\.db: {pattern}")

    def test_full_disk(self):
        coordinator, endpoint, sites = self.started()
        resource.prlimit(coordinator.pid, resource.RLIMIT_FSIZE, (0, 0))
        self.check_unwritable(coordinator, "")
        for site in sites:
            site.wait_line("no message from the coordinator at .*; training on")
        self.check_done([self.again(endpoint), *sites])

    def test_file_is_removed(self):
        coordinator, endpoint, sites = self.started()
        os.rename(self.path("run", "coordinator.db"), self.path("run", "kept"))
        self.check_unwritable(coordinator, "was moved, removed or replaced while it was open")
        os.rename(self.path("run", "kept"), self.path("run", "coordinator.db"))
        self.check_done([self.again(endpoint), *sites])


class Ends(Coordinator):
    def test_interrupted(self):
        """Ctrl-C ends the run for all; the next one begins anew."""
        coordinator, _, sites = self.started()
        coordinator.signal(signal.SIGINT)
        for process in (coordinator, *sites):
            self.assertEqual(process.wait(), 1, process.everything())
            self.assertIn("the coordinator was interrupted", process.text("stderr"))
        self.assertFalse(os.path.exists(self.path("run", "coordinator.db")))
        coordinator, _, sites = self.started()
        self.check_done_anew(coordinator, sites)

    def check_done_anew(self, coordinator, sites):
        self.wait_for_success(coordinator, *sites)
        self.assertTrue(os.path.exists(self.path("run", "previous-1", SITES[0], "metrics.jsonl")))
        self.assertEqual(summary(self.path("run"))["tokens"], TOKENS)

    def test_stopped_before_the_run(self):
        """Nothing is there to go on with."""
        coordinator, endpoint = self.coordinator()
        site = self.start_site(self.file, "paris", endpoint, secure=False)
        coordinator.wait_line("site 'paris' connected")
        coordinator.signal(signal.SIGTERM)
        for process in (coordinator, site):
            self.assertEqual(process.wait(), 1, process.everything())
            self.assertIn("the coordinator was interrupted", process.text("stderr"))
        self.assertFalse(os.path.exists(self.path("run")))

    def test_no_coordinator_comes_back(self):
        self.configure("1e12", timeout_s=1, orphan_s=1)
        coordinator, _, sites = self.started()
        self.kill(coordinator)
        for name, site in zip(SITES, sites):
            self.assertEqual(site.wait(), 1, site.everything())
            self.assertRegex(site.text("stderr"), r"no message from the coordinator at \S+ for [0-9]+ ms \(wan\.timeout_s and wan\.orphan_s\)")
            self.assertEqual(summary(self.path("run", name))["status"], "failed")
        for weights in (self.path("run", "weights"), self.path("run", SITES[1], "weights")):
            self.call("eval", weights, "--data", self.path("data.validation.tokens"), "--tokens", 500)
        hashes = [summary(self.path("run", name))["anchor_hash"] for name in SITES]
        self.assertEqual(len(set(hashes)), 1)


class Refused(Coordinator):
    def refuse(self, pattern, *arguments, code=2):
        self.refused(pattern, *arguments, code=code)

    def coordinate(self, *more, sites=2):
        return ("coordinator", self.file, "--sites", sites, "--listen", "127.0.0.1:0", "--set", "wan.security=none", *more)

    def test_two_at_once(self):
        coordinator, _, sites = self.started()
        self.refuse(r"coordinator\.db: another process has it open .*: a coordinator is running already; stop that one first",
                    *self.coordinate())
        self.check_done([coordinator, *sites])

    def test_copies(self):
        """Of the file, and of the whole directory."""
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        os.mkdir(self.path("other"))
        for name in ("coordinator.db", "coordinator.db-journal"):
            shutil.copy(self.path("run", name), self.path("other", name))
        shutil.copytree(self.path("run"), self.path("backup"))
        for directory in ("other", "backup"):
            self.refuse(r"coordinator\.db: it is a copy: the coordinator wrote to another file; its run may have gone on elsewhere: "
                        r"start the coordinator where it was last; or, if that is lost, go on from what the sites have with --takeover; or move this file away to begin another run",
                        *self.coordinate("--run-dir", self.path(directory)))
        self.check_done([self.again(endpoint), *sites])

    def test_taken_over(self):
        """A file that is said to be released, and is not: the coordinator that has lost its run says so."""
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        os.mkdir(self.path("other"))
        for name in ("coordinator.db", "coordinator.db-journal"):
            shutil.copy(self.path("run", name), self.path("other", name))
        other = sqlite3.connect(self.path("other", "coordinator.db"))
        with other:
            other.execute("UPDATE place SET released = 1")
        other.close()
        for _ in range(2):  # two more terms
            before = self.committed()
            usurper, _ = self.coordinator("--run-dir", self.path("other"))
            self.wait_for_rounds(before + 3)
            self.kill(usurper)
        self.refuse(r"another coordinator has taken over this run \(term 3; this one has 2\); start that one, or take the run over with --takeover", *self.coordinate())
        self.assertTrue(os.path.exists(self.path("run", "coordinator.db")))
        usurper, _ = self.coordinator("--run-dir", self.path("other"))
        self.wait_for_success(usurper, *sites)
        s = summary(self.path("other"))
        self.assertEqual((len(s["per_site"]), s["tokens"]), (2, TOKENS))

    def test_other_starts(self):
        """Another config, another number of sites, launch, and a site of another run."""
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        self.refuse("train.learning_rate: '.*' now, '.*' when this run began; start its coordinator again with the same settings",
                    *self.coordinate("--set", "train.learning_rate=1e-3"))
        self.refuse("^dilocox: --sites: 3 now, 2 when this run began", *self.coordinate(sites=3))
        in_use = r"run\.dir: '.*' is in use by (the coordinator|site '\w+') \(process [0-9]+"
        self.refuse(in_use, "launch", self.file)
        self.refuse(in_use, "train", self.file, "--site", "london", "--set", "wan.security=none")
        for site in sites:
            site.signal(signal.SIGKILL)
            site.wait()
        unfinished = r"run\.dir: '.*' has a run that is not over \(coordinator\.db\): go on with it with 'dilocox coordinator', or move"
        for link in ("zmq", "mem"):
            self.refuse(unfinished, "launch", self.file, "--set", f"wan.link={link}")
        os.remove(self.path("run", "coordinator.db"))
        if os.path.exists(self.path("run", "coordinator.db-journal")):  # if it was killed amid a write
            os.remove(self.path("run", "coordinator.db-journal"))
        self.call("launch", self.file, "--set", "wan.link=mem")
        self.assertTrue(os.path.exists(self.path("run", "previous-1", SITES[0], "metrics.jsonl")))

    def test_no_store(self):
        for content, pattern in ((b"not a database, but text" * 100, "not a coordinator's store"), (b"SQLite format 3\0", "")):
            self.write("run/coordinator.db", content)
            self.refuse(rf"run/coordinator\.db: {pattern}", *self.coordinate(), code=1)
            with open(self.path("run", "coordinator.db"), "rb") as file:
                self.assertEqual(file.read(), content)


class Recovery(Coordinator):
    """Not a test: `--recovery` measures the time from kill -9 and the start of the next coordinator to
    the next committed round, five times."""

    def runTest(self):
        self.configure("1e12")
        coordinator, endpoint, _ = self.started()
        times_s = []
        for _ in range(5):
            self.kill(coordinator)
            begun_s, before = time.monotonic(), self.committed()
            coordinator = self.again(endpoint)
            self.wait_until("a commit", lambda: self.committed() > before + 1)
            times_s.append(time.monotonic() - begun_s)
            self.wait_for_rounds(self.committed() + 5)
        print("recovery:", [f"{t:.2f} s" for t in times_s], f"median {statistics.median(times_s):.2f} s")


if __name__ == "__main__":
    if "--recovery" in sys.argv:
        sys.argv = [sys.argv[0], "Recovery"]
    else:
        del Recovery
    main()
