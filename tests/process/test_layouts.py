# SPDX-License-Identifier: Apache-2.0
"""A run goes on with other sites and with sites of other ranks: weights to the bit, windows each once."""
import glob
import json
import os
import shutil
import signal
import sys

import numpy

from harness import Case, events, main, summary

# sites, stages, replicas
LAYOUTS = {"2x2x2": (2, 2, 2), "3x1x1": (3, 1, 1), "2x2x1": (2, 2, 1), "1x1x2": (1, 1, 2)}
# with --all: each to each, 16
PAIRS = (("2x2x2", "3x1x1"), ("3x1x1", "2x2x2"), ("3x1x1", "2x2x1"), ("2x2x1", "1x1x2"))
H, BATCH, TOKENS = 120, 64, 1200000
LONG = ("--set", "sync.inner_steps=100000")  # a run that goes on is stopped before it commits, or commits at its end
KINDS = {"F32": numpy.float32, "I32": numpy.int32, "I64": numpy.int64, "U8": numpy.uint8}
# No parameter changes.
STILL = (*LONG, "--set", "train.learning_rate=1e-30", "--set", "train.final_learning_rate=1", "--set", "sync.pace=constant")


class Snapshot:
    """What a site of any number of ranks has saved, by numpy alone."""

    def __init__(self, path):
        self.path = path
        with open(os.path.join(path, "manifest.json")) as text:
            manifest = json.load(text)
        self.meta, self.parts, self.ranks = manifest["meta"], {}, manifest["ranks"]
        for name in sorted(glob.glob(os.path.join(path, "*.safetensors")), reverse=True):  # the first rank's last
            with open(name, "rb") as file:
                header = int.from_bytes(file.read(8), "little")
                parts, data = json.loads(file.read(header)), file.read()
            for part, of in parts.items():
                if part != "__metadata__":
                    begin, end = of["data_offsets"]
                    self.parts[part] = numpy.frombuffer(data[begin:end], KINDS[of["dtype"]])

    def ending(self, ending):
        return {name[:-len(ending)]: part for name, part in self.parts.items() if name.endswith(ending)}

    def parameters(self):
        return {name: self.parts[name] for name in self.ending(".anchor")}


def newest(run, site):
    return Snapshot(sorted(path for path in glob.glob(os.path.join(run, site, "snapshots", "step-*")) if "." not in path[-13:])[-1])


class Layouts(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(model={"layers": 2}, train={"tokens": TOKENS, "batch": BATCH, "micro_batch": 16},
                                sync={"overlap": "carry", "inner_steps": H, "exchange_steps": 1})

    def launch(self, layout, run, *more):
        sites, stages, replicas = LAYOUTS[layout]
        return self.start("launch", self.file, "--run-dir", run, "--sites", sites, "--stages", stages, "--replicas", replicas, *more)

    def names(self, layout):
        return [f"site-{i + 1}" for i in range(LAYOUTS[layout][0])]

    def stopped(self, layout, run, *more, steps):
        """Ctrl-C once every site has done so many steps more."""
        paths = [os.path.join(run, name, "metrics.jsonl") for name in self.names(layout)]
        done = [max((e["step"] for e in events(path, "step", partial=True)), default=0) if os.path.exists(path) else 0
                for path in paths]
        process = self.launch(layout, run, *more)
        for path, before in zip(paths, done):
            self.wait_for_event(path, lambda e: e["event"] == "step" and e["step"] >= before + steps)
        process.signal(signal.SIGINT)
        self.assertEqual(process.wait(), 1, process.everything())
        self.wait_until_nothing_is_left()
        return process, {name: newest(run, name) for name in self.names(layout)}

    def check_same(self, a, b):
        self.assertEqual(a.keys(), b.keys())
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)

    def check_loaded(self, before, after):
        """Nothing was committed since, and steps changed no parameter."""
        for name, now in after.items():
            was = before.get(name, before["site-1"])
            self.assertEqual(now.meta["round"], was.meta["round"])
            for ending in (".anchor", ".velocity"):
                self.check_same(now.ending(ending), was.ending(ending))
            # a new one begins at the anchor
            self.check_same(now.parameters(), was.parameters() if name in before else was.ending(".anchor"))
            gone = [s for other, s in before.items() if other not in after and not s.ending(".submitted")]
            for tensor, error in {**now.ending(".error"), **now.ending(".submitted")}.items():
                own = {**was.ending(".error"), **was.ending(".submitted")}[tensor] if name in before else 0 * error
                for site in gone:
                    own = own + numpy.float32(site.meta["weight"]) * site.ending(".error")[tensor]
                numpy.testing.assert_allclose(error, own, rtol=1e-6, atol=1e-12)

    def check_ended(self, run, process, layout):
        self.assertEqual(process.wait(), 0, process.everything())
        s = summary(run)
        self.assertEqual(s["status"], "done")
        self.assertEqual([site["site"] for site in s["per_site"]], self.names(layout))
        self.assertEqual(len({site["anchor_hash"] for site in s["per_site"]}), 1)
        self.assertGreaterEqual(s["tokens"], TOKENS)
        for name in self.names(layout):  # of a text that is read a hundred times
            self.assertLess(events(os.path.join(run, name, "metrics.jsonl"), "step")[-1]["loss"], 3)

    def check_pairs(self, pairs):
        for saved in dict.fromkeys(a for a, _ in pairs):
            first = self.path(f"of-{saved}")
            _, before = self.stopped(saved, first, steps=H + 5)
            for snapshot in before.values():
                self.assertEqual(snapshot.ranks, LAYOUTS[saved][1] * LAYOUTS[saved][2])
            for resumed in (b for a, b in pairs if a == saved):
                with self.subTest(saved=saved, resumed=resumed):
                    run = shutil.copytree(first, self.path(f"{saved}-{resumed}"))
                    process, after = self.stopped(resumed, run, "--resume", *STILL, steps=1)
                    self.check_loaded(before, after)
                    self.check_ended(run, self.launch(resumed, run, "--resume", *LONG), resumed)

    def test_layouts(self):
        names = list(LAYOUTS)
        self.check_pairs([(a, b) for a in names for b in names] if "--all" in ALL else PAIRS)


ALL = [word for word in sys.argv if word == "--all"]
if __name__ == "__main__":
    sys.argv = [word for word in sys.argv if word != "--all"]
    main()
