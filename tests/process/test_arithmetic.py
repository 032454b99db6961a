# SPDX-License-Identifier: Apache-2.0
"""Sites with different arithmetic have the same anchor to the bit after every round.

They differ in the instruction set of oneDNN, the kernels of OpenBLAS, the number of threads, our
kernels (`ref` and `fast`), and denormal numbers. Each test shows that their arithmetic differed."""
import os

from harness import Case, SANITIZED, events, main, summary

NAMES = ["a", "b", "c", "d", "e"]
SSE = {"DNNL_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Sandybridge"}
FLUSH = {} if SANITIZED else {"LD_PRELOAD": os.environ["FLUSH_TO_ZERO"]}  # a sanitizer must be loaded first
# name: environment, further options
DIFFERENT = {
    "a": ({}, []),
    "b": ({**SSE, **FLUSH}, []),
    "c": ({"DNNL_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}, ["--set", "site.threads=2"]),
    "d": ({"OPENBLAS_CORETYPE": "Sandybridge"}, ["--set", "train.backend=ref"]),
    "e": ({"DNNL_MAX_CPU_ISA": "AVX", "OPENBLAS_CORETYPE": "Haswell"}, []),
}


class Arithmetic(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    def run_sites(self, directory, config, sites, different):
        """A run of one process per site; for each site, committed rounds → anchor hash."""
        more = ["--run-dir", self.path(directory)]
        coordinator, endpoint = self.start_coordinator(config, sites, *more, secure=False)
        running = []
        for name in NAMES[:sites]:
            env, options = DIFFERENT[name] if different else ({}, [])
            running.append(self.start_site(config, name, endpoint, *more, *options, env=env, secure=False))
        for process in (*running, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())
        rounds = []
        for name in NAMES[:sites]:
            of_site = {}
            for e in events(self.path(directory, name, "metrics.jsonl"), "round"):
                self.assertEqual(of_site.setdefault(e["committed_rounds"], e["anchor_hash"]), e["anchor_hash"])
            rounds.append({number: hash for number, hash in of_site.items() if number > 0})
        return rounds

    def assert_equal_anchors(self, directory, rounds, count_min):
        """The last two rounds may be committed within one step: a site may not have seen the first."""
        known = {number: hash for of_site in rounds for number, hash in of_site.items()}
        for name, of_site in zip(NAMES, rounds):
            self.assertGreaterEqual(len(of_site), count_min)
            self.assertEqual(of_site, {number: known[number] for number in of_site}, f"the anchors of site {name}")
            self.assertEqual(max(of_site), max(known), f"the last round of site {name}")
        self.assertEqual(len(set(known.values())), len(known), "every round moves the anchor")
        self.assertEqual(summary(self.path(directory))["anchor_hash"], known[max(known)])

    def first_losses(self, directory, name):
        """Of the first round, which depend on no other site."""
        steps = events(self.path(directory, name, "metrics.jsonl"), "step")
        return [e["loss"] for e in steps if e["round"] == 1]

    def check(self, sites):
        config = self.config(train={"tokens": 4 * 32 * sites * 50}, sync={"exchange_steps": 3, "inner_steps": 10, "inner_steps_max": 10},
                             model={"width": 64, "heads": 2, "mlp_width": 160})
        rounds = self.run_sites("different", config, sites, True)
        self.assert_equal_anchors("different", rounds, 5)
        self.run_sites("same", config, sites, False)
        self.assertEqual(self.first_losses("same", "a"), self.first_losses("different", "a"), "a run repeats")
        for name in NAMES[1:sites]:
            same, different = self.first_losses("same", name), self.first_losses("different", name)
            self.assertEqual(len(same), len(different))
            self.assertNotEqual(same, different, f"the arithmetic of site {name} did not differ")
            for x, y in zip(same, different):
                self.assertAlmostEqual(x, y, delta=1e-3)

    def test_two_sites(self):
        self.check(2)

    def test_three_sites(self):
        self.check(3)

    def test_five_sites(self):
        self.check(5)

    def test_denormal_numbers(self):
        """Biases start at zero and move by 1e-39 per step: only denormals change, and one site
        trains without them. The outer step must be equal everywhere, and must move the anchor."""
        if SANITIZED:
            self.skipTest("a sanitizer must be loaded first")
        config = self.config(model={"family": "gpt2"},
                             train={"tokens": 4 * 32 * 3 * 20, "learning_rate": "1e-39", "warmup_tokens": 0},
                             sync={"overlap": "none", "inner_steps": 5, "adaptation": "off",
                                   "outer_learning_rate": 0.7, "outer_momentum": 0.5, "compression": {"rank": 0, "bits": "none"}})
        rounds = self.run_sites("different", config, 3, True)
        self.assert_equal_anchors("different", rounds, 4)


if __name__ == "__main__":
    main()
