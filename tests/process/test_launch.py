# SPDX-License-Identifier: Apache-2.0
"""dilocox launch end to end on a real text: its files, and that their figures are consistent."""
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios

from harness import Case, DILOCOX, SMALL, events, main, summary

SUMMARY_FIELDS = {
    "version": int, "overlap": str, "sites": int, "stages": int, "replicas": int, "steps": int, "rounds": int, "attempts": int,
    "tokens": int, "val_loss": float, "val_loss_initial": float, "wall_s": float, "tokens_per_s": float,
    "peak_rss_bytes": int, "compute_s": float, "wait_s": float, "utilization": float, "wan_bytes_sent": int,
    "wan_bytes_received": int, "allreduce_bytes_equivalent": int, "compression_ratio": float, "codec_ratio": float,
    "agreement": float, "persistence": float, "mean_over_own": float, "unsent_share": float, "anchor_hash": str, "per_site": list,
}
SITES, TOKENS, EVAL_TOKENS = 2, 20480, 1500


def king_james():
    """The first chapters of Genesis, if Debian's `bible` is installed."""
    if shutil.which("bible") is None:
        return None
    verses = subprocess.run(["bible", "-f", "gen1:1-gen4:26"], check=True, capture_output=True).stdout.splitlines()
    return b"\n".join(verse.split(b" ", 1)[1].strip() for verse in verses) + b"\n"


class Launch(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data(king_james())
        self.file = self.config(train={"tokens": TOKENS, "eval_tokens": EVAL_TOKENS})

    def check_summary(self, directory, sites=SITES):
        s = summary(directory)
        for key, kind in SUMMARY_FIELDS.items():
            self.assertIsInstance(s.get(key), kind, key)
        self.assertEqual((s["version"], s["status"], s["sites"], s["stages"], s["replicas"]), (1, "done", sites, 1, 1))
        self.assertGreaterEqual(s["tokens"], TOKENS)
        self.assertLess(s["tokens"], TOKENS + 10 * sites * 128 * 2)  # at most two rounds past the target
        self.assertGreaterEqual(s["steps"] * 128 * sites, s["tokens"])
        self.assertGreaterEqual(s["rounds"], 4)
        self.assertTrue(5.2 < s["val_loss_initial"] < 5.9, "about ln 256")
        self.assertLess(s["val_loss"], 3.6)
        self.assertTrue(0 < s["utilization"] <= 1)
        self.assertGreaterEqual(s["wall_s"], s["compute_s"] + s["wait_s"])
        self.assertGreater(s["peak_rss_bytes"], 1 << 20)
        self.assertAlmostEqual(s["compression_ratio"] * s["wan_bytes_sent"], s["allreduce_bytes_equivalent"],
                               delta=1e-3 * s["allreduce_bytes_equivalent"])
        self.assertGreater(s["codec_ratio"], 4)  # 7 by four bits, more by the factors
        self.assertGreater(s["compression_ratio"], 20)
        self.assertRegex(s["anchor_hash"], "^[0-9a-f]{16}$")

        self.assertEqual([site["site"] for site in s["per_site"]], [f"site-{i + 1}" for i in range(sites)])
        for site in s["per_site"]:
            own = summary(os.path.join(directory, site["site"]))
            self.assertEqual(own.keys() - {"per_rank", "anchor_hashes"}, site.keys())
            self.assertEqual(own["anchor_hash"], s["anchor_hash"])
            steps = own["tokens"] / (sites * 128)  # the committed ones
            self.assertAlmostEqual(own["allreduce_bytes_equivalent"],
                                   steps * 2 * 4 * own["parameters"] * (sites - 1) / sites, delta=1)
            self.assertAlmostEqual(own["utilization"], own["compute_s"] / (own["compute_s"] + own["wait_s"]), places=6)

        def mean(key):
            return sum(site[key] for site in s["per_site"]) / sites

        for key in ("utilization", "compute_s", "wait_s"):
            self.assertAlmostEqual(s[key], mean(key), places=6)
        for key in ("wan_bytes_sent", "wan_bytes_received", "allreduce_bytes_equivalent"):
            self.assertAlmostEqual(s[key], mean(key), delta=1)
        self.assertEqual(s["steps"], max(site["steps"] for site in s["per_site"]))
        self.assertAlmostEqual(s["val_loss"], sum(site["val_loss_sum"] for site in s["per_site"])
                               / sum(site["val_tokens"] for site in s["per_site"]), places=9)
        return s

    def check_metrics(self, directory, name, s):
        s = {**s, "steps": summary(os.path.join(directory, name))["steps"]}  # may be one more at the end
        lines = events(os.path.join(directory, name, "metrics.jsonl"))
        steps = [e for e in lines if e["event"] == "step"]
        rounds = [e for e in lines if e["event"] == "round"]
        self.assertEqual([e["of"] for e in lines if e["event"] == "evaluation"], ["start", "end"])
        self.assertEqual([e["step"] for e in steps], list(range(1, s["steps"] + 1)))
        self.assertEqual(rounds[-1]["committed_rounds"], s["rounds"])
        self.assertEqual(rounds[-1]["committed_tokens"], s["tokens"])
        self.assertEqual(rounds[-1]["anchor_hash"], s["anchor_hash"])
        self.assertGreater(steps[0]["loss"], steps[-1]["loss"] + 1)
        committed = [e["committed_rounds"] for e in rounds]
        self.assertEqual(committed, sorted(committed))

    def check_diagnosis(self, directory, s):
        """Δ is the mean of what the sites sent, by their tokens, so the mean of M·Δ over sites is Δ·Δ."""
        sites = [{e["committed_rounds"]: e for e in events(os.path.join(directory, site["site"], "metrics.jsonl"), "round")
                  if e["applied"]} for site in s["per_site"]]
        both = sites[0].keys() & sites[1].keys()  # a step may apply two
        self.assertTrue(both)
        for round in both:
            shares = [of[round]["agreement"] / of[round]["mean_over_own"] for of in sites]
            self.assertTrue(min(shares) < 1.03 and max(shares) > 0.97, shares)
            self.assertTrue(all(0 < of[round]["unsent_share"] < 1 for of in sites))
        means = [sum(e["agreement"] for e in of.values()) / len(of) for of in sites]
        self.assertAlmostEqual(s["agreement"], sum(means) / 2, places=6)

    def check_eval_and_generate(self, directory, s):
        weights = os.path.join(directory, "weights")
        said = self.call("eval", weights, "--data", self.path("data.validation.tokens"), "--tokens", EVAL_TOKENS)
        words = said.text("stdout").split()
        self.assertEqual(words[0], "loss")
        self.assertAlmostEqual(float(words[1]), s["val_loss"], delta=1e-3)
        self.assertEqual(int(words[-2]), sum(site["val_tokens"] for site in s["per_site"]))
        text = self.call("generate", weights, "--prompt", "In the beginning ", "--tokens", 20).text("stdout")
        self.assertTrue(text.startswith("In the beginning "), text)
        self.assertGreaterEqual(len(text), len("In the beginning ") + 5)
        again = self.call("generate", weights, "--prompt", "In the beginning ", "--tokens", 20).text("stdout")
        self.assertEqual(text, again, "one seed, one text")

    def check_run(self, *more):
        run = self.call("launch", self.file, "--sites", SITES, *more)
        s = self.check_summary(self.path("run"))
        self.check_metrics(self.path("run"), "site-1", s)
        self.check_metrics(self.path("run"), "site-2", s)
        self.check_diagnosis(self.path("run"), s)
        self.check_eval_and_generate(self.path("run"), s)
        said = run.text("stdout")
        self.assertRegex(said, r"site-1 +step \d+/\d+ +loss \d\.\d+ .*tokens/s.*round.*rank.*H 10.*sent.*left")
        self.assertRegex(said, r"validation loss +%.4f before, %.4f after %d tokens" %
                         (s["val_loss_initial"], s["val_loss"], s["tokens"]))
        self.assertRegex(said, r"AllReduce every step would have sent .*, %.0f times" % s["compression_ratio"])
        self.assertIn(s["anchor_hash"], said)
        self.assertIn("a sample", said)
        self.assertIn(f"weights ({self.path('run')}/weights)", said)
        self.assertEqual(run.text("stderr"), "")
        self.assert_nothing_left()
        return s

    def test_encrypted(self):
        self.check_run()

    def test_unencrypted_on_loopback(self):
        self.check_run("--set", "wan.security=none")

    def test_threads_of_one_process(self):
        self.check_run("--set", "wan.link=mem")

    def test_every_overlap(self):
        for overlap in ("allreduce", "none", "delayed", "eager"):
            with self.subTest(overlap):
                self.call("launch", self.file, "--sites", 2, "--set", "wan.security=none", "--set",
                          f"sync.overlap={overlap}", "--set", "train.tokens=5120")
                s = summary(self.path("run"))
                self.assertEqual((s["overlap"], s["status"]), (overlap, "done"))
                self.assertGreaterEqual(s["tokens"], 5120)
                self.assertIsInstance(s["anchor_hash"], str)
                self.assertLess(s["val_loss"], s["val_loss_initial"])

    def test_an_unstable_outer_step_gets_a_warning(self):
        outer = ["--set", "sync.outer_learning_rate=0.7", "--set", "sync.outer_momentum=0.9"]
        said = self.call("launch", self.file, "--sites", 2, "--run-dir", self.path("bad"), "--set", "wan.link=mem",
                         "--set", "sync.overlap=delayed", *outer, "--set", "train.learning_rate=1e-4").text("stdout")
        self.assertRegex(said, r"warning: outer learning rate 0\.7 with momentum 0\.9 at rate 0\.63 and this overlap: a mode of 1\.28 \(grows\)")
        said = self.call("launch", self.file, "--sites", 2, "--run-dir", self.path("good"), "--set", "wan.link=mem").text("stdout")
        self.assertNotIn("warning", said)

    def test_a_terminal_has_one_live_line_per_site(self):
        """Redrawn in place, and never wrapped: on a narrow terminal the block would grow."""
        try:
            leader, follower = pty.openpty()
        except OSError as why:
            self.skipTest(f"no terminal: {why}")
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        run = subprocess.Popen([DILOCOX, "launch", self.file, "--sites", "2", "--set", "train.tokens=204800"], cwd=self.directory,
                               stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.STDOUT)
        os.close(follower)
        said = b""
        try:
            while True:
                said += os.read(leader, 65536)
        except OSError:  # the other end is closed
            pass
        os.close(leader)
        self.assertEqual(run.wait(), 0, said)
        line = rb"\r\x1b\[Ksite-%d  [^\r\n]*\r\n"
        blocks = re.findall(rb"(\x1b\[2A)?\x1b\[\?7l" + line % 1 + line % 2 + rb"\x1b\[\?7h", said)
        self.assertGreaterEqual(len(blocks), 2, said)
        self.assertIn(b"\x1b[2A", blocks)
        self.assertEqual(said.count(b"\x1b[?7l"), len(blocks))
        # a text that erases the block is followed by the block
        self.assertEqual(set(re.findall(rb"\x1b\[2A\x1b\[J[^\x1b]*(.{5})", said, re.DOTALL)), {b"\x1b[?7l"}, said)

    def test_one_site_alone(self):
        self.call("launch", self.file, "--sites", 1, "--set", "wan.security=none")
        s = summary(self.path("run"))
        self.assertEqual((s["sites"], s["allreduce_bytes_equivalent"]), (1, 0))
        self.assertLess(s["val_loss"], 3.6)

    def test_the_defaults(self):
        """Defaults of everything but the model's size, the data and the length."""
        file = self.write("own.yaml", json.dumps({"model": SMALL["model"], "run": {"dir": self.path("run")},
                          "data": {k: self.path(f"data.{k}.tokens") for k in ("train", "validation")},
                          "train": {"tokens": 3 * TOKENS, "warmup_tokens": 2000, "eval_tokens": EVAL_TOKENS}}))
        self.call("launch", file, "--sites", 2)
        s = summary(self.path("run"))
        self.assertEqual((s["overlap"], s["status"]), ("carry", "done"))
        self.assertIsInstance(s["anchor_hash"], str)
        self.assertLess(s["val_loss"], 3)
        self.assertGreater(s["compression_ratio"], 20)

    def test_a_second_run_replaces_the_first(self):
        self.call("launch", self.file, "--sites", 2, "--set", "train.tokens=2560")
        first = summary(self.path("run"))
        self.call("launch", self.file, "--sites", 2, "--set", "train.tokens=5120")
        self.assertGreater(summary(self.path("run"))["tokens"], first["tokens"])


if __name__ == "__main__":
    main()
