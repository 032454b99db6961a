#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `dilocox plan` predicts and advises, against runs in the network lab (bench/compare.py: two sites, a core each) on other links
and for other models than that comparison's. Needs root; 2 minutes per setting.

    bench/plan_check.py [--settings 1,2,3,4,5] [--seconds 30] [--out runs/plan]

*default*: the config's defaults with the setting's H. *advice*: with what plan advises for it from the step's time, which is
measured first, without a network. A run ends after --seconds, or with its tokens. *plan*: from the CPU time of a step in that run
(compare.py). *efficiency*: of that step's time over what a step took. *loss*: mean training loss of the first site's last 32 steps."""
import argparse
import os
import statistics
import sys

import compare
from lab import Unavailable

# Mbit/s, one-way delay in ms, width, H
SETTINGS = {
    "1": (3, 80, 128, 20),
    "2": (20, 100, 192, 32),
    "3": (60, 5, 64, 8),
    "4": (6, 250, 128, 24),
    "5": (0.8, 20, 64, 16),
}


def method_of(lines, inner_steps):
    """The options of sync that plan advises, in a config."""
    method = {"inner_steps": inner_steps}
    words = next((line for line in lines if "Advised:" in line), "").split()
    for word in words:
        if word.startswith("sync."):
            key, value = word.removeprefix("sync.").split("=")
            to = method.setdefault("compression", {}) if key.startswith("compression.") else method
            to[key.removeprefix("compression.")] = int(value) if value.isdigit() else value
    return method


def check(bench, number, said):
    megabits, delay_ms, width, inner_steps = SETTINGS[number]
    rate, delay = megabits * 1e6, delay_ms / 1e3
    compare.MODEL = {**compare.MODEL, "width": width, "mlp_width": 11 * width // 4}
    compare.STEPS = 102400 // width  # about half a minute
    alone = [bench.alone("alone")]
    step_s = 2 * compare.BATCH * compare.MODEL["context"] / alone[0]
    compare.METHODS = {"default": {"inner_steps": inner_steps}}
    _, path = bench.config("advised", compare.METHODS["default"])
    compare.METHODS["advice"] = method_of(bench.plan(path, rate, delay, step_s), inner_steps)
    said(f"\n{number}: {megabits} Mbit/s, {delay_ms} ms, {compare.parameters() / 1e6:.2f}M parameters, step {step_s * 1e3:.1f} ms; "
         f"advised: {compare.METHODS['advice']}\n\n"
         "| | tokens/s | plan | plan / measured | efficiency | rounds | seconds | loss |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    shares, speeds = {}, []
    for name in compare.METHODS:
        r = bench.beside_alone(alone, f"{number}-{name}", name, rate, delay)
        shares[name] = r["tokens_per_s"] * r["step_s"] / (2 * compare.BATCH * compare.MODEL["context"])
        loss = statistics.fmean(loss for *_, loss in r["curve"][-32:])
        said(f"| {name} | {r['tokens_per_s']:,.0f} | {r['planned']:,.0f} | {r['planned'] / r['tokens_per_s']:.2f} | {shares[name]:.3f} | "
             f"{r['rounds']} | {r['seconds']:.0f} | {loss:.3f} |")
        speeds.append(r["tokens_per_s"])
    said(f"\nadvice over default: tokens/s {speeds[1] / speeds[0]:.2f}, efficiency {shares['advice'] / shares['default']:.2f}")


def main():
    usage, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dilocox", default=os.path.join(compare.HERE, "..", "build", "dilocox"))
    parser.add_argument("--data", default=os.path.join(compare.HERE, "..", "data"), help="where kjv.train.tokens is (make data)")
    parser.add_argument("--out", default="runs/plan")
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seconds", dest="most", type=float, default=30, help="of a run")
    parser.set_defaults(free_core=False)
    options = parser.parse_args()
    for name in ("dilocox", "data", "out"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    settings = options.settings.split(",")
    for number in settings:
        if number not in SETTINGS:
            parser.error(f"no setting '{number}': {', '.join(SETTINGS)}")
    bench = compare.Bench(options)
    for number in settings:
        check(bench, number, lambda text: print(text, flush=True))


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(f"plan_check: {error}")
