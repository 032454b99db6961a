# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: a run ends within two seconds with a message, without processes left, and saved; at one site of several it
is that site that ends."""
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

    # ---- each process of a run on several machines

    def started_apart(self, count=3):
        """A coordinator and its sites, in rounds."""
        names = ("oslo", "paris", "tokyo")[:count]
        coordinator, endpoint = self.start_coordinator(self.file, count, secure=False)
        sites = {name: self.start_site(self.file, name, endpoint, secure=False) for name in names}
        for name in names:
            self.wait_for_round(name, 2)
        return coordinator, sites

    def wait_for_round(self, name, round):
        return self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                   lambda e: e["event"] == "round" and e["committed_rounds"] >= round)["committed_rounds"]

    def last_notice(self, *of):
        return events(self.path("run", *of, "metrics.jsonl"))[-1]

    def check_saved_by(self, name):
        self.assertEqual(summary(self.path("run", name))["status"], "interrupted")
        self.assertTrue(any(os.path.exists(self.path("run", *of, "weights", "model.safetensors")) for of in ((), (name,))))

    def test_one_site(self):
        """The others go on, and it does not come back."""
        coordinator, sites = self.started_apart()
        paris = sites.pop("paris")
        self.assertEqual(self.interrupted(paris), 1)
        self.assertEqual(paris.text("stderr"), "dilocox: interrupted")
        self.check_saved_by("paris")
        self.assertEqual(self.last_notice("paris")["event"], "notice")
        coordinator.wait_line("^site 'paris' left: interrupted; 2 of 3 sites go on$")
        before = self.wait_for_round("oslo", 2)
        for name in sites:
            self.wait_for_round(name, before + 3)
        told = [e["text"] for e in events(self.path("run", "metrics.jsonl"), "notice", partial=True)]
        self.assertIn("site 'paris' left: interrupted; 2 of 3 sites go on", told)
        self.assertEqual(self.interrupted(coordinator), 1)

    def test_the_last_site(self):
        """There is nobody left to go on."""
        coordinator, sites = self.started_apart(2)
        self.assertEqual(self.interrupted(sites["oslo"]), 1)
        coordinator.wait_line("site 'oslo' left: interrupted; 1 of 2 sites go on")
        self.assertEqual(self.interrupted(sites["paris"]), 1)
        self.assertEqual(coordinator.wait(), 1)
        self.assertEqual(coordinator.text("stderr"), "dilocox: site 'paris' left: interrupted")
        self.assert_nothing_left()

    def test_the_coordinator(self):
        """It ends the run for all; nothing is left to go on with."""
        coordinator, sites = self.started_apart()
        self.assertEqual(self.interrupted(coordinator), 1)
        for name, site in sites.items():
            self.assertEqual(site.wait(), 1, site.everything())
            self.assertIn("the coordinator was interrupted", site.text("stderr"))
            self.check_saved_by(name)
            self.assertIn("the coordinator was interrupted", self.last_notice(name)["text"])
        self.assertIn("the coordinator was interrupted", self.last_notice()["text"])
        self.assertFalse(os.path.exists(self.path("run", "coordinator.db")))
        self.assert_nothing_left()

    def test_the_coordinator_terminated(self):
        """It alone ends; its sites train on, and wait for it."""
        coordinator, sites = self.started_apart()
        self.assertEqual(self.interrupted(coordinator, signal.SIGTERM), 1)
        self.assertRegex(self.last_notice()["text"], "^the coordinator stopped at round [0-9]+, and its sites wait for it")
        self.assertTrue(os.path.exists(self.path("run", "coordinator.db")))
        for site in sites.values():
            self.assertIsNone(site.popen.poll())
            self.assertEqual(self.interrupted(site), 1)  # one that waits can be interrupted, too

    def test_no_coordinator(self):
        self.keys(["a"])
        site = self.start_site(self.file, "a", "127.0.0.1:9")
        site.wait_line("no coordinator at 127.0.0.1:9 yet after 2 s; waiting up to 600 s")
        self.assertEqual(self.interrupted(site), 1)
        self.assertIn("dilocox: interrupted", site.text("stderr"))


if __name__ == "__main__":
    main()
