# SPDX-License-Identifier: Apache-2.0
"""With sync.exchange_steps set, a run of one seed repeats to the bit, on every link."""
from harness import Case, events, main, summary


class Repeat(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(sync={"exchange_steps": 3})

    def result(self, name, *more):
        self.call("launch", self.file, "--sites", 2, "--run-dir", self.path(name), "--set", "wan.security=none", *more)
        rounds = events(self.path(name, "site-2", "metrics.jsonl"), "round")
        hashes = {e["committed_rounds"]: e["anchor_hash"] for e in rounds if e["applied"]}
        losses = [e["loss"] for e in events(self.path(name, "site-2", "metrics.jsonl"), "step")]
        s = summary(self.path(name))
        return s["anchor_hash"], s["val_loss"], s["tokens"], s["rounds"], hashes, losses

    def check_same(self, *more):
        first = self.result("first", *more)
        self.assertEqual(first, self.result("second", *more))
        self.assertEqual(first, self.result("third", "--set", "wan.link=mem", *more))
        self.assertEqual(len(set(first[4].values())), len(first[4]), "every round moves the anchor")
        return first

    def test_same_seed(self):
        first = self.check_same()
        other = self.result("fourth", "--set", "run.seed=2")
        self.assertNotEqual(first[0], other[0])
        self.assertNotEqual(first[5][0], other[5][0])

    def test_muon_and_the_other_overlaps(self):
        for overlap in ("none", "delayed", "eager", "allreduce"):
            with self.subTest(overlap):
                self.check_same_of_two("--set", f"sync.overlap={overlap}", "--set", "train.optimizer=muon", "--set",
                                       "train.tokens=5120")

    def check_same_of_two(self, *more):
        first = self.result("first", *more)
        self.assertEqual(first, self.result("second", "--set", "wan.link=mem", *more))


if __name__ == "__main__":
    main()
