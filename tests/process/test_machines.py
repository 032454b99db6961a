# SPDX-License-Identifier: Apache-2.0
"""A run on several machines by the README's commands: three network namespaces on one bridge, each
with its own directory. A fourth machine, whose key only its own roster has, is refused."""
import os
import re
import subprocess

from harness import Case, DILOCOX, SOURCE_ROOT, events, main, skip, summary

MACHINES = {"coordinator": "10.0.0.1", "paris": "10.0.0.2", "tokyo": "10.0.0.3", "oslo": "10.0.0.4"}
SHORTER = ["--set", "train.tokens=64000", "--set", "train.eval_tokens=1500", "--set", "model.layers=1",
           "--set", "model.width=32", "--set", "model.heads=2", "--set", "model.kv_heads=1", "--set", "model.mlp_width=64",
           "--set", "model.context=64"]


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def readme_section(title):
    with open(os.path.join(SOURCE_ROOT, "README.md")) as text:
        return re.search(rf"^## {title}\n(.*?)^## ", text.read(), re.MULTILINE | re.DOTALL).group(1)


class Machines(Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.take_network_down)  # runs first: cleanups go in reverse
        try:
            self.prepare_network()
        except subprocess.CalledProcessError as why:  # for example, a container without bridges
            print(f"skipped: no network of namespaces: {' '.join(why.cmd)}: {why.stderr.strip()}")
            self.skipTest("no network of namespaces")
        self.prepare_data()
        for machine in MACHINES:  # "Build dilocox on each machine, and put the same config and the same data on each"
            os.makedirs(self.path(machine, "build"))
            os.symlink(DILOCOX, self.path(machine, "build", "dilocox"))
            os.symlink(os.path.join(SOURCE_ROOT, "examples"), self.path(machine, "examples"))
            os.makedirs(self.path(machine, "data"))
            for part in ("train", "validation"):
                os.symlink(self.path(f"data.{part}.tokens"), self.path(machine, "data", f"kjv.{part}.tokens"))
        lines = [line.strip() for line in readme_section("A run on several machines").splitlines() if line.startswith(" " * 8)]
        self.commands = [line.split() for line in lines if line.startswith("build/dilocox ")]
        self.roster_lines = [line for line in lines if line.endswith("<public key>")]

    # ---- the network

    def space(self, machine):
        return f"dlx{os.getpid()}-{machine}"

    def prepare_network(self):
        switch = self.space("switch")
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for machine, address in MACHINES.items():
            ip("netns", "add", self.space(machine))
            ip("-n", switch, "link", "add", machine[:8], "type", "veth", "peer", "name", "eth0", "netns", self.space(machine))
            ip("-n", switch, "link", "set", machine[:8], "master", "bridge", "up")
            ip("-n", self.space(machine), "address", "add", address + "/24", "dev", "eth0")
            ip("-n", self.space(machine), "link", "set", "lo", "up")
            ip("-n", self.space(machine), "link", "set", "eth0", "up")

    def take_network_down(self):
        self.end_all()
        for machine in (*MACHINES, "switch"):
            ip("netns", "delete", self.space(machine), check=False)

    def on(self, machine, command):
        """Starts one of the README's commands on a machine."""
        return self.start(*command[1:], cwd=self.path(machine), prefix=["ip", "netns", "exec", self.space(machine)])

    # ---- the README's commands

    def step(self, *words):
        found = [command for command in self.commands if all(word in command for word in words)]
        self.assertEqual(len(found), 1, f"README.md: one command with {words}")
        return found[0]

    def make_keys(self):
        public = {}
        for machine in MACHINES:
            made = self.on(machine, self.step("keygen"))
            self.assertEqual(made.wait(), 0, made.everything())
            public[machine] = made.text("stdout")
        named = [line.split()[0] for line in self.roster_lines]
        self.assertEqual(named, ["coordinator", "paris", "tokyo"])
        roster = "".join(f"{line.replace('<public key>', public[line.split()[0]])}\n" for line in self.roster_lines)
        for machine in MACHINES:
            self.write(f"{machine}/roster.txt", roster)
        return roster, public

    def start_by_readme(self, machine):
        words = ("coordinator",) if machine == "coordinator" else ("train", machine)
        return self.on(machine, self.step(*words) + SHORTER)

    def test_readme(self):
        roster, public = self.make_keys()
        coordinator = self.start_by_readme("coordinator")
        coordinator.wait_line(r"^listening 10\.0\.0\.1:4700$")
        paris = self.start_by_readme("paris")
        self.refuse_strangers(coordinator, roster, public)
        tokyo = self.start_by_readme("tokyo")
        for process in (paris, tokyo, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())
        self.assertIn("results in runs/two-sites/paris", paris.text("stdout"))
        self.check_results(coordinator)

    def refuse_strangers(self, coordinator, roster, public):
        """A key that is not on the coordinator's roster, under its own and another name."""
        oslo = self.on("oslo", [word.replace("tokyo", "oslo") for word in self.step("train", "tokyo")] + SHORTER)
        self.assertEqual(oslo.wait(), 1, oslo.everything())
        self.assertRegex(oslo.text("stderr"), r"^dilocox: wan\.key: the coordinator at 10\.0\.0\.1:4700 does not admit the key")
        self.assertIn(public["oslo"], oslo.text("stderr"))
        said = coordinator.wait_line(r"refused a connection from (\S+): its key (\S+) is not a site's on the roster")
        self.assertEqual(said.groups(), ("10.0.0.4", public["oslo"]))
        self.assertFalse(os.path.exists(self.path("oslo", "runs")), "it gets nothing")
        # on its own roster its key is tokyo's
        self.write("oslo/roster.txt", roster.replace(public["tokyo"], public["oslo"]))
        liar = self.on("oslo", self.step("train", "tokyo") + SHORTER)
        self.assertEqual(liar.wait(), 1, liar.everything())
        self.assertRegex(liar.text("stderr"), "does not admit the key")
        # without a key
        bare = self.on("oslo", self.step("train", "tokyo") + SHORTER + ["--set", "wan.security=none"])
        self.assertEqual(bare.wait(), 2, bare.everything())
        self.assertRegex(bare.text("stderr"), r"security.*loopback")

    def check_results(self, coordinator):
        """In the files that the README names."""
        s = summary(self.path("coordinator", "runs", "two-sites"))
        self.assertEqual((s["sites"], s["status"]), (2, "done"))
        self.assertLess(s["val_loss"], s["val_loss_initial"] - 0.5)
        for name in ("paris", "tokyo"):
            own = summary(self.path(name, "runs", "two-sites", name))
            self.assertEqual(own["anchor_hash"], s["anchor_hash"])
            self.assertGreater(len(events(self.path(name, "runs", "two-sites", name, "metrics.jsonl"), "round")), 3)
        weights = ("runs", "two-sites", "weights", "model.safetensors")
        self.assertTrue(os.path.exists(self.path("paris", *weights)), "the name that sorts first")
        self.assertFalse(os.path.exists(self.path("tokyo", *weights)))
        self.assertIn("validation loss", coordinator.text("stdout"))
        self.assertRegex(coordinator.text("stdout"), "the weights are on the site that says so$")


if __name__ == "__main__":
    if os.geteuid() != 0:
        skip("network namespaces need root")
    if ip("netns", "add", f"dlx{os.getpid()}-probe", check=False).returncode != 0:
        skip("no network namespaces: 'ip netns add' fails")
    ip("netns", "delete", f"dlx{os.getpid()}-probe", check=False)
    main()
