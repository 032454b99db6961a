# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the Python package: a run within this process, and processes.

Meson sets DILOCOX_LIBRARY, PYTHONPATH, SOURCE_ROOT, BUILD_ROOT and DILOCOX."""
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import dilocox

SOURCE_ROOT = os.environ["SOURCE_ROOT"]
SKIPPED = 77  # Meson's exit code for "skipped"
DEADLINE_S = 120

logging.getLogger("dilocox").setLevel(logging.CRITICAL)  # most runs here fail on purpose


def skip(reason):
    """Ends the file's tests as skipped."""
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


class Run:
    """A hub, a coordinator in a thread, and sites that are threads: `site(name, body)`."""

    def __init__(self, sites, tokens, **options):
        self.hub = dilocox.Hub()
        self.coordinator = dilocox.Coordinator(sites=sites, tokens=tokens, hub=self.hub, **options)
        self.coordinator.start()
        self.threads = []
        self.raised = {}

    def site(self, name, body, *arguments):
        """body(*arguments) in a thread; what it raises is in `raised`."""
        def run():
            try:
                body(*arguments)
            except BaseException as why:
                self.raised[name] = why
        self.threads.append(threading.Thread(target=run, name=name, daemon=True))
        self.threads[-1].start()

    def join(self):
        """Waits for all sites' threads."""
        for thread in self.threads:
            thread.join(DEADLINE_S)
            if thread.is_alive():
                raise AssertionError(f"{thread.name} is still running")

    def end(self):
        """Waits for all; raises what a site raised."""
        self.join()
        self.close()
        for why in self.raised.values():
            raise why

    def close(self):
        self.coordinator.interrupt()
        self.coordinator.close()
        self.hub.close()


def seconds_of_ctrl_c(case, delay_s, body, *arguments):
    """From a SIGINT, delay_s from now, to the KeyboardInterrupt with which body(*arguments) ends."""
    sent_s = []

    def send():
        time.sleep(delay_s)  # a random moment, not an order of events
        sent_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    sender = threading.Thread(target=send)
    with case.assertRaises(KeyboardInterrupt):
        sender.start()
        body(*arguments)
    took_s = time.monotonic() - sent_s[0]
    sender.join()
    return took_s


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="dilocox-test-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(text)
        return self.path(name)

    def run_of(self, sites, tokens, **options):
        run = Run(sites, tokens, **options)
        self.addCleanup(run.close)
        return run

    def python(self, *arguments, code=0, **options):
        """The interpreter to its end; returns what it did."""
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                              timeout=DEADLINE_S, cwd=self.directory, **options)
        self.assertEqual(done.returncode, code, f"{done.stdout}\n{done.stderr}")
        return done


def main():
    # as in a terminal: what a script starts with & has Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unittest.main(verbosity=2)
