#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The cost of a pipeline: 2 stages of one thread against 1 stage of two threads on the same cores,
alternating, and the idle share of a stage by micro-batches. Prints the tables of docs/benchmarks.md.

    bench/pipeline.py [--dilocox build/dilocox] [--runs 3] [--only throughput|idle]"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile

MPIRUN = ["mpirun", "-q", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
GPT2 = {"model": {"family": "gpt2", "layers": 12, "width": 768, "heads": 12, "mlp_width": 3072, "context": 64,
                  "vocabulary": 50304, "tied_head": True}}
SMALLER = {"model": {"family": "llama", "layers": 8, "width": 512, "heads": 8, "kv_heads": 8, "mlp_width": 1408,
                     "context": 64, "vocabulary": 256}}
SKIPPED = 2  # first steps, which touch memory and prepare kernels


def run(dilocox, directory, model, batch, steps, ranks=1, **sets):
    """tokens/s between steps SKIPPED and the last, and per_rank of the summary."""
    shutil.rmtree(os.path.join(directory, "run"), ignore_errors=True)
    config = {**model, "run": {"dir": os.path.join(directory, "run")},
              "data": {"train": os.path.join(directory, "data.train.tokens"),
                       "validation": os.path.join(directory, "data.validation.tokens")},
              "train": {"tokens": batch * 64 * steps, "batch": batch, "micro_batch": 1, "optimizer": "adamw",
                        "eval_tokens": 64, "learning_rate": "1e-4"},
              "sync": {"overlap": "none", "inner_steps": steps, "pace": "constant", "adaptation": "off"}}
    path = os.path.join(directory, "config.yaml")
    with open(path, "w") as out:
        json.dump(config, out)
    command = [dilocox, "train", path, "--sites", "1"]
    for key, value in sets.items():
        command += ["--set", f"{key.replace('__', '.')}={value}"]
    if ranks > 1:
        command = [*MPIRUN, "-n", str(ranks), *command]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(directory, "run", "site-1", "metrics.jsonl")) as lines:
        times = [e["time_s"] for e in map(json.loads, lines) if e["event"] == "step"]
    with open(os.path.join(directory, "run", "site-1", "summary.json")) as text:
        per_rank = json.load(text)["per_rank"]
    # without the last step, which submits and waits for the commit
    seconds = times[-2] - times[SKIPPED - 1]
    return batch * 64 * (len(times) - 1 - SKIPPED) / seconds, per_rank


def spread(values, digits=0):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def throughput(dilocox, directory, runs):
    print("GPT-2 124M shape, T = 64, 16 micro-batches of one window, AdamW, bf16 if the CPU has it; alternating")
    rates = {"1 stage, 2 threads": [], "2 stages, 1 thread": []}
    shares, ratios = [], []
    for _ in range(runs):
        rate, _ = run(dilocox, directory, GPT2, 16, 7, site__threads=2)
        rates["1 stage, 2 threads"].append(rate)
        rate, ranks = run(dilocox, directory, GPT2, 16, 7, ranks=2, site__stages=2)
        rates["2 stages, 1 thread"].append(rate)
        shares.append([rank["idle_share"] for rank in ranks])
        ratios.append(rate / rates["1 stage, 2 threads"][-1])
    print("| run | tokens/s: median (range) |\n| --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {spread(values)} |")
    print(f"| ratio, run by run | {spread(ratios, 2)} |")
    for stage in range(2):
        print(f"idle share of stage {stage}: {spread([100 * s[stage] for s in shares], 1)} %")


def idle(dilocox, directory, runs):
    print("8 layers, 512 wide, T = 64, 2 stages, one thread each: idle share of a stage, %")
    print("| micro-batches | (S-1)/(m+S-1) | stage 0 | stage 1 |\n| --- | --- | --- | --- |")
    for micro_batches in (2, 4, 8, 16):
        shares = [[100 * rank["idle_share"] for rank in run(dilocox, directory, SMALLER, micro_batches, 40, ranks=2,
                                                            site__stages=2)[1]] for _ in range(runs)]
        print(f"| {micro_batches} | {100 / (micro_batches + 1):.1f} | {spread([s[0] for s in shares], 1)} |"
              f" {spread([s[1] for s in shares], 1)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dilocox", default="build/dilocox")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=("throughput", "idle"))
    arguments = parser.parse_args()
    dilocox = os.path.abspath(arguments.dilocox)
    with tempfile.TemporaryDirectory() as directory:
        text = os.path.join(directory, "text.txt")
        with open(text, "w") as out:
            out.write("".join(f"{i} bottles of water on the wall, {i} bottles of water; " for i in range(4000)))
        subprocess.run([dilocox, "tokenize", text, os.path.join(directory, "data"), "--validation-every", "4", "--block",
                        "4096"], check=True, stdout=subprocess.DEVNULL)
        for name, measure in (("throughput", throughput), ("idle", idle)):
            if arguments.only in (None, name):
                measure(dilocox, directory, arguments.runs)


if __name__ == "__main__":
    main()
