# SPDX-License-Identifier: Apache-2.0
"""What bad input gets: an exception of the right class, with one sentence, before anything is
joined."""
import array
import math
import os
import pickle
import threading

import dilocox
from dilocox import ConfigError, Coordinator, DilocoxError, Status, Sync, Tensor
from dilocox._names import in_keywords
from support import Case, main

HUB = object()  # stands for a hub of the test

ROW = array.array("f", [0] * 8)
ALONE = {"site": "a", "hub": HUB}
ABROAD = {"site": "a", "coordinator": "127.0.0.1:1", "unencrypted": True}

# (tensors, keywords, what the message has)
SYNCS = [
    ({"w": ROW}, {**ALONE, "sync_evry": 16}, "'sync_evry' is no keyword; .* 'sync_every'"),
    ({"w": ROW}, {**ALONE, "inner_steps": 16}, "'inner_steps' is no keyword; .* 'sync_every'"),
    ({"w": ROW}, {**ALONE, "inner_step_max": 9}, "nearest one is 'inner_steps_max'"),
    ({"w": ROW}, {**ALONE, "wait_ms": 9}, "'wait_ms' is no keyword"),
    ({"w": ROW}, {**ALONE, "sync_every": 0}, "^sync_every: 0 is out of range; allowed: 1 to 1"),
    ({"w": ROW}, {**ALONE, "sync_every": 1.5}, "^sync_every: 1.5 is no integer"),
    ({"w": ROW}, {**ALONE, "sync_every": True}, "^sync_every: True is no integer"),
    ({"w": ROW}, {**ALONE, "bits": 5}, "^bits: 5 is not allowed; choose 4, 8, 16, or 32"),
    ({"w": ROW}, {**ALONE, "bits": 64}, "^bits: 64 is out of range"),
    ({"w": ROW}, {**ALONE, "group": 7}, "^group: 7 is odd"),
    ({"w": ROW}, {**ALONE, "overlap": "carri"}, "^overlap: 'carri' is unknown; choose .*, carry$"),
    ({"w": ROW}, {**ALONE, "overlap": 4}, "^overlap: 4 is unknown"),
    ({"w": ROW}, {**ALONE, "error_feedback": 1}, "^error_feedback: 1 is unknown"),
    ({"w": ROW}, {**ALONE, "outer_lr": "0.7"}, "^outer_lr: '0.7' is no number"),
    ({"w": ROW}, {**ALONE, "outer_lr": math.nan}, "^outer_lr: nan is out of range"),
    ({"w": ROW}, {**ALONE, "timeout": 0.5}, "^timeout: 0.5 is out of range; allowed: 1 to 86400"),
    ({"w": ROW}, {**ALONE, "pace_max": 101}, "^pace_max: 101.0 is out of range; allowed: 1 to 100"),
    ({"w": ROW}, {**ALONE, "seed": -1}, "^seed: -1 is out of range"),
    ({"w": ROW}, {**ALONE, "ranks": 2}, "^gather is NULL, and needed with ranks: 2"),
    ({"w": ROW}, {**ALONE, "rank": 1}, "^rank: 1 is out of range; allowed: 0 to 0"),
    ({"w": ROW}, {**ALONE, "inner_steps_max": 3}, "^inner_steps_max: 3 is out of range"),
    ({"w": ROW}, {**ALONE, "shared": {"a:b": "1"}}, "^shared: 'a:b' or its value has"),
    ({"w": ROW}, {**ALONE, "shared": {"a": "x\ny"}}, "^shared: 'a' or its value has"),
    ({"w": ROW}, {**ALONE, "site": "a b"}, "^site: 'a b' is not allowed; "),
    ({"w": ROW}, {**ALONE, "site": "-a"}, "^site: '-a' is not allowed; "),
    ({"w": ROW}, {**ALONE, "site": "a\0b"}, r"^site: 'a\\x00b' has a zero byte"),
    ({"w": ROW}, {**ALONE, "site": 3}, "^site: 3 is no text"),
    ({"w": ROW}, {"hub": HUB}, "^site: no name; give site, or set DILOCOX_SITE"),
    ({"w": ROW}, {"site": "a"}, "^coordinator: no address; .* DILOCOX_COORDINATOR"),
    ({"w": ROW}, {**ALONE, "coordinator": "h:1"}, "^hub and coordinator exclude each other"),
    ({"w": ROW}, {"site": "a", "coordinator": "127.0.0.1:1"}, "^key: no path; .* DILOCOX_KEY"),
    ({"w": ROW}, {"site": "a", "coordinator": "127.0.0.1:1", "key": "a.key"}, "^roster: no path"),
    ({"w": ROW}, {"site": "a", "coordinator": "127.0.0.1:1", "key": "/nowhere", "roster": "/r"},
     "/nowhere"),
    ({"w": ROW}, {"site": "a", "coordinator": "127.0.0.1", "unencrypted": True}, "127.0.0.1"),
    ({"w": ROW}, {**ABROAD, "coordinator": "192.0.2.1:1"}, "loopback"),
    ({"w": ROW}, {**ABROAD, "listen": "a:b:c"}, "^listen: 'a:b:c' is no address"),
    ({"w": ROW}, {**ABROAD, "listen": "127.0.0.1:65536"}, "^listen: .* is no address"),
    ({}, ALONE, "^there are no tensors"),
    ([Tensor("w", 1, 8, ROW), Tensor("w", 1, 8, ROW)], ALONE, "^two tensors are named w"),
    ([Tensor("", 1, 8, ROW)], ALONE, "no name"),
    ([Tensor("w", 1, 8)], ALONE, "^tensor w is in the caller's memory: set fetch and store"),
    ([Tensor("w", 0, 8, ROW)], ALONE, "^tensor w: rows: 0 is out of range"),
    ([Tensor("w", 2, 8, ROW)], ALONE, "^tensor w: the buffer has 8 values, not 16"),
    ([Tensor("w", 1, 8, ROW, dtype="f64")], ALONE, "^tensor w: dtype: 'f64' is unknown; choose f"),
    ([Tensor("w", 1, 8, ROW, dtype="bf16")], ALONE, "^tensor w: values of format 'f' are not bf16"),
    ([Tensor("w", 1, 8, ROW, statistics=True)], {**ALONE, "overlap": "allreduce"},
     "^tensor w: allreduce has no statistics"),
    ({"w": array.array("d", [0])}, ALONE, "^tensor w: values of format 'd' are not f32"),
    ({"w": [0.0]}, ALONE, "^tensor w: a list is no buffer; dilocox.torch"),
    ({"w": bytes(4)}, ALONE, "^tensor w: values of format 'B' are not f32"),
    ({"w": memoryview(bytes(4)).cast("f")}, ALONE, "^tensor w: the buffer is read-only"),
    ({"w": memoryview(ROW)[::2]}, ALONE, "^tensor w: the buffer is strided"),
]

COORDINATORS = [
    ({"sites": 0}, "^sites: 0 is out of range; allowed: 1 to 64"),
    ({"sites": 65}, "^sites: 65 is out of range"),
    ({"tokens": 0}, "^tokens: 0 is out of range; allowed: 1 to"),
    ({"tokens": -1}, "^tokens: -1 is out of range"),
    ({"tokens": 2e6}, "^tokens: 2000000.0 is no integer"),
    ({"site_min": 1}, "'site_min' is no keyword; the nearest one is 'sites_min'"),
    ({"hub": None}, "^key: no path; give key and roster: "),
    ({"hub": None, "unencrypted": True, "listen": "nonsense"}, "nonsense"),
]


class BadInput(Case):
    def setUp(self):
        super().setUp()
        for name in ("SITE", "COORDINATOR", "KEY", "ROSTER"):
            os.environ.pop(f"DILOCOX_{name}", None)
        self.hub = dilocox.Hub()
        self.addCleanup(self.hub.close)

    def here(self, keywords):
        return {name: self.hub if value is HUB else value for name, value in keywords.items()}

    def test_sync(self):
        for tensors, keywords, pattern in SYNCS:
            with self.subTest(pattern=pattern):
                with self.assertRaisesRegex(ConfigError, pattern) as raised:
                    Sync(tensors, **self.here(keywords))
                self.assertIsInstance(raised.exception, ValueError)
                self.assertNotIn("\n", str(raised.exception))

    def test_coordinator(self):
        for keywords, pattern in COORDINATORS:
            with self.subTest(pattern=pattern):
                with self.assertRaisesRegex(ConfigError, pattern):
                    Coordinator(**{"sites": 1, "tokens": 1, "hub": self.hub, **keywords})

    def test_keygen(self):
        path = self.path("a.key")
        self.assertRegex(dilocox.keygen(path), "^[^ ]{40}$")
        with self.assertRaisesRegex(ConfigError, "a.key"):
            dilocox.keygen(path)
        with self.assertRaisesRegex(ConfigError, "^path: 3 is no path"):
            dilocox.keygen(3)
        with self.assertRaisesRegex(DilocoxError, "nowhere"):
            dilocox.keygen("/nowhere/a.key")


class Statuses(Case):
    def test_classes(self):
        for kind, base, status in (
                (dilocox.RefusedError, RuntimeError, Status.REFUSED),
                (dilocox.PeerLostError, ConnectionError, Status.PEER_LOST),
                (dilocox.RunTimeoutError, TimeoutError, Status.TIMEOUT),
                (dilocox.NumericError, RuntimeError, Status.NUMERIC),
                (dilocox.DivergedError, RuntimeError, Status.DIVERGED),
                (dilocox.ConfigError, ValueError, Status.CONFIG)):
            error = kind("a sentence", status, "b", 3)
            self.assertIsInstance(error, base)
            self.assertIsInstance(error, DilocoxError)
            again = pickle.loads(pickle.dumps(error))
            for one in (error, again):
                self.assertEqual((str(one), one.status, one.site, one.round),
                                 ("a sentence", status, "b", 3))

    def pair(self, first, second, keywords=({}, {}), shapes=(8, 8)):
        """Two sites that run these; returns the run, which is over."""
        run = self.run_of(2, 10**6, sites_min=0)  # or the other goes on alone

        def site(body, name, more, size):
            values = array.array("f", [0.5] * size)
            try:
                with Sync({"v": array.array("f", [1]), "w": values}, site=name, hub=run.hub,
                          overlap="none", sync_every=2, **more) as sync:
                    body(sync, values)
            except dilocox.RefusedError:
                run.coordinator.interrupt()  # which would wait for another one
                raise
        for name, body, more, size in zip("ab", (first, second), keywords, shapes):
            run.site(name, site, body, name, more, size)
        for thread in run.threads:
            thread.join()
        return run

    @staticmethod
    def forever(sync, values):
        while True:
            sync.step(1)

    def test_not_finite(self):
        def spoil(sync, values):
            values[3] = math.nan
            self.forever(sync, values)
        run = self.pair(self.forever, spoil)
        for name, pattern in (("a", "site 'b' is not finite in round 1"), ("b", "; here it is w$")):
            self.assertIsInstance(run.raised[name], dilocox.NumericError)
            self.assertRegex(str(run.raised[name]), pattern)

    def test_finite(self):
        """By bytes: the largest values share theirs with those that are not finite."""
        from dilocox import _c
        from dilocox._sync import _is_finite
        big, tail = 3.4e38, [0.0] * 300000  # more than is looked at together
        cases = [(_c.Dtype.F32, "f", [0.0, big, -big, 1e-45], [math.inf, -math.inf, math.nan]),
                 (_c.Dtype.BF16, "H", [0, 0x7F7F, 0xFF7F, 0x8000], [0x7F80, 0xFF80, 0x7FC0]),
                 (_c.Dtype.F16, "H", [0, 0x7BFF, 0xFBFF, 0x00FF], [0x7C00, 0xFC00, 0x7E01])]
        for dtype, code, finite, others in cases:
            zeros = tail if code == "f" else [0] * 600000
            for bad, values in [(False, finite), *((True, finite + [one]) for one in others)]:
                data = array.array(code, zeros + values)
                tensor = _c.dlx_tensor(rows=1, cols=len(data), dtype=dtype,
                                       data=data.buffer_info()[0])
                self.assertEqual(_is_finite(tensor), not bad, values)

    def test_a_loop_that_raises_is_the_reason_elsewhere(self):
        def trip(sync, values):
            sync.step(1)
            raise KeyError("a name of the user's")
        run = self.pair(self.forever, trip)
        self.assertIsInstance(run.raised["b"], KeyError)
        self.assertIsInstance(run.raised["a"], dilocox.PeerLostError)
        self.assertRegex(str(run.raised["a"]), "'b' failed: KeyError: \"a name")

    def test_models_that_differ(self):
        run = self.pair(self.forever, self.forever, shapes=(8, 6))
        self.assertIsInstance(run.raised["b"], DilocoxError)
        self.assertRegex(str(run.raised["b"]) + str(run.raised["a"]), "tensor|model|differ")

    def test_settings_that_differ(self):
        run = self.pair(self.forever, self.forever,
                        ({"shared": {"schedule": "cosine"}}, {"shared": {"schedule": "flat"}}))
        self.assertTrue(any(isinstance(why, dilocox.RefusedError) and "schedule" in str(why)
                            for why in run.raised.values()), run.raised)

    def test_the_anchor_is_left_after_a_failure(self):
        anchors = []

        def stop(sync, values):
            for _ in range(4):
                sync.step(1)
            sync.fail("on purpose")
            with self.assertRaisesRegex(dilocox.PeerLostError, "on purpose"):
                self.forever(sync, values)
            dst = [array.array("f", [0]), array.array("f", [0] * 8)]
            sync.anchor(dst)
            anchors.append((dst[1].tolist(), len(sync.anchor_hashes()), sync.take_anchor()))
        run = self.pair(self.forever, stop)
        self.assertNotIn("b", run.raised)
        self.assertRegex(str(run.raised["a"]), "on purpose")
        self.assertEqual(anchors, [([0.5] * 8, 2, 2)])

    def test_a_callback_s_exception_is_the_cause(self):
        run = self.run_of(1, 100)

        def fetch(tensor, first, count, dst):
            raise LookupError("no such place")
        with self.assertRaisesRegex(DilocoxError, "LookupError: no such place") as raised:
            Sync([Tensor("w", 1, 8)], site="a", hub=run.hub, fetch=fetch,
                 store=lambda *_: None)
        self.assertIsInstance(raised.exception.__cause__, LookupError)

    def test_a_second_thread_is_refused_at_once(self):
        run = self.run_of(2, 100)
        opened, refused = threading.Event(), []

        def one():
            with Sync({"w": ROW}, site="a", hub=run.hub, overlap="none", sync_every=1) as sync:
                def other():
                    try:
                        while not done.is_set():
                            sync.step(1)
                    except DilocoxError as why:
                        refused.append(why)
                        sync.interrupt()
                done, second = threading.Event(), threading.Thread(target=other)
                second.start()
                opened.set()
                try:
                    while True:  # the other site never steps: one of the threads waits
                        sync.step(1)
                except DilocoxError as why:
                    refused.append(why)
                    sync.interrupt()
                done.set()
                second.join()

        def two():
            with Sync({"w": ROW}, site="b", hub=run.hub, overlap="none", sync_every=1):
                opened.wait()
                run.threads[0].join()
        run.site("a", one)
        run.site("b", two)
        for thread in run.threads:
            thread.join()
        self.assertTrue(any("calls come from one thread at a time" in str(why) for why in refused),
                        refused)

    def test_a_callback_may_not_call(self):
        run, seen = self.run_of(1, 2), []

        def fetch(tensor, first, count, dst):
            if opened:
                with self.assertRaisesRegex(DilocoxError, "neither from callbacks"):
                    opened[0].step(1)
                seen.append(opened[0].tokens)  # what it has as attributes is there
        opened = []
        with Sync([Tensor("w", 1, 8)], site="a", hub=run.hub, sync_every=1, fetch=fetch,
                  store=lambda *_: None) as sync:
            opened.append(sync)
            while not sync.finished:
                sync.step(1)
        self.assertTrue(seen)


class Calls(Case):
    def setUp(self):
        super().setUp()
        self.run_ = self.run_of(1, 2)
        self.sync = Sync({"w": array.array("f", [0] * 8)}, site="a", hub=self.run_.hub,
                         sync_every=1)
        self.addCleanup(self.sync.close)

    def test_arguments(self):
        for call, pattern in (
                (lambda: self.sync.step(-1), "^tokens: -1 is out of range"),
                (lambda: self.sync.step(1.0), "^tokens: 1.0 is no integer"),
                (lambda: self.sync.step(None), "^tokens: None is no integer"),
                (lambda: self.sync.anchor([]), "^dst: 0 buffers for 1 tensors"),
                (lambda: self.sync.anchor([ROW[:3]]), "^dst of tensor w: .* 3 values, not 8"),
                (lambda: self.sync.windows(-1), "^count: -1 is out of range")):
            with self.subTest(pattern=pattern), self.assertRaisesRegex(ConfigError, pattern):
                call()
        with self.assertRaisesRegex(DilocoxError, "lease"):
            self.sync.windows(1)
        with self.assertRaisesRegex(DilocoxError, "allreduce"):
            self.sync.gradients([ROW], 1)

    def test_after_the_end(self):
        with self.assertRaisesRegex(DilocoxError, "not finished"):
            self.sync.report("")
        while not self.sync.step(1).finished:
            pass
        self.assertEqual(self.sync.progress, 1)
        with self.assertRaisesRegex(DilocoxError, "finished") as raised:
            self.sync.step(1)
        self.assertEqual(raised.exception.status, Status.STATE)

    def test_after_close(self):
        """What was known can be read still."""
        known = self.sync.tokens, self.sync.round, self.sync.finished, self.sync.statistics()
        self.sync.close()
        self.sync.close()
        self.sync.interrupt()
        self.sync.fail("late")
        self.assertEqual((self.sync.tokens, self.sync.round, self.sync.finished,
                          self.sync.statistics()), known)
        for call in (lambda: self.sync.step(1), lambda: self.sync.windows(1),
                     self.sync.anchor_hashes):
            with self.assertRaisesRegex(DilocoxError, "this Sync is closed"):
                call()
        self.run_.close()
        with self.assertRaisesRegex(DilocoxError, "this Hub is closed"):
            Sync({"w": ROW}, site="a", hub=self.run_.hub)


class Messages(Case):
    def test_options_have_their_names_of_python(self):
        for message, here in (
                ("up to 600 s (wan.join_s)", "up to 600 s (join_timeout)"),
                ("lower train.learning_rate or sync.outer_learning_rate",
                 "lower the learning rate or outer_lr"),
                ("with its snapshot (--resume), others", "with its snapshot (state=), others"),
                ("wan.keys, my.wan.key and wan.key.", "wan.keys, my.wan.key and key.")):
            self.assertEqual(in_keywords(message), here)


if __name__ == "__main__":
    main()
