#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an exchange costs as sites, delay and a link's rate grow: sites whose inner steps take a given
time without computing (emulate), so that exchanges have the cores, in the network lab. Real
parameters, codec and links, encrypted. And what a commit costs the coordinator as ranks grow, over
loopback. Prints the tables of docs/benchmarks.md. All but exchange and control need root.

    bench/scaling.py [sites] [delay] [link] [exchange] [control]

*efficiency*: time of all inner steps over the time that passed, between the end of the first round's
last step and that of the last round but one; medians over sites.
*exchange*: from a round's beginning to its commit.
*on the way*: from the first to the last byte of an exchange that arrives at a site."""
import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from keys import make_keys
from lab import Lab, Unavailable

HERE = os.path.dirname(os.path.realpath(__file__))
BUILD = os.path.join(HERE, "..", "build")
ROUNDS = 6
SITES_MAX = 64


class Traffic:
    """When a lab's sites receive much: `with Traffic(lab, rate) as traffic: ...`, then traffic.spans_s()."""
    EVERY_S, PAUSE_S, SHARE = 0.1, 1, 0.02

    def __init__(self, lab, rate):
        self.lab, self.least = lab, rate / 8 * self.SHARE  # control is far below, data far above
        self.samples, self.ends = [], threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ends.wait(self.EVERY_S):
            self.samples.append((time.monotonic(), [place["received_bytes"] for place in self.lab.counts()[1:]]))

    def spans_s(self):
        """Per site, how long each stretch of data took. A pause shorter than PAUSE_S is part of it."""
        spans = [[] for _ in self.samples[0][1]]
        for (before_s, before), (now_s, now) in zip(self.samples, self.samples[1:]):
            for found, low, high in zip(spans, before, now):
                if high - low < self.least * (now_s - before_s):
                    continue
                if not found or before_s - found[-1][1] > self.PAUSE_S:
                    found.append([before_s, now_s])
                found[-1][1] = now_s
        return [[end - begin for begin, end in found] for found in spans]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()


class Sites:
    def __init__(self, directory):
        self.directory = directory
        self.roster = make_keys(os.path.join(BUILD, "dilocox"), directory, ("coordinator", *(f"site-{i}" for i in range(1, SITES_MAX + 1))))

    def run(self, count, step_ms, parameters, inner_steps, sysctls=(), rounds=ROUNDS, link=None, timeout_s=10, watch=False, **options):
        """What the sites and the coordinator have measured."""
        def words(name, first):
            return [os.path.join(BUILD, "tests", "emulate"), first, endpoint, os.path.join(self.directory, name + ".key"), self.roster]

        def start(place, line):
            return place.start(line, stdout=subprocess.PIPE, text=True)
        options = {"inner_steps": inner_steps, "timeout_s": timeout_s, **options}
        with Lab(count, **(link or {})) as lab:
            endpoint = f"{lab.hub.address}:4700"
            for place in lab.places:
                for setting in sysctls:
                    place.namespace.inside(lambda: subprocess.run(["sysctl", "-qw", setting], check=True))
            started = [start(lab.hub, [*words("coordinator", str(count)), str(rounds * inner_steps), f"timeout_s={timeout_s}"])]
            for i, place in enumerate(lab.sites, 1):
                line = [*words(f"site-{i}", f"site-{i}"), str(step_ms), str(parameters)]
                started.append(start(place, line + [f"{name}={value}" for name, value in options.items()]))
            with Traffic(lab, link["rate"]) if watch else contextlib.nullcontext() as traffic:
                texts = [process.communicate()[0] for process in started]
        if any(process.returncode != 0 for process in started):
            raise SystemExit("scaling: a process failed")
        coordinator, *sites = (json.loads(text) for text in texts)
        for site, spans_s in zip(sites, traffic.spans_s() if watch else ()):
            site["spans_s"] = spans_s
        return coordinator, sites


def median(sites, name):
    return statistics.median(site[name] for site in sites)


def print_head(*columns):
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)


def print_row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def by_sites(sites):
    """1M parameters, steps of 0.25 s, H = 16, links of 100 Mbit/s and 20 ms."""
    print_head("sites", "efficiency (least)", "exchange, s", "payload, kB", "sent per site and round, kB", "a site's CPU, %", "coordinator: CPU, %", "memory, MB")
    for count in (2, 4, 8, 16, 32):
        coordinator, got = sites.run(count, 250, 1 << 20, 16, link={"rate": 100e6, "delay": 0.02})
        print_row(count, f"{median(got, 'efficiency'):.4f} ({min(s['efficiency'] for s in got):.4f})", f"{median(got, 'exchange_s'):.2f}",
                  f"{median(got, 'payload') / 1e3:.1f}", f"{median(got, 'sent_per_round') / 1e3:.1f}", f"{100 * median(got, 'cpu_share'):.1f}",
                  f"{100 * coordinator['cpu_s'] / coordinator['wall_s']:.2f}", f"{coordinator['peak_bytes'] / 1e6:.1f}")


def by_delay(sites):
    """2 sites, 1M parameters, steps of 50 ms, H = 600, links of 10 Mbit/s, wan.timeout_s 60."""
    print_head("one-way delay, s", "efficiency", "exchange, s")
    for delay in (0, 0.1, 0.5, 1, 2):
        _, got = sites.run(2, 50, 1 << 20, 600, link={"rate": 10e6, "delay": delay}, rounds=4, timeout_s=60, adaptation="off")
        print_row(delay, f"{median(got, 'efficiency'):.4f}", f"{median(got, 'exchange_s'):.2f}")


def by_link(sites):
    """2 sites, 67M parameters, all values in 4 bits, steps of 250 ms, H = 20, 100 Mbit/s and 100 ms one way: a tenth of 1 Gbit/s,
    with a tenth of what Linux lets TCP buffer (6 MiB to receive, 4 MiB to send), and with more. A site of several ranks has a
    connection for each. Without the first exchange, in which TCP finds out what the link can do."""
    rate, delay, mib = 100e6, 0.1, (1 << 20) / 10
    print_head("ranks per site", "buffers, of 1 Gbit/s", "payload, MB", "exchange, s", "share of the link's rate, %", "on the way, s", "share, %")
    for ranks, receive, send in ((1, 6, 4), (4, 6, 4), (8, 6, 4), (16, 6, 4), (1, 64, 64)):
        sysctls = [f"net.ipv4.tcp_rmem=4096 131072 {receive * mib:.0f}", f"net.ipv4.tcp_wmem=4096 16384 {send * mib:.0f}"]
        _, got = sites.run(2, 250, 64 << 20, 20, sysctls, rounds=3, link={"rate": rate, "delay": delay}, watch=True,
                           ranks=ranks, skip=1, inner_steps_max=20, rank=0, adaptation="off")
        took_s, way_s = median(got, "exchange_s"), statistics.mean(span for site in got for span in site["spans_s"][1:])
        shares = (f"{100 * 8 * median(got, 'sent_per_round') / seconds / rate:.0f}" for seconds in (took_s, way_s))
        print_row(ranks, "as they are" if receive == 6 else f"{receive} MiB", f"{median(got, 'payload') / 1e6:.1f}", f"{took_s:.2f}", next(shares), f"{way_s:.2f}", next(shares))


def free_endpoint():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def commit(sites, count, ranks, rounds, encrypted, stored):
    """What clients without a model have measured (bench/control.c), and the coordinator itself."""
    endpoint = free_endpoint()
    key, keys, roster = (os.path.join(sites.directory, "coordinator.key"), sites.directory, sites.roster) if encrypted else ("-", "-", "-")
    with tempfile.TemporaryDirectory() as directory:
        store = [f"store={os.path.join(directory, 'coordinator.db')}"] if stored else []
        coordinator = subprocess.Popen([os.path.join(BUILD, "tests", "emulate"), str(count), endpoint, key, roster, str(rounds), *store],
                                       stdout=subprocess.PIPE, text=True)
        clients = subprocess.run([os.path.join(BUILD, "tests", "control"), str(count), str(ranks), endpoint, keys, roster,
                                  str(coordinator.pid)], stdout=subprocess.PIPE, text=True)
        if clients.returncode != 0:
            coordinator.kill()
        text = coordinator.communicate()[0]
    if clients.returncode != 0 or coordinator.returncode != 0:
        raise SystemExit("scaling: a process failed")
    return {**json.loads(text), **json.loads(clients.stdout)}


def by_ranks(sites):
    """The coordinator alone: ranks that submit and stage at once, over loopback, and share the cores with it. The last four
    columns are with CURVE and a store."""
    print_head("sites × ranks", "commits/s: plain", "CURVE", "CURVE, store", "coordinator: CPU per commit, ms: plain", "CURVE", "CURVE, store",
               "CPU between rounds, % of a core", "CPU to join, s", "memory, MB", "received per rank and commit, kB")
    for count, ranks, rounds in ((2, 1, 4000), (8, 1, 3000), (32, 1, 1500), (64, 1, 1000), (64, 4, 300), (64, 16, 100)):
        runs = [commit(sites, count, ranks, rounds, *kind) for kind in ((False, False), (True, False), (True, True))]
        print_row(f"{count} × {ranks}", *(f"{run['commits'] / run['seconds']:.0f}" for run in runs),
                  *(f"{1e3 * run['coordinator_cpu_s'] / run['commits']:.2f}" for run in runs), f"{100 * runs[-1]['rest_share']:.2f}",
                  f"{runs[-1]['joining_cpu_s']:.2f}", f"{runs[-1]['peak_bytes'] / 1e6:.1f}", f"{runs[-1]['received'] / 1e3:.1f}")


def by_exchange(sites):
    """2 sites with the matrices of GPT-2 (124M parameters), over loopback: CPU time of a site for an exchange. That of a round
    less that of moving parameters in its steps, which is what a longer round has more of."""
    def run(inner_steps, options):
        endpoint = free_endpoint()

        def start(first, name, *more):
            words = [os.path.join(BUILD, "tests", "emulate"), first, endpoint, os.path.join(sites.directory, name + ".key"), sites.roster]
            return subprocess.Popen([*words, *more], stdout=subprocess.PIPE, text=True)
        started = [start("2", "coordinator", str(5 * inner_steps))]
        started += [start(name, name, "150", "gpt2", f"inner_steps={inner_steps}", *options) for name in ("site-1", "site-2")]
        _, *texts = [process.communicate()[0] for process in started]
        if any(process.returncode != 0 for process in started):
            raise SystemExit("scaling: a process failed")
        return [json.loads(text) for text in texts]

    print_head("options", "CPU of an exchange, s", "exchange, s", "payload, MB")
    for name, options in (("defaults", ()), ("4 bits, no low rank", ("rank=0",))):
        got = {steps: run(steps, options) for steps in (30, 90)}
        short_s, long_s = (statistics.mean(s["cpu_per_round_s"] for s in got[steps]) for steps in (30, 90))
        print_row(name, f"{short_s - (long_s - short_s) / 2:.2f}", f"{median(got[30], 'exchange_s'):.2f}", f"{median(got[30], 'payload') / 1e6:.1f}")


PARTS = {"sites": by_sites, "delay": by_delay, "link": by_link, "exchange": by_exchange, "control": by_ranks}


def main():
    usage, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all unless given")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part '{part}': {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as directory:
        sites = Sites(directory)
        for part in options.parts or PARTS:
            print(f"\n{' '.join(PARTS[part].__doc__.split())}")
            PARTS[part](sites)


if __name__ == "__main__":
    try:
        main()
    except Unavailable as error:
        sys.exit(f"scaling: {error}")
