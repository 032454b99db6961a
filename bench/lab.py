#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A network lab: sites in network namespaces of this machine, joined by links of a given rate,
delay, jitter and loss. Needs root. Nothing is left when it ends, however it ends.

    bench/lab --sites 4 --rate 10mbit --delay 40ms --loss 0.1% -- COMMAND ARGUMENT...

COMMAND runs once per site, in its namespace, and finds in its environment

    LAB_SITE      1, 2, … (also what {site} in an argument becomes)
    LAB_SITES     how many
    LAB_ADDRESS   its own address ({address})
    LAB_HUB       the hub's address ({hub})

The hub is one more place, whose link has no limit of rate; --hub 'COMMAND' runs there, for a
coordinator for instance, and is told to end (SIGTERM) when all sites have ended and it has not.

    bench/lab --sites 2 --rate 10mbit --delay 40ms \\
        --hub 'build/dilocox coordinator run.yaml --sites 2 --listen {hub}:4700' -- \\
        build/dilocox train run.yaml --site site-{site} --coordinator {hub}:4700

A packet may be lost where it enters the network, waits for its turn on the sender's link, is on its
way for DELAY ± JITTER, and waits for its turn on the receiver's link. A link drops what would have
to wait longer than QUEUE. What a site has at most is RATE up and RATE down at once. Ctrl-C goes to
all commands, once; a second one ends them. The exit code is that of the first command that failed."""
import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time

from namespaces import Namespace, Unavailable, libc

HERE = os.path.dirname(os.path.realpath(__file__))
RELAY = os.path.join(HERE, "..", "build", "tests", "lab_relay")
PREFIX = "10.78.0."
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
PR_SET_PDEATHSIG = 1
END_S = 5  # for commands that are told to end
SITES_MAX = 64


def tun_open():
    """The device `wan` of the namespace that this thread is in."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"wan", IFF_TUN | IFF_NO_PI))
    return fd


class Place:
    def __init__(self, number, mtu):
        self.address = f"{PREFIX}{number + 1}"
        self.namespace, self.tun = Namespace(), None
        try:
            self.tun = self.namespace.inside(tun_open)
            ip = self.namespace.ip
            ip("link", "set", "lo", "up")
            ip("address", "add", f"{self.address}/24", "dev", "wan")
            ip("link", "set", "dev", "wan", "mtu", str(mtu), "txqueuelen", "1000", "up")
        except BaseException:
            self.close()
            raise

    def start(self, words, **more):
        """A process in this place, which ends when the lab's process is killed."""
        parent = os.getpid()

        def prepare():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return self.namespace.inside(lambda: subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=prepare, **more))

    def close(self):
        if self.tun is not None:
            os.close(self.tun)
        self.namespace.close()


class Lab:
    """`with Lab(2, rate=10e6, delay=0.04) as lab: lab.sites[0].start([...])`. Rates in bits per second, times in seconds."""

    def __init__(self, sites, rate=0, delay=0, jitter=0, loss=0, queue=0.1, seed=1, mtu=1500, relay=RELAY):
        if os.geteuid() != 0:
            raise Unavailable("only root can make network namespaces")
        if shutil.which("ip") is None:
            raise Unavailable("no ip; Debian's iproute2 has it")
        if not os.path.exists(relay):
            raise Unavailable(f"no {os.path.relpath(relay)}; run 'make build' first")
        self.places, self.relay = [], None
        try:
            for number in range(sites + 1):
                self.places.append(Place(number, mtu))
            self.hub, self.sites = self.places[0], self.places[1:]
            words = [relay, *(str(round(t * 1e9)) for t in (delay, jitter)), repr(float(loss)), str(round(queue * 1e9)), str(seed)]
            for place in self.places:
                words += [str(place.tun), place.address, "0" if place is self.hub else repr(float(rate))]
            self.relay = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                          pass_fds=[place.tun for place in self.places])
        except (OSError, Unavailable) as error:
            self.close()
            raise Unavailable(f"no network lab: {error}") from None

    def counts(self):
        """Per place what the relay has carried: {"sent", "sent_bytes", "received", "received_bytes", "lost", "dropped"}."""
        self.relay.send_signal(signal.SIGUSR1)
        counts = []
        for _ in self.places:
            words = self.relay.stdout.readline().split()
            counts.append({"sent": int(words[2]), "sent_bytes": int(words[3]), "received": int(words[5]),
                           "received_bytes": int(words[6]), "lost": int(words[8]), "dropped": int(words[10])})
        return counts

    def close(self):
        if self.relay is not None:
            self.relay.stdin.close()
            self.relay.wait()
            self.relay.stdout.close()
        for place in self.places:
            place.close()
        self.places, self.relay = [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- commands -------------------------------------------------------------------------------------


def filled(words, values):
    def fill(word):
        for name, value in values.items():
            word = word.replace("{" + name + "}", value)
        return word
    return [fill(word) for word in words]


def send(processes, number):
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def end(processes):
    """Those that are left: they are told, and after some seconds killed."""
    send(processes, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(processes, interrupts):
    """Until all have ended, or a second Ctrl-C has come. Signals are blocked; each is looked at here."""
    told = 0
    while any(process.poll() is None for process in processes):
        got = signal.sigtimedwait(interrupts, 0.05)
        if got is None:
            continue
        told += 1
        if told > 1:
            return
        send(processes, got.si_signo)


def run_commands(lab, hub_words, words):
    interrupts = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
    started = []

    def start(place, words, **values):
        values = {"address": place.address, "hub": lab.hub.address, "sites": str(len(lab.sites)), **values}
        environment = {**os.environ, **{f"LAB_{name.upper()}": value for name, value in values.items()}}
        try:
            started.append(place.start(filled(words, values), env=environment))
        except OSError as error:
            raise SystemExit(f"lab: {words[0]}: {error.strerror}") from None
    try:
        if hub_words:
            start(lab.hub, hub_words)
        for number, place in enumerate(lab.sites, 1):
            start(place, words, site=str(number))
        sites = started[1:] if hub_words else started
        wait(sites, interrupts)
        deadline = time.monotonic() + END_S
        while hub_words and started[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        end(started)
    codes = [process.returncode for process in sites] + ([started[0].returncode] if hub_words else [])
    codes = [128 - code if code < 0 else code for code in codes]
    return next((code for code in codes if code != 0), 0)


# ---- the self-test --------------------------------------------------------------------------------

WITHIN = 0.05
UDP_BYTES = 1400
IP_UDP_BYTES, IP_TCP_BYTES = 28, 52  # of headers, in IPv4; with TCP's time stamps


class Measure:
    """What iperf3 and ping say about a lab, beside what was asked for."""

    def __init__(self):
        self.all_well = True
        print(f"{'':34}{'asked':>12}{'got':>12}{'got / asked':>14}")

    def row(self, what, unit, asked, got):
        ratio = got / asked
        self.all_well = self.all_well and abs(ratio - 1) <= WITHIN
        print(f"{what:34}{asked:>9.4g} {unit:2}{got:>9.4g} {unit:2}{ratio:>14.3f}", flush=True)


def iperf(lab, seconds, *more):
    """From the first site to the second."""
    server = lab.sites[1].start(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    words = ["iperf3", "-c", lab.sites[1].address, "-t", str(seconds), "-J", *more]
    try:
        for _ in range(100):  # until the server listens
            client = lab.sites[0].start(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            said = json.loads(client.communicate()[0])
            if client.returncode == 0:
                return said["end"]
            time.sleep(0.05)
        raise SystemExit(f"lab: iperf3: {said.get('error')}")
    finally:
        end([server])


def pings_ms(lab, count, interval_s):
    client = lab.sites[0].start(["ping", "-n", "-c", str(count), "-i", str(interval_s), lab.sites[1].address],
                                stdout=subprocess.PIPE, text=True)
    return [float(ms) for ms in re.findall(r"time=([\d.]+)", client.communicate()[0])]


def self_test(seconds, relay):
    for program, package in (("iperf3", "iperf3"), ("ping", "iputils-ping")):
        if shutil.which(program) is None:
            raise Unavailable(f"no {program}; Debian's {package} has it")
    m = Measure()
    for megabits, delay_s in ((1, 0), (10, 0.04), (100, 0.01), (500, 0.001)):
        link = {"rate": megabits * 1e6, "delay": delay_s, "relay": relay}
        where = f"{megabits} Mbit/s, {delay_s * 1e3:g} ms"
        if megabits <= 100:  # beyond that, twice the rate is hard to send
            with Lab(2, **link) as lab:
                # -O: without the first second, in which packets are sent and none has arrived
                said = iperf(lab, 2 * seconds, "-O", "1", "-u", "-b", f"{2 * megabits}m", "-l", str(UDP_BYTES))["sum_received"]
                got = said["bytes"] * 8 / said["seconds"]
                m.row(f"rate, UDP, {where}", "M", megabits, got * (UDP_BYTES + IP_UDP_BYTES) / UDP_BYTES / 1e6)
        with Lab(2, **link) as lab:
            got = iperf(lab, 2 * seconds, "-O", "2")["sum_received"]["bits_per_second"]
            m.row(f"rate, TCP, {where}", "M", megabits, got * 1500 / (1500 - IP_TCP_BYTES) / 1e6)
    for delay_ms in (10, 40, 200, 1000):
        with Lab(2, delay=delay_ms / 1e3, relay=relay) as lab:
            times = pings_ms(lab, 20, 0.05)
            m.row(f"delay, ping / 2, {delay_ms} ms", "ms", delay_ms, statistics.median(times) / 2)
    with Lab(2, delay=0.05, jitter=0.02, relay=relay) as lab:
        # the sum of two uniform delays of 50 ± 20 ms has a standard deviation of 20·√(2/3) ms
        times = pings_ms(lab, 600, 0.045)  # so seldom that none has to wait for the one before
        m.row("jitter, 50 ± 20 ms, spread of ping", "ms", 20 * (2 / 3) ** 0.5, statistics.stdev(times))
    for loss in (0.01, 0.1):
        with Lab(2, loss=loss, relay=relay) as lab:
            said = iperf(lab, 4, "-u", "-b", "80m", "-l", "250")["sum"]  # 160,000 packets
            counts = lab.counts()[1]
            m.row(f"loss, {100 * loss:g}%, iperf3 / the relay's count", "%", 100 * counts["lost"] / counts["sent"], said["lost_percent"])
            m.row(f"loss, {100 * loss:g}%, the relay's count", "%", 100 * loss, 100 * counts["lost"] / counts["sent"])
    return 0 if m.all_well else 1


# ---- the command line -----------------------------------------------------------------------------


def number_of(units, low, high, what):
    def parse(text):
        match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([a-z%]*)", text.strip().lower())
        try:
            value = float(match.group(1)) * units[match.group(2)]
        except (AttributeError, KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is out of range; allowed: {what}")
        return value
    return parse


RATE = number_of({"": 1, "bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}, 1e3, 1e10, "a rate from 1kbit to 10gbit")
TIME = number_of({"s": 1, "ms": 1e-3, "us": 1e-6}, 0, 60, "a time with its unit (us, ms, s), up to 60s")
SHARE = number_of({"": 1, "%": 1e-2}, 0, 1, "a share from 0% to 100%")


def sites_of(text):
    if not text.isdigit() or not 1 <= int(text) <= SITES_MAX:
        raise argparse.ArgumentTypeError(f"'{text}' is out of range; allowed: 1 to {SITES_MAX}")
    return int(text)


def main():
    usage, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="lab", usage="lab [OPTION]... -- COMMAND [ARGUMENT]...", description=usage, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=sites_of, default=2, help="how many (default 2)")
    parser.add_argument("--rate", type=RATE, default=0, help="of each site's link, up and down: 10mbit (default: no limit)")
    parser.add_argument("--delay", type=TIME, default=0, help="one way: 40ms (default 0)")
    parser.add_argument("--jitter", type=TIME, default=0, help="the delay is DELAY ± JITTER, uniformly (default 0)")
    parser.add_argument("--loss", type=SHARE, default=0, help="share of packets that are lost: 0.1%% (default 0)")
    parser.add_argument("--queue", type=TIME, default=0.1, help="what would wait longer for a link is dropped (default 100ms)")
    parser.add_argument("--seed", type=int, default=1, help="of losses and jitter (default 1)")
    parser.add_argument("--hub", help="a command for the hub, as one word")
    parser.add_argument("--self-test", action="store_true", help="measure rate, delay, jitter and loss with iperf3 and ping")
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement of a rate (default 4)")
    parser.add_argument("--relay", default=RELAY, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.jitter > options.delay:
        parser.error(f"--jitter {options.jitter:g} s is more than --delay {options.delay:g} s")
    if not words and not options.self_test:
        parser.error("no COMMAND after '--'; or --self-test")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.self_test:
            return self_test(options.seconds, options.relay)
        with Lab(options.sites, options.rate, options.delay, options.jitter, options.loss, options.queue, options.seed,
                 relay=options.relay) as lab:
            return run_commands(lab, shlex.split(options.hub or ""), words)
    except Unavailable as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
