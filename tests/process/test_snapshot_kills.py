# SPDX-License-Identifier: Apache-2.0
"""A site writes a snapshot after every round and is killed at random moments, mostly while one is
being written: the newest complete one is whole, --resume goes on from it, nothing of the one that
was being written is left, and what is trained again is equal to the bit.

    test_snapshot_kills.py --kills 200 --seed 7

The same seed draws the same moments; what they hit differs from run to run."""
import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time

from harness import SLOWER, Case, Growing, main

KEEP = 2
STEPS = 4  # of a round
OVERLAPS = ("none", "carry")
FILES = ["manifest.json", "rank-0000.safetensors"]
MARK = "left-behind"  # a file in what a killed process left, which the next one has to remove
START_S, ROUNDS_S = 0.6, 0.3  # about as long as a start, and as some rounds

options = argparse.Namespace(kills=12, seed=1)


def step_of(name):
    return int(re.match("step-([0-9]+)", name).group(1))


class Kills(Case):
    def test_kills(self):
        self.random = random.Random(options.seed)
        self.prepare_data()
        self.kills = self.during = self.starting = self.again = 0
        begun_s = time.monotonic()
        for number, overlap in enumerate(OVERLAPS, 1):
            self.one_run(overlap, options.kills * number // len(OVERLAPS) - self.kills)
        print(f"seed {options.seed}: {self.kills} kills in {time.monotonic() - begun_s:.0f} s, "
              f"{self.during} of them while a snapshot was written or removed, {self.starting} at a "
              f"start; {self.again} steps were trained again", flush=True)

    def one_run(self, overlap, kills):
        directory = self.path(overlap)
        self.snapshots = os.path.join(directory, "site-1", "snapshots")
        file = self.config(
            f"{overlap}.yaml", run={"dir": directory},
            # few tokens for many parameters: a write takes about as long as a round
            model={"layers": 2, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 384,
                   "context": 16, "vocabulary": 1024},
            train={"tokens": "1e9", "batch": 1, "micro_batch": 1, "eval_tokens": 64},
            sync={"overlap": overlap, "inner_steps": STEPS,
                  "exchange_steps": 2 if overlap == "carry" else 0},
            snapshots={"rounds": 1, "minutes": 0, "keep": KEEP},
            wan={"link": "mem"})  # one process
        self.command = ("launch", file, "--sites", "1")
        self.metrics = Growing(os.path.join(directory, "site-1", "metrics.jsonl"))
        self.known = {}  # what a step or a round gave
        self.newest = 0  # the step of the newest snapshot that is known to be complete
        self.begin()
        self.wait_until("the first snapshot", lambda: self.look() and self.newest > 0)
        for _ in range(kills):
            self.kill()
            self.begin("--resume")
            if self.random.random() < 0.25:
                self.starting += 1
                self.let_run(START_S)
            else:
                self.check_start()
                self.let_run(ROUNDS_S)
        self.check_end()

    # ---- one process

    def begin(self, *more):
        self.first = None  # the first step that this process has trained
        self.from_step = self.newest
        self.live = self.start(*self.command, *more)

    def look(self):
        """Reads what was written since. What is trained again is what it was."""
        for event in self.metrics.more("step", "round", "snapshot"):
            kind, step = event["event"], event["step"]
            if kind == "snapshot":
                self.assertGreater(event["seconds"], 0)
                self.newest = step
                continue
            if kind == "step":
                key, gave = step, (event["loss"], event["gradient_norm"], event["learning_rate"])
                self.first = self.first or step
                self.again += step in self.known
            else:
                key, gave = (event["committed_rounds"],), event["anchor_hash"]
            self.assertEqual(self.known.setdefault(key, gave), gave, f"{kind} at step {step}")
        return True

    def let_run(self, seconds_max):
        try:
            self.live.popen.wait(self.random.uniform(0, seconds_max * SLOWER))
        except subprocess.TimeoutExpired:
            return
        self.fail("ended by itself\n" + self.live.everything())

    def kill(self):
        """What it leaves: whole snapshots, none older than those that it has reported."""
        self.live.signal(signal.SIGKILL)
        self.live.wait()
        self.kills += 1
        self.look()
        self.check_where()
        listed = self.call("inspect", self.snapshots).text("stdout")
        whole = [step_of(line) for line in listed.splitlines() if "  whole: " in line]
        self.assertGreaterEqual(len(whole), 1, listed)
        self.assertGreaterEqual(max(whole), self.newest, listed)
        self.newest = max(whole)
        names = os.listdir(self.snapshots)
        left = [name for name in names if not re.fullmatch("step-[0-9]+", name)]
        self.during += any(name.endswith(".part") for name in left)
        for name in left:
            with open(os.path.join(self.snapshots, name, MARK), "w"):
                pass

    def check_where(self):
        """It goes on from the newest one, by its lines and by its steps."""
        said = re.search("goes on from .*/step-([0-9]+)$", self.live.text("stdout"), re.MULTILINE)
        if said is not None:
            self.assertEqual(int(said.group(1)), self.from_step, self.live.everything())
        if self.from_step > 0 and self.first is not None:
            self.assertIsNotNone(said, self.live.everything())
            self.assertEqual(self.first, self.from_step + 1)

    def check_start(self):
        """Nothing of the process before is left when it trains."""
        self.wait_until("a step", lambda: self.look() and self.first)
        if self.from_step > 0:
            self.live.wait_line("goes on from .*/step-")  # its reader may be behind the file
        self.check_where()
        for name in os.listdir(self.snapshots):
            mark = os.path.join(self.snapshots, name, MARK)
            self.assertFalse(os.path.exists(mark), f"{name} is left")

    def check_end(self):
        """Ctrl-C: the last one is there, the one before, and nothing else."""
        self.wait_until("a snapshot of the last process",
                        lambda: self.look() and self.newest > self.from_step)
        self.live.signal(signal.SIGINT)
        self.assertEqual(self.live.wait(), 1, self.live.everything())
        self.look()
        self.live.wait_line(f"snapshot of step {self.newest} saved in .*; --resume goes on from it")
        names = sorted(os.listdir(self.snapshots))
        self.assertEqual(len(names), KEEP, names)
        self.assertEqual(step_of(names[-1]), self.newest, names)
        for name in names:
            self.assertRegex(name, "^step-[0-9]{12}$")
            self.assertEqual(sorted(os.listdir(os.path.join(self.snapshots, name))), FILES)
        self.call("inspect", self.snapshots)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    options, rest = parser.parse_known_args()
    print(f"seed {options.seed}, {options.kills} kills", flush=True)
    sys.argv = [sys.argv[0], *rest]
    main()
