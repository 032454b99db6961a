# SPDX-License-Identifier: Apache-2.0
"""Sites of several ranks: the same training for every process grid, the same anchors on every site
and over every link, weights that one process reads, and less memory per rank."""
import json
import os
import re

from harness import Case, SANITIZED, SOURCE_ROOT, events, main, summary
from token_file import token_file

LAYERS = 4
GRIDS = ((1, 1),  # stages × replicas
         (2, 1), (4, 1), (1, 2), (2, 2))
LLAMA = {"layers": LAYERS}
GPT2 = {"layers": LAYERS, "family": "gpt2", "kv_heads": 2, "tied_head": True}
STEPS = 50
F32 = {"DNNL_MAX_CPU_ISA": "AVX2"}  # makes `auto` f32 in eval


class Clusters(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    # ---- one site: loss curves

    def curve(self, grid, file, *more, values=("loss", "gradient_norm")):
        """These values of every step, and the validation loss, of one site."""
        stages, replicas = grid
        directory = self.path(f"{stages}x{replicas}")
        self.ranks(stages * replicas, "train", file, "--sites", 1, "--run-dir", directory, "--set", f"site.stages={stages}",
                   "--set", f"site.replicas={replicas}", *more)
        steps = events(os.path.join(directory, "site-1", "metrics.jsonl"), "step")
        self.assertEqual(len(steps), STEPS)
        return [e[key] for e in steps for key in values] + [summary(directory)["val_loss"]]

    def check_curves(self, model, tolerance, values=("loss", "gradient_norm"), **train):
        """Uncompressed, and a mild outer step: others would amplify differences in the last bit."""
        train = {"tokens": STEPS * 8 * 32, "batch": 8, "micro_batch": 2, **train}
        file = self.config(model=model, train=train,
                           sync={"overlap": "none", "outer_learning_rate": 0.7, "outer_momentum": 0.7, "compression": {"rank": 0, "bits": "none"}})
        whole = self.curve((1, 1), file, values=values)
        self.assertLess(whole[-1], whole[0] - 0.5, "it learns")
        for grid in GRIDS[1:]:
            with self.subTest(grid=grid):
                for k, (x, y) in enumerate(zip(self.curve(grid, file, values=values), whole)):
                    self.assertLess(abs(x - y), tolerance * abs(y), f"value {k} of {grid}: {x} and {y}")
        return file

    def test_curves_in_f32(self):
        file = self.check_curves(LLAMA, 1e-4)
        for grid in ("2x2", "4x1"):
            self.check_weights(grid)
        other = self.curve((2, 1), file, "--set", "train.weight_decay=0.2")
        self.assertGreater(abs(other[-1] - summary(self.path("2x2"))["val_loss"]), 1e-4, "another method is another curve")

    def test_curves_of_a_tied_head(self):
        self.check_curves(GPT2, 1e-4, optimizer="muon")
        self.check_weights("2x2")

    def test_curves_in_bf16(self):
        with open("/proc/cpuinfo") as text:
            if "avx512_bf16" not in text.read():
                self.skipTest("this CPU has no bf16")
        self.check_curves(LLAMA, 2e-2, ("loss",), precision="bf16", recompute=True)

    def check_weights(self, grid):
        """One process evaluates the weights of several ranks to the same loss, and generates."""
        said = self.call("eval", self.path(grid, "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 1500,
                         env=F32).text("stdout")
        loss = float(re.search(r"(\d+\.\d+)", said).group(1))
        self.assertAlmostEqual(loss, summary(self.path(grid))["val_loss"], delta=2e-4)
        self.call("generate", self.path(grid, "weights"), "--prompt", "The", "--tokens", 8)
        stages = int(grid[0])
        files = sorted(os.listdir(self.path(grid, "weights")))
        parts = [f"model-{i + 1:05}-of-{stages:05}.safetensors" for i in range(stages)]
        self.assertEqual(files, sorted(["config.json", "model.safetensors.index.json", *parts]))

    # ---- several sites

    def hashes(self, directory, site):
        with open(os.path.join(directory, site, "summary.json")) as text:
            return json.load(text)["anchor_hashes"]

    def launched(self, name, *more, sites=2, file=None):
        self.call("launch", file or self.file, "--sites", sites, "--run-dir", self.path(name), *more)
        first = self.hashes(self.path(name), "site-1")
        for i in range(1, sites):
            self.assertEqual(first, self.hashes(self.path(name), f"site-{i + 1}"), "every tensor's anchor is the same")
        s = summary(self.path(name))
        self.assertIsNotNone(s["anchor_hash"])
        return first, s

    def test_two_sites_of_two_stages_and_two_replicas(self):
        """The default method on the King James text. exchange_steps is fixed: otherwise timing moves
        the loss by about the tolerance."""
        data = {name: os.path.join(SOURCE_ROOT, "data", f"kjv.{name}.tokens") for name in ("train", "validation")}
        if not os.path.exists(data["train"]):
            self.skipTest("no data/kjv.train.tokens; run 'make data'")
        self.file = self.write("default.json", json.dumps({
            "run": {"dir": self.path("run")}, "data": data, "sync": {"exchange_steps": 3},
            "model": {"layers": LAYERS, "width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 128, "context": 64},
            "train": {"tokens": 40960 if SANITIZED else 409600, "batch": 8, "eval_tokens": 30000, "warmup_tokens": 20000,
                      "precision": "f32"}}))
        whole = self.launched("whole")
        grid = self.launched("grid", "--stages", 2, "--replicas", 2)
        self.assertEqual(grid[0].keys(), whole[0].keys())
        self.assertEqual((grid[1]["stages"], grid[1]["replicas"], grid[1]["parameters"]), (2, 2, whole[1]["parameters"]))
        self.assertLess(abs(grid[1]["val_loss"] / whole[1]["val_loss"] - 1), 0.01)
        self.assertLess(grid[1]["val_loss"], grid[1]["val_loss_initial"] - (1 if SANITIZED else 3), "it learns")

    def test_mpi_and_zmq_give_the_same_anchors(self):
        self.file = self.config(model=LLAMA, train={"micro_batch": 1}, sync={"exchange_steps": 3})
        by_zmq = self.launched("zmq", "--stages", 2, "--replicas", 2)
        by_mpi = self.launched("mpi", "--stages", 2, "--replicas", 2, "--set", "wan.link=mpi")
        self.assertEqual(by_zmq[0], by_mpi[0])
        self.assertEqual(by_zmq[1]["val_loss"], by_mpi[1]["val_loss"])
        self.assertEqual(len(set(by_zmq[0].values())), len(by_zmq[0]), "every tensor has a hash of its own")
        other = self.launched("other", "--stages", 2, "--replicas", 2, "--set", "wan.link=mpi", "--set", "run.seed=2")
        self.assertNotEqual(by_mpi[0], other[0])

    def test_every_overlap(self):
        self.file = self.config(model=LLAMA, train={"micro_batch": 1, "tokens": 5120})
        for overlap in ("none", "delayed", "eager", "allreduce"):
            with self.subTest(overlap):
                self.launched(overlap, "--stages", 2, "--replicas", 2, "--set", "wan.link=mpi", "--set",
                              f"sync.overlap={overlap}")

    # ---- memory and bytes per rank

    def per_rank(self, name, *more):
        _, s = self.launched(name, *more)
        with open(self.path(name, "site-1", "summary.json")) as text:
            return s, json.load(text)["per_rank"]

    def test_memory_and_bytes_of_a_rank(self):
        if SANITIZED:
            self.skipTest("a sanitizer uses memory, too")
        # tokens that dilocox has no tokenizer for: it prints no sample, which takes longest of all
        few = token_file([i * i % 100 for i in range(40000)], vocabulary=100, tokenizer="hundred")
        data = self.write("few.tokens", few)
        big = {"layers": 8, "width": 384, "heads": 6, "kv_heads": 6, "mlp_width": 1536, "context": 32, "vocabulary": 100}
        self.file = self.config(model=big, train={"tokens": 4 * 32 * 2 * 4, "micro_batch": 1, "eval_tokens": 64},
                                sync={"inner_steps": 2, "compression": {"rank": 32}},
                                data={"train": data, "validation": data})
        s, whole = self.per_rank("whole")
        _, staged = self.per_rank("staged", "--stages", 2)
        _, both = self.per_rank("both", "--stages", 2, "--replicas", 2)
        peak = {name: max(rank["peak_rss_bytes"] for rank in ranks)
                for name, ranks in (("whole", whole), ("staged", staged), ("both", both))}
        self.assertGreater(peak["whole"] / peak["staged"], 1.7, peak)
        self.assertGreater(peak["staged"] / peak["both"], 1.2, peak)
        for ranks, share in ((staged, 1 / 2), (both, 1 / 4)):
            self.assertEqual(sum(rank["shard_parameters"] for rank in ranks), s["parameters"])
            self.assertLess(max(rank["shard_parameters"] for rank in ranks), 1.1 * share * s["parameters"])
            self.assertLess(max(rank["wan_bytes_sent"] for rank in ranks), 1.1 * share * whole[0]["wan_bytes_sent"])


if __name__ == "__main__":
    main()
