# SPDX-License-Identifier: Apache-2.0
"""A site whose process ended comes back into the run, which has gone on without it: from a snapshot, by --resume."""
import glob
import os
import signal

from harness import Case, events, main, summary

NAMES = ("oslo", "paris", "tokyo")


class Return(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    def started(self, tokens, sync=None, ranks=1, **train):
        site = {"replicas": ranks}
        self.file = self.config(train={"tokens": tokens, "batch": 4, "micro_batch": 2, **train}, site=site, wan={"timeout_s": 2},
                                snapshots={"rounds": 2, "minutes": 0}, sync={"overlap": "carry", "inner_steps": 10, **(sync or {})})
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
        sites[name] = self.site(name, "--resume")
        coordinator.wait_line(f"site '{name}' comes back from its snapshot of round [0-9]+")
        coordinator.wait_line(f"site '{name}' is back after")
        self.wait_rounds(name, self.committed(other) + 3)

    def check_done(self, coordinator, sites):
        self.wait_for_success(coordinator, *sites.values())
        s = summary(self.path("run"))
        self.assertEqual([site["site"] for site in s["per_site"]], list(NAMES))
        self.assertEqual(s["dropped"], [])
        self.assertEqual(len({site["anchor_hash"] for site in s["per_site"]}), 1)

    def test_each_site_is_killed(self):
        """Those that listen for others, and those that connect to them."""
        coordinator, sites = self.started(4e6)
        for name in NAMES:
            self.check_returns(coordinator, sites, name, signal.SIGKILL)
        self.check_done(coordinator, sites)


if __name__ == "__main__":
    main()
