# SPDX-License-Identifier: Apache-2.0
"""Failures of sites of several ranks: a rank dies, an interrupt, bad input. One clear error each,
not one per rank, and no processes left."""
import os
import signal
import time

from harness import Case, SANITIZED, SLOWER, events, main, summary

SITES = ("paris", "tokyo")


class ClusterFailures(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(model={"layers": 2}, train={"tokens": "1e12", "micro_batch": 1}, wan={"timeout_s": 2, "min_sites": 0, "orphan_s": 0},
                                site={"stages": 2, "replicas": 2})

    def workers(self, *words):
        """{rank: pid} of the ranks that train: children of the processes that mpirun started."""
        found = {}
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environment, \
                        open(f"/proc/{pid}/stat") as stat:
                    given = line.read().decode().split("\0")
                    variables = dict(v.split("=", 1) for v in environment.read().decode().split("\0") if "=" in v)
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                    with open(f"/proc/{parent}/cmdline", "rb") as of_parent:
                        is_child = of_parent.read().decode().split("\0") == given
            except OSError:
                continue
            if is_child and all(word in given for word in words):
                found[int(variables["PMIX_RANK"])] = pid
        return found

    def rounds(self, directory, count):
        self.wait_for_event(os.path.join(directory, "metrics.jsonl"),
                            lambda e: e["event"] == "round" and e["committed_rounds"] >= count)

    def errors(self, process):
        return [line for line in process.text("stderr").splitlines() if line.startswith("dilocox: ")]

    # ---- death

    def test_a_rank_dies(self):
        self.keys(SITES)
        coordinator, endpoint = self.start_coordinator(self.file, 2)
        paris, tokyo = (self.start_site(self.file, name, endpoint, ranks=4) for name in SITES)
        self.rounds(self.path("run", "tokyo"), 1)
        killed_s = time.monotonic()
        os.kill(self.workers("paris")[3], signal.SIGKILL)
        self.assertNotEqual(paris.wait(), 0)
        self.assertLess(time.monotonic() - killed_s, 5 * SLOWER)
        self.assertEqual(self.errors(paris),
                         ["dilocox: rank 3 (stage 1, replica 1) of site 'paris' was ended by signal 9 (Killed)"])
        self.assertEqual(tokyo.wait(), 1)
        self.assertEqual(len(self.errors(tokyo)), 1, tokyo.everything())
        self.assertRegex(self.errors(tokyo)[0], r"site 'paris' (\(rank \d\) )?failed|no message from site 'paris'")
        self.assertEqual(coordinator.wait(), 1)
        self.assertIn("'paris'", coordinator.text("stderr"))
        self.wait_until_nothing_is_left()
        self.assertEqual(summary(self.path("run", "tokyo"))["status"], "failed")

    def test_a_launched_rank_dies(self):
        run = self.start("launch", self.file, "--sites", 2)
        self.rounds(self.path("run", "site-2"), 1)
        os.kill(self.workers("site-2")[1], signal.SIGKILL)
        self.assertEqual(run.wait(), 1)
        self.assertIn("dilocox: site-2 failed: rank 1 (stage 0, replica 1) of site 'site-2' was ended by signal 9 (Killed)",
                      run.text("stderr"))
        self.wait_until_nothing_is_left()

    def test_a_site_goes_on_without_one_whose_rank_died(self):
        tokens = 40 * 2 * 16 * 4 * 32  # rounds, sites, H, batch, context
        run = self.start("launch", self.file, "--sites", 2, "--set", "wan.min_sites=1", "--set", f"train.tokens={tokens}")
        self.rounds(self.path("run", "site-2"), 1)
        os.kill(self.workers("site-2")[1], signal.SIGKILL)
        self.assertEqual(run.wait(), 0, run.everything())
        s = summary(self.path("run"))
        self.assertEqual([site["site"] for site in s["per_site"]], ["site-1"])
        self.assertEqual([site["site"] for site in s["dropped"]], ["site-2"])
        self.assertGreaterEqual(s["tokens"], tokens)
        self.wait_until_nothing_is_left()

    def test_a_rank_of_one_job_dies(self):
        run = self.start("launch", self.file, "--sites", 2, "--replicas", 1, "--set", "wan.link=mpi")
        self.rounds(self.path("run", "site-2"), 1)
        os.kill(self.workers()[2], signal.SIGKILL)
        self.assertEqual(run.wait(), 1)
        self.assertIn("rank 0 (stage 0, replica 0) of site-2 was ended by signal 9 (Killed)", run.text("stderr"))
        self.wait_until_nothing_is_left()

    def test_a_rank_hangs(self):
        """Its site is declared lost like one that died, and the waiting ranks end it."""
        self.keys(SITES)
        coordinator, endpoint = self.start_coordinator(self.file, 2)
        paris, tokyo = (self.start_site(self.file, name, endpoint, ranks=4) for name in SITES)
        self.rounds(self.path("run", "tokyo"), 1)
        os.kill(self.workers("paris")[2], signal.SIGSTOP)
        self.assertEqual(tokyo.wait(), 1)
        self.assertEqual(coordinator.wait(), 1)
        self.assertNotEqual(paris.wait(), 0)
        self.assertEqual(len(self.errors(paris)), 1, paris.everything())
        self.assertRegex(self.errors(paris)[0], r"no message from site 'paris' \(rank 2\) for .*; other ranks of this site hang")
        self.wait_until_nothing_is_left()

    # ---- interrupts

    def interrupted(self, *more):
        run = self.start("launch", self.file, "--sites", 2, *more)
        for name in ("site-1", "site-2"):
            self.rounds(self.path("run", name), 2)
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(), 1)
        self.assertIn("dilocox: interrupted; partial results are in " + self.path("run"), run.text("stderr"))
        self.wait_until_nothing_is_left()
        for name in ("site-1", "site-2"):
            self.assertEqual(summary(self.path("run", name))["status"], "interrupted")
            self.assertGreaterEqual(len(events(self.path("run", name, "metrics.jsonl"), "step")), 20)
        self.call("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 500)

    def test_interrupt(self):
        self.interrupted()

    def test_interrupt_of_one_job(self):
        self.interrupted("--replicas", 1, "--set", "wan.link=mpi")

    def test_interrupt_if_nothing_can_be_saved(self):
        run = self.start("launch", self.file, "--sites", 2, "--stages", 1)
        self.rounds(self.path("run", "site-1"), 2)
        self.write("run/weights", "not a directory")
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(30 * SLOWER), 1)  # not after a minute of waiting for each other
        self.assertRegex(run.text("stderr"), r"site-1 failed: .*interrupted; the last anchor is not saved in .*run/weights: ")
        self.wait_until_nothing_is_left()

    def test_launch_within_a_job(self):
        """The launcher's variables are not passed on to the sites, which would all be one rank."""
        for more in (("--stages", 2, "--replicas", 1), ("--stages", 1, "--replicas", 1)):
            self.ranks(1, "launch", self.file, "--sites", 2, "--set", "train.tokens=5000", *more)
            self.assertEqual(summary(self.path("run"))["sites"], 2)

    # ---- bad input

    def once(self, process, pattern):
        self.assertEqual(len(self.errors(process)), 1, process.everything())
        self.assertRegex(self.errors(process)[0], pattern)

    def test_ranks(self):
        self.once(self.ranks(3, "train", self.file, "--sites", 1, code=2), r"3 ranks.* 2 .* 2 .*4")
        self.once(self.ranks(2, "train", self.file, "--site", "paris", "--set", "wan.security=none", code=2), r"2 ranks.*4")
        self.refused(r"site\.stages 2 .* site\.replicas 2.*mpirun -n 4", "train", self.file, "--site", "paris")
        self.refused(r"wan\.link: mpi .*--sites N", "train", self.file, "--site", "paris", "--set", "wan.link=mpi")
        self.refused(r"--sites .*--coordinator", "train", self.file, "--sites", 2, "--coordinator", "127.0.0.1:1")
        self.refused(r"coordinator: wan\.link is mpi, whose coordinator", "coordinator", self.file, "--set", "wan.link=mpi")

    def test_what_does_not_fit(self):
        for change, pattern in (("site.stages=3", r"site\.stages: 3 is more than model\.layers; allowed: 1 to 2"),
                                ("train.micro_batch=2", r"train\.micro_batch: 2 .*1 micro-batches.* fewer than 2 stages"),
                                ("site.replicas=3", r"train\.batch: 4 windows can't be divided among 3 replicas"),
                                ("site.cut=1", r"site\.cut"), ("site.cut=0,2", r"site\.cut"), ("site.cut=2,1", r"site\.cut"),
                                ("wan.link=mem", r"wan\.link: mem has sites of one rank")):
            with self.subTest(change):
                self.refused(pattern, "launch", self.file, "--set", change)
        self.once(self.ranks(4, "train", self.file, "--sites", 1, "--set", "site.stages=3", code=2), r"site\.stages: 3 ")

    def test_a_file_that_is_missing(self):
        self.once(self.ranks(4, "train", self.file, "--sites", 1, "--set", "data.train=" + self.path("none"), code=2),
                  r"data\.train: no such file")

    def test_sites_of_different_partitions(self):
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        paris = self.start_site(self.file, "paris", endpoint, secure=False, ranks=4)
        coordinator.wait_line("site 'paris' connected")
        tokyo = self.start_site(self.file, "tokyo", endpoint, "--set", "site.replicas=1", secure=False, ranks=2)
        self.assertEqual(tokyo.wait(), 1)
        self.once(tokyo, r"site\.replicas: '1' on site 'tokyo', '2' in the run and on site 'paris'")
        paris.signal(signal.SIGTERM)
        paris.wait()
        coordinator.signal(signal.SIGTERM)
        coordinator.wait()
        self.wait_until_nothing_is_left()

    def test_mpi_without_threads(self):
        if SANITIZED:
            self.skipTest("a sanitizer must be loaded first")
        self.once(self.ranks(4, "train", self.file, "--sites", 1, code=1, env={"LD_PRELOAD": os.environ["FEW_THREADS"]}),
                  r"MPI_THREAD_MULTIPLE")


if __name__ == "__main__":
    main(at_once=2)
