# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: a run ends within two seconds with a message, without processes left, and saved."""
import os
import signal
import time

from harness import Case, SLOWER, events, main, summary

LIMIT_S = 2 * SLOWER  # from the first Ctrl-C to the end of the run


class Interrupt(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": "1e12"})  # endless

    def started(self, *more):
        run = self.start("launch", self.file, "--sites", 2, *more)
        for name in ("site-1", "site-2"):
            self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                lambda e: e["event"] == "round" and e["committed_rounds"] >= 2)
        return run

    def interrupted(self, process, number=signal.SIGINT):
        begun_s = time.monotonic()
        process.signal(number)
        code = process.wait()
        self.assertLess(time.monotonic() - begun_s, LIMIT_S, process.everything())
        return code

    def check_saved(self):
        self.assertFalse(os.path.exists(self.path("run", "summary.json")), "of an earlier run")
        for name in ("site-1", "site-2"):
            self.assertGreaterEqual(len(events(self.path("run", name, "metrics.jsonl"), "step")), 20)
            s = summary(self.path("run", name))
            self.assertEqual(s["status"], "interrupted")
            self.assertGreaterEqual(s["rounds"], 2)
            self.assertIsNone(s["val_loss"])
        self.call("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 500)

    def check_launch(self, number, *more):
        self.write("run/summary.json", "{}")  # of an earlier run
        run = self.started(*more)
        self.assertEqual(self.interrupted(run, number), 1)
        self.assertIn("dilocox: interrupted; partial results are in " + self.path("run"), run.text("stderr"))
        self.assert_nothing_left()
        self.check_saved()

    def test_launch(self):
        self.check_launch(signal.SIGINT)

    def test_launch_terminated(self):
        self.check_launch(signal.SIGTERM)

    def test_launch_of_threads(self):
        self.check_launch(signal.SIGINT, "--set", "wan.link=mem")

    def test_second_time(self):
        run = self.started()
        for name in ("site-1", "site-2"):  # stopped, so that launch still waits at the second signal
            os.kill(self.pid_of("train", name), signal.SIGSTOP)
        run.signal(signal.SIGINT)
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until and run.popen.poll() is None:
            run.signal(signal.SIGINT)
        self.assertIn(run.wait(), (1, 128 + signal.SIGINT))
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)
        self.wait_until_nothing_is_left()

    def test_launcher_killed(self):
        run = self.started()
        run.signal(signal.SIGKILL)
        run.wait()
        self.wait_until_nothing_is_left()

    def test_waiting_for_other_sites(self):
        self.keys(["a", "b", "c"])
        coordinator, endpoint = self.start_coordinator(self.file, 3)
        # of two processes with one name, one is refused: then the other has joined
        twice = [self.start_site(self.file, "a", endpoint) for _ in range(2)]
        refused, joined = twice if self.wait_for_exit_of_one(twice) == twice[0] else reversed(twice)
        self.assertEqual(refused.wait(), 1)
        self.assertIn("a site named 'a' has joined already; give --site another name", refused.text("stderr"))
        self.assertRegex(joined.text("stdout"), f"joining at {endpoint}, waiting for every site")
        self.assertEqual(self.interrupted(joined), 1)
        self.assertIn("dilocox: interrupted", joined.text("stderr"))

        # the name is free again, and the coordinator still runs
        twice = [self.start_site(self.file, "a", endpoint) for _ in range(2)]
        self.wait_for_exit_of_one(twice)
        self.assertEqual(self.interrupted(coordinator), 1)
        self.assertIn("the coordinator was interrupted", coordinator.text("stderr"))
        said = [site.wait() and site.text("stderr") for site in twice]
        self.assertRegex("\n".join(said), "the coordinator was interrupted")
        self.assert_nothing_left()

    def test_no_coordinator(self):
        self.keys(["a"])
        site = self.start_site(self.file, "a", "127.0.0.1:9")
        site.wait_line("no coordinator at 127.0.0.1:9 yet after 2 s; waiting up to 600 s")
        self.assertEqual(self.interrupted(site), 1)
        self.assertIn("dilocox: interrupted", site.text("stderr"))


if __name__ == "__main__":
    main()
