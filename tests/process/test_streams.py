# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, full or without a reader, and files at the limit of their size."""
import os
import signal
import subprocess

from harness import Case, DILOCOX, events, main, summary

FULL = "dilocox: standard output can't be written: No space left on device"


def shell(redirections):
    """A prefix that starts the program with these redirections."""
    return ("sh", "-c", f'exec "$@" {redirections}', "sh")


class Streams(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": 2560}, wan={"security": "none"})

    def weights(self):
        self.call("launch", self.file, "--sites", 1, "--set", "train.tokens=1")
        return self.path("run", "weights")

    def printing(self):
        """Commands whose result is what they print."""
        weights = self.weights()
        return [("--help",), ("-h",), ("--version",), ("launch", "--help"), ("config", "--defaults"), ("config", "--options"),
                ("config", self.file), ("eval", weights, "--data", self.path("data.validation.tokens"), "--tokens", 32),
                ("generate", weights, "--tokens", 5), ("bench", "codec", "--megabytes", 1)]

    def test_what_is_printed_arrives_or_the_command_fails(self):
        for command in self.printing():
            with self.subTest(command):
                said = self.call(*command, code=1, prefix=shell("> /dev/full"))
                self.assertEqual(said.text("stderr"), FULL)
                said = self.call(*command, code=1, prefix=shell(">&-"))
                self.assertRegex(said.text("stderr"), r"^dilocox: (\w+: )?standard output (is closed|can't be written)[^\n]*$")

    def test_a_closed_pipe_is_quiet(self):
        """By SIGPIPE, and by EPIPE where the caller ignores SIGPIPE."""
        for ignored in ("", "trap '' PIPE; "):
            done = subprocess.run(["bash", "-c", ignored + '"$0" config --options | true; echo ${PIPESTATUS[0]}', DILOCOX],
                                  capture_output=True, text=True)
            self.assertIn(done.stdout, ("141\n", "0\n"))  # 0: it was written before `true` ended
            self.assertEqual(done.stderr, "")
        read, write = os.pipe()
        os.close(read)
        for restore in (True, False):
            done = subprocess.run([DILOCOX, "config", "--options"], stdout=write, stderr=subprocess.PIPE, restore_signals=restore)
            self.assertEqual((done.returncode, done.stderr), (-signal.SIGPIPE if restore else 128 + signal.SIGPIPE, b""))
        os.close(write)

    def test_keys(self):
        said = self.call("keygen", "k", code=1, prefix=shell("> /dev/full"))
        self.assertEqual(said.text("stderr"), FULL + "; 'k' is made, and its line 'public:' has the public key")
        self.call("keygen", "closed", code=1, prefix=shell(">&-"))
        self.assertFalse(os.path.exists(self.path("closed")))

    def test_a_run_needs_no_output(self):
        for redirections in (">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2> /dev/full"):
            with self.subTest(redirections):
                directory = self.path("run" + str(len(redirections)))
                said = self.call("launch", self.file, "--sites", 2, "--run-dir", directory, prefix=shell(redirections))
                self.assertEqual(summary(directory)["status"], "done")
                for name in ("site-1", "site-2"):
                    self.assertGreater(len(events(os.path.join(directory, name, "metrics.jsonl"), "step")), 5)
                full = redirections == "> /dev/full"
                self.assertEqual(said.text("stderr"), FULL + "; what it lacks is progress and a report" if full else "")

    def test_files_do_not_get_the_output(self):
        """Descriptors 1 and 2 are not those of the files that a site opens."""
        for redirections in (">&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-"):
            with self.subTest(redirections):
                coordinator, endpoint = self.start_coordinator(self.file, 1, secure=False)
                site = self.start("train", self.file, "--site", "a", "--coordinator", endpoint, "--set", "wan.security=none",
                                  prefix=shell(redirections))
                self.assertEqual((site.wait(), coordinator.wait()), (0, 0), site.everything())
                self.assertEqual({event["event"] for event in events(self.path("run", "a", "metrics.jsonl"))},
                                 {"run", "evaluation", "step", "round", "notice"})

    def test_a_run_whose_reader_is_gone(self):
        done = subprocess.run(["bash", "-c", '"$0" launch "$1" --sites 2 | true; echo ${PIPESTATUS[0]}', DILOCOX, self.file],
                              capture_output=True, text=True, cwd=self.directory)
        self.assertEqual((done.stdout, done.stderr), ("0\n", ""))
        self.assertEqual(summary(self.path("run"))["status"], "done")

    def test_launcher_killed(self):
        """Its sites, whose pipes have no reader then, save and end."""
        run = self.start("launch", self.file, "--sites", 2, "--set", "train.tokens=1e12")
        for name in ("site-1", "site-2"):
            self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                lambda e: e["event"] == "round" and e["committed_rounds"] >= 1)
        run.signal(signal.SIGKILL)
        run.wait()
        self.wait_until_nothing_is_left()
        for name in ("site-1", "site-2"):
            self.assertEqual(summary(self.path("run", name))["status"], "interrupted")
        self.assertTrue(os.path.exists(self.path("run", "weights", "model.safetensors")))


class FileSize(Case):
    """Files at the limit of a process (ulimit -f)."""

    def limited(self, code, pattern, bytes_max, *arguments):
        said = self.call(*arguments, code=code, prefix=("prlimit", f"--fsize={bytes_max}"))
        self.assertRegex(said.text("stderr"), pattern)
        left = [name for _, _, files in os.walk(self.directory) for name in files if ".part-" in name]
        self.assertEqual(left, [])
        return said

    def test_a_file(self):
        self.write("text.txt", self.license_text())
        self.limited(1, r"^dilocox: .*out\.tokens: can't be written: it would be larger than the 1000 bytes that this process may "
                     r"write \(ulimit -f\)$", 1000, "tokenize", "text.txt", self.path("out.tokens"))
        self.assertFalse(os.path.exists(self.path("out.tokens")))
        self.limited(1, r"^dilocox: .*'k' can't be written: File too large$", 10, "keygen", "k")
        self.assertFalse(os.path.exists(self.path("k")))

    def test_a_run(self):
        self.prepare_data()
        said = self.limited(1, r"^dilocox: site-[12] failed: .*/run/site-[12]/metrics\.jsonl: can't be written: it would be larger",
                            20000, "launch", self.config(train={"tokens": "1e12"}), "--sites", 2)
        self.assertIn(f"the last anchor is not saved in {self.path('run', 'weights')}", said.text("stderr"))
        for name in ("site-1", "site-2"):
            self.assertGreater(len(events(self.path("run", name, "metrics.jsonl"), "step")), 5)  # no half line


if __name__ == "__main__":
    main()
