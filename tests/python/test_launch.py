# SPDX-License-Identifier: Apache-2.0
"""python3 -m dilocox: whole runs of any command on this machine, how they end, and coordinators,
Python's and the command line's, for sites that other programs start."""
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest

from support import DEADLINE_S, SOURCE_ROOT, Case, main

SITE = '''
import array, os, signal, sys, time
import dilocox
name = os.environ["DILOCOX_SITE"]
def train(sync, steps=10**9):
    while not sync.finished and steps > 0:
        sync.step(10)
        steps -= 1
def opened(**more):
    return dilocox.Sync({"w": array.array("f", [0] * 8)}, sync_every=2, **more)
'''


class Processes(Case):
    def start(self, *arguments, **options):
        process = subprocess.Popen([sys.executable, "-m", "dilocox", *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   cwd=self.directory, **options)
        self.addCleanup(process.kill)
        return process

    def launch(self, script, sites=2, tokens=400, code=0, more=()):
        """The output of a run whose sites are this script, by line, sorted."""
        self.write("site.py", SITE + script)
        process = self.start("launch", "--sites", str(sites), "--tokens", str(tokens), *more, "--",
                             sys.executable, self.path("site.py"))
        out, error = process.communicate(timeout=DEADLINE_S)
        self.assertEqual(process.returncode, code, f"{out}\n{error}")
        self.assert_nothing_left()
        return sorted(line for line in out.splitlines()
                      if not line.startswith("coordinator: ")), error

    def sites(self):
        """Processes that run this test's script."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as line:
                    if self.path("site.py").encode() in line.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                pass  # it has ended
        return found

    def assert_nothing_left(self):
        self.assertEqual(self.sites(), [])


class Launch(Processes):
    def test_a_run(self):
        out, _ = self.launch('''
with opened() as sync:
    train(sync)
    print("through", sync.site_count, sync.anchor_hashes()[0])
''', sites=3)
        self.assertEqual([line.split()[:3] for line in out],
                         [[f"site-{i}:", "through", "3"] for i in (1, 2, 3)])
        self.assertEqual(len({line.split()[3] for line in out}), 1)

    @unittest.skipIf(importlib.util.find_spec("numpy") is None, "no numpy")
    def test_the_example(self):
        process = self.start("launch", "--sites", "2", "--tokens", "204800", "--", sys.executable,
                             os.path.join(SOURCE_ROOT, "examples", "numpy_loop.py"))
        out, error = process.communicate(timeout=DEADLINE_S)
        self.assertEqual(process.returncode, 0, error)
        for site in ("site-1", "site-2"):
            found = re.search(rf"^{site}: loss ([\d.]+), weight 1 is (\S+) \(truth -1.000\)$", out,
                              re.MULTILINE)
            self.assertTrue(found, out)
            self.assertLess(float(found[1]), 0.05)  # of 5.6 at the beginning
            self.assertAlmostEqual(float(found[2]), -1, delta=0.1)

    def test_keys_that_are_kept(self):
        script = "with opened() as sync: train(sync)\nprint(os.environ['DILOCOX_KEY'])"
        keys = self.path("keys")
        out, _ = self.launch(script, more=("--dir", keys))
        self.assertEqual(out, [f"site-{i}: {keys}/site-{i}.key" for i in (1, 2)])

        def times():
            return {name: os.stat(os.path.join(keys, name)).st_mtime_ns
                    for name in sorted(os.listdir(keys)) if name.endswith(".key")}
        made = times()
        self.launch(script, more=("--dir", keys))
        self.assertEqual(times(), made)
        self.write("keys/site-1.key", "no key")
        _, error = self.launch(script, more=("--dir", keys), code=2)
        self.assertIn("site-1.key is no key file", error)

    def test_one_that_dies_ends_the_others(self):
        out, error = self.launch('''
with opened() as sync:
    train(sync, 5)
    if name == "site-2":
        os.kill(os.getpid(), signal.SIGKILL)
    train(sync)
''', tokens=10**9, code=128 + signal.SIGKILL)
        self.assertIn("dilocox launch: site-2 was ended by SIGKILL; the other sites are ended",
                      error)

    def test_one_that_raises(self):
        _, error = self.launch('''
with opened() as sync:
    train(sync, 5)
    if name == "site-2":
        raise ValueError("a reason")
    train(sync)
''', tokens=10**9, code=1)
        self.assertIn("site-2: ValueError: a reason", error)
        self.assertEqual(error.count("dilocox launch:"), 1, error)
        self.assertRegex(error, "dilocox launch: .*site-2")

    def test_one_that_exits_with_a_code(self):
        _, error = self.launch("sys.exit(3 if name == 'site-1' else opened())", code=3)
        self.assertIn("dilocox launch: site-1 ended with code 3; the other sites are ended", error)

    def test_what_is_no_training_loop(self):
        """The run does not wait for sites that have ended."""
        _, error = self.launch("os.close(1)", code=1)
        self.assertIn("the sites have ended, and the run has not", error)
        process = self.start("launch", "--sites", "1", "--tokens", "1", "--", "/no/such/program")
        self.assertIn("/no/such/program", process.communicate(timeout=DEADLINE_S)[1])
        self.assertEqual(process.returncode, 1)

    def test_what_a_site_leaves_behind_is_ended(self):
        self.launch('''
if os.fork() == 0:
    time.sleep(1000)
with opened() as sync:
    train(sync)
''')

    def test_ctrl_c(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signal=number.name):
                self.write("site.py", SITE + '''
with opened() as sync:
    print("on", flush=True)
    train(sync)
''')
                process = self.start("launch", "--sites", "2", "--tokens", str(10**9), "--",
                                     sys.executable, self.path("site.py"))
                for _ in range(2):
                    while (line := process.stdout.readline()).startswith("coordinator: "):
                        pass
                    self.assertRegex(line, "^site-[12]: on$")
                process.send_signal(number)
                _, error = process.communicate(timeout=DEADLINE_S)
                self.assertEqual(process.returncode, 128 + number, error)
                self.assertIn(f"dilocox launch: {number.name}: all sites are ended", error)
                self.assertNotIn("Exception ignored", error)
                self.assert_nothing_left()

    def test_a_launcher_that_is_killed(self):
        """Its sites do not wait for a coordinator that cannot come back."""
        self.write("site.py", SITE + '''
with opened() as sync:
    print("on", flush=True)
    train(sync)
''')
        process = self.start("launch", "--sites", "2", "--tokens", str(10**9), "--",
                             sys.executable, self.path("site.py"))
        while not process.stdout.readline().endswith(": on\n"):
            pass
        process.kill()
        process.wait()
        until_s = time.monotonic() + DEADLINE_S
        while self.sites() and time.monotonic() < until_s:
            time.sleep(0.02)
        self.assert_nothing_left()

    def test_wrong_use(self):
        for arguments, words in (
                (["launch", "--sites", "2", "--tokens", "1"], "no COMMAND; give it behind '--'"),
                (["launch", "--sites", "0", "--tokens", "1", "--", "true"], "'0' is no count"),
                (["launch", "--sites", "1", "--tokens", "1.5", "--", "true"], "'1.5' is no count"),
                (["launch", "--sites", "65", "--tokens", "1e6", "--", "true"], "sites: 65 is out"),
                (["coordinator", "--sites", "1", "--tokens", "1"], "key: no path"),
                (["nonsense"], "nonsense"), ([], "SUBCOMMAND")):
            with self.subTest(arguments=arguments):
                process = self.start(*arguments)
                self.assertIn(words, process.communicate(timeout=DEADLINE_S)[1])
                self.assertEqual(process.returncode, 2)


class Coordinators(Processes):
    """Sites of the package that meet at a coordinator of another process."""

    def keys(self):
        with open(self.path("roster"), "w", encoding="ascii") as roster:
            for name in ("coordinator", "a", "b"):
                said = self.start("keygen", f"{name}.key").communicate(timeout=DEADLINE_S)[0]
                roster.write(f"{name} {said}")

    def run_sites(self, coordinator):
        """Two sites to the end of a run at this process's endpoint."""
        self.addCleanup(coordinator.kill)
        endpoint = re.match(r"listening (\S+)\n", coordinator.stdout.readline())[1]
        self.write("site.py", SITE + "with opened() as sync: train(sync)\n")
        sites = [subprocess.Popen([sys.executable, self.path("site.py")], stderr=subprocess.PIPE,
                                  text=True, env={**os.environ, "DILOCOX_SITE": name,
                                                  "DILOCOX_COORDINATOR": endpoint,
                                                  "DILOCOX_KEY": self.path(f"{name}.key"),
                                                  "DILOCOX_ROSTER": self.path("roster")})
                 for name in "ab"]
        for site in sites:
            self.addCleanup(site.kill)
            said = site.communicate(timeout=DEADLINE_S)[1]
            self.assertEqual((site.returncode, said), (0, ""))
        out, error = coordinator.communicate(timeout=DEADLINE_S)
        self.assertEqual(coordinator.returncode, 0, f"{out}\n{error}")
        return out

    ARGUMENTS = ("coordinator", "--sites", "2", "--tokens", "400", "--listen", "127.0.0.1:0",
                 "--key", "coordinator.key", "--roster", "roster")

    def test_python_s(self):
        self.keys()
        self.assertTrue(self.run_sites(self.start(*self.ARGUMENTS)).endswith("\na: done\nb: done\n"))

    def test_the_command_line_s(self):
        """Without a config."""
        self.keys()
        out = self.run_sites(subprocess.Popen(
            [os.environ["DILOCOX"], *self.ARGUMENTS, "--run-dir", "run"], cwd=self.directory,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.assertIn("the run is complete; its summary is run/summary.json", out)
        with open(self.path("run/summary.json"), encoding="utf-8") as summary:
            self.assertEqual(json.load(summary)["sites"], 2)

    def test_the_command_line_s_wrong_use(self):
        for arguments, words in (
                (["--sites", "2"], "coordinator: give CONFIG, or .* --tokens"),
                (["--tokens", "-1"], "--tokens: -1 is out of range"),
                (["--tokens", "x"], "--tokens: 'x'"),
                (["--tokens", "1", "--key", "/nowhere/a.key"], "/nowhere/a.key")):
            with self.subTest(arguments=arguments):
                done = subprocess.run([os.environ["DILOCOX"], "coordinator", *arguments],
                                      capture_output=True, text=True, cwd=self.directory,
                                      timeout=DEADLINE_S)
                self.assertRegex(done.stderr, words)
                self.assertEqual(done.returncode, 2, done.stderr)

    def test_version(self):
        out = self.start("version").communicate(timeout=DEADLINE_S)[0]
        self.assertEqual(out, f"dilocox 0.2.0 ({os.environ['DILOCOX_LIBRARY']})\n")


if __name__ == "__main__":
    main()
