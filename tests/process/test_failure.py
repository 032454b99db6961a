# SPDX-License-Identifier: Apache-2.0
"""If one process of a launched run fails, launch names it and the cause, ends the others, and exits
with 1, or with 2 if the config is wrong."""
import os
import signal

from harness import Case, main, summary


class Failure(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        # with all or not at all, and no wait for another coordinator
        self.file = self.config(train={"tokens": "1e12"}, wan={"min_sites": 0, "orphan_s": 0})

    def started(self):
        run = self.start("launch", self.file, "--sites", 3)
        self.wait_for_event(self.path("run", "site-3", "metrics.jsonl"),
                            lambda e: e["event"] == "round" and e["committed_rounds"] >= 1)
        return run

    def killed(self, *words):
        run = self.started()
        os.kill(self.pid_of(*words), signal.SIGKILL)
        self.assertEqual(run.wait(), 1, run.everything())
        self.assert_nothing_left()
        return run.text("stderr")

    def test_a_site_is_killed(self):
        self.assertIn("dilocox: site-2 was ended by signal 9 (Killed)", self.killed("train", "site-2"))

    def test_the_coordinator_is_killed(self):
        self.assertIn("dilocox: coordinator was ended by signal 9 (Killed)", self.killed("coordinator"))

    def test_a_site_crashes(self):
        run = self.started()
        os.kill(self.pid_of("train", "site-1"), signal.SIGSEGV)
        self.assertEqual(run.wait(), 1, run.everything())
        self.assertRegex(run.text("stderr"), r"dilocox: site-1 (was ended by signal 11|failed: )")
        self.assert_nothing_left()

    def test_a_site_can_not_write(self):
        self.write("run/site-2", "not a directory")
        run = self.refused(r"^dilocox: site-2 failed: .*run/site-2.*not a directory", "launch", self.file, "--sites", 2)
        self.assertEqual(len(run.text("stderr").splitlines()), 1)
        self.assert_nothing_left()

    def test_a_file_is_missing(self):
        self.refused(r"^dilocox: site-[12] failed: data.train: no such file '%s'; run 'dilocox tokenize'" % self.path("none"),
                     "launch", self.file, "--sites", 2, "--set", "data.train=" + self.path("none"))
        self.assert_nothing_left()

    def test_training_diverges(self):
        run = self.refused(r"^dilocox: (site-[12]|coordinator) failed: .*finite", "launch", self.file, "--sites", 2, "--set",
                           "train.learning_rate=100", "--set", "train.clip_norm=0", "--set", "train.warmup_tokens=0",
                           "--set", "train.weight_decay=10", code=1)
        self.assertRegex(run.text("stderr"), r"learning_rate")
        self.assert_nothing_left()
        for name in ("site-1", "site-2"):
            self.assertIn(summary(self.path("run", name))["status"], ("failed", "interrupted"))

    def test_threads_of_one_process(self):
        self.write("run/site-2", "not a directory")
        self.refused(r"^dilocox: site-2 failed: .*run/site-2.*not a directory", "launch", self.file, "--sites", 2, "--set",
                     "wan.link=mem")


if __name__ == "__main__":
    main()
