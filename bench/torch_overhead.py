#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What DiLoCo costs a PyTorch loop: per step between exchanges, in a submit and an apply beside the
same calls from C, and in memory. One site alone, so that nothing waits for another.

    bench/torch_overhead.py --step build/tests/step [--only steps,gpt,calls,memory,ranks]"""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn

import dilocox
from dilocox.torch import DiLoCo

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples",
                                "torch"))
from gpt_plain import GPT  # noqa: E402

BLOCK, BLOCKS = 20, 60
MATRICES, ROWS, COLS = 48, 1024, 1024  # 50.3 million parameters
ROUNDS = 7
failed = []


class Nothing(torch.optim.Optimizer):
    """An optimizer whose step does nothing: what is left is the hook."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        pass


class Alone:
    """A run of one site in this process."""

    def __init__(self, **options):
        self.hub = dilocox.Hub()
        self.coordinator = dilocox.Coordinator(sites=1, tokens=2 ** 40, hub=self.hub)
        self.coordinator.start()
        self.options = dict(site="a", hub=self.hub, tokens_per_step=1, **options)

    def close(self):
        self.coordinator.interrupt()
        self.coordinator.close()
        self.hub.close()


def report(name, value, limit, form):
    print(f"{name}: {form % value}, at most {form % limit}", flush=True)
    if value > limit:
        failed.append(name)


def differences(step, with_hook, without):
    """Seconds per step that the hook adds: medians of blocks, which alternate."""
    times = {True: [], False: []}
    for block in range(2 * BLOCKS):
        on = block % 2 == 0
        (with_hook if on else without)()
        begun = time.perf_counter()
        for _ in range(BLOCK):
            step()
        times[on].append((time.perf_counter() - begun) / BLOCK)
    return statistics.median(times[True]) - statistics.median(times[False]), statistics.median(
        times[False])


def hook_switch(sync, optimizer):
    """Functions that take the hook off, and put it on again."""
    hook = sync._hooks[-1]
    after = hook.after
    return (lambda: setattr(hook, "after", after)), (lambda: setattr(hook, "after", None))


def steps():
    for count, limit_us in ((52, 50), (1000, 300)):
        run = Alone(sync_every=100000, inner_steps_max=100000)
        model = nn.ParameterList(nn.Parameter(torch.zeros(8)) for _ in range(count))
        optimizer = Nothing(model.parameters())
        with DiLoCo(model, optimizer, **run.options) as sync:
            added, _ = differences(optimizer.step, *hook_switch(sync, optimizer))
        run.close()
        report(f"a step between exchanges, {count} tensors, µs", added * 1e6, limit_us, "%.1f")


def gpt():
    torch.manual_seed(0)
    model = GPT(256, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(256, (8, 128))

    def step():
        optimizer.zero_grad()
        model(tokens, tokens).backward()
        optimizer.step()
    run = Alone(sync_every=100000, inner_steps_max=100000)
    global BLOCK, BLOCKS
    BLOCK, BLOCKS, before = 5, 12, (BLOCK, BLOCKS)
    with DiLoCo(model, optimizer, **run.options) as sync:
        added, plain = differences(step, *hook_switch(sync, optimizer))
    BLOCK, BLOCKS = before
    run.close()
    print(f"a step of gpt.py: {1000 * plain:.1f} ms")
    report("of it the hook, %", 100 * added / plain, 0.5, "%.2f")


def matrices(layout="contiguous"):
    new = {"contiguous": lambda: torch.zeros(ROWS, COLS),
           "rows with gaps": lambda: torch.zeros(ROWS, COLS + 16)[:, :COLS],
           "transposed": lambda: torch.zeros(COLS, ROWS).t()}[layout]
    one = [new() for _ in range(MATRICES)]
    for t in one:
        t.copy_((torch.arange(t.numel()) % 17 / 16).view(t.shape))
    return nn.ParameterList(nn.Parameter(t) for t in one)


def calls(program):
    done = subprocess.run([program, str(MATRICES), str(ROWS), str(COLS), str(ROUNDS)], check=True,
                          capture_output=True, text=True)
    from_c = json.loads(done.stdout)
    print(f"from C, 50M parameters: submit {1000 * from_c['submit_s']:.0f} ms, apply "
          f"{1000 * from_c['apply_s']:.0f} ms")
    for name, layout, limit in (("by address", "contiguous", 1.1),
                                ("through fetch and store", "rows with gaps", 2),
                                ("through fetch and store, transposed", "transposed", None)):
        run, model = Alone(sync_every=4, exchange_steps=2, low_rank=0), matrices(layout)
        submit_s, apply_s = [], []
        with DiLoCo(model, **run.options) as sync:
            while len(apply_s) < ROUNDS:
                with torch.no_grad():
                    for p in model:
                        p[0, 0] += 0.001
                begun = time.perf_counter()
                step = sync.step()
                took_s = time.perf_counter() - begun - step.waited_s
                if step.submitted:
                    submit_s.append(took_s)
                    time.sleep(1)  # the exchange, in its thread
                if step.applied:
                    apply_s.append(took_s)
        run.close()
        whole = statistics.median(submit_s) + statistics.median(apply_s)
        print(f"{name}: submit {1000 * statistics.median(submit_s):.0f} ms, apply "
              f"{1000 * statistics.median(apply_s):.0f} ms")
        if limit is not None:
            report(f"submit and apply {name}, of C's",
                   whole / (from_c["submit_s"] + from_c["apply_s"]), limit, "%.2f")


def rss():
    with open("/proc/self/statm", encoding="ascii") as text:
        return int(text.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def outer_state(rank=64):
    """Bytes, as `dilocox plan` has them: anchor, momentum, residual and start, f32 each, and the
    basis; of the exchange the factors and what was said of them in f32, three times their codes,
    and P, Q and one's own Q."""
    factors = rank * (ROWS + COLS)
    codes = factors / 2 + 4 * factors / 64
    return MATRICES * (4 * (4 * ROWS * COLS + rank * COLS) + 2 * 4 * factors + 3 * codes
                       + 4 * rank * (ROWS + 2 * COLS))


def memory():
    # results of past rounds: as few as may be
    run, model = Alone(sync_every=500, history_mib=1), matrices()
    before = rss()
    with DiLoCo(model, **run.options) as sync:
        for _ in range(3000):
            sync.step()
        first = rss()
        report("50M parameters, MB beyond the outer state",
               (first - before - outer_state()) / 1e6, 32, "%.1f")
        for _ in range(2000):
            sync.step()
        report("2,000 steps later, MB more", (rss() - first) / 1e6, 2, "%.1f")
    run.close()


def rank(number, store, endpoint, found):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    model = matrices()
    options = dict(site="a", coordinator=endpoint, unencrypted=True, tokens_per_step=1)
    before = rss()
    with DiLoCo(model, sync_every=4, **options) as sync:
        for _ in range(12):
            sync.step()
        grown = rss() - before
        begun = time.perf_counter()
        for _ in range(300):
            sync._ranks.gather(bytes(320))
        gather_s = (time.perf_counter() - begun) / 300
    found.put((number, grown, gather_s))


def small_rank(number, store, endpoint, found):
    import torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    model = nn.ParameterList(nn.Parameter(torch.zeros(8)) for _ in range(52))
    optimizer = Nothing(model.parameters())
    with DiLoCo(model, optimizer, site="a", coordinator=endpoint, unencrypted=True,
                tokens_per_step=1, sync_every=100000, inner_steps_max=100000) as sync:
        added, _ = differences(optimizer.step, *hook_switch(sync, optimizer))
    found.put((number, added))


def on_two_ranks(target):
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory, dilocox.Coordinator(
            sites=1, tokens=2 ** 40, unencrypted=True) as coordinator:
        coordinator.start()
        found = context.Queue()
        processes = [context.Process(target=target, args=(
            number, os.path.join(directory, "store"), coordinator.endpoint, found))
            for number in range(2)]
        for process in processes:
            process.start()
        answers = sorted(found.get() for _ in processes)
        for process in processes:
            process.join()
        coordinator.interrupt()
    return answers


def ranks():
    for number, grown, gather_s in on_two_ranks(rank):
        report(f"rank {number} of 2, of the outer state alone", grown / outer_state(), 0.55,
               "%.2f")
    added_us = 1e6 * max(added for _, added in on_two_ranks(small_rank))
    print(f"two ranks: a step {added_us:.0f} µs more, one gather {1e6 * gather_s:.0f} µs")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", default="build/tests/step", help="bench/step.c, built")
    parser.add_argument("--only", default="steps,gpt,calls,memory,ranks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.only.split(","):
        {"steps": steps, "gpt": gpt, "calls": lambda: calls(args.step), "memory": memory,
         "ranks": ranks}[part]()
    if failed:
        sys.exit(f"above their limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()
