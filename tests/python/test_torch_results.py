# SPDX-License-Identifier: Apache-2.0
"""run_dir has the trainer's files and keys; the display has its line."""
import io
import json
import os
import pathlib
import re
import sys
import threading

import torch_support
from support import DEADLINE_S, SOURCE_ROOT, main
from torch_support import Case, mlp, torch

from dilocox import ConfigError
from dilocox.torch import DiLoCo


class Terminal(io.StringIO):
    def isatty(self):
        return True


class RunDir(Case):
    def run_sites(self, tokens=40, **more):
        def body(keywords):
            model = mlp()
            return self.train(keywords, model, torch.optim.SGD(model.parameters(), lr=0.05),
                              run_dir=self.path("run"), sync_every=4, **more)
        return self.sites({"a": body, "b": body}, tokens)

    def events(self, site):
        with open(self.path(f"run/{site}/metrics.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def documented(self):
        """event → keys, of the table in docs/formats.md."""
        with open(os.path.join(SOURCE_ROOT, "docs/formats.md"), encoding="utf-8") as page:
            rows = re.findall(r"^\| `(run|step|round|notice)` \|[^|]*\|(.*)\|$", page.read(), re.M)
        return {name: set(re.findall(r"`(\w+)`", re.sub(r"\[[^]]*\]\([^)]*\)", "", keys)))
                for name, keys in rows}

    def test_files_have_the_trainers_keys(self):
        found = self.run_sites()
        documented = self.documented()
        self.assertGreater(len(documented["round"]), 12)
        diagnosis = {"agreement", "persistence", "mean_over_own", "unsent_share"}
        for site in "ab":
            events = self.events(site)
            self.assertEqual(events[0]["event"], "run")
            self.assertEqual(events[0]["sites"], 2)
            for event in events:
                keys = set(event) - {"event"}
                if event["event"] == "round" and not event["applied"]:
                    keys |= diagnosis
                if event["event"] == "notice":
                    keys |= {"round"}
                self.assertEqual(keys, documented[event["event"]], event)
            steps = [e for e in events if e["event"] == "step"]
            self.assertEqual([e["step"] for e in steps], list(range(1, len(steps) + 1)))
            self.assertEqual({e["learning_rate"] for e in steps}, {0.05})
            rounds = [e for e in events if e["event"] == "round" and e["applied"]]
            self.assertGreaterEqual(rounds[-1]["committed_tokens"], 40)
            with open(self.path(f"run/{site}/summary.json"), encoding="utf-8") as file:
                summary = json.load(file)
            self.assertEqual(summary["status"], "done")
            self.assertEqual(summary["tokens"], rounds[-1]["committed_tokens"])
            self.assertEqual(summary["run_id"], events[0]["run_id"])
            self.assertEqual({k: int(v, 16) for k, v in summary["anchor_hashes"].items()},
                             found[site][1])

    def test_summaries_have_the_trainers_keys(self):
        """Those that src/train/summary.c writes."""
        self.run_sites()
        with open(os.path.join(SOURCE_ROOT, "src/train/summary.c"), encoding="utf-8") as text:
            part = text.read().split("dlxi_run_summarize")[1].split("dlxi_run_per_rank")[0]
        keys = set(re.findall(r'\{"(\w+)",', part))
        keys |= {"version", "run_id", "site", "status", "overlap", "sites", "stages", "replicas"}
        with open(self.path("run/a/summary.json"), encoding="utf-8") as file:
            summary = json.load(file)
        diagnosis = {"agreement", "persistence", "mean_over_own", "unsent_share"}
        self.assertEqual(set(summary), keys | diagnosis | {"anchor_hashes"})

    def test_an_earlier_run_is_kept(self):
        self.run_sites()
        with open(self.path("run/a/summary.json"), encoding="utf-8") as file:
            first = file.read()
        self.run_sites()
        with open(self.path("run/previous-1/a/summary.json"), encoding="utf-8") as file:
            self.assertEqual(file.read(), first)
        self.assertEqual(sorted(os.listdir(self.path("run"))), [".lock", "a", "b", "previous-1"])

    def test_another_run_is_refused(self):
        run = self.run_of(1, 10)
        with DiLoCo(mlp(), site="a", hub=run.hub, tokens_per_step=1, run_dir=self.path("run")):
            other = self.run_of(1, 10)
            with self.assertRaisesRegex(ConfigError, "is in use by site 'a' \\(process"):
                DiLoCo(mlp(), site="b", hub=other.hub, tokens_per_step=1, run_dir=self.path("run"))

    def test_a_run_that_fails(self):
        run = self.run_of(1, 100)
        with self.assertRaises(ZeroDivisionError):
            with DiLoCo(mlp(), site="a", hub=run.hub, tokens_per_step=1,
                        run_dir=self.path("run")) as sync:
                sync.step()
                1 / 0
        with open(self.path("run/a/summary.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["status"], "failed")
        self.assertIn("ZeroDivisionError", self.events("a")[-1]["text"])

    def test_another_site_is_lost_before_its_report(self):
        """A line, with run_dir as without it."""
        for more in (dict(), dict(run_dir=self.path("run"))):
            both = threading.Barrier(2)

            def body(keywords):
                with DiLoCo(mlp(), sync_every=1, overlap="none", **keywords, **more) as sync:
                    while not sync.finished:
                        sync.step()
                    both.wait(DEADLINE_S)
                    if keywords["site"] == "b":
                        sync._sync.fail("the machine is off")
                        sync._sync.close()
                        sync._closed = True
                        sync._results.close()
                return True
            found = self.sites({"a": body, "b": body}, 4, sites_min=0, patience_ms=1000)
            self.assertEqual(found, {"a": True, "b": True})
        with open(self.path("run/a/summary.json"), encoding="utf-8") as file:
            self.assertEqual(json.load(file)["status"], "done")

    def test_a_path(self):
        run = self.run_of(1, 100)
        with DiLoCo(mlp(), site="a", hub=run.hub, tokens_per_step=1,
                    run_dir=pathlib.Path(self.path("run"))):
            pass
        self.assertTrue(os.path.exists(self.path("run/a/summary.json")))


class Display(Case):
    def shown(self, out, progress):
        sys.stderr, before = out, sys.stderr
        try:
            run = self.run_of(1, 30)
            with DiLoCo(mlp(), site="paris", hub=run.hub, tokens_per_step=1, progress=progress,
                        sync_every=4) as sync:
                while not sync.finished:
                    sync.step()
        finally:
            sys.stderr = before
        return out.getvalue()

    def test_a_line(self):
        line = (r"paris  step 1/\d+  [\d.]+k tokens/s  round \d+  rank [\d.]+  H 4  sent [\d.]+ "
                r"\w+  busy \d+%  left \d+:\d\d")
        self.assertRegex(self.shown(io.StringIO(), True), "(?m)^" + line + "$")
        self.assertEqual(self.shown(io.StringIO(), None), "")
        self.assertEqual(self.shown(Terminal(), False), "")
        live = self.shown(Terminal(), None)
        self.assertRegex(live, r"\r\x1b\[K\x1b\[\?7l" + line)
        self.assertTrue(live.endswith("\n"))

    def test_a_reader_that_is_gone(self):
        class Gone(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, "Broken pipe")
        self.assertEqual(self.shown(Gone(), True), "")


if __name__ == "__main__":
    main()
