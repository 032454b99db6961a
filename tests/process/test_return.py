# SPDX-License-Identifier: Apache-2.0
"""A site whose process ended comes back into the run, which has gone on without it: from a snapshot, by --resume."""
import glob
import os
import signal

from harness import Case, events, main

NAMES = ("oslo", "paris", "tokyo")


class Return(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    def started(self, sync=None, ranks=1, snapshots=None, **train):
        site = {"replicas": ranks}
        self.file = self.config(train={"tokens": 1e9, "batch": 8, "micro_batch": 4, **train}, site=site, wan={"timeout_s": 2},
                                snapshots={"rounds": 2, "minutes": 0}, sync={"overlap": "carry", "inner_steps": 40, **(sync or {})})
        self.ranks = ranks
        coordinator, self.endpoint = self.start_coordinator(self.file, len(NAMES), secure=False)
        return coordinator, {name: self.site(name) for name in NAMES}

    def site(self, name, *more):
        return self.start_site(self.file, name, self.endpoint, *more, secure=False, ranks=self.ranks)

    def rounds(self, name):
        path = self.path("run", name, "metrics.jsonl")
        return [e for e in events(path, "round", partial=True) if e["applied"]] if os.path.exists(path) else []

    def committed(self, name):
        return max((e["committed_rounds"] for e in self.rounds(name)), default=0)

    def wait_rounds(self, name, rounds):
        self.wait_until(f"round {rounds} of {name}", lambda: self.committed(name) >= rounds)

    def wait_snapshot(self, name):
        self.wait_until(f"a snapshot of {name}", lambda: glob.glob(self.path("run", name, "snapshots", "step-????????????")))

    def end(self, site, number):
        for pid in [p for p in self.pids() if self.ranks > 1 and self.is_of(p, site)] or [site.popen.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        site.wait()

    def is_of(self, pid, site):
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            words = line.read().decode().split("\0")
        return "--site" in words and words[words.index("--site") + 1] == site.name

    def check_returns(self, coordinator, sites, name, number, others=3):
        """It ends, some rounds go on without it, and it comes back and takes part."""
        self.wait_snapshot(name)
        sites[name].name = name
        self.end(sites[name], number)
        other = next(n for n in NAMES if n != name)
        self.wait_rounds(other, self.committed(other) + others)
        sites[name] = self.again(coordinator, name)
        self.wait_rounds(name, self.committed(other) + 3)

    def again(self, coordinator, name):
        def times():
            return coordinator.text("stdout").count(f"site '{name}' is back after")
        before = times()
        site = self.once_its_end_is_known(name, lambda site: times() > before or site.popen.poll() is not None, "--resume")
        self.assertGreater(times(), before, site.everything())
        self.assertIn(f"site '{name}' comes back from its snapshot of round ", coordinator.text("stdout"))
        return site

    def once_its_end_is_known(self, name, until, *more):
        """The site, started again. Before, it is refused."""
        while True:
            site = self.site(name, *more)
            self.wait_until(f"{name} is in the run, or refused", lambda: until(site))
            if site.popen.poll() is not None:
                site.wait()  # for the end of what it says
            if f"site '{name}' is in the run; if that process has ended, try again" not in site.everything():
                return site

    def check_agree(self, coordinator, sites):
        """On a round from now on; then all are told to end, as it would go on for long."""
        before = self.committed("oslo")

        def common():
            anchors = [{e["committed_rounds"]: e["anchor_hash"] for e in self.rounds(name)} for name in NAMES]
            rounds = set.intersection(*map(set, anchors))
            return [{a[r] for a in anchors} for r in rounds if r > before]
        self.wait_until("a round of all", common)
        self.assertEqual({len(hashes) for hashes in common()}, {1})
        coordinator.signal(signal.SIGINT)
        for site in sites.values():
            site.wait()

    def test_each_site_is_killed(self):
        """Those that listen for others, and those that connect to them."""
        coordinator, sites = self.started()
        for name in NAMES:
            self.check_returns(coordinator, sites, name, signal.SIGKILL)
        self.check_agree(coordinator, sites)

    def test_it_left(self):
        """By Ctrl-C; the run had counted it as gone for good."""
        coordinator, sites = self.started()
        self.check_returns(coordinator, sites, "paris", signal.SIGINT)
        self.check_agree(coordinator, sites)

    def test_a_site_of_two_ranks(self):
        coordinator, sites = self.started(ranks=2)
        self.check_returns(coordinator, sites, "paris", signal.SIGKILL)
        self.check_agree(coordinator, sites)

    def test_twice(self):
        """It falls behind, and comes back from the same snapshot again."""
        coordinator, sites = self.started()
        self.check_returns(coordinator, sites, "oslo", signal.SIGKILL)
        self.check_returns(coordinator, sites, "oslo", signal.SIGKILL)
        self.check_agree(coordinator, sites)

    def test_who_cannot(self):
        coordinator, sites = self.started(snapshots={})
        self.wait_snapshot("paris")
        self.refuse("site 'paris' is in the run; if that process has ended, try again after wan.timeout_s", "paris", "--run-dir",
                    self.path("elsewhere"), f"--resume={self.path('run', 'paris', 'snapshots')}")
        self.refuse("site 'rome' is new, and the run has begun without it", "rome", "--run-dir", self.path("elsewhere"),
                    f"--resume={self.path('run', 'paris', 'snapshots')}")
        self.end_named(sites, "paris")
        self.refuse("train.batch: '4' on site 'paris', '8' in the run", "paris", "--resume", "--set", "train.batch=4")
        coordinator.signal(signal.SIGINT)

    def refuse(self, pattern, name, *more):
        def ended(site):
            return site.popen.poll() is not None
        site = self.site(name, *more) if "is in the run" in pattern else self.once_its_end_is_known(name, ended, *more)
        self.assertEqual(site.wait(), 1, site.everything())
        self.assertRegex(site.text("stderr"), pattern)

    def end_named(self, sites, name):
        sites[name].name = name
        self.end(sites[name], signal.SIGKILL)
        self.wait_rounds("oslo", self.committed("oslo") + 3)

    def test_two_processes(self):
        """The first was only stopped: it ends as soon as it speaks."""
        coordinator, sites = self.started()
        self.wait_snapshot("paris")
        first = sites["paris"]
        first.signal(signal.SIGSTOP)
        coordinator.wait_line("no message from site 'paris' for")
        second = self.site("paris", "--run-dir", self.path("elsewhere"), f"--resume={self.path('run', 'paris', 'snapshots')}")
        coordinator.wait_line("site 'paris' is back after")
        first.signal(signal.SIGCONT)
        self.assertEqual(first.wait(), 1, first.everything())
        self.assertIn("another process of this site has come back into the run", first.text("stderr"))
        self.wait_rounds("oslo", self.committed("oslo") + 3)
        coordinator.signal(signal.SIGINT)
        self.assertEqual(second.wait(), 1, second.everything())

    def test_too_late(self):
        """The others keep few results: it ends, and they go on."""
        coordinator, sites = self.started(sync={"history_mib": 1, "adaptation": "off", "compression": {"rank": 0, "bits": "none"}})
        self.wait_snapshot("paris")
        self.end_named(sites, "paris")
        self.wait_rounds("oslo", self.committed("paris") + 60)
        self.refuse(r"no site has round [0-9]+'s results any more \(sync.history_mib\)", "paris", "--resume")
        self.wait_rounds("oslo", self.committed("oslo") + 3)
        coordinator.signal(signal.SIGINT)

    def test_the_coordinator_was_killed_meanwhile(self):
        """It asks where the others listen; and one that has come back before is known to it."""
        coordinator, sites = self.started()
        self.check_returns(coordinator, sites, "tokyo", signal.SIGKILL)
        coordinator.signal(signal.SIGKILL)
        coordinator.wait()
        coordinator, _ = self.start_coordinator(self.file, len(NAMES), secure=False)
        coordinator.wait_line("site 'tokyo' is here")
        self.wait_rounds("tokyo", self.committed("oslo") + 3)
        for name in reversed(NAMES):  # the last one connects to all others
            self.check_returns(coordinator, sites, name, signal.SIGKILL)
        self.check_agree(coordinator, sites)

    def test_two_at_once(self):
        """Neither knows where the other listens when it is let in."""
        coordinator, sites = self.started()
        for name in ("oslo", "paris"):
            self.wait_snapshot(name)
        for name in ("oslo", "paris"):
            sites[name].name = name
            self.end(sites[name], signal.SIGKILL)
        self.wait_rounds("tokyo", self.committed("tokyo") + 3)
        for name in ("paris", "oslo"):
            sites[name] = self.site(name, "--resume")
        for name in ("oslo", "paris"):
            coordinator.wait_line(f"site '{name}' is back after")
            self.wait_rounds(name, self.committed("tokyo") + 3)
        self.check_agree(coordinator, sites)


if __name__ == "__main__":
    main()
