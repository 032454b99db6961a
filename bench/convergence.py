#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of each overlap in validation loss, and writes the tables of docs/convergence.md
between its markers.

    bench/convergence.py --dilocox build/dilocox [--out docs/convergence.md] [--seeds 3] [--only NAME,NAME]

Four sites, unless said, are threads of one process (wan.link: mem). Exchanges take a fixed number of inner steps,
so that every run repeats to the bit. Two runs at a time. A method's recovered share is
(alone - method) / (alone - allreduce of as many sites), by seed. A chart beside --out (gnuplot) has the
shares against the time of an exchange."""
import argparse
import concurrent.futures
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

SITES = 4
PLAIN = {"sync.compression.bits": "none", "sync.compression.rank": 0}


class Regime:
    """A model, a batch, a length, and the time of an exchange in inner steps. warmup: share of the run in which the rate rises."""

    def __init__(self, name, steps, settings, warmup=0.025):
        self.name, self.steps, self.settings, self.warmup = name, steps, settings, warmup

    def tokens(self, sites):
        return self.settings["train.batch"] * self.settings["model.context"] * self.steps * sites


def run(dilocox, keep, regime, name, sites, overlap, seed, extra):
    kept = os.path.join(keep, f"{regime.name}-{name}-{seed}.json".replace(" ", "_")) if keep else None
    if kept and os.path.exists(kept):
        with open(kept) as file:
            return json.load(file)
    settings = dict(regime.settings)
    settings.update(extra)
    settings.update({
        "run.seed": seed, "sync.overlap": overlap, "wan.link": "mem",
        "train.tokens": regime.tokens(sites), "train.warmup_tokens": regime.tokens(sites) * regime.warmup,
    })
    with tempfile.TemporaryDirectory() as directory:
        config = os.path.join(directory, "empty.yaml")
        with open(config, "w") as file:
            file.write("{}\n")
        command = [dilocox, "launch", config, "--sites", str(sites), "--run-dir", os.path.join(directory, "run")]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        with open(os.path.join(directory, "run", "summary.json")) as file:
            summary = json.load(file)
    if kept:
        with open(kept, "w") as file:
            json.dump(summary, file)
    return summary


def measure(dilocox, keep, regime, methods, seeds):
    """{(method, seed): summary}"""
    jobs = [(method, seed) for seed in seeds for method in methods]
    results, begun = {}, time.time()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {pool.submit(run, dilocox, keep, regime, name, sites, overlap, seed, extra): (name, seed)
                   for (name, sites, overlap, extra), seed in jobs}
        for future in concurrent.futures.as_completed(futures):
            results[futures[future]] = future.result()
            print(f"{regime.name}: {len(results)} of {len(jobs)} runs, {time.time() - begun:.0f} s", file=sys.stderr)
    return results


def mean_and_range(values, form):
    mean = statistics.mean(values)
    return form.format(mean) if len(values) == 1 else f"{form.format(mean)} ({form.format(min(values))} to {form.format(max(values))})"


def exchange_time(overlap, settings, summary):
    """In inner steps: 0 for `none`, a round for `delayed` and `eager`; for `carry` as set, and a round at most."""
    if overlap == "none":
        return 0
    round_steps = round(summary["steps"] / summary["rounds"], 1)
    return min(settings["sync.exchange_steps"], round_steps) if overlap == "carry" else round_steps


def baseline(sites):
    return "allreduce" if sites == SITES else f"allreduce, {sites} sites"


def shares_of(results, name, sites, seeds):
    """In per cent, by seed."""
    return [100 * (alone - results[name, seed]["val_loss"]) / (alone - results[baseline(sites), seed]["val_loss"])
            for seed in seeds for alone in [results["alone", seed]["val_loss"]]]


def table(regime, methods, results, seeds):
    rows = ["| method | loss | recovered share | above `allreduce` | H, mean | exchange, steps | codec_ratio | compression_ratio |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    beside = next((m[0] for m in methods if m[0] == "allreduce"), methods[1][0])  # alone
    for name, sites, overlap, extra in methods:
        runs = [results[name, seed] for seed in seeds]
        losses = [one["val_loss"] for one in runs]
        best = baseline(sites) if sites > 1 else beside
        shares = shares_of(results, name, sites, seeds) if sites > 1 else [0] * len(seeds)
        above = [100 * (loss / results[best, seed]["val_loss"] - 1) for seed, loss in zip(seeds, losses)]
        exchanging = overlap != "allreduce"
        codec_ratios = [one["codec_ratio"] for one in runs if one["codec_ratio"] is not None]  # None: the sites' differ
        rows.append("| " + " | ".join([
            name, mean_and_range(losses, "{:.4f}"), mean_and_range(shares, "{:.0f}%"), mean_and_range(above, "{:.1f}%"),
            f"{runs[0]['steps'] / runs[0]['rounds']:.1f}" if exchanging else "1" if sites > 1 else "–",
            str(exchange_time(overlap, {**regime.settings, **extra}, runs[0])) if exchanging else "–",
            (f"{statistics.mean(codec_ratios):.1f}" if codec_ratios else "–") if exchanging else "1" if sites > 1 else "–",
            f"{statistics.mean(one['compression_ratio'] for one in runs):.0f}" if exchanging else "1" if sites > 1 else "–",
        ]) + " |")
    return "\n".join(rows)


def replace_between(path, name, text):
    with open(path) as file:
        old = file.read()
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    head, found, rest = old.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        sys.exit(f"{path}: no markers for the table '{name}'")
    with open(path, "w") as file:
        file.write(head + begin + text + "\n" + end + tail)


def chart(path, lines):
    """{method: [(exchange in inner steps, share in per cent)]} as an SVG."""
    if shutil.which("gnuplot") is None:
        print("no gnuplot (Debian's gnuplot-nox): no chart", file=sys.stderr)
        return
    script = ("set terminal svg size 800,400 dynamic background '#ffffff'\nset key outside right\nset grid\n"
              f"set output '{path}'\nset xlabel 'exchange, inner steps'\nset ylabel 'recovered share, %'\nset xrange [-1:32]\n")
    for i, points in enumerate(lines.values()):
        script += f"$line{i} << end\n" + "".join(f"{x} {y}\n" for x, y in sorted(points)) + "end\n"
    script += "plot " + ", ".join(f"$line{i} with linespoints pointtype {i + 4} title '{name}'" for i, name in enumerate(lines)) + "\n"
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


MODEL = {
    "model.family": "llama", "model.layers": 2, "model.width": 64, "model.heads": 4, "model.kv_heads": 2, "model.mlp_width": 176,
    "model.context": 64, "model.vocabulary": 256, "train.precision": "f32", "train.eval_tokens": 1.9e5,
}
# The rest is the default of `dilocox config --defaults`: Muon, its rate, H, the outer step, 4 bits.
DEFAULT = Regime("default", 4000, {**MODEL, "train.batch": 4, "train.micro_batch": 4, "sync.exchange_steps": 2})
# The same with another text, on which nothing was tuned.
OTHER_TEXT = Regime("other_text", 4000, {
    **DEFAULT.settings, "data.train": "data/sotu.train.tokens", "data.validation": "data/sotu.validation.tokens"})
# Wider ones: the default rank of 64 is low for their matrices.
def wide(width, steps):
    return Regime(f"width{width}", steps, {
        **MODEL, "model.layers": 3, "model.width": width, "model.mlp_width": 11 * width // 4, "model.context": 96,
        "train.batch": 4, "train.micro_batch": 4, "sync.exchange_steps": 2})


# examples/quickstart.yaml, but for an exchange that always takes 2 steps.
QUICKSTART = Regime("quickstart", 977, {
    "model.family": "llama", "model.layers": 3, "model.width": 192, "model.heads": 8, "model.kv_heads": 4, "model.mlp_width": 528,
    "model.context": 256, "model.vocabulary": 256, "train.batch": 4, "train.eval_tokens": 1e5,
    "sync.inner_steps": 17, "sync.compression.rank": 0, "sync.exchange_steps": 2}, warmup=0.05)
# A few long rounds at a high rate, with AdamW.
STEEP = Regime("steep", 800, {
    **MODEL, "train.batch": 8, "train.micro_batch": 8, "train.optimizer": "adamw", "train.learning_rate": 1e-2,
    "sync.inner_steps": 25, "sync.pace": "constant", "sync.exchange_steps": 2})
NESTEROV = {"sync.outer_learning_rate": 0.7, "sync.outer_momentum": 0.7}  # the default before quasi-hyperbolic momentum
# A rank for which the default regime's matrices are large enough.
LOW_RANK = {"sync.compression.rank": 24, "sync.adaptation": "off"}

BASELINES = [("allreduce", SITES, "allreduce", {}), ("alone", 1, "allreduce", {})]


def plan(seeds):
    """[(name of the table, regime, [(method, sites, overlap, settings)], seeds)]"""
    overlaps = []
    for overlap in ("none", "delayed", "eager", "carry"):
        overlaps += [(f"{overlap}, f32", SITES, overlap, PLAIN), (f"{overlap}, int4", SITES, overlap, {})]
    steep = [
        ("none, f32, outer 0.7, 0.9", SITES, "none", {**PLAIN, "sync.outer_learning_rate": 0.7, "sync.outer_momentum": 0.9}),
        ("delayed, f32, outer 0.7, 0.9", SITES, "delayed", {**PLAIN, "sync.outer_learning_rate": 0.7, "sync.outer_momentum": 0.9}),
        ("delayed, int4", SITES, "delayed", {}),
        ("carry, int4", SITES, "carry", {}),
        ("carry, int4, exchange as long as the round", SITES, "carry", {"sync.exchange_steps": 25}),
    ]
    compressions = [
        ("carry, int8", SITES, "carry", {"sync.compression.bits": 8}),
        ("carry, int4", SITES, "carry", {}),
        ("carry, int4, rank 24", SITES, "carry", LOW_RANK),
        ("carry, int4, rank 24, unsent not kept", SITES, "carry", {**LOW_RANK, "sync.compression.keep_unsent": "false"}),
        ("carry, int4, rank 24, no error feedback", SITES, "carry", {**LOW_RANK, "sync.compression.error_feedback": "false"}),
    ]
    outer = [("carry, int4, Nesterov 0.7, 0.7", SITES, "carry", NESTEROV), ("carry, int4", SITES, "carry", {})]
    late = [(f"carry, int4, {steps} steps late", SITES, "carry", {"sync.exchange_steps": steps}) for steps in (4, 16)]
    late += [(f"carry, int4, 4 fragments, {steps} steps each", SITES, "carry",
              {"sync.fragments": 4, "sync.inner_steps": 4, "sync.exchange_steps": steps}) for steps in (1, 4)]
    a_round = [("delayed, int4", SITES, "delayed", {}), ("eager, int4", SITES, "eager", {})]
    nesterov = [
        ("delayed, int4, Nesterov 0.7, 0", SITES, "delayed", {"sync.outer_learning_rate": 0.7, "sync.outer_momentum": 0}),
        ("eager, int4, Nesterov 0.7, 0.3", SITES, "eager", {"sync.outer_learning_rate": 0.7, "sync.outer_momentum": 0.3}),
    ]
    rounds = [(f"carry, int4, H {steps}", SITES, "carry", {"sync.inner_steps": steps}) for steps in (4, 16, 40)]
    sites = [method for n in (2, SITES, 8)
             for method in ((baseline(n), n, "allreduce", {}), (f"carry, int4, {n} sites", n, "carry", {}))]
    widths = [("carry, int4", SITES, "carry", {"sync.compression.rank": 0}), ("carry, int4, rank 64", SITES, "carry", {})]
    quickstart = [(baseline(2), 2, "allreduce", {}), ("carry, int4", 2, "carry", {})]
    rates = [(f"{name}, rate {rate}", n, overlap, {"train.learning_rate": rate})
             for name, n, overlap in (("allreduce", SITES, "allreduce"), ("alone", 1, "allreduce"), ("carry, int4", SITES, "carry"))
             for rate in (2e-3, 5e-3)]
    return [("default", DEFAULT, BASELINES + overlaps, seeds),
            ("outer", DEFAULT, BASELINES + outer, seeds),
            ("late", DEFAULT, BASELINES + late + nesterov + a_round, seeds),
            ("other text", OTHER_TEXT, BASELINES + outer + late + a_round, seeds),
            ("quickstart", QUICKSTART, BASELINES[1:] + quickstart, seeds),
            ("rates", DEFAULT, BASELINES + rates, 1),
            ("rounds", DEFAULT, BASELINES + rounds, 1),
            ("sites", DEFAULT, BASELINES[1:] + sites, 1),
            ("width 128", wide(128, 3000), BASELINES + widths, 1),
            ("width 256", wide(256, 1000), BASELINES + widths, 1),
            ("compression", DEFAULT, BASELINES + compressions, 1),
            ("steep", STEEP, BASELINES + steep, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dilocox", default="build/dilocox")
    parser.add_argument("--out", default="docs/convergence.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="tables, with commas")
    parser.add_argument("--keep", help="a directory for summaries; runs whose summary is there are not repeated")
    options = parser.parse_args()
    if options.keep:
        os.makedirs(options.keep, exist_ok=True)
    only, lines = options.only.split(",") if options.only else None, {}
    for name, regime, methods, seed_count in plan(options.seeds):
        if only and name not in only:
            continue
        seeds = list(range(1, seed_count + 1))
        results = measure(options.dilocox, options.keep, regime, methods, seeds)
        replace_between(options.out, name, table(regime, methods, results, seeds))
        for method, sites, overlap, extra in methods:
            if regime in (DEFAULT, OTHER_TEXT) and sites == SITES and method.startswith(("none, int4", "carry, int4", "delayed, int4", "eager, int4")) \
                    and not set(extra) - {"sync.exchange_steps", "sync.fragments", "sync.inner_steps"} and ", H " not in method:
                fragments = extra.get("sync.fragments", 1)
                what = overlap.replace("none", "carry") + (f" in {fragments} fragments" if fragments > 1 else "")
                line = lines.setdefault(f"{what}, {'other text' if regime is OTHER_TEXT else 'King James'}", {})
                at = fragments * statistics.mean(exchange_time(overlap, {**regime.settings, **extra}, results[method, seed]) for seed in seeds)
                line.setdefault(at, statistics.mean(shares_of(results, method, sites, seeds)))  # the first table has most seeds
    if any(len(points) > 1 for points in lines.values()):
        chart(os.path.splitext(options.out)[0] + "-exchange.svg", {name: list(points.items()) for name, points in lines.items()})


if __name__ == "__main__":
    main()
