# SPDX-License-Identifier: Apache-2.0
"""Sites of several ranks on gloo: copies under DistributedDataParallel, parts made by hand, a rank
that dies, and one that skips a step."""
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading

import torch_support
from support import DEADLINE_S, Case, main

import dilocox

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENS = 2 * 40 * 16
EXACT = dict(sync_every=5, low_rank=0, bits=32, overlap="carry", exchange_steps=2)


class Ranks(Case):
    of_one = None

    def start(self, sites, tokens=TOKENS, **coordinator):
        """A coordinator, and a process per entry of `sites`."""
        self.coordinator = dilocox.Coordinator(sites=len({s["site"] for s in sites}), tokens=tokens,
                                               unencrypted=True, **coordinator)
        self.coordinator.start()
        self.addCleanup(self.coordinator.close)
        self.addCleanup(self.coordinator.interrupt)
        processes = []
        for one in sites:
            spec = {"coordinator": self.coordinator.endpoint,
                    "store": self.path("store-" + one["site"]), **one}
            processes.append(subprocess.Popen(
                [sys.executable, os.path.join(HERE, "torch_site.py"), json.dumps(spec)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            self.addCleanup(processes[-1].wait)
            self.addCleanup(processes[-1].kill)
        return processes

    def outcome(self, process, code=0):
        out, err = process.communicate(timeout=DEADLINE_S)
        self.assertEqual(process.returncode, code, out + err)
        return json.loads(out.splitlines()[-1]) if code == 0 else None

    def run_all(self, sites, **more):
        return [self.outcome(process) for process in self.start(sites, **more)]

    def grid(self, ranks, kind, **options):
        return [dict(site=site, rank=rank, ranks=ranks, kind=kind,
                     options={**EXACT, **options}) for site in "ab" for rank in range(ranks)]

    def of_one_rank(self):
        """What two sites of one rank each find."""
        if self.of_one is None:
            type(self).of_one = self.run_all(self.grid(1, "ddp"))
        return self.of_one

    def check_equal(self, found, one):
        for process in found:
            self.assertEqual(process["hashes"], found[0]["hashes"])
            self.assertLess(abs(process["final"] - one[0]["final"]), 0.01 * one[0]["final"])

    def test_copies_and_parts(self):
        one = self.of_one_rank()
        self.assertLess(one[0]["final"], 0.9)
        copies = self.run_all(self.grid(2, "ddp"))
        self.check_equal(copies, one)
        self.assertEqual(set(copies[0]["hashes"]), set(one[0]["hashes"]))
        self.assertEqual([process["group"] for process in copies], ["gone"] * 4)
        for process in copies:  # each has all of it, equal to the bit, and half of the state
            self.assertEqual(process["anchor"], copies[0]["anchor"])
            self.assertLess(process["raw_bytes"], 0.7 * one[0]["raw_bytes"])
        self.assertEqual(copies[0]["raw_bytes"] + copies[1]["raw_bytes"], one[0]["raw_bytes"])
        parts = self.run_all(self.grid(2, "rows"))
        self.check_equal(parts, one)
        self.assertEqual(sorted(parts[0]["hashes"]), [
            "bias", "down[rows 0:12]", "down[rows 12:24]", "up[rows 0:12]", "up[rows 12:24]",
            "up_bias[rows 0:12]", "up_bias[rows 12:24]"])

    def test_allreduce(self):
        options = dict(overlap="allreduce", exchange_steps=0)
        one = self.run_all(self.grid(1, "ddp", **options))
        self.check_equal(self.run_all(self.grid(2, "ddp", **options)), one)

    def test_an_optimizer_that_is_sharded(self):
        """ZeroRedundancyOptimizer: each rank has a part of the optimizer's state."""
        one = self.of_one_rank()
        sharded = [{**spec, "optimizer": "zero"} for spec in self.grid(2, "ddp")]
        self.check_equal(self.run_all(sharded), one)

    def test_sites_of_other_rank_counts(self):
        sites = [s for s in self.grid(2, "ddp") if s["site"] == "a"]
        sites += [s for s in self.grid(1, "ddp") if s["site"] == "b"]
        processes = self.start(sites)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(self.outcome, process) for process in processes]
            next(concurrent.futures.as_completed(waiting))
            self.coordinator.interrupt()  # the site that came first waits for another one
            errors = [one.result()["error"] for one in waiting]
        text = "\n".join(f"{kind}: {text}" for kind, text in errors)
        self.assertRegex(text, "RefusedError: .* has [12] ranks?, .* has [12]; all sites must have")

    def test_a_site_that_is_killed(self):
        """The other one goes on alone, or says so where the coordinator needs all sites."""
        for more, error in ((dict(), None), (dict(sites_min=0, patience_ms=2000), "PeerLostError")):
            sites = [{**site, "timeout": 3.0} for site in self.grid(1, "ddp")]
            sites[1]["dies_at"] = 12
            processes = self.start(sites, timeout=3.0, **more)
            self.outcome(processes[1], -9)
            found = self.outcome(processes[0])
            self.assertEqual(found.get("error", [None])[0], error, found)

    def test_a_rank_that_dies(self):
        sites = self.grid(2, "ddp")
        sites[1]["dies_at"] = 12
        processes = self.start(sites)
        self.outcome(processes[1], -9)
        error = self.outcome(processes[0])["error"]
        self.assertEqual(error[0], "PeerLostError")
        self.assertIn("rank 1 of this site has ended", error[1])
        for process in processes[2:]:  # the other site goes on alone
            self.assertNotIn("error", self.outcome(process))

    def test_ctrl_c_while_a_rank_does_not_come(self):
        """The process ends, and does not wait for the other one."""
        sites = self.grid(2, "alike")[:2]
        sites[1]["stays"] = True
        waiting, stays = self.start(sites)
        self.assertEqual(stays.stdout.readline(), "made\n")
        waiting.send_signal(signal.SIGINT)
        self.outcome(waiting, -signal.SIGINT)
        self.assertIsNone(stays.poll())

    def test_a_rank_that_skips_a_step(self):
        sites = self.grid(2, "ddp")[:2]
        for site in sites:
            site["timeout"] = 1.0
        sites[1]["skips_at"] = 7
        process = self.start(sites)[0]
        watch = threading.Timer(DEADLINE_S, process.kill)
        watch.start()
        self.addCleanup(watch.cancel)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "rank 1 of this site has not come for 1 s" in line:
                break
        else:
            self.fail("".join(lines))

    def test_ranks_that_differ(self):
        """Both are told, and can try again."""
        cases = [  # what the message has, and options of the second rank, or its kind
            ("^sync_every: 5 on rank 0, 6 on rank 1", dict(sync_every=6)),
            ("^buffers: 'average' on rank 0, 'local' on rank 1", dict(buffers="local")),
            ("^rank 1: state: give the \"sync\" entry", dict(state={})),
            ("^rank 1: buffers: 'all' must be", dict(buffers="all")),
            ("^rank 1: optimizer: give a torch.optim.Optimizer", dict(optimizer=3)),
            ("^tensor '.*': .* on rank 0, no such tensor on rank 1", "rows")]
        sites = self.grid(2, "alike")[:2]
        sites[0]["attempts"] = [["alike", EXACT] for _ in cases]
        sites[1]["attempts"] = [[differ, EXACT] if isinstance(differ, str) else
                                ["alike", {**EXACT, **differ}] for _, differ in cases]
        for found in self.run_all(sites):
            self.assertEqual(len(found["errors"]), len(cases))
            for (kind, text), (pattern, _) in zip(found["errors"], cases):
                self.assertEqual(kind, "ConfigError")
                self.assertRegex(text, pattern)


if __name__ == "__main__":
    main()
