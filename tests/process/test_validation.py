# SPDX-License-Identifier: Apache-2.0
"""Validation data: the same on all sites, or they do not train together; and sites without a share."""
import json

from harness import Case, events, main, summary
from token_file import hash_of, token_file


class Equal(Case):
    """Sites whose data differ where data.train's hash does not show it."""

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()

    def refused_site(self, pattern, *changes):
        """Site a and coordinator are as they should be; b has changes. All name them."""
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        first = self.start_site(self.file, "a", endpoint, secure=False)
        coordinator.wait_line("'a' connected")
        second = self.start_site(self.file, "b", endpoint, *changes, secure=False)
        self.assertEqual(second.wait(), 1, second.everything())
        self.assertRegex(second.text("stderr"), "^dilocox: " + pattern)
        coordinator.wait_line("refused a site: " + pattern)
        third = self.start_site(self.file, "c", endpoint, secure=False)
        for process in (third, first, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())

    def tokens(self, name):
        with open(self.path(f"data.{name}.tokens"), "rb") as file:
            return file.read()[128:]

    def test_another_text(self):
        own, other = self.tokens("validation"), self.tokens("validation")[:-1] + b"x"
        self.write("other.tokens", token_file(other))
        self.refused_site(rf"data\.validation: '{len(own)} tokens \(hash {hash_of(other):016x}\)' on site 'b', "
                          rf"'{len(own)} tokens \(hash {hash_of(own):016x}\)' on site 'a'; all sites must use the same value",
                          "--set", "data.validation=" + self.path("other.tokens"))

    def test_a_shorter_one(self):
        own = self.tokens("validation")
        self.write("short.tokens", token_file(own[:2000]))  # more than train.eval_tokens
        self.refused_site(rf"data\.validation: '2000 tokens \(hash [0-9a-f]{{16}}\)' on site 'b', '{len(own)} tokens ",
                          "--set", "data.validation=" + self.path("short.tokens"))

    def test_another_tokenizer(self):
        """The same ids, which mean other texts."""
        for name in ("train", "validation"):
            self.write(f"{name}.tokens", token_file(self.tokens(name), tokenizer="reversed"))
        self.refused_site(r"data tokenizer: 'reversed \(hash [0-9a-f]{16}\)' on site 'b', 'byte \(hash [0-9a-f]{16}\)' on "
                          r"site 'a'; ", "--set", "data.train=" + self.path("train.tokens"),
                          "--set", "data.validation=" + self.path("validation.tokens"))

    def test_training_data_is_named_first(self):
        self.write("text.txt", self.license_text()[:9000])
        self.call("tokenize", "text.txt", self.path("few"), "--validation-every", "4", "--block", "1024")
        self.refused_site(r"data\.train: site 'b' has \d+ windows ", "--set", "data.train=" + self.path("few.train.tokens"),
                          "--set", "data.validation=" + self.path("few.validation.tokens"))


class Shares(Case):
    def test_fewer_windows_than_sites(self):
        self.prepare_data()
        file = self.config(train={"eval_tokens": 64})  # two windows
        for link in ("mem", "zmq"):
            run = self.call("launch", file, "--sites", 3, "--set", f"wan.link={link}")
            said = run.text("stdout")
            self.assertNotRegex(said.lower(), r"\bnan\b")
            for of in ("start", "end"):
                self.assertRegex(said, rf"site-3 +validation loss at the {of}: this site has none of the windows, as there are "
                                 r"fewer than sites \(3\); raise train\.eval_tokens or use more data")
                self.assertNotRegex(said, rf"site-[12] +validation loss at the {of}: this site")
            whole = summary(self.path("run"))
            site = {s["site"]: s for s in whole["per_site"]}
            self.assertIsNone(site["site-3"]["val_loss"])
            self.assertIsNone(site["site-3"]["val_loss_initial"])
            self.assertEqual(site["site-3"]["val_tokens"], 0)
            mean = (site["site-1"]["val_loss"] + site["site-2"]["val_loss"]) / 2
            self.assertAlmostEqual(whole["val_loss"], mean, delta=1e-6)
            none = events(self.path("run", "site-3", "metrics.jsonl"), "evaluation")
            self.assertEqual([(e["of"], e["loss"], e["tokens"]) for e in none], [("start", None, 0), ("end", None, 0)])
            for name in ("summary.json", "site-3/summary.json", "site-3/metrics.jsonl"):
                with open(self.path("run", name)) as text:
                    self.assertNotIn("nan", text.read().lower().replace("null", ""))
            json.dumps(whole, allow_nan=False)


if __name__ == "__main__":
    main()
