#!/usr/bin/python3
"""Measures what each overlap costs in validation loss, and writes the tables of docs/convergence.md between its markers.

    bench/convergence.py --dilocox build/dilocox [--out docs/convergence.md] [--seeds 3] [--only NAME]

Four sites are threads of one process (wan.link: mem); exchanges take a fixed number of inner steps, so that every run repeats to
the bit whatever else the machine does. Two runs at a time. A method's recovered share is (alone - method) / (alone - allreduce), by seed."""
import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SITES = 4
PLAIN = {"sync.compression.bits": "none", "sync.compression.rank": 0}


class Regime:
    """A model, a batch and a length; and the exchange's time in inner steps."""

    def __init__(self, name, steps, settings):
        self.name, self.steps, self.settings = name, steps, settings

    def tokens(self, sites):
        return self.settings["train.batch"] * self.settings["model.context"] * self.steps * sites


def run(dilocox, regime, sites, overlap, seed, extra):
    settings = dict(regime.settings)
    settings.update(extra)
    settings.update({
        "run.seed": seed, "sync.overlap": overlap, "wan.link": "mem",
        "train.tokens": regime.tokens(sites), "train.warmup_tokens": regime.tokens(sites) * 0.025,
    })
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "empty.yaml")
        with open(config, "w") as file:
            file.write("{}\n")
        command = [dilocox, "launch", config, "--sites", str(sites), "--run-dir", os.path.join(folder, "run")]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        with open(os.path.join(folder, "run", "summary.json")) as file:
            return json.load(file)


def measure(dilocox, regime, methods, seeds):
    """{(method, seed): summary}"""
    jobs = [(method, seed) for seed in seeds for method in methods]
    results, begun = {}, time.time()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {pool.submit(run, dilocox, regime, sites, overlap, seed, extra): (name, seed)
                   for (name, sites, overlap, extra), seed in jobs}
        for future in concurrent.futures.as_completed(futures):
            results[futures[future]] = future.result()
            print(f"{regime.name}: {len(results)} of {len(jobs)} runs, {time.time() - begun:.0f} s", file=sys.stderr)
    return results


def mean_and_range(values, form):
    mean = statistics.mean(values)
    return form.format(mean) if len(values) == 1 else f"{form.format(mean)} ({form.format(min(values))} to {form.format(max(values))})"


def table(methods, results, seeds):
    rows = ["| method | loss | recovered share | above `allreduce` | H | exchange, steps | codec_ratio | compression_ratio |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, _, overlap, _ in methods:
        runs = [results[name, seed] for seed in seeds]
        losses = [one["val_loss"] for one in runs]
        shares, above = [], []
        for seed, loss in zip(seeds, losses):
            best, alone = results["allreduce", seed]["val_loss"], results["alone", seed]["val_loss"]
            shares.append(100 * (alone - loss) / (alone - best))
            above.append(100 * (loss / best - 1))
        exchanging = overlap != "allreduce"
        rows.append("| " + " | ".join([
            name, mean_and_range(losses, "{:.4f}"), mean_and_range(shares, "{:.0f}%"), mean_and_range(above, "{:.1f}%"),
            str(runs[0]["inner_steps"]) if exchanging else "1" if name == "allreduce" else "–",
            f"{statistics.mean(one['exchange_steps_mean'] for one in runs):.1f}" if exchanging else "–",
            f"{statistics.mean(one['codec_ratio'] for one in runs):.1f}" if exchanging else "1" if name == "allreduce" else "–",
            f"{statistics.mean(one['compression_ratio'] for one in runs):.0f}" if exchanging else "1" if name == "allreduce" else "–",
        ]) + " |")
    return "\n".join(rows)


def replace_between(path, name, text):
    with open(path) as file:
        old = file.read()
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
    if begin not in old or end not in old:
        sys.exit(f"{path}: no place for the table '{name}'")
    head, rest = old.split(begin, 1)
    with open(path, "w") as file:
        file.write(head + begin + text + end + rest.split(end, 1)[1])


MODEL = {
    "model.family": "llama", "model.layers": 2, "model.width": 32, "model.heads": 2, "model.kv_heads": 2, "model.mlp_width": 88,
    "model.context": 64, "model.vocabulary": 256, "train.precision": "f32", "train.eval_tokens": 1.9e5, "sync.adaptation": "off",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dilocox", default="build/dilocox")
    parser.add_argument("--out", default="docs/convergence.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="one regime")
    options = parser.parse_args()
    for name, regime, methods, seed_count in plan(options.seeds):
        if options.only not in (None, name):
            continue
        seeds = list(range(1, seed_count + 1))
        results = measure(options.dilocox, regime, methods, seeds)
        replace_between(options.out, name, table(methods, results, seeds))


if __name__ == "__main__":
    main()
