#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What snapshots cost: a site that writes one about every minute against one that writes none,
alternating; their speed, their peak memory, and the time of a write against that of dd. Prints the
table of docs/benchmarks.md. Pin it to one core, which the training and the writing share:

    taskset -c 1 bench/snapshots.py [--dilocox build/dilocox] [--pairs 3] [--steps 230]

If other processes use the core, the CPU's time per token says more than tokens/s; it is without the
waits for the disk."""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from metrics import events

MODEL = {"family": "llama", "layers": 4, "width": 512, "heads": 8, "kv_heads": 8, "mlp_width": 1408,
         "context": 64, "vocabulary": 8192, "tied_head": True}
BATCH, INNER_STEPS = 4, 14  # 8 rounds take more than a minute
SKIPPED = 2  # first steps, which touch memory and prepare kernels


def run(dilocox, directory, steps, keep):
    """Ctrl-C after so many steps; with snapshots the site writes the last one then."""
    results = os.path.join(directory, "run")
    shutil.rmtree(results, ignore_errors=True)
    config = {"model": MODEL, "run": {"dir": results},
              "data": {"train": os.path.join(directory, "data.train.tokens"),
                       "validation": os.path.join(directory, "data.validation.tokens")},
              "train": {"tokens": "1e9", "batch": BATCH, "micro_batch": BATCH,
                        "optimizer": "adamw", "eval_tokens": 64, "learning_rate": "1e-4"},
              "sync": {"overlap": "none", "inner_steps": INNER_STEPS, "pace": "constant",
                       "adaptation": "off"},
              "snapshots": {"minutes": 1, "keep": keep}, "wan": {"link": "mem"}}
    path = os.path.join(directory, "config.yaml")
    with open(path, "w") as out:
        json.dump(config, out)
    process = subprocess.Popen([dilocox, "launch", path, "--sites", "1"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    metrics = os.path.join(results, "site-1", "metrics.jsonl")
    while not any(event.get("step", 0) >= steps for event in events(metrics)):
        if process.poll() is not None:
            raise SystemExit(f"{path}: the run ended with code {process.returncode}")
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    usage = os.wait4(process.pid, 0)[2]
    process.returncode = 1
    done = events(metrics)
    times = [event["time_s"] for event in done if event["event"] == "step"]
    took = [after - before for before, after in zip(times[SKIPPED - 1:], times[SKIPPED:])]
    tokens = BATCH * MODEL["context"] * len(times)
    return {"tokens_per_s": BATCH * MODEL["context"] * len(took) / sum(took),
            "longest_step_s": max(took), "peak_bytes": 1024 * usage.ru_maxrss,
            "cpu_ms_per_token": 1e3 * (usage.ru_utime + usage.ru_stime) / tokens,
            "snapshots": [event for event in done if event["event"] == "snapshot"],
            "round_s": INNER_STEPS * statistics.median(took)}


def dd(directory):
    """Seconds of copying the newest snapshot's file, which is in memory, to the same disk, and of
    removing the copy."""
    snapshots = os.path.join(directory, "run", "site-1", "snapshots")
    newest = os.path.join(snapshots, max(os.listdir(snapshots)), "rank-0000.safetensors")
    copy = os.path.join(directory, "copy")
    begun_s = time.monotonic()
    subprocess.run(["dd", f"if={newest}", f"of={copy}", "bs=1M", "conv=fsync"], check=True,
                   stderr=subprocess.DEVNULL)
    copied_s = time.monotonic()
    os.remove(copy)
    return copied_s - begun_s, time.monotonic() - copied_s


def spread(values, digits):
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(dilocox, directory, pairs, steps):
    without, written, copies = [], [], []
    for pair in range(pairs):
        for keep in (0, 1) if pair % 2 == 0 else (1, 0):
            result = run(dilocox, directory, steps, keep)
            (written if keep > 0 else without).append(result)
            if keep > 0:
                copies += [dd(directory) for _ in range(3)]
            print(f"pair {pair + 1}, snapshots.keep {keep}: {result['tokens_per_s']:.1f} tokens/s, "
                  f"round {result['round_s']:.1f} s, snapshots after rounds "
                  f"{[event['round'] for event in result['snapshots']]}", flush=True)
    bytes_of_one = written[0]["snapshots"][-1]["bytes"]
    times = [[event["seconds"] for event in result["snapshots"]] for result in written]
    first, later = [of[0] for of in times], [seconds for of in times for seconds in of[1:-1]]
    ratios = [b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(without, written)]
    cpu = [b["cpu_ms_per_token"] / a["cpu_ms_per_token"] for a, b in zip(without, written)]
    more = [(b["peak_bytes"] - a["peak_bytes"]) / 1e6 for a, b in zip(without, written)]
    copied_s, removed_s = (statistics.median(of) for of in zip(*copies))
    print(f"a snapshot has {bytes_of_one / 1e6:.0f} MB, the largest tensor "
          f"{4e-6 * MODEL['vocabulary'] * MODEL['width']:.1f} MB\n| | without | with |\n"
          "| --- | --- | --- |")
    for name, key, scale, digits in (("tokens/s", "tokens_per_s", 1, 1),
                                     ("CPU time, ms per token", "cpu_ms_per_token", 1, 3),
                                     ("longest step, s", "longest_step_s", 1, 2),
                                     ("peak memory, MB", "peak_bytes", 1e-6, 1)):
        print(f"| {name} | {spread([scale * r[key] for r in without], digits)} | "
              f"{spread([scale * r[key] for r in written], digits)} |")
    print(f"with / without, pair by pair: tokens/s {spread(ratios, 3)}, CPU time "
          f"{spread(cpu, 3)}; peak memory, with − without, MB: {spread(more, 1)}\n"
          f"seconds of dd: {spread([copy for copy, _ in copies], 2)}, "
          f"{bytes_of_one / 1e6 / copied_s:.0f} MB/s; of rm: {spread([rm for _, rm in copies], 2)}")
    for name, seconds, like in (("the first, while training", first, copied_s),
                                ("later ones, which remove one", later, copied_s + removed_s),
                                ("at Ctrl-C, too", [of[-1] for of in times], copied_s + removed_s)):
        if not seconds:
            print(f"seconds of a snapshot, {name}: none; more --steps give some")
            continue
        print(f"seconds of a snapshot, {name}: {spread(seconds, 2)}; dd's, and rm's: "
              f"{like / statistics.median(seconds):.2f} of it")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dilocox", default="build/dilocox")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=230, help="of each run")
    parser.add_argument("--directory", help="on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    dilocox = os.path.abspath(arguments.dilocox)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        text = os.path.join(directory, "text.txt")
        with open(text, "w") as out:
            out.write("".join(f"{i} bottles of water on the wall, {i} bottles of water; "
                              for i in range(4000)))
        subprocess.run([dilocox, "tokenize", text, os.path.join(directory, "data"),
                        "--validation-every", "4", "--block", "4096"], check=True,
                       stdout=subprocess.DEVNULL)
        measure(dilocox, directory, arguments.pairs, arguments.steps)


if __name__ == "__main__":
    main()
