# SPDX-License-Identifier: Apache-2.0
"""Methods that are equal by definition give equal results."""
from harness import Case, events, main, summary


class Equal(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    def losses(self, name, sites, steps, bits="none", **changes):
        """Mean over sites of each inner step's loss, and the validation loss; uncompressed."""
        changes["train"] = {"tokens": changes["train"]["batch"] * 32 * sites * steps, "micro_batch": 2, **changes["train"]}
        file = self.config(**changes)
        self.call("launch", file, "--sites", sites, "--run-dir", self.path(name), "--set", "wan.link=mem",
                  "--set", "sync.compression.rank=0", "--set", f"sync.compression.bits={bits}", "--set", "sync.adaptation=off")
        of_sites = [[e["loss"] for e in events(self.path(name, f"site-{i + 1}", "metrics.jsonl"), "step")]
                    for i in range(sites)]
        for one in of_sites:
            self.assertEqual(len(one), steps)
        return [sum(step) / sites for step in zip(*of_sites)], summary(self.path(name))["val_loss"]

    def assert_close(self, a, b, relative):
        for k, (x, y) in enumerate(zip([*a[0], a[1]], [*b[0], b[1]])):
            self.assertLess(abs(x - y), relative * abs(y), f"step {k + 1}: {x} and {y}")

    def test_allreduce_is_one_site_with_the_whole_batch(self):
        """Each of 20 steps and the validation loss, to 1e-5."""
        for sites, backend in ((2, "ref"), (3, "fast")):
            with self.subTest(sites=sites, backend=backend):
                many = self.losses("many", sites, 20, train={"batch": 4, "backend": backend}, sync={"overlap": "allreduce"})
                one = self.losses("one", 1, 20, train={"batch": 4 * sites, "backend": backend}, sync={"overlap": "allreduce"})
                self.assert_close(many, one, 1e-5)
                self.assertLess(one[0][-1], one[0][0] - 0.5, "it learns")

    def test_allreduce_in_halves(self):
        """Half the bytes, and gradients that are rounded to 11 bits."""
        changes = {"train": {"batch": 4}, "sync": {"overlap": "allreduce"}}
        whole, halves = self.losses("whole", 2, 20, **changes), self.losses("halves", 2, 20, bits=16, **changes)
        self.assert_close(halves, whole, 2e-3)
        self.assertNotEqual(halves, whole)
        sent = [summary(self.path(name))["wan_bytes_sent"] for name in ("halves", "whole")]
        self.assertAlmostEqual(sent[0] / sent[1], 0.5, delta=0.05)

    def test_one_site_with_trivial_rounds_is_plain_adamw(self):
        """H = 1, outer step 1, no momentum, nothing compressed: to 1e-6."""
        plain = self.losses("plain", 1, 40, train={"batch": 4}, sync={"overlap": "allreduce"})
        rounds = self.losses("rounds", 1, 40, train={"batch": 4},
                             sync={"overlap": "none", "inner_steps": 1, "outer_learning_rate": 1, "outer_momentum": 0})
        self.assert_close(rounds, plain, 1e-6)
        self.assertLess(plain[0][-1], plain[0][0] - 0.5, "it learns")

    def test_an_outer_step_matters(self):
        """The test above can fail: another outer learning rate is another run."""
        plain = self.losses("plain", 1, 20, train={"batch": 4}, sync={"overlap": "allreduce"})
        rounds = self.losses("rounds", 1, 20, train={"batch": 4}, sync={"overlap": "none", "inner_steps": 1,
                                                                       "outer_learning_rate": 0.99, "outer_momentum": 0})
        self.assertRaises(AssertionError, self.assert_close, rounds, plain, 1e-6)


if __name__ == "__main__":
    main()
