# SPDX-License-Identifier: Apache-2.0
"""Too few descriptors, threads or bytes: one sentence of dilocox's own, and no signal."""
import os
import re
import resource
import signal
import subprocess

from harness import Case, SANITIZED, events, main, skip, summary

USER = "54321"  # with no process but the test's


class Resources(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": 256})

    def attempt(self, prefix, *arguments):
        """Whether it succeeded; if not, it said why."""
        run = self.start(*arguments, prefix=prefix)
        code = run.wait()
        if code == 0:
            self.assertEqual(run.text("stderr"), "")
            return True
        self.assertEqual(code, 1, run.everything())
        self.assertRegex(run.text("stderr"), r"^dilocox: [^\n]+$")
        self.assertNotRegex(run.text("stderr"), r"signal|src/|libgomp|assert|terminate", run.everything())
        return False

    def limited_site(self, limit):
        coordinator, endpoint = self.start_coordinator(self.file, 1, secure=False)
        worked = self.attempt(("prlimit", f"--nofile={limit}:{limit}"), "train", self.file, "--site", "a", "--coordinator", endpoint,
                              "--set", "wan.security=none")
        if worked:
            self.assertEqual(coordinator.wait(), 0)
        coordinator.end()
        return worked

    def test_descriptors(self):
        for command in (self.limited_site, lambda limit: self.attempt(("prlimit", f"--nofile={limit}:{limit}"), "launch", self.file,
                                                                      "--sites", 2)):
            worked = [command(limit) for limit in (*range(6, 26, 2), 30, 36, 42, 60)]
            self.assertFalse(worked[0])
            self.assertTrue(worked[-1])

    def test_how_many_descriptors(self):
        few = ("prlimit", "--nofile=20:20")
        said = self.refused(r"^dilocox: zmq link: this process needs \d+ file descriptors, and 20 are allowed; allow more "
                            r"\(ulimit -n\)$", "coordinator", self.file, "--sites", 1, "--listen", "127.0.0.1:0", "--set",
                            "wan.security=none", code=1, prefix=few).text("stderr")
        needed = said.split("needs ")[1].split()[0]
        coordinator = self.start("coordinator", self.file, "--sites", 1, "--listen", "127.0.0.1:0", "--set", "wan.security=none",
                                 prefix=("prlimit", f"--nofile={needed}:{needed}"))
        coordinator.wait_line("^listening ")
        self.refused(r"^dilocox: launch: 9 sites need \d+ file descriptors here, and 20 are allowed", "launch", self.file, "--sites",
                     9, code=1, prefix=few)

    def test_the_soft_limit_is_raised(self):
        self.call("launch", self.file, "--sites", 3, prefix=("prlimit", "--nofile=8:4096"))
        self.assertEqual(summary(self.path("run"))["status"], "done")

    def unprivileged(self, processes):
        if os.getuid() != 0:
            self.skipTest("another user's limits need root")
        os.chmod(self.directory, 0o777)
        reads_all = "+dac_read_search"  # wherever the tree under test lies
        return ("setpriv", "--reuid=" + USER, "--regid=" + USER, "--clear-groups", "--inh-caps", reads_all, "--ambient-caps",
                reads_all, "prlimit", f"--nproc={processes}")

    def test_threads_of_a_run(self):
        worked = []
        for processes in range(2, 17):
            more = ("--run-dir", self.path(f"run{processes}"))
            worked.append(self.attempt(self.unprivileged(processes), "launch", self.file, "--sites", 1, *more))
        self.assertFalse(worked[0])
        self.assertTrue(worked[-1])

    def test_threads_of_a_computation(self):
        self.call("launch", self.file, "--sites", 1)
        os.chmod(self.path("run"), 0o755)
        evaluation = ("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 64, "--threads", 4)
        for processes in (1, 2, 3):
            said = self.call(*evaluation, code=1, prefix=self.unprivileged(processes)).text("stderr")
            self.assertRegex(said, r"^dilocox: site\.threads: needs 3 more threads, and %d can be started: [^\n]+$" % (processes - 1))
        self.call(*evaluation, prefix=self.unprivileged(4))

    def test_memory(self):
        if SANITIZED:
            self.skipTest("a sanitizer reserves terabytes")
        worked = [self.attempt(("prlimit", f"--as={megabytes << 20}"), "launch", self.file, "--sites", 2)
                  for megabytes in (*range(60, 130, 6), 240, 290, 300, 310, 2000)]
        self.assertFalse(worked[0])
        self.assertTrue(worked[-1])


class FullDisk(Case):
    """A file system of a few kilobytes."""

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": 10240}, wan={"security": "none"})
        os.mkdir(self.path("disk"))
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", self.path("disk")], capture_output=True).returncode:
            self.skipTest("no file system can be mounted")
        self.addCleanup(subprocess.run, ["umount", self.path("disk")], check=True)
        self.addCleanup(self.end_all)

    def test_the_weights_do_not_fit(self):
        said = self.call("launch", self.file, "--sites", 2, "--run-dir", self.path("disk", "run"), code=1).text("stderr")
        weights = self.path("disk", "run", "weights")
        self.assertRegex(said, r"(?m)^dilocox: site-1 failed: .*; the last anchor is not saved in " + weights + "$")
        for line in said.splitlines():
            self.assertLessEqual(line.count("No space left on device"), 1, said)
        self.assertEqual(os.listdir(weights), [])

    def test_another_site_has_the_anchor(self):
        """A site that cannot save the weights is lost, and another one saves them."""
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        sites = [self.start_site(self.file, name, endpoint, "--run-dir", directory, secure=False)
                 for name, directory in (("a", self.path("disk", "run")), ("b", self.path("run")))]
        self.assertEqual([process.wait() for process in (*sites, coordinator)], [1, 0, 0])
        self.assertRegex(sites[0].text("stderr"), r"^dilocox: .*/disk/run/weights/model\.safetensors: can't be written: No space left on "
                         r"device; the last anchor is not saved in .*/disk/run/weights$")
        self.assertRegex(coordinator.text("stdout"),
                         r"site 'a' failed: .*model\.safetensors: can't be written: No space left.*; 1 of 2 sites go on")
        self.call("eval", self.path("run", "weights"), "--data", self.path("data.validation.tokens"), "--tokens", 64)


class NoRoomForSnapshots(Case):
    """Room for the first snapshot and the results, and not for a second snapshot."""
    LIMIT = 8 << 20  # bytes of a file: more than the weights, less than a snapshot
    NONE = (r"no snapshot of step ([0-9]+): .*/step-[0-9]{12}\.part/rank-0000\.safetensors: "
            r"can't be written: ")
    NO_SPACE = NONE + (r"[0-9]+ bytes have to be free, a fifth of them for other files of the run, "
                       r"and [0-9]+ are; free some space on its disk$")
    TOO_LARGE = NONE + r"it would be larger than the 8388608 bytes that this process may write"

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.run_dir = self.path("disk", "run")
        self.snapshots = os.path.join(self.run_dir, "site-1", "snapshots")
        os.mkdir(self.path("disk"))

    def mount(self):
        """A file system of its own for all results: the snapshot must leave them room."""
        command = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", self.path("disk")]
        if subprocess.run(command, capture_output=True).returncode:
            self.skipTest("no file system can be mounted")
        self.addCleanup(subprocess.run, ["umount", self.path("disk")], check=True)
        self.addCleanup(self.end_all)

    def start_run(self, rounds="1e6", keep=2):
        tokens = str(round(float(rounds) * 4 * 16))
        file = self.config(
            run={"dir": self.run_dir},
            model={"layers": 2, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 384,
                   "context": 16, "vocabulary": 1024},
            train={"tokens": tokens, "batch": 1, "micro_batch": 1, "eval_tokens": 64},
            sync={"overlap": "none", "inner_steps": 4},
            snapshots={"rounds": 1, "minutes": 0, "keep": keep}, wan={"link": "mem"})
        return self.start("launch", file, "--sites", 1)

    def wait_snapshots(self, at_least):
        path = os.path.join(self.run_dir, "site-1", "metrics.jsonl")
        self.wait_for_event(path, lambda e: e["event"] == "snapshot" and e["step"] >= at_least)

    def limit(self, run):
        """Of the process, once it has a snapshot."""
        self.wait_snapshots(1)
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (self.LIMIT, resource.RLIM_INFINITY))

    def check_what_is_left(self, step=None):
        """Snapshots that were there before are whole, and nothing else takes room."""
        names = os.listdir(self.snapshots)
        for name in names:
            self.assertRegex(name, "^step-[0-9]{12}$")
        if step is not None:
            self.assertEqual(names, [f"step-{step:012d}"])
        self.assertGreater(len(names), 0)
        self.call("inspect", self.snapshots)

    def check_weights(self):
        self.call("eval", os.path.join(self.run_dir, "weights"),
                  "--data", self.path("data.validation.tokens"), "--tokens", 64)

    def check_done(self, run):
        self.assertEqual(run.wait(), 0, run.everything())
        self.assertEqual(summary(self.run_dir)["status"], "done")
        self.check_weights()

    def check_interrupted(self, run, pattern):
        """Ctrl-C while there is no room: not for the last snapshot, either."""
        run.wait_line(pattern)
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(), 1, run.everything())
        self.assertIn("interrupted; partial results are in", run.text("stderr"))
        self.assertNotIn("--resume goes on from it", run.text("stdout"))
        steps = [int(step) for step in re.findall(pattern, run.text("stdout"), re.MULTILINE)]
        last = events(os.path.join(self.run_dir, "site-1", "metrics.jsonl"), "step")[-1]["step"]
        self.assertIn(steps[-1], (last, last + 1))  # whose line may be missing
        self.check_weights()

    def test_full_disk(self):
        self.mount()
        run = self.start_run(rounds=100)
        self.check_done(run)
        said = re.findall(self.NO_SPACE, run.text("stdout"), re.MULTILINE)
        self.assertGreater(len(said), 1, run.everything())
        self.check_what_is_left(4)

    def test_full_disk_when_interrupted(self):
        self.mount()
        self.check_interrupted(self.start_run(), self.NO_SPACE)
        self.check_what_is_left(4)

    def test_room_again(self):
        """The next one is written as soon as it fits."""
        self.mount()
        run = self.start_run(keep=1)
        run.wait_line(self.NO_SPACE)
        subprocess.run(["mount", "-o", "remount,size=60m", self.path("disk")], check=True)
        self.wait_snapshots(5)
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(), 1, run.everything())
        run.wait_line("--resume goes on from it")
        self.check_what_is_left()
        self.assertEqual(len(os.listdir(self.snapshots)), 1)

    def test_file_too_large(self):
        run = self.start_run(rounds=100)
        self.limit(run)
        run.wait_line(self.TOO_LARGE)
        self.check_done(run)
        self.check_what_is_left()

    def test_file_too_large_when_interrupted(self):
        run = self.start_run()
        self.limit(run)
        self.check_interrupted(run, self.TOO_LARGE)
        self.check_what_is_left()


if __name__ == "__main__":
    if subprocess.run(["prlimit", "--version"], capture_output=True).returncode != 0:
        skip("no prlimit")
    main()
