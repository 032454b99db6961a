# SPDX-License-Identifier: Apache-2.0
"""dilocox plan: what it prints, against sums made here."""
import re

from harness import Case, main

MODEL = {"family": "llama", "layers": 2, "width": 256, "heads": 4, "kv_heads": 4, "mlp_width": 512, "context": 64, "vocabulary": 256}
MATRICES = [(256, 256)] * 8 + [(512, 256)] * 6 + [(256, 256)] * 2  # two tables
VECTORS = [(1, 256)] * 5
PARAMETERS = sum(rows * cols for rows, cols in MATRICES + VECTORS)
RATE, DELAY_S, OVERHEAD = 1e6, 0.02, 1.1  # bytes/s


def groups(rows, cols, rank):
    """Of 64 values; factors are padded to them."""
    if 0 < rank < rows * cols / (rows + cols):
        return rank * ((rows + 63) // 64 + (cols + 63) // 64)
    return (rows * cols + 63) // 64


def codec_s(rank):
    """Products, orthonormal columns and passes over memory, by the rates in src/outer/cost.c."""
    low = [t for t in MATRICES if 0 < rank < t[0] * t[1] / sum(t)]
    factored = sum(rows * cols for rows, cols in low)
    squares = sum(sum(t) for t in low) * rank ** 2
    return 8 * factored * rank / 35e9 + 4 * squares / 7.5e9 + (25 * (PARAMETERS - factored) + 12 * factored) * 4 / 1e10


def submission_s():
    return 12 * PARAMETERS * 4 / 1e10


def exchange_s(rank, group_bytes):
    payload = sum(groups(rows, cols, rank) for rows, cols in MATRICES + VECTORS) * group_bytes
    return OVERHEAD * payload / RATE + (4 + 2 * (2 if rank else 1)) * DELAY_S + codec_s(rank)


class Plan(Case):
    def rows(self, *words, **sync):
        """{method: its columns}"""
        file = self.config(model=MODEL, sync={"overlap": "carry", "inner_steps": 16, "pace": "constant", "adaptation": "off", "compression": {"rank": 64}, **sync},
                           train={"tokens": 1024000, "batch": 8})
        self.text = self.call("plan", file, "--link", "8mbit,20ms", *words).text("stdout")
        return {line[:20].strip(): line[20:].split() for line in self.text.splitlines() if re.match(r".{20} +[0-9]+ +(whole|[0-9]+) ", line)}

    def seconds(self, columns):
        value, unit = float(columns[2]), columns[3]
        return value / {"s": 1, "ms": 1000}[unit]

    def test_exchanges(self):
        rows = self.rows("--step", "0.1")
        self.assertIn(f"{PARAMETERS / 1e6:.4g} M parameters", self.text)
        for method, rank, group_bytes in (("allreduce, f32", 0, 256), ("allreduce, f16", 0, 128), ("none, f16", 0, 128),
                                          ("delayed, f32", 0, 256), ("this config", 64, 34)):
            self.assertAlmostEqual(self.seconds(rows[method]) / exchange_s(rank, group_bytes), 1, delta=0.02, msg=method)

    def test_speeds(self):
        """1,000 steps of 2 sites: each step, or each of 62 and a half rounds, waits; or none does but for the last."""
        rows = self.rows("--step", "0.1")
        efficiency = {method: float(columns[5]) for method, columns in rows.items()}
        self.assertAlmostEqual(efficiency["allreduce, f32"], 0.1 / (0.1 + exchange_s(0, 256) + submission_s()), delta=2e-4)
        self.assertAlmostEqual(efficiency["none, f16"], 100 / (100 + 63 * (exchange_s(0, 128) + submission_s())), delta=2e-4)
        self.assertAlmostEqual(efficiency["this config"], 100 / (100 + exchange_s(64, 34) + 63 * submission_s()), delta=2e-4)
        self.assertEqual((rows["this config"][4], rows["none, f16"][4]), ("yes", "no"))
        self.assertAlmostEqual(float(rows["none, f16"][7]), efficiency["none, f16"] / efficiency["allreduce, f32"], delta=0.05)
        payload = sum(groups(rows, cols, 64) for rows, cols in MATRICES + VECTORS) * 34
        self.assertAlmostEqual(float(rows["this config"][8]), 63 * 2 * payload / 1024000, delta=0.02)
        self.assertAlmostEqual(float(rows["this config"][6]), 2 * 8 * 64 / 0.1 * efficiency["this config"], delta=6)

    def test_advice(self):
        """The largest rank that H hides; on a faster step the least rank and a longer H."""
        rank, steps = (int(word) for word in re.search("rank=([0-9]+) --set sync.inner_steps=([0-9]+)", self.advised("0.02")).groups())
        self.assertTrue(16 < rank < 128)
        self.assertEqual(steps, 16)
        self.assertLessEqual(exchange_s(rank, 34), 0.9 * 16 * 0.02)
        self.assertGreater(exchange_s(rank + 1, 34), 0.9 * 16 * 0.02)
        self.assertRegex(self.advised("0.0025"), f"rank=16 --set sync.inner_steps={int(-(-exchange_s(16, 34) // 0.00225))} --set sync.adaptation=off --set sync.inner_steps_max=0$")

    def test_hidden_whatever_the_step(self):
        for step in range(101, 150):
            self.assertEqual(self.rows("--step", f"0.{step}")["this config"][4], "yes", step)

    def test_other_advice(self):
        """An overlap that waits gets another; what fits is left; a fixed exchange must fit, too."""
        for overlap in ("none", "allreduce"):
            self.rows("--step", "1", overlap=overlap)
            self.assertIn(f"Under {overlap} each exchange is waited for. Advised: --set sync.overlap=carry", self.text)
        self.rows("--step", "1", compression={"rank": 64, "rank_max": 64})
        self.assertIn("The config's rank and H fit this link.", self.text)
        self.rows("--step", "0.05", "--set", "sync.exchange_steps=2")
        steps = int(-(-exchange_s(16, 34) // 0.045))
        self.assertIn(f"rank=16 --set sync.inner_steps=16 --set sync.adaptation=off --set sync.exchange_steps={steps}", self.text)

    def test_shared_cores(self):
        """What an exchange computes is taken from training, once per round; advised is what takes at most a twentieth."""
        alone, shared = (self.rows("--step", "0.1", *words)["this config"] for words in ((), ("--shared-cores",)))
        wire_s = 0.004 + OVERHEAD * sum(groups(rows, cols, 64) for rows, cols in MATRICES + VECTORS) * 34 / 2.4e8
        self.assertAlmostEqual(1 / float(shared[5]) - 1 / float(alone[5]), 62 * (codec_s(64) + wire_s) / 100, delta=4e-4)
        self.assertAlmostEqual(self.seconds(shared), exchange_s(64, 34) + codec_s(64), delta=0.002)
        self.rows("--step", "0.04", "--shared-cores", "--set", "sync.inner_steps=32")
        rank, steps = (int(word) for word in re.search("rank=([0-9]+) --set sync.inner_steps=([0-9]+)", self.text).groups())
        self.assertEqual(steps, 32)

        def taken_s(r):
            wire_s = 0.004 + OVERHEAD * sum(groups(rows, cols, r) for rows, cols in MATRICES + VECTORS) * 34 / 2.4e8
            return codec_s(r) + submission_s() + wire_s
        self.assertLessEqual(taken_s(rank), 0.05 * 32 * 0.04)
        self.assertGreater(taken_s(rank + 1), 0.05 * 32 * 0.04)

    def test_adaptation(self):
        """link: the largest rank on a slow step, and a shorter H; the least rank on a fast one. paper: shorter rounds of less."""
        slow = self.rows("--step", "0.5", adaptation="link")["this config"]
        self.assertEqual(slow[1], "128")
        self.assertLess(int(slow[0]), 16)
        fast = self.rows("--step", "0.005", adaptation="link")["this config"]
        self.assertEqual(fast[:2], ["16", "16"])
        self.assertGreater(float(fast[6]), float(self.rows("--step", "0.005")["this config"][6]))
        paper, off = (self.rows("--step", "0.1", adaptation=word)["this config"] for word in ("paper", "off"))
        self.assertEqual(paper[:2], ["16", "64"])
        self.assertTrue(float(off[8]) < float(paper[8]) < 2 * float(off[8]))  # shorter rounds of fewer columns each

    def test_part_of_a_run(self):
        """Rounds of a falling rate become longer, so the beginning is slower than the whole."""
        rate = ("--step", "0.005", "--set", "sync.pace=rate")
        begin, whole = (float(self.rows(*rate, *words)["none, f16"][6]) for words in (("--seconds", "2"), ()))
        self.assertLess(begin, 0.9 * whole)
        self.refused("^dilocox: plan: --seconds: -1", "plan", "--seconds", "-1")
        self.refused("^dilocox: plan: --host-rate: 0", "plan", "--host-rate", "0")

    def test_pace(self):
        """With a rate that falls to a tenth, rounds get ten times as long."""
        rows = self.rows("--step", "0.1", "--set", "sync.pace=rate", "--set", "train.final_learning_rate=0.1")
        self.assertLess(float(rows["this config"][8]), 0.6 * 63 * 2 * sum(groups(r, c, 64) for r, c in MATRICES + VECTORS) * 34 / 1024000)

    def test_a_long_run(self):
        """Not every step of it is walked through."""
        short, long = (self.rows("--step", "0.1", "--set", f"train.tokens={tokens}")["this config"] for tokens in ("1e9", "1e15"))
        self.assertAlmostEqual(float(long[8]) / float(short[8]), 1, delta=0.01)

    def advised(self, step):
        self.rows("--step", step)
        return self.text

    def test_step_by_operations(self):
        """6 N T, over both stages, of which one idles a fifth of the time."""
        self.rows("--flops", "1e9", "--set", "site.stages=2", "--set", "train.micro_batch=2")
        seconds = 6 * PARAMETERS * 8 * 64 / 2e9 / (1 - 1 / 5)
        self.assertIn(f"inner step          {seconds:.1f} s, by operations and --flops; a stage idles 20.0 % of it", self.text)

    def test_memory(self):
        """AdamW, carry: parameters, gradients, two moments; θ, v, e and start, and bases of rank 64."""
        self.rows("--step", "0.1")
        megabytes = 4 * PARAMETERS / 1e6
        self.assertIn(f"parameters {megabytes:.1f} MB, gradients {megabytes:.1f} MB, optimiser {2 * megabytes:.1f} MB, "
                      f"outer state {4 * megabytes + 64 * (14 * 256 + 2 * 512) * 4 / 1e6:.1f} MB", self.text)

    def test_defaults(self):
        self.assertIn("this config", self.call("plan").text("stdout"))

    def test_wrong_input(self):
        self.refused("^dilocox: plan: --link: '100,20ms' is not a rate and a delay", "plan", "--link", "100,20ms")
        self.refused("^dilocox: plan: --link: '0mbit,20ms'", "plan", "--link", "0mbit,20ms")
        self.refused("^dilocox: plan: --link: '1mbit,20m'", "plan", "--link", "1mbit,20m")
        for link in ("1mbit,61s", "100mbit", "0x10mbit,1s", " 5mbit,1s", "1e3mbit,1s", "0.1bit,1s", "mbit,1s", "1.1.1mbit,1s"):
            self.refused(f"^dilocox: plan: --link: '{link}' is not a rate and a delay; allowed: 1bit to 1000000gbit, a comma, and up to 60s", "plan",
                         "--link", link)
        self.refused("^dilocox: plan: --sites: 65", "plan", "--sites", "65")
        self.refused("^dilocox: plan: --flops: 0", "plan", "--flops", "0")
        self.refused("model.heads", "plan", "--set", "model.heads=7")


if __name__ == "__main__":
    main(at_once=4)
