# SPDX-License-Identifier: Apache-2.0
"""C and Python, equal to the bit: one table of integers drives three sites on a hub through each
overlap, in a C program and through the package, over buffers and over fetch and store, in f32 and
16 bits. Parameters, hashes and statistics are compared after every step."""
import array
import ctypes
import os
import random
import struct
import subprocess
import time

import dilocox
from dilocox import Status
from support import DEADLINE_S, Case, main

SITES, STEPS, ROWS, COLS, VECTOR, MEANS = 3, 200, 24, 16, 10, 6
SHAPES = {"matrix": (ROWS, COLS), "vector": (1, VECTOR), "means": (1, MEANS)}
VALUES = ROWS * COLS + VECTOR + MEANS
OVERLAPS = ("allreduce", "none", "delayed", "eager", "carry")
DTYPES = ("f32", "bf16", "f16")
COUNTS = ("rounds", "committed_tokens", "round_bytes", "raw_bytes", "payload_bytes", "inner_steps",
          "anchor_hash", "low_rank_tensors", "plain_tensors", "low_rank_parameters")
REALS = ("factor_rank_mean", "update_norm", "outer_learning_rate", "outer_momentum", "weight",
         "outer_momentum_rate", "submitted_norm", "mean_norm", "momentum_norm", "unsent_norm",
         "agreement", "persistence")


def widen(bits, dtype):
    """A 16-bit value as a float."""
    if dtype == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def narrow(value, dtype):
    """A float that has a 16-bit value, as that."""
    if dtype == "bf16":
        word = struct.unpack("<I", struct.pack("<f", value))[0]
        assert word & 0xFFFF == 0, value
        return word >> 16
    bits = struct.unpack("<H", struct.pack("<e", value))[0]
    assert widen(bits, dtype) == value, value
    return bits


class Site:
    """One site's parameters, as tensors of the package, and its inner steps."""

    def __init__(self, overlap, dtype, behind):
        self.overlap, self.dtype, self.behind = overlap, dtype, behind
        first = {"f32": 0, "bf16": 0x3F80, "f16": 0x3C00}[dtype]
        self.values = (array.array("f", [(k % 17 - 8) / 16 for k in range(VALUES)])
                       if dtype == "f32" else
                       array.array("H", [first + k % 97 for k in range(VALUES)]))
        self.offsets, self.calls, at = [], [], 0
        for rows, cols in SHAPES.values():
            self.offsets.append(at)
            at += rows * cols

    def tensors(self):
        names = list(SHAPES)[:2 if self.overlap == "allreduce" else 3]
        view = memoryview(self.values)
        return [dilocox.Tensor(
            name, *SHAPES[name], dtype=self.dtype, statistics=name == "means",
            data=None if self.behind else view[at:at + SHAPES[name][0] * SHAPES[name][1]])
            for name, at in zip(names, self.offsets)]

    def fetch(self, tensor, first, count, dst):
        self.calls.append(("fetch", tensor, first))
        at, floats = self.offsets[tensor] + first, (ctypes.c_float * count).from_address(dst)
        for i in range(count):
            value = self.values[at + i]
            floats[i] = value if self.dtype == "f32" else widen(value, self.dtype)

    def store(self, tensor, first, count, src):
        self.calls.append(("store", tensor, first))
        at, floats = self.offsets[tensor] + first, (ctypes.c_float * count).from_address(src)
        for i in range(count):
            self.values[at + i] = (floats[i] if self.dtype == "f32" else
                                   narrow(floats[i], self.dtype))

    def inner_step(self, row):
        values = self.values
        if self.dtype == "f32":
            for k, by in enumerate(row):
                values[k] += by / 256
        else:
            for k, by in enumerate(row):
                values[k] ^= by & 3


def wait_for_commit(sync):
    """The exchange that a step began is through: what follows does not depend on timing."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            sync.state_parts()
            return
        except dilocox.DilocoxError as why:
            if why.status != Status.AGAIN:
                return  # the run is finished
        time.sleep(0.001)
    raise AssertionError("the exchange is not through")


def train(run, number, site, table, records):
    with dilocox.Sync(site.tensors(), site=f"site-{number}", hub=run.hub, overlap=site.overlap,
                      sync_every=4, exchange_steps=2 if site.overlap == "carry" else 0, low_rank=4,
                      group=16, staging=site.staging, fetch=site.fetch if site.behind else None,
                      store=site.store if site.behind else None) as sync:
        step, out = None, []
        for i in range(10 * STEPS):
            row = table[number][i % STEPS]
            if site.overlap == "allreduce":
                gradients = [array.array("f", [by / 256 for by in row[:ROWS * COLS]]),
                             array.array("f", [by / 256 for by in row[ROWS * COLS:-MEANS]])]
                sync.gradients(gradients, 1)
                out += [one.tobytes() for one in gradients]
            site.inner_step(row)
            site.calls.clear()
            step = sync.step(1)
            site.passes.append((step, [one[0] for one in site.calls if one[1:] == (0, 0)]))
            if site.overlap != "allreduce":
                wait_for_commit(sync)
            hashes, st = sync.anchor_hashes(), sync.statistics()
            site.norms.append(st.update_norm)
            out += [site.values.tobytes(), struct.pack(f"<{len(hashes)}Q", *hashes), struct.pack(
                "<16Q", step.submitted, step.applied, step.finished, step.inner_steps,
                step.step_in_round, step.round, *(getattr(st, name) for name in COUNTS)),
                struct.pack("<12d", *(getattr(st, name) for name in REALS))]
            if step.finished:
                break
        records[number] = b"".join(out)


class Bits(Case):
    def setUp(self):
        super().setUp()
        numbers = random.Random(7)
        self.table = [[[numbers.randint(-128, 127) for _ in range(VALUES)] for _ in range(STEPS)]
                      for _ in range(SITES)]
        with open(self.path("table"), "wb") as out:
            for site in self.table:
                for row in site:
                    out.write(struct.pack(f"{VALUES}b", *row))

    def in_c(self, overlap, dtype):
        subprocess.run([os.environ["BITS"], str(OVERLAPS.index(overlap)),
                        str(DTYPES.index(dtype)), self.path("table"), self.path("out")],
                       check=True, timeout=DEADLINE_S)
        records = []
        for number in range(SITES):
            with open(self.path(f"out.{number}"), "rb") as text:
                records.append(text.read())
        return records

    def in_python(self, overlap, dtype, behind, table=None):
        run = self.run_of(SITES, SITES * STEPS)
        records, sites = [b""] * SITES, []
        for number in range(SITES):
            site = Site(overlap, dtype, behind)
            site.passes, site.norms, site.staging = [], [], None
            if behind:  # so small that tensors pass in several chunks
                site.memory = (ctypes.c_float * 64)()
                site.staging = (ctypes.addressof(site.memory), ctypes.sizeof(site.memory))
            sites.append(site)
            run.site(f"site-{number}", train, run, number, site, table or self.table, records)
        run.end()
        return records, sites

    def test_c_and_python_are_equal(self):
        for overlap in OVERLAPS:
            for dtype in DTYPES:
                expected = self.in_c(overlap, dtype)
                self.assertGreater(len(expected[0]), 200 * 800)
                for behind in (False, True):
                    with self.subTest(overlap=overlap, dtype=dtype, behind_callbacks=behind):
                        records, sites = self.in_python(overlap, dtype, behind)
                        self.assertEqual([len(one) for one in records],
                                         [len(one) for one in expected])
                        for number in range(SITES):
                            self.assertTrue(records[number] == expected[number],
                                            f"site {number} differs")
                        if behind:
                            self.passes(overlap, sites)

    def passes(self, overlap, sites):
        """The callbacks run when a round is submitted or applied, and else never."""
        for site in sites:
            for step, calls in site.passes:
                busy = step.submitted or step.applied
                self.assertLessEqual(len(calls), 3 if busy and overlap != "allreduce" else
                                     1 if step.finished else 0, (step, calls))

    def test_without_training_nothing_is_submitted(self):
        """Rounding is no training: ‖M‖ is 0 in every round."""
        idle = [[[0] * VALUES for _ in range(STEPS)] for _ in range(SITES)]
        for overlap in OVERLAPS:
            for dtype in DTYPES:
                with self.subTest(overlap=overlap, dtype=dtype):
                    _, sites = self.in_python(overlap, dtype, False, idle)
                    for site in sites:
                        self.assertGreater(len(site.norms), STEPS - 8)
                        self.assertEqual(set(site.norms), {0.0})


if __name__ == "__main__":
    main()
