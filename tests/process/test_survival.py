# SPDX-License-Identifier: Apache-2.0
"""With wan.min_sites a run goes on when a site is lost: the rest trains on to the end, and the
results say who is missing."""
import os
import re
import signal

from harness import Case, events, main, summary

TOKENS = 60 * 3 * 10 * 4 * 32  # 60 rounds of three sites: H, batch, context


class Survival(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": TOKENS}, wan={"timeout_s": 2, "min_sites": 1},
                                sync={"inner_steps": 10, "adaptation": "off"})

    def started(self):
        """A run of three in which rounds were committed, and which all can't end for long."""
        run = self.start("launch", self.file, "--sites", 3)
        for name in ("site-1", "site-2", "site-3"):
            self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                lambda e: e["event"] == "round" and e["committed_rounds"] >= 1)
        return run

    def check_done(self, run, lost, why):
        self.assertEqual(run.wait(), 0, run.everything())
        s = summary(self.path("run"))
        rest = [name for name in ("site-1", "site-2", "site-3") if name not in lost]
        self.assertEqual([site["site"] for site in s["per_site"]], rest)
        self.assertEqual(sorted(site["site"] for site in s["dropped"]), sorted(lost))
        for site in s["dropped"]:
            self.assertRegex(site["why"], why)
            self.assertGreaterEqual(site["round"], 1)
            self.assertRegex(run.text("stdout"), rf"coordinator  {re.escape(site['why'])}; \d of 3 sites go on")
            self.assertRegex(run.text("stdout"), rf"dropped +'{site['site']}' in round {site['round']}: {re.escape(site['why'])}")
        self.assertEqual({site["anchor_hash"] for site in s["per_site"]}, {s["anchor_hash"]})
        self.assertGreaterEqual(s["tokens"], TOKENS)
        whole = s["per_site"][0]["val_tokens"] * len(rest)  # the rest shares all of the validation data
        self.assertAlmostEqual(sum(site["val_tokens"] for site in s["per_site"]) / whole, 1, delta=0.1)
        self.assertLess(s["val_loss"], s["val_loss_initial"])
        self.assertTrue(os.path.exists(self.path("run", "weights", "model.safetensors")))
        self.wait_until_nothing_is_left()

    def test_a_site_is_killed(self):
        run = self.started()
        os.kill(self.pid_of("train", "site-2"), signal.SIGKILL)
        self.check_done(run, ["site-2"], "^site 'site-2' has no connection$|^no message from site 'site-2' for ")

    def test_the_first_site_is_killed(self):
        """It would have saved the weights."""
        run = self.started()
        os.kill(self.pid_of("train", "site-1"), signal.SIGKILL)
        self.check_done(run, ["site-1"], "^site 'site-1' has no connection$|^no message from site 'site-1' for ")
        others = [[e["loss"] for e in events(self.path("run", name, "metrics.jsonl"), "evaluation") if e["of"] == "end"]
                  for name in ("site-2", "site-3")]
        self.assertNotEqual(*others)  # parts of their own

    def test_one_is_left(self):
        run = self.started()
        for name in ("site-3", "site-1"):
            os.kill(self.pid_of("train", name), signal.SIGTERM)
        self.check_done(run, ["site-1", "site-3"], "site 'site-[13]' left: interrupted")

    def test_too_few_are_left(self):
        self.file = self.config(train={"tokens": "1e12"}, wan={"timeout_s": 2, "min_sites": 3}, sync={"inner_steps": 10})
        run = self.started()
        os.kill(self.pid_of("train", "site-3"), signal.SIGTERM)
        self.assertEqual(run.wait(), 1, run.everything())
        self.assertRegex(run.text("stderr"), "site-3 failed: interrupted|site 'site-3' left: interrupted")
        self.wait_until_nothing_is_left()


if __name__ == "__main__":
    main()
