# SPDX-License-Identifier: Apache-2.0
"""A run is stopped and goes on from its sites' snapshots: the result is that of the run that was not stopped, to the
bit; what can't be gone on from is said."""
import json
import os
import shutil
import signal

from harness import Case, events, main, summary

NAMES = ("oslo", "paris")
TOKENS = 300000  # some seconds


class Resume(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()

    def of(self, directory, **changes):
        """A config that repeats to the bit; its runs are in `directory`."""
        base = {"run": {"name": "test", "dir": self.path(directory)},
                "train": {"tokens": TOKENS},
                "sync": {"overlap": "carry", "inner_steps": 10, "exchange_steps": 3, "pace": "constant"}}
        for section, values in changes.items():
            base.setdefault(section, {}).update(values)
        return self.config(f"{directory}.yaml", **base)

    def anchor(self, directory):
        s = summary(self.path(directory))
        self.assertEqual(s["status"], "done")
        return s["anchor_hash"], s["rounds"], s["tokens"], s["val_loss"], s["val_loss_initial"]

    def snapshots(self, directory, site):
        path = self.path(directory, site, "snapshots")
        return [os.path.join(path, name) for name in sorted(os.listdir(path)) if not name.endswith(".part")]

    def wait_rounds(self, directory, site, rounds):
        self.wait_for_event(self.path(directory, site, "metrics.jsonl"),
                            lambda e: e["event"] == "round" and e["committed_rounds"] >= rounds)

    def wait_steps(self, directory, more):
        """Of this process: an earlier one's are in the file, too."""
        path = self.path(directory, "site-1", "metrics.jsonl")
        done = max((e["step"] for e in events(path, "step", partial=True)), default=0) if os.path.exists(path) else 0
        self.wait_for_event(path, lambda e: e["event"] == "step" and e["step"] >= done + more)

    def stopped_and_resumed(self, directory, *, stops=2, **changes):
        """launch, with Ctrl-C in between."""
        file = self.of(directory, **changes)
        for stop in range(stops):
            process = self.start("launch", file, "--sites", "2", *(["--resume"] if stop > 0 else []))
            process.wait_line("coordinator  all sites reach each other")
            self.wait_steps(directory, 45)
            process.signal(signal.SIGINT)
            self.assertEqual(process.wait(), 1, process.everything())
            process.wait_line("site-1  snapshot of step [0-9]+ saved in .*/snapshots; --resume goes on from it")
            self.wait_until_nothing_is_left()
        process = self.call("launch", file, "--sites", "2", "--resume")
        process.wait_line("coordinator  goes on with run [0-9a-f]{16} at round [0-9]+")
        return self.anchor(directory)

    def check_equal(self, **changes):
        self.call("launch", self.of("whole", **changes), "--sites", "2")
        self.assertEqual(self.stopped_and_resumed("parts", **changes), self.anchor("whole"))

    def test_carry_muon(self):
        self.check_equal(train={"optimizer": "muon"})

    def test_carry_in_fragments(self):
        self.check_equal(model={"layers": 2}, sync={"inner_steps": 3, "exchange_steps": 2, "fragments": 3,
                                                "adaptation": "off"})

    def test_none_adamw(self):
        self.check_equal(train={"optimizer": "adamw", "precision": "auto"}, sync={"overlap": "none", "exchange_steps": 0})

    def test_delayed_in_threads(self):
        self.check_equal(wan={"link": "mem"}, train={"tokens": 1200000, "optimizer": "muon", "precision": "auto"},
                         sync={"overlap": "delayed", "exchange_steps": 0, "inner_steps_max": 10, "adaptation": "off"})

    def test_in_the_middle_of_a_step(self):
        """Of many micro-batches, among which training ends; also a process that was interrupted by itself."""
        self.check_equal(wan={"link": "mem"}, train={"tokens": 1600000, "batch": 128, "micro_batch": 1},
                         sync={"overlap": "none", "exchange_steps": 0, "inner_steps": 3})

    def test_allreduce(self):
        self.check_equal(train={"tokens": 200000}, sync={"overlap": "allreduce", "exchange_steps": 0})

    def test_ranks(self):
        """Snapshots while training, too: the ranks begin and complete them together."""
        self.check_equal(train={"tokens": 200000, "batch": 8, "micro_batch": 2}, model={"layers": 2},
                         site={"stages": 2, "replicas": 2}, snapshots={"rounds": 2, "minutes": 0})

    def test_ranks_and_a_crash_of_everything(self):
        """Sites by launch find a round that all of them have."""
        file = self.of("run", train={"tokens": "1e9", "batch": 8, "micro_batch": 2}, site={"replicas": 2},
                       snapshots={"rounds": 1, "minutes": 0})
        process = self.start("launch", file, "--sites", "2")
        for name in ("site-1", "site-2"):
            self.wait_until(f"snapshots of {name}", lambda: os.path.isdir(self.path("run", name, "snapshots")) and
                            len(self.snapshots("run", name)) == 2)
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        process.wait()
        self.wait_until_nothing_is_left()
        kept = [{self.round_of(path) for path in self.snapshots("run", name)} for name in ("site-1", "site-2")]
        process = self.start("launch", file, "--sites", "2", "--resume")
        process.wait_line(f"coordinator  goes on with run [0-9a-f]{{16}} at round {max(kept[0] & kept[1]) + 1}$")
        process.wait_line("coordinator  all sites reach each other")
        process.signal(signal.SIGINT)
        self.assertEqual(process.wait(), 1, process.everything())

    def test_other_settings(self):
        """What may change, alone and together, is said; rounds are longer or shorter, batches larger, from the next step."""
        file = self.of("run", wan={"link": "mem"}, train={"batch": 8})
        process = self.start("launch", file, "--sites", "2")
        self.wait_steps("run", 45)
        process.signal(signal.SIGINT)
        self.assertEqual(process.wait(), 1, process.everything())
        changes = (("sync.inner_steps=30", "train.batch=16"), ("sync.inner_steps=4", "train.batch=4"), ("sync.compression.rank=2",),
                   ("sync.compression.rank=7", "sync.adaptation=off"), ("sync.compression.rank=0",), ("sync.compression.bits=8",),
                   ("train.learning_rate=0.001", "train.tokens=400000"))
        for i, sets in enumerate(changes):
            with self.subTest(sets=sets):
                other = shutil.copytree(self.path("run"), self.path(f"run-{i}"))
                words = [word for one in sets for word in ("--set", one)]
                process = self.call("launch", file, "--sites", "2", "--resume", "--run-dir", other, *words)
                for one in sets:
                    process.wait_line("site-1  other settings: .*" + one.replace("=", " ").replace("tokens 400000", "tokens "))
                s = summary(other)
                self.assertEqual(s["status"], "done")
                self.assertLess(s["val_loss"], 2.5)

    # ---- sites that are started one by one

    def start_all(self, file, *more, of_site=lambda name: ()):
        coordinator, endpoint = self.start_coordinator(file, len(NAMES))
        sites = [self.start_site(file, name, endpoint, *more, *of_site(name)) for name in NAMES]
        return coordinator, sites

    def stop_all(self, coordinator, sites):
        coordinator.signal(signal.SIGINT)
        for process in (coordinator, *sites):
            self.assertEqual(process.wait(), 1, process.everything())

    def test_on_another_machine(self):
        """The coordinator's Ctrl-C; then the sites go on elsewhere, from directories that were copied."""
        self.keys(NAMES)
        self.call("launch", self.of("whole"), "--sites", "2")
        coordinator, sites = self.start_all(self.of("first"))
        self.wait_rounds("first", "paris", 5)
        self.stop_all(coordinator, sites)
        self.assertFalse(os.path.exists(self.path("first", "coordinator.db")))
        kept = {}
        for name in NAMES:
            newest = self.snapshots("first", name)[-1]
            kept[name] = shutil.copytree(newest, self.path("kept", name, os.path.basename(newest)))
        shutil.rmtree(self.path("first"))
        coordinator, sites = self.start_all(self.of("second"), of_site=lambda name: [f"--resume={kept[name]}"])
        self.wait_for_success(coordinator, *sites)
        self.assertEqual(self.anchor("second")[:3], self.anchor("whole")[:3])

    def test_a_damaged_one_is_passed_over(self):
        """Written every round; of the two that are kept, the newer one has a flipped bit at both sites."""
        self.keys(NAMES)
        file = self.of("run", train={"tokens": "1e9"}, snapshots={"rounds": 1, "minutes": 0, "keep": 3},
                       sync={"overlap": "none", "exchange_steps": 0})
        coordinator, sites = self.start_all(file)
        self.wait_rounds("run", "paris", 6)
        self.stop_all(coordinator, sites)
        steps = {name: self.snapshots("run", name) for name in NAMES}
        for name in NAMES:
            self.assertEqual(len(steps[name]), 3, steps)
            self.check_event("run", name)
            with open(os.path.join(steps[name][-1], "rank-0000.safetensors"), "r+b") as damaged:
                damaged.seek(-100, os.SEEK_END)
                byte = damaged.read(1)[0]
                damaged.seek(-100, os.SEEK_END)
                damaged.write(bytes([byte ^ 1]))
        # one of them may be a round behind: the other has that round, too
        round_of_both = min(self.round_of(steps[name][-2]) for name in NAMES)
        coordinator, sites = self.start_all(file, "--resume")
        for site in sites:
            site.wait_line("rank-0000.safetensors")
        coordinator.wait_line(f"goes on with run [0-9a-f]{{16}} at round {round_of_both + 1}")
        self.wait_rounds("run", "paris", round_of_both + 2)
        self.stop_all(coordinator, sites)

    def check_event(self, directory, site):
        """The last one in metrics.jsonl is that of the newest snapshot."""
        newest = self.snapshots(directory, site)[-1]
        event = events(self.path(directory, site, "metrics.jsonl"), "snapshot")[-1]
        self.assertEqual(os.path.basename(newest), f"step-{event['step']:012d}")
        self.assertEqual(event["round"], self.round_of(newest))
        file = os.path.join(newest, "rank-0000.safetensors")
        self.assertEqual(event["bytes"], os.path.getsize(file))
        self.assertGreater(event["seconds"], 0)

    def test_after_a_crash_of_everything(self):
        """Snapshots by time are of rounds that sites have in common; the coordinator's store is put aside, and put back
        if the sites do not come."""
        self.keys(NAMES)
        file = self.of("run", train={"tokens": "1e9"}, snapshots={"minutes": 0.005, "keep": 3})
        coordinator, sites = self.start_all(file)
        for name in NAMES:
            self.wait_until(f"three snapshots of {name}", lambda: os.path.isdir(self.path("run", name, "snapshots")) and
                            len(self.snapshots("run", name)) == 3)
        for process in (coordinator, *sites):
            process.signal(signal.SIGKILL)
            process.wait()
        kept = {name: {self.round_of(path): path for path in self.snapshots("run", name)} for name in NAMES}
        newest = max(set(kept["oslo"]) & set(kept["paris"]))
        store = self.path("run", "coordinator.db")
        coordinator, _ = self.start_coordinator(file, len(NAMES), "--resume")
        self.assertFalse(os.path.exists(store))
        coordinator.signal(signal.SIGINT)
        self.assertEqual(coordinator.wait(), 1, coordinator.everything())
        self.assertTrue(os.path.exists(store))
        coordinator, endpoint = self.start_coordinator(file, len(NAMES), "--resume")
        coordinator.wait_line(f"the sites' snapshots count; the store of before is kept as {store}.replaced$")
        sites = [self.start_site(file, name, endpoint, f"--resume={kept[name][newest]}") for name in NAMES]
        coordinator.wait_line(f"goes on with run [0-9a-f]{{16}} at round {newest + 1}")
        coordinator.wait_line("all sites reach each other")
        self.stop_all(coordinator, sites)

    def round_of(self, snapshot):
        with open(os.path.join(snapshot, "manifest.json")) as manifest:
            return json.load(manifest)["meta"]["round"]

    def test_what_cannot_be_gone_on_from(self):
        self.keys(NAMES)
        file = self.of("run")
        site = ["train", file, "--site", "oslo", "--coordinator", "127.0.0.1:9", *self.secured("oslo")]
        self.refused("--resume: there is no snapshot in '.*/run/oslo/snapshots'", *site, "--resume")
        self.refused("nowhere", *site, "--resume=nowhere", code=1)
        self.refused("--take-unsent goes with --resume", *site, "--take-unsent", "nowhere")
        coordinator, sites = self.start_all(file)
        self.wait_rounds("run", "paris", 3)
        self.stop_all(coordinator, sites)
        for key, other in (("run.seed", "5"), ("model.width", "64"), ("model.context", "64"), ("train.optimizer", "muon"),
                           ("sync.overlap", "delayed")):
            self.refused(f"{key}: {other}, and .* in .*; a run goes on with its own model, data order", *site, "--resume",
                         "--set", f"{key}={other}")
        self.write("other.txt", 2 * self.license_text())
        self.call("tokenize", "other.txt", self.path("other"), "--validation-every", "4", "--block", "1024")
        self.refused("data.train: the run of .* has other tokens", *site, "--resume",
                     "--set", f"data.train={self.path('other.train.tokens')}")
        coordinator, endpoint = self.start_coordinator(file, 2)
        one = self.start_site(file, "oslo", endpoint, "--resume")
        coordinator.wait_line("site 'oslo' connected")
        other = self.start_site(file, "paris", endpoint)
        self.assertEqual(other.wait(), 1, other.everything())
        self.assertRegex(other.text("stderr"), "site 'paris' starts a new run, 'oslo' goes on with run [0-9a-f]{16}; start all "
                         "with --resume, or none")
        self.stop_all(coordinator, [one])


if __name__ == "__main__":
    main()
