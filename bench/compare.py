#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The comparison with AllReduce: two sites, each on a core of its own, in the network lab; the same
model, seed and text for every method, on links of several rates. Prints the tables of
docs/benchmarks.md, and writes what was measured and the charts into --out. Needs root.

    bench/compare.py [--quick] [--ratios 1,10,100,400] [--repeats 1] [--out runs/compare]

A link is named by its ratio: the time in which it carries one f32 gradient over the time of a step.
A run on a link ends, by Ctrl-C, after --seconds, but not before ALLREDUCE_STEPS steps or ROUNDS
rounds. Its speed is that between the end of its first round (allreduce: step) and of its last.
*alone*: both sites at once, each a run of its own without a network: what they could do at most."""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

from lab import Lab, Unavailable
from metrics import events

HERE = os.path.dirname(os.path.realpath(__file__))
MODEL = {"family": "llama", "layers": 5, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 352, "context": 64, "vocabulary": 256}
BATCH = 4
STEPS = 800  # of a site in a whole run
ALLREDUCE_STEPS, ROUNDS = 6, 4  # the first of them is not counted
DELAY_S = 0.02
GIVE_UP_S = 600
METHODS = {
    "allreduce, f32": {"overlap": "allreduce", "compression": {"rank": 0, "bits": "none"}},
    "allreduce, f16": {"overlap": "allreduce", "compression": {"rank": 0, "bits": 16}},
    "none, f16": {"overlap": "none", "compression": {"rank": 0, "bits": 16}, "adaptation": "off"},
    "delayed, f32": {"overlap": "delayed", "compression": {"rank": 0, "bits": "none"}, "adaptation": "off"},
    "delayed, rank 64, int4": {"overlap": "delayed"},
    "default": {},
    "default, adaptation link": {"adaptation": "link"},
}
QUICK = ("allreduce, f32", "none, f16", "default", "default, adaptation link")


def parameters():
    m = MODEL
    layer = 4 * m["width"] ** 2 + 3 * m["width"] * m["mlp_width"] + 2 * m["width"]
    return m["layers"] * layer + 2 * m["vocabulary"] * m["width"] + m["width"]


class Bench:
    def __init__(self, options):
        self.dilocox, self.out, self.seconds, self.data = options.dilocox, options.out, options.seconds, options.data
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)
        self.keys = self.make_keys()

    def make_keys(self):
        roster = os.path.join(self.out, "roster.txt")
        with open(roster, "w") as out:
            for name in ("coordinator", "site-1", "site-2"):
                made = subprocess.run([self.dilocox, "keygen", os.path.join(self.out, name + ".key")], check=True, capture_output=True, text=True)
                out.write(f"{name} {made.stdout.strip()}\n")
        return roster

    def config(self, name, method):
        directory = os.path.join(self.out, name)
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        config = {"model": MODEL, "data": {k: f"{self.data}/kjv.{k}.tokens" for k in ("train", "validation")},
                  "train": {"tokens": 2 * STEPS * BATCH * MODEL["context"], "batch": BATCH, "micro_batch": BATCH, "eval_tokens": 1e5,
                            "warmup_tokens": 2e4},
                  "sync": method, "wan": {"timeout_s": 120, "roster": self.keys}, "snapshots": {"keep": 0}}
        path = os.path.join(directory, "config.yaml")
        with open(path, "w") as out:
            json.dump(config, out)
        return directory, path

    def pinned(self, core, *words):
        return ["taskset", "-c", str(core % os.cpu_count()), self.dilocox, *words]

    def alone(self, name):
        """tokens/s of both sites, each a run of its own."""
        started = []
        for core in (0, 1):
            directory, path = self.config(f"{name}-{core + 1}", {"overlap": "none", "inner_steps": 50, "pace": "constant", "adaptation": "off"})
            words = ["train", path, "--sites", "1", "--run-dir", os.path.join(directory, "run"), "--set", f"train.tokens={STEPS // 4 * BATCH * MODEL['context']}"]
            started.append((directory, subprocess.Popen(self.pinned(core, *words), stdout=subprocess.DEVNULL)))
        speed = 0
        for directory, process in started:
            if process.wait() != 0:
                raise SystemExit(f"{directory}: the run ended with code {process.returncode}")
            steps = [e for e in events(os.path.join(directory, "run", "site-1", "metrics.jsonl")) if e["event"] == "step"]
            speed += (len(steps) - 11) * BATCH * MODEL["context"] / (steps[-2]["time_s"] - steps[9]["time_s"])
        return speed

    def run(self, name, method, rate=0, whole=False):
        """What a run in the lab has measured."""
        directory, path = self.config(name, METHODS[method])
        sites = [os.path.join(directory, "run", f"site-{i}") for i in (1, 2)]

        def secured(name):
            return ["--set", f"wan.key={os.path.join(self.out, name + '.key')}", "--run-dir", os.path.join(directory, "run")]
        with Lab(2, rate=rate, delay=DELAY_S if rate else 0) as lab, open(os.path.join(directory, "log"), "w") as log:
            output = {"stdout": log, "stderr": log}
            endpoint = f"{lab.hub.address}:4700"
            started = [lab.hub.start([self.dilocox, "coordinator", path, "--sites", "2", "--listen", endpoint, *secured("coordinator")], **output)]
            for i, place in enumerate(lab.sites, 1):
                words = ["train", path, "--site", f"site-{i}", "--coordinator", endpoint, *secured(f"site-{i}")]
                started.append(place.start(self.pinned(i - 1, *words), **output))
            self.wait(started, sites, METHODS[method].get("overlap") == "allreduce", whole)
        if whole and any(process.returncode != 0 for process in started):
            raise SystemExit(f"{directory}: the run failed; see {directory}/log")
        return self.read(directory, sites)

    def wait(self, started, sites, allreduce, whole):
        begin, enough = None, False
        while any(process.poll() is None for process in started):
            time.sleep(0.2)
            seen = events(os.path.join(sites[0], "metrics.jsonl"))
            steps = [e for e in seen if e["event"] == "step"]
            rounds = [e for e in seen if e["event"] == "round" and e["applied"]]
            begin = begin or (time.monotonic() if steps else None)
            passed_s = time.monotonic() - begin if begin else 0
            enough = len(steps) > ALLREDUCE_STEPS if allreduce else len(rounds) >= ROUNDS
            if not whole and ((enough and passed_s >= self.seconds) or passed_s > GIVE_UP_S):
                break
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in started:
            process.wait()

    def read(self, directory, sites):
        speed, tokens, seconds = 0, 0, 0
        curve = []
        for site in sites:
            seen = events(os.path.join(site, "metrics.jsonl"))
            steps = {e["step"]: e for e in seen if e["event"] == "step"}
            marks = [e for e in seen if e["event"] == "round" and e["applied"]] or list(steps.values())
            first, last = marks[0], marks[-1]
            took_s = last["time_s"] - first["time_s"]
            speed += (last["step"] - first["step"]) * BATCH * MODEL["context"] / took_s
            seconds = max(seconds, took_s)
            tokens += max(steps) * BATCH * MODEL["context"]
            curve = curve or [(e["step"], e["loss"]) for e in steps.values()]
        result = {"tokens_per_s": speed, "seconds": seconds, "marks": len(marks), "curve": curve}
        path = os.path.join(directory, "run", "summary.json")
        if os.path.exists(path):
            with open(path) as text:
                summary = json.load(text)
            result.update(val_loss=summary.get("val_loss"), rounds=summary["rounds"],
                          bytes_per_token=sum(s["wan_bytes_sent"] for s in summary["per_site"]) / max(1, summary["tokens"]))
        return result


# ---- tables and charts ----------------------------------------------------------------------------


def middle(values, form="{:,.0f}"):
    text = form.format(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def print_link(ratio, rate, alone, rows):
    base = statistics.median(rows["allreduce, f32"][k]["tokens_per_s"] for k in range(len(rows["allreduce, f32"])))
    print(f"\nRatio {ratio}: {rate / 1e6:.3g} Mbit/s\n")
    print("| method | tokens/s | speed-up | efficiency | rounds |\n| --- | --- | --- | --- | --- |")
    for method, runs in rows.items():
        speeds = [r["tokens_per_s"] for r in runs]
        print(f"| {method} | {middle(speeds)} | {statistics.median(speeds) / base:,.1f} | "
              f"{statistics.median(speeds) / statistics.median(alone):.3f} | {middle([r['marks'] for r in runs])} |", flush=True)


def smooth(curve, width=32):
    losses = [loss for _, loss in curve]
    return [(step, statistics.fmean(losses[max(0, i - width + 1):i + 1])) for i, (step, _) in enumerate(curve)]


def derive(results, ratio):
    """Training loss when the fastest method has had all tokens, if loss by tokens is as without a network."""
    speeds = {m: statistics.median(r["tokens_per_s"] for r in runs) for m, runs in results["links"][str(ratio)]["runs"].items()}
    tokens = 2 * STEPS * BATCH * MODEL["context"]
    at_s = tokens / max(speeds.values())
    derived = {}
    for method, speed in speeds.items():
        step = at_s * speed / 2 / BATCH / MODEL["context"]
        derived[method] = [loss for s, loss in smooth(results["whole"][method]["curve"]) if s <= max(1, step)][-1]
    return at_s, derived


def charts(out, results, ratio):
    if shutil.which("gnuplot") is None:
        print("no gnuplot (Debian's gnuplot-nox): no charts", file=sys.stderr)
        return
    links = results["links"]
    methods = list(next(iter(links.values()))["runs"])
    with open(os.path.join(out, "speed.dat"), "w") as data:
        for method in methods:
            data.write(f'"{method}"\n')
            for link in links.values():
                base = statistics.median(r["tokens_per_s"] for r in link["runs"]["allreduce, f32"])
                data.write(f"{link['rate'] / 1e6} {statistics.median(r['tokens_per_s'] for r in link['runs'][method]) / base}\n")
            data.write("\n\n")
    with open(os.path.join(out, "loss.dat"), "w") as data:
        for method in methods:
            speed = statistics.median(r["tokens_per_s"] for r in links[str(ratio)]["runs"][method])
            data.write(f'"{method}"\n')
            for step, loss in smooth(results["whole"][method]["curve"])[::4]:
                data.write(f"{2 * step * BATCH * MODEL['context'] / speed} {loss}\n")
            data.write("\n\n")
    form = "set terminal svg size 800,480 dynamic background '#ffffff'\nset key outside right\nset grid\nset logscale x\n"
    for name, x, y, more in (("speed", "link, Mbit/s", "tokens/s over those of allreduce", "set logscale y\n"),
                             ("loss", f"seconds, derived for ratio {ratio}", "training loss", "")):
        script = (f"{form}{more}set output '{out}/{name}.svg'\nset xlabel '{x}'\nset ylabel '{y}'\n"
                  f"plot for [i=0:{len(methods) - 1}] '{out}/{name}.dat' index i with {'linespoints' if name == 'speed' else 'lines'} "
                  "title columnheader(1)\n")
        subprocess.run(["gnuplot"], input=script, text=True, check=True)


def main():
    usage, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dilocox", default=os.path.join(HERE, "..", "build", "dilocox"))
    parser.add_argument("--data", default=os.path.join(HERE, "..", "data"), help="where kjv.train.tokens is (make data)")
    parser.add_argument("--out", default="runs/compare")
    parser.add_argument("--ratios", default="1,10,100,400")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="of each run on a link, at least")
    parser.add_argument("--quick", action="store_true", help="four methods, two links, shorter runs")
    options = parser.parse_args()
    if options.quick:
        global STEPS, ALLREDUCE_STEPS
        STEPS, ALLREDUCE_STEPS, options.seconds = 400, 3, 12
    methods = QUICK if options.quick else tuple(METHODS)
    ratios = [10, 400] if options.quick else [int(r) for r in options.ratios.split(",")]
    for name in ("dilocox", "data", "out"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    bench = Bench(options)
    results = {"parameters": parameters(), "links": {}, "whole": {}, "alone": []}
    print(f"{parameters():,} parameters, {BATCH} x {MODEL['context']} tokens per step and site, {os.cpu_count()} cores; "
          f"one-way delay {DELAY_S * 1e3:g} ms")
    results["alone"].append(bench.alone("alone-0"))
    step_s = 2 * BATCH * MODEL["context"] / results["alone"][0]
    print(f"alone: {results['alone'][0]:,.0f} tokens/s, {step_s * 1e3:.1f} ms per step")
    for ratio in ratios:
        rate = parameters() * 32 / (ratio * step_s)
        runs = {method: [] for method in methods}
        for k in range(options.repeats):
            for method in methods if k % 2 == 0 else reversed(methods):
                runs[method].append(bench.run(f"{ratio}-{list(METHODS).index(method)}-{k}", method, rate))
        results["links"][str(ratio)] = {"rate": rate, "runs": runs}
        results["alone"].append(bench.alone(f"alone-{ratio}"))
        print_link(ratio, rate, results["alone"], runs)
    print("\nWhole runs, no network:\n\n| method | validation loss | bytes per token | rounds |\n| --- | --- | --- | --- |")
    for method in methods:
        w = results["whole"][method] = bench.run(f"whole-{list(METHODS).index(method)}", method, whole=True)
        print(f"| {method} | {w['val_loss']:.4f} | {w['bytes_per_token']:,.1f} | {w['rounds']} |", flush=True)
    at_s, derived = derive(results, ratios[-1])
    print(f"\nDerived: training loss after {at_s:.0f} s on the link of ratio {ratios[-1]}, from both\n\n| method | loss |\n| --- | --- |")
    for method, loss in derived.items():
        print(f"| {method} | {loss:.3f} |")
    print(f"\nalone: {middle(results['alone'])} tokens/s")
    with open(os.path.join(options.out, "results.json"), "w") as out:
        json.dump(results, out)
    charts(options.out, results, ratios[-1])


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(f"compare: {error}")
