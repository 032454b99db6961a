# SPDX-License-Identifier: Apache-2.0
"""From finding the library to the interpreter's end: forks, objects that nobody closed, logging."""
import array
import logging
import os
import shutil
import subprocess
import sys

import dilocox
from support import SOURCE_ROOT, Case, main

PACKAGE = os.path.join(SOURCE_ROOT, "python")


def row():
    return {"w": array.array("f", [0] * 8)}


class Library(Case):
    def refused(self, **environment):
        """What importing says, with these variables alone."""
        kept = {name: value for name, value in os.environ.items()
                if name not in ("DILOCOX_LIBRARY", "LD_LIBRARY_PATH")}
        return self.python("-c", "import dilocox\ntry: print(dilocox.version())\n"
                           "except dilocox.DilocoxError as why: print(why)",
                           env={**kept, "PYTHONPATH": PACKAGE, **environment}).stdout

    def copied(self):
        """A package that no checkout surrounds."""
        shutil.copytree(os.path.join(PACKAGE, "dilocox"), self.path("there/dilocox"),
                        ignore=shutil.ignore_patterns("__pycache__"))
        return self.path("there")

    def test_where_it_is_looked_for(self):
        there = self.copied()
        said = self.refused(PYTHONPATH=there)
        for place in ("DILOCOX_LIBRARY, which is not set",
                      os.path.join(there, "dilocox", "libdilocox.so"),
                      os.path.join(self.directory, "build", "src", "libdilocox.so"),
                      "libdilocox.so.1"):
            self.assertIn(place, said)
        said = self.refused(PYTHONPATH=there, DILOCOX_LIBRARY="/nowhere/libdilocox.so")
        self.assertIn("which is /nowhere/libdilocox.so", said)

    def test_each_place(self):
        there, library = self.copied(), os.path.realpath(os.environ["DILOCOX_LIBRARY"])
        version = dilocox.version() + "\n"
        self.assertEqual(self.refused(PYTHONPATH=there, DILOCOX_LIBRARY=library), version)
        os.makedirs(self.path("loader"))
        os.symlink(library, self.path("loader/libdilocox.so.1"))
        self.assertEqual(self.refused(PYTHONPATH=there, LD_LIBRARY_PATH=self.path("loader")),
                         version)
        for place in ("build/src/libdilocox.so", "there/dilocox/libdilocox.so"):
            os.makedirs(os.path.dirname(self.path(place)), exist_ok=True)
            os.symlink(library, self.path(place))
            self.assertEqual(self.refused(PYTHONPATH=there), version)
            os.remove(self.path(place))

    def test_another_version_is_refused(self):
        library = self.path("libother.so")
        for source, words in (
                ("unsigned dlx_version_number(void) { return 300; }", "is libdilocox 0.3.0"),
                ("unsigned dlx_version_number(void) { return 10200; }", "is libdilocox 1.2.0"),
                ("unsigned dlx_version_number(void) { return 200; }", "dlx_version"),
                ("int other;", "dlx_version_number")):
            with self.subTest(source=source):
                subprocess.run([*os.environ.get("CC", "cc").split(), "-shared", "-fPIC", "-o",
                                library, "-x", "c", "-"], input=source, check=True, text=True)
                said = self.refused(DILOCOX_LIBRARY=library)
                self.assertIn(words, said)
                self.assertIn(library, said)
                self.assertIn(f"the package in {os.path.join(PACKAGE, 'dilocox')} is made for 0.2",
                              said)

    def test_it_needs_neither_torch_nor_numpy(self):
        self.python("-c", "import sys, dilocox\n"
                    "assert not {'torch', 'numpy'}.intersection(sys.modules), sys.modules")


class Forks(Case):
    def in_child(self, body):
        """Runs in a fork, which leaves as a program does; what it prints."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            code = 1
            try:
                body()
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            text = said.read()
        self.assertEqual(os.waitpid(child, 0)[1], 0, text)
        return text

    def test_a_child_has_no_part_in_the_run(self):
        run = self.run_of(1, 20)
        with dilocox.Sync(row(), site="a", hub=run.hub, sync_every=2) as sync:
            def use():
                for call in (lambda: sync.step(1), lambda: sync.tokens, sync.statistics):
                    try:
                        call()
                    except dilocox.DilocoxError as why:
                        print(why)
                sync.close()
                sync.interrupt()
                sync.fail("not mine")
                sync.__del__()
                dilocox._calls._abandon_all()
            said = self.in_child(use)
            self.assertEqual(said.count(f"this Sync is of process {os.getpid()}"), 3, said)
            while not sync.finished:  # and none of that was noticed here
                sync.step(1)


class Ends(Case):
    """Site a is another process; b waits here for what becomes of it."""

    def end_of(self, script, tokens=40):
        """What site b gets, and what a says, which must end by itself."""
        with open(self.path("roster"), "w", encoding="ascii") as roster:
            for name in ("coordinator", "a", "b"):
                roster.write(f"{name} {dilocox.keygen(self.path(f'{name}.key'))}\n")
        with dilocox.Coordinator(sites=2, tokens=tokens, sites_min=0, roster=self.path("roster"),
                                 key=self.path("coordinator.key")) as coordinator:
            coordinator.start()
            body = ("import array, dilocox, threading\n"
                    f"sync = dilocox.Sync({{'w': array.array('f', [0] * 8)}}, site='a', "
                    f"coordinator='{coordinator.endpoint}', key='{self.path('a.key')}', "
                    f"roster='{self.path('roster')}', overlap='none', sync_every=2)\n")
            process = subprocess.Popen([sys.executable, "-c", body + script],
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.addCleanup(process.kill)
            got = None
            try:
                with dilocox.Sync(row(), site="b", coordinator=coordinator.endpoint,
                                  key=self.path("b.key"), roster=self.path("roster"),
                                  overlap="none", sync_every=2) as sync:
                    while not sync.finished:
                        sync.step(1)
            except dilocox.DilocoxError as why:
                got = why
                coordinator.interrupt()
            said = process.communicate(timeout=60)[0]
            return got, process.returncode, said

    def test_a_program_that_ends_with_an_open_site(self):
        got, code, said = self.end_of("sync.step(1)")
        self.assertIsInstance(got, dilocox.PeerLostError)
        self.assertRegex(str(got), "left before the run's end")
        self.assertEqual((code, said), (0, ""))

    def test_a_program_that_ends_with_a_finished_site(self):
        got, code, said = self.end_of("while not sync.finished: sync.step(1)")
        self.assertIsNone(got)
        self.assertEqual((code, said), (0, ""))

    def test_a_site_that_nothing_refers_to(self):
        got, code, said = self.end_of("del sync\nthreading.Event().wait(0.5)\nprint('on')")
        self.assertRegex(str(got), "left before the run's end")
        self.assertEqual((code, said), (0, "on\n"))

    def test_an_exception_leaves_its_type(self):
        got, code, said = self.end_of("with sync:\n  sync.step(1)\n  raise OSError('a disk')")
        self.assertRegex(str(got), "OSError: a disk")
        self.assertEqual(code, 1, said)
        self.assertIn("OSError: a disk", said)

    def test_a_thread_that_waits_at_the_program_s_end(self):
        got, code, said = self.end_of(
            "def body():\n"
            "  while True:\n"
            "    sync.step(1)\n"
            "    trains.set()\n"
            "trains = threading.Event()\n"
            "threading.Thread(target=body, daemon=True).start()\n"
            "trains.wait()", tokens=10**9)
        self.assertIsInstance(got, dilocox.PeerLostError)
        self.assertEqual(code, 0, said)
        self.assertNotIn("Fatal", said)

    def test_a_thread_that_frees_at_the_program_s_end(self):
        """It calls back while it does: the interpreter waits for it."""
        self.assertEqual(self.python("-c", """
import os, threading, time, dilocox
class Slow(dilocox.Coordinator):
    def _free(self, pointer):
        began.set()
        time.sleep(0.2)  # as the library does, which sends its last messages
        super()._free(pointer)
        os.write(1, b"freed")
began, hub = threading.Event(), dilocox.Hub()
coordinator = Slow(sites=1, tokens=1, hub=hub)
threading.Thread(target=coordinator.close, daemon=True).start()
began.wait()
""").stdout, "freed")


class Rest(Case):
    def test_objects_may_go_in_any_order(self):
        """Also all at once, as a cycle that only the collector finds."""
        import gc
        for _ in range(20):
            run = dilocox.Hub()
            coordinator = dilocox.Coordinator(sites=1, tokens=100, hub=run)
            coordinator.start()
            sync = dilocox.Sync(row(), site="a", hub=run, sync_every=1)
            cycle = [run, coordinator, sync]
            cycle.append(cycle)
            coordinator.interrupt()
            del run, coordinator, sync, cycle
            gc.collect()
        run = dilocox.Hub()
        sync = None
        with dilocox.Coordinator(sites=1, tokens=2, hub=run) as coordinator:
            coordinator.start()
            sync = dilocox.Sync(row(), site="a", hub=run, sync_every=1)
            run.close()  # with the last that is on it
            while not sync.finished:
                sync.step(1)
            sync.close()

    def test_lines_go_to_the_logger(self):
        run = self.run_of(1, 2)
        with self.assertLogs("dilocox", logging.INFO):
            with dilocox.Sync(row(), site="a", hub=run.hub, sync_every=1, outer_lr=3.0,
                              outer_momentum=0.9) as sync:  # which is said to be unstable
                while not sync.finished:
                    sync.step(1)

    def test_a_log_that_raises_ends_the_run(self):
        run = self.run_of(1, 2)

        def log(line):
            raise ArithmeticError(line)
        with self.assertRaises(ArithmeticError):
            dilocox.Sync(row(), site="a", hub=run.hub, sync_every=1, outer_lr=3.0,
                         outer_momentum=0.9, log=log)

    def test_state_parts_go_into_another_run(self):
        """Two runs of half the steps are one of all."""
        def rounds(values, tokens, state=None):
            run, kept = self.run_of(1, 100), None
            with dilocox.Sync({"w": values}, site="a", hub=run.hub, overlap="none", sync_every=2,
                              state=state) as sync:
                for _ in range(tokens):
                    for k in range(8):
                        values[k] += k / 64
                    sync.step(1)
                if state is None:
                    kept = {part.name: part for part in sync.state_parts()}
                hashes = sync.anchor_hashes()
                sync.interrupt()
            return kept, hashes
        whole, halves = array.array("f", [0] * 8), array.array("f", [0] * 8)
        _, expected = rounds(whole, 20)
        state, _ = rounds(halves, 10)
        self.assertTrue(state)
        _, got = rounds(halves, 10, state)
        self.assertEqual((halves, got), (whole, expected))
        broken = {**state, next(iter(state)): next(iter(state.values()))._replace(rows=99)}
        with self.assertRaisesRegex(dilocox.ConfigError, "state: part"):
            rounds(halves, 10, broken)
        with self.assertRaisesRegex(dilocox.ConfigError, "state: it has no part"):
            rounds(halves, 10, {"other": next(iter(state.values()))})


if __name__ == "__main__":
    main()
