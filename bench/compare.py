#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The comparison with AllReduce: two sites, each on a core of its own, in the network lab; the same
model, seed and text for every method, on links of several rates. Prints the tables of
docs/benchmarks.md, and writes what was measured and the charts into --out. Needs root.

    bench/compare.py [--quick] [--free-core] [--ratios 1,10,100,400] [--repeats 1] [--out DIR]

With --free-core both sites train on the first core, also alone, and their exchanges, the coordinator and the relay have the second.
A link is named by its ratio: the time in which it carries one f32 gradient over the time of a step.
Its one-way delay is a fiftieth of that time, and at most 20 ms.
A run on a link goes to its end, since H changes on the way; one that needs more than --most seconds
is ended by Ctrl-C once it has ROUNDS rounds, and one of allreduce, whose steps are alike, once it
has ALLREDUCE_STEPS. Speeds count from the end of the first step to that of the last round that was
applied (allreduce: step).
*alone*: both sites at once, each a run of its own without a network: what they could do at most. It
is measured before and after each run, since processors' speed drifts; *efficiency* is over the mean.
*plan*: tokens/s that `dilocox plan` predicts for as much of the run as was measured, from the link and the time of a step: as the
processor's speed drifts, the CPU time of the training threads in that run; of less than 32 steps, alone's. Of sites that wait for each
other it is the slower one's.
*hidden*: allreduce if each exchange ran while the same site computes, as far as it has to compute;
derived from its measured step and alone's: max(alone's, measured - alone's). No real one reaches
that, since gradients are there only when half of a step's work is done. Speed-ups are over it."""
import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

from keys import make_keys
from lab import Lab, Unavailable
from metrics import events

HERE = os.path.dirname(os.path.realpath(__file__))
MODEL = {"family": "llama", "layers": 5, "width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 352, "context": 64, "vocabulary": 256}
BATCH = 4
STEPS = 800  # of a site in a whole run
ALLREDUCE_STEPS, ROUNDS = 5, 4
GIVE_UP = 4  # times --most
DELAY_S = 0.02  # at most, and a fiftieth of the time of a gradient
# Bytes per second that a core sends and receives in the lab: a site's own 4 ns per byte, and 11 ns of the relay, which uses the
# same cores (CPU time of both in runs of f16 and f32 at 137 Mbit/s).
HOST_RATE = 7e7
WINDOW = 16  # steps whose time is compared between the sites
METHODS = {
    "allreduce, f32": {"overlap": "allreduce", "compression": {"rank": 0, "bits": "none"}},
    "allreduce, f16": {"overlap": "allreduce", "compression": {"rank": 0, "bits": 16}},
    "none, f16": {"overlap": "none", "compression": {"rank": 0, "bits": 16}, "adaptation": "off"},
    "delayed, f32": {"overlap": "delayed", "compression": {"rank": 0, "bits": "none"}, "adaptation": "off"},
    "delayed, rank 64, int4": {"overlap": "delayed", "adaptation": "paper"},
    "default": {},
    "default, adaptation link": {"adaptation": "link"},
}
FREE_CORE = ("allreduce, f32", "default")
QUICK = ("allreduce, f32", "none, f16", "default", "default, adaptation link")


def parameters():
    m = MODEL
    layer = 4 * m["width"] ** 2 + 3 * m["width"] * m["mlp_width"] + 2 * m["width"]
    return m["layers"] * layer + 2 * m["vocabulary"] * m["width"] + m["width"]


def steps_and_rounds(site):
    """What a site has written of steps, and of rounds that were applied."""
    seen = events(os.path.join(site, "metrics.jsonl"))
    return [e for e in seen if e["event"] == "step"], [e for e in seen if e["event"] == "round" and e["applied"]]


def cpu_s(pid):
    """CPU time of a process's first thread."""
    with open(f"/proc/{pid}/task/{pid}/schedstat") as text:
        return int(text.read().split()[0]) / 1e9


class Bench:
    def __init__(self, options):
        self.dilocox, self.out, self.most_s, self.data = options.dilocox, options.out, options.most, options.data
        self.free_core = options.free_core
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)
        self.lags = []  # the slower site's time over the mean, in windows, of each measurement of alone
        self.keys = make_keys(self.dilocox, self.out, ("coordinator", "site-1", "site-2"))

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
        return ["taskset", "-c", "0" if self.free_core else str(core % os.cpu_count()), self.dilocox, *words]

    def exchange_apart(self, processes):
        """All threads of the sites but the first, which train."""
        for process in processes if self.free_core else ():
            for thread in os.listdir(f"/proc/{process.pid}/task") if process.poll() is None else ():
                if int(thread) != process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread), {1})

    def plan(self, path, rate, delay, step_s, *more):
        """What `dilocox plan` prints for a config on this link of the lab."""
        words = ["plan", path, "--sites", "2", "--link", f"{rate / 1e6:.9f}mbit,{delay * 1e3:.9f}ms", "--step", str(step_s),
                 "--host-rate", str(HOST_RATE), *([] if self.free_core else ["--shared-cores"]), *more]
        return subprocess.run([self.dilocox, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()

    def planned(self, name, rate, delay, result):
        """tokens/s that `dilocox plan` predicts for the run of this name."""
        path = os.path.join(self.out, name, "config.yaml")
        with open(path) as text:
            overlap = json.load(text)["sync"].get("overlap")
        alone_s = 2 * BATCH * MODEL["context"] / result["alone"]
        step_s = alone_s if self.free_core else result["step_s"] or alone_s  # two that train on one core have half of it each
        if overlap in ("none", "allreduce"):
            step_s *= statistics.fmean(self.lags[-2:])
        more = [] if result["whole"] else ["--seconds", str(result["seconds"])]
        own = next(line for line in self.plan(path, rate, delay, step_s, *more) if line.startswith("this config"))
        return float(own.split()[-3])  # before the speed-up, and bytes per token

    def alone(self, name):
        """tokens/s of both sites, each a run of its own."""
        started = []
        for core in (0, 1):
            directory, path = self.config(f"{name}-{core + 1}", {"overlap": "none", "inner_steps": 50, "pace": "constant", "adaptation": "off"})
            words = ["train", path, "--sites", "1", "--run-dir", os.path.join(directory, "run"), "--set", f"train.tokens={min(STEPS // 4, 130) * BATCH * MODEL['context']}"]
            started.append((directory, subprocess.Popen(self.pinned(core, *words), stdout=subprocess.DEVNULL)))
        speed, times = 0, []
        for directory, process in started:
            if process.wait() != 0:
                raise SystemExit(f"{directory}: the run ended with code {process.returncode}")
            steps = [e for e in events(os.path.join(directory, "run", "site-1", "metrics.jsonl")) if e["event"] == "step"]
            speed += (len(steps) - 11) * BATCH * MODEL["context"] / (steps[-2]["time_s"] - steps[9]["time_s"])
            at_s = [e["time_s"] for e in steps[9:-1:WINDOW]]
            times.append([end - begin for begin, end in zip(at_s, at_s[1:])])
        self.lags.append(2 * sum(map(max, *times)) / sum(map(sum, times)))
        return speed

    def beside_alone(self, alone, *arguments):
        """A run, and what the sites could do alone before and after it."""
        result = self.run(*arguments)
        alone.append(self.alone("alone"))
        result["alone"] = statistics.fmean(alone[-2:])
        name, _, rate, delay = arguments
        result["planned"] = self.planned(name, rate, delay, result)
        return result

    def run(self, name, method, rate=0, delay=0, whole=False):
        """What a run in the lab has measured."""
        directory, path = self.config(name, METHODS[method])
        sites = [os.path.join(directory, "run", f"site-{i}") for i in (1, 2)]

        def secured(name):
            return ["--set", f"wan.key={os.path.join(self.out, name + '.key')}", "--run-dir", os.path.join(directory, "run")]
        with Lab(2, rate=rate, delay=delay) as lab, open(os.path.join(directory, "log"), "w") as log:
            output = {"stdout": log, "stderr": log}
            endpoint = f"{lab.hub.address}:4700"
            started = [lab.hub.start([self.dilocox, "coordinator", path, "--sites", "2", "--listen", endpoint, *secured("coordinator")], **output)]
            for i, place in enumerate(lab.sites, 1):
                words = ["train", path, "--site", f"site-{i}", "--coordinator", endpoint, *secured(f"site-{i}")]
                started.append(place.start(self.pinned(i - 1, *words), **output))
            step_s = self.wait(started, sites, METHODS[method].get("overlap") == "allreduce", whole)
        if whole and any(process.returncode != 0 for process in started):
            raise SystemExit(f"{directory}: the run failed; see {directory}/log")
        return {**self.read(directory, sites), "step_s": step_s}

    def wait(self, started, sites, allreduce, whole):
        """CPU time of a step of the sites' training threads, up to the last round that was applied; None: fewer than 32 steps."""
        begin, enough, samples = None, False, [[], []]
        while any(process.poll() is None for process in started):
            time.sleep(0.2)
            steps, rounds = steps_and_rounds(sites[0])
            begin = begin or (time.monotonic() if steps else None)
            for of_site, site, process in zip(samples, sites, started[1:]):
                if process.poll() is None:
                    of_site.append((len(steps_and_rounds(site)[0]), cpu_s(process.pid)))
            self.exchange_apart(started[1:])
            passed_s = time.monotonic() - begin if begin else 0
            enough = len(steps) > ALLREDUCE_STEPS if allreduce else len(rounds) >= ROUNDS and passed_s > self.most_s
            if not whole and (enough or passed_s > GIVE_UP * self.most_s):
                break
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in started:
            process.wait()
        taken_s = []
        for of_site, site in zip(samples, sites):
            last = max((e["step"] for e in steps_and_rounds(site)[1]), default=0)
            used = [(steps, s) for steps, s in of_site if 0 < steps <= last]
            if len(used) < 2 or used[-1][0] - used[0][0] < 32:
                return None
            taken_s.append((used[-1][1] - used[0][1]) / (used[-1][0] - used[0][0]))
        return statistics.fmean(taken_s)

    def read(self, directory, sites):
        speed, tokens, seconds, sent, rounds_most = 0, 0, 0, 0, 0
        curve = []
        for site in sites:
            steps, rounds = steps_and_rounds(site)
            last = (rounds or steps)[-1]
            rounds_most = max(rounds_most, len(rounds or steps))
            took_s = last["time_s"] - steps[0]["time_s"]
            speed += (last["step"] - steps[0]["step"]) * BATCH * MODEL["context"] / took_s
            seconds = max(seconds, took_s)
            tokens += last["step"] * BATCH * MODEL["context"]
            sent += last["wan_bytes_sent"]
            curve = curve or [(e["step"], e["time_s"], e["loss"]) for e in steps]
        result = {"tokens_per_s": speed, "seconds": seconds, "bytes_per_token": sent / tokens, "rounds": rounds_most, "curve": curve,
                  "whole": False}
        path = os.path.join(directory, "run", "summary.json")
        if os.path.exists(path):
            with open(path) as text:
                result["val_loss"] = json.load(text).get("val_loss")
            result["whole"] = result["val_loss"] is not None and tokens >= 2 * STEPS * BATCH * MODEL["context"]
        return result


# ---- tables and charts ----------------------------------------------------------------------------


def middle(values, form="{:,.0f}"):
    text = form.format(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def mid(runs, name):
    return statistics.median(r[name] for r in runs)


def hidden(runs):
    """tokens/s of AllReduce whose exchange takes no time while there is something to compute."""
    alone_s = 1 / mid(runs, "alone")
    return 1 / max(alone_s, 1 / mid(runs, "tokens_per_s") - alone_s)


def print_link(ratio, rate, delay, rows):
    base = hidden(rows["allreduce, f32"])
    print(f"\nRatio {ratio}: {rate / 1e6:.3g} Mbit/s, {delay * 1e3:.2g} ms\n")
    print("| method | tokens/s | plan | speed-up | efficiency | bytes per token | rounds | validation loss |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |")
    for method, runs in rows.items():
        speeds = [r["tokens_per_s"] for r in runs]
        loss = middle([r["val_loss"] for r in runs], "{:.3f}") if all(r["whole"] for r in runs) else ""
        print(f"| {method} | {middle(speeds)} | {mid(runs, 'planned'):,.0f} | {statistics.median(speeds) / base:,.2f} | {middle([r['tokens_per_s'] / r['alone'] for r in runs], '{:.3f}')} | "
              f"{middle([r['bytes_per_token'] for r in runs], '{:,.1f}')} | {middle([r['rounds'] for r in runs])} | {loss} |", flush=True)
        if method.startswith("allreduce"):
            speed = hidden(runs)
            print(f"| {method}, hidden (derived) | {speed:,.0f} | | {speed / base:,.2f} | {speed / mid(runs, 'alone'):.3f} | | | |")


def smooth(curve, width=32):
    losses = [loss for *_, loss in curve]
    return [(step, at_s - curve[0][1], statistics.fmean(losses[max(0, i - width + 1):i + 1])) for i, (step, at_s, _) in enumerate(curve)]


def by_time(results, ratio):
    """{method: [(seconds, training loss)]} on a link. Where a run was ended early, the steps are those of the whole
    run without a network, at the link's speed (AllReduce: hidden)."""
    curves = {}
    link = results["links"][str(ratio)]
    for method, runs in link["runs"].items():
        if runs[0]["whole"]:
            curves[method] = [(at_s, loss) for _, at_s, loss in smooth(runs[0]["curve"])]
        else:
            speed = hidden(runs) if method.startswith("allreduce") else mid(runs, "tokens_per_s")
            curves[method + " (derived)"] = [(2 * step * BATCH * MODEL["context"] / speed, loss) for step, _, loss in smooth(results["whole"][method]["curve"])]
    return curves


def at_time(curves):
    """When the first method has had all tokens, and the training loss of each then."""
    end_s = min(curve[-1][0] for curve in curves.values())
    return end_s, {method: [loss for at_s, loss in curve if at_s <= max(end_s, curve[0][0])][-1] for method, curve in curves.items()}


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
                base = hidden(link["runs"]["allreduce, f32"])
                data.write(f"{link['rate'] / 1e6} {mid(link['runs'][method], 'tokens_per_s') / base}\n")
            data.write("\n\n")
    with open(os.path.join(out, "loss.dat"), "w") as data:
        for method, curve in by_time(results, ratio).items():
            data.write(f'"{method}"\n')
            for at_s, loss in curve[4::4]:
                data.write(f"{at_s} {loss}\n")
            data.write("\n\n")
    form = "set terminal svg size 800,480 dynamic background '#ffffff'\nset key outside right\nset grid\nset logscale x\n"
    for name, x, y, more in (("speed", "link, Mbit/s", "tokens/s over those of AllReduce, hidden", "set logscale y\n"),
                             ("loss", f"seconds, link of ratio {ratio}", "training loss", "")):
        script = (f"{form}{more}set output '{out}/{name}.svg'\nset xlabel '{x}'\nset ylabel '{y}'\n"
                  f"plot for [i=0:{len(methods) - 1}] '{out}/{name}.dat' index i with {'linespoints' if name == 'speed' else 'lines'} "
                  "title columnheader(1)\n")
        subprocess.run(["gnuplot"], input=script, text=True, check=True)


def main():
    usage, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dilocox", default=os.path.join(HERE, "..", "build", "dilocox"))
    parser.add_argument("--data", default=os.path.join(HERE, "..", "data"), help="where kjv.train.tokens is (make data)")
    parser.add_argument("--out", help="what was there goes; runs/compare, or runs/compare-quick, unless given")
    parser.add_argument("--ratios", default="1,10,100,400")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--most", type=float, help="seconds of a run on a link; 100, with --quick 20, unless given")
    parser.add_argument("--free-core", action="store_true", help="exchanges have a core of their own; AllReduce in f32 and the default only")
    parser.add_argument("--quick", action="store_true", help="four methods, two links, shorter runs")
    options = parser.parse_args()
    if options.quick:
        global STEPS, ALLREDUCE_STEPS, ROUNDS
        STEPS, ALLREDUCE_STEPS, ROUNDS = 240, 3, 3
    methods = QUICK if options.quick else FREE_CORE if options.free_core else tuple(METHODS)
    ratios = [10, 400] if options.quick else [int(r) for r in options.ratios.split(",")]
    options.most = options.most or (20 if options.quick else 100)
    options.out = options.out or ("runs/compare-quick" if options.quick else "runs/compare")
    for name in ("dilocox", "data", "out"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    bench = Bench(options)
    results = {"parameters": parameters(), "links": {}, "whole": {}, "alone": []}
    print(f"{parameters():,} parameters, {BATCH} x {MODEL['context']} tokens per step and site, {os.cpu_count()} cores")
    alone = results["alone"]
    alone += [bench.alone("alone") for _ in range(3)]
    step_s = 2 * BATCH * MODEL["context"] / statistics.median(alone)
    print(f"alone: {middle(alone)} tokens/s, {step_s * 1e3:.1f} ms per step", flush=True)
    for ratio in ratios:
        rate, delay = parameters() * 32 / (ratio * step_s), min(DELAY_S, ratio * step_s / 50)
        runs = {method: [] for method in methods}
        for k in range(options.repeats):
            for method in methods if k % 2 == 0 else reversed(methods):
                runs[method].append(bench.beside_alone(alone, f"{ratio}-{list(METHODS).index(method)}-{k}", method, rate, delay))
        results["links"][str(ratio)] = {"rate": rate, "delay": delay, "runs": runs}
        print_link(ratio, rate, delay, runs)
    print("\nWhole runs, no network:\n\n| method | validation loss | bytes per token | rounds |\n| --- | --- | --- | --- |")
    for method in methods:
        w = results["whole"][method] = bench.run(f"whole-{list(METHODS).index(method)}", method, whole=True)
        print(f"| {method} | {w['val_loss']:.4f} | {w['bytes_per_token']:,.1f} | {w['rounds']} |", flush=True)
    end_s, losses = at_time(by_time(results, ratios[-1]))
    print(f"\nOn the link of ratio {ratios[-1]} after {end_s:.0f} s\n\n| method | training loss |\n| --- | --- |")
    for method, loss in losses.items():
        print(f"| {method} | {loss:.3f} |")
    print(f"\nalone: {middle(alone)} tokens/s")
    with open(os.path.join(options.out, "results.json"), "w") as out:
        json.dump(results, out)
    charts(options.out, results, ratios[-1])


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(f"compare: {error}")
