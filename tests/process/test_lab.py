# SPDX-License-Identifier: Apache-2.0
"""The network lab: what a command finds there, what its links do, and that nothing is left."""
import os
import re
import signal
import subprocess
import sys

from harness import Case, main, skip

LAB = os.path.join(os.environ["SOURCE_ROOT"], "bench", "lab")
SLEEP = ["sh", "-c", "echo begins; exec sleep 1000"]


def lab(*words):
    return [sys.executable, LAB, "--relay", os.environ["LAB_RELAY"], *words]


def run(*words):
    return subprocess.run(lab(*words), capture_output=True, text=True, timeout=120)


def of_lab(pid):
    """Processes that a lab has started, which have it in their environment; and its relay."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as environment, open(f"/proc/{entry}/stat") as stat:
                # what is dead and not yet waited for by its new parent has none
                if b"LAB_HUB=" in environment.read() or stat.read().rsplit(")", 1)[1].split()[1] == str(pid):
                    found.add(int(entry))
        except OSError:
            pass
    return found


class Lab(Case):
    def started(self, *words):
        process = subprocess.Popen(lab(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (process.kill(), process.communicate()))
        return process

    def test_environment(self):
        done = run("--sites", "2", "--hub", "echo hub at {address}", "--",
                   "sh", "-c", "echo {site} of $LAB_SITES: $LAB_SITE, $LAB_ADDRESS, {address}, $LAB_HUB; ip -o -4 address show dev wan")
        self.assertEqual(done.returncode, 0, done.stderr)
        for site in (1, 2):
            self.assertIn(f"{site} of 2: {site}, 10.78.0.{site + 1}, 10.78.0.{site + 1}, 10.78.0.1\n", done.stdout)
            self.assertIn(f"inet 10.78.0.{site + 1}/24", done.stdout)
        self.assertIn("hub at 10.78.0.1\n", done.stdout)

    def test_exit_codes(self):
        self.assertEqual(run("--", "sh", "-c", "exit $((LAB_SITE * 3 - 3))").returncode, 3)
        self.assertEqual(run("--", "sh", "-c", "kill -9 $$").returncode, 128 + 9)
        self.assertEqual(run("--hub", "sh -c 'exit 5'", "--", "true").returncode, 5)
        missing = run("--", "no-such-program")
        self.assertEqual((missing.returncode, missing.stderr), (1, "lab: no-such-program: No such file or directory\n"))

    def test_bad_options(self):
        for words, why in ((["--sites", "0"], "allowed: 1 to 64"), (["--rate", "10"], "allowed: a rate from 1kbit to 10gbit"),
                           (["--rate", "10 miles"], "is not a rate"), (["--delay", "90s"], "up to 60s"), (["--loss", "110%"], "allowed: a share"),
                           (["--delay", "1ms", "--jitter", "2ms"], "is more than --delay"), ([], "no COMMAND after '--'")):
            done = run(*words, *(["--", "true"] if words else []))
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(why, done.stderr)

    def test_delay(self):
        """Both ways of a ping, at least."""
        done = run("--delay", "30ms", "--", "ping", "-n", "-c", "9", "-i", "0.05", "{hub}")
        times = sorted(float(ms) for ms in re.findall(r"time=([\d.]+)", done.stdout))
        self.assertEqual(len(times), 18, done.stdout)
        self.assertGreaterEqual(times[0], 60)

    def test_loss(self):
        """By the seed: each time as many."""
        done = [run("--sites", "1", "--loss", "50%", "--seed", "3", "--", "ping", "-n", "-q", "-c", "100", "-i", "0.002", "-W", "1", "{hub}") for _ in range(2)]
        received = [int(re.search(r"(\d+) received", each.stdout).group(1)) for each in done]
        self.assertEqual(received[0], received[1])
        self.assertIn(received[0], range(10, 41))  # a quarter, ± 15: 3.5 deviations
        self.assertIn(" 0 received", run("--sites", "1", "--loss", "100%", "--", "ping", "-n", "-c", "1", "-W", "1", "{hub}").stdout)

    def test_rate(self):
        """100 packets of 1,000 bytes take 2 s at 400 kbit/s: more than may wait, so that some are dropped."""
        done = run("--sites", "1", "--rate", "400kbit", "--", "ping", "-n", "-q", "-c", "100", "-i", "0.002", "-s", "972", "-W", "2", "{hub}")
        received = int(re.search(r"(\d+) received", done.stdout).group(1))
        self.assertIn(received, range(5, 60))  # 100 ms hold 5; how many leave meanwhile is ping's pace
        self.assertGreaterEqual(float(re.search(r"rtt min/avg/max/mdev = ([\d.]+)", done.stdout).group(1)), 20)

    def check_ends(self, process):
        """With it all that it has started."""
        self.wait_until("its processes have ended", lambda: not of_lab(process.pid))

    def test_ctrl_c(self):
        process = self.started("--hub", "sleep 1000", "--", *SLEEP)
        for _ in range(2):
            self.assertEqual(process.stdout.readline(), "begins\n")
        process.send_signal(signal.SIGINT)
        process.communicate()
        self.assertEqual(process.returncode, 128 + signal.SIGINT)
        self.check_ends(process)

    def test_a_second_ctrl_c(self):
        process = self.started("--", "sh", "-c", "trap 'echo got it' INT; echo begins; while :; do sleep 0.05; done")
        for _ in range(2):
            self.assertEqual(process.stdout.readline(), "begins\n")
        process.send_signal(signal.SIGINT)
        for _ in range(2):
            self.assertEqual(process.stdout.readline(), "got it\n")
        process.send_signal(signal.SIGINT)
        process.communicate()
        self.check_ends(process)

    def test_it_is_killed(self):
        process = self.started("--", *SLEEP)
        for _ in range(2):
            self.assertEqual(process.stdout.readline(), "begins\n")
        self.assertGreaterEqual(len(of_lab(process.pid)), 3)
        process.kill()
        process.communicate()
        self.check_ends(process)


if __name__ == "__main__":
    if os.geteuid() != 0:
        skip("only root can make network namespaces")
    main()
