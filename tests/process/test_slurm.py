# SPDX-License-Identifier: Apache-2.0
"""The job scripts of examples/, unchanged, in a Slurm of the test: one job per site, one for all."""
import os
import signal
import sys

from harness import Case, DILOCOX, SOURCE_ROOT, events, main, skip, summary
from slurm import Slurm, Unavailable

SITES, STAGES, REPLICAS = 2, 2, 2
SITE_SCRIPT, JOB_SCRIPT = (os.path.join(SOURCE_ROOT, "examples", name) for name in ("site.slurm", "one-job.slurm"))
# the node claims more cores than it has: ranks that wait for a message yield
SHARED = {"OMPI_MCA_mpi_yield_when_idle": 1}


class Jobs(Case):
    slurm = None

    def setUp(self):
        super().setUp()
        self.jobs = []
        self.addCleanup(self.cancel)
        self.prepare_data()

    def cancel(self):
        for number in self.jobs:
            self.slurm.ask("scancel", "--signal=KILL", "--full", str(number))

    def cluster_config(self, **train):
        return self.config(model={"layers": 2}, train={"batch": 8, "micro_batch": 2, **train},
                           site={"stages": STAGES, "replicas": REPLICAS})

    def submit(self, script, **environment):
        number = self.slurm.submit(script, self.directory, DILOCOX=DILOCOX, **SHARED, **environment)
        self.jobs.append(number)
        return number

    def log(self, number):
        try:
            with open(self.slurm.jobs()[number]["StdOut"], errors="replace") as text:
                return f"--- job {number}\n{text.read()}"
        except (OSError, KeyError):
            return f"--- job {number} has no log"

    def wait_jobs(self, state="COMPLETED"):
        """Until all submitted jobs end in this state, or one ends in another."""
        def happened():
            ended = self.slurm.ended()
            states = None if ended is None else {number: ended[number] for number in self.jobs if number in ended}
            return states if states and (len(states) == len(self.jobs) or set(states.values()) != {state}) else None
        try:
            states = self.wait_until("the jobs end", happened)
            self.assertEqual(states, dict.fromkeys(self.jobs, state))
        except AssertionError as error:
            logs = "\n".join(self.log(number) for number in self.jobs)
            raise AssertionError(f"{error}\n{logs}\n{self.slurm.all_output()}") from None

    def check_done(self):
        """Checks summary.json of the run and of every site."""
        s = summary(self.path("run"))
        self.assertEqual((s["status"], s["sites"], s["stages"], s["replicas"]), ("done", SITES, STAGES, REPLICAS))
        self.assertGreaterEqual(s["tokens"], 10240)
        self.assertLess(s["val_loss"], s["val_loss_initial"] - 0.5)
        names = sorted(site["site"] for site in s["per_site"])
        sites = [summary(self.path("run", name)) for name in names]
        self.assertEqual([site["status"] for site in sites], ["done"] * SITES)
        self.assertEqual({site["anchor_hash"] for site in sites}, {s["anchor_hash"]})
        self.assertRegex(s["anchor_hash"], "^[0-9a-f]{16}$")
        self.call("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 500)
        return names

    # ---- one job per site

    def test_a_job_per_site(self):
        names = ["paris", "tokyo"]
        config = self.cluster_config()
        self.keys(names)
        coordinator, endpoint = self.start_coordinator(config, SITES)
        for name in names:
            self.submit(SITE_SCRIPT, DILOCOX_CONFIG=config, DILOCOX_SITE=name, DILOCOX_COORDINATOR=endpoint)
        self.wait_jobs()
        self.assertEqual(coordinator.wait(), 0, coordinator.everything())
        self.assertEqual(self.check_done(), names)
        self.wait_until_nothing_is_left()

    def test_names_what_is_missing(self):
        number = self.submit(SITE_SCRIPT, DILOCOX_COORDINATOR="127.0.0.1:9")
        self.wait_jobs("FAILED")
        self.assertIn("DILOCOX_SITE: set it to the name of this site in the roster", self.log(number))

    # ---- one job for all

    def test_one_job(self):
        self.submit(JOB_SCRIPT, DILOCOX_CONFIG=self.cluster_config())
        self.wait_jobs()
        self.assertEqual(self.check_done(), ["site-1", "site-2"])
        self.wait_until_nothing_is_left()

    def test_cancelled(self):
        """scancel's SIGTERM reaches the ranks and their parents: they save and end."""
        number = self.submit(JOB_SCRIPT, DILOCOX_CONFIG=self.cluster_config(tokens="1e12"))
        self.wait_for_event(self.path("run", "site-1", "metrics.jsonl"),
                            lambda e: e["event"] == "round" and e["committed_rounds"] >= 2)
        self.slurm.ask("scancel", str(number))
        self.wait_jobs("CANCELLED")
        self.wait_until_nothing_is_left()
        for name in ("site-1", "site-2"):
            self.assertEqual(summary(self.path("run", name))["status"], "interrupted", self.log(number))
            self.assertGreaterEqual(len(events(self.path("run", name, "metrics.jsonl"), "step")), 20)
        self.call("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 500)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends Slurm, too
    try:
        Jobs.slurm = Slurm()
    except Unavailable as why:
        skip(str(why))
    try:
        main()
    finally:
        left = Jobs.slurm.close()
        if left:
            print("killed processes that were left:", *left, sep="\n")
            sys.exit(1)
