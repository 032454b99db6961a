# SPDX-License-Identifier: Apache-2.0
"""What a run says that it sent and received is what the kernel counted at the site's interface, for
every method, on the terminal, in metrics.jsonl and in the summaries. And an address that says only
"every address" is one that the other site can reach."""
import re

from harness import events, main, skip, summary
from network import Network, NetworkCase, Unavailable

# Of a packet, as the kernel counts it: Ethernet, IPv4, and TCP with time stamps. A packet here is
# what TCP gave the interface, which has not cut it yet.
HEADERS_BYTES = 14 + 20 + 32
# What ZeroMQ and encryption add to frames of some kilobytes, and in all to small ones (pings,
# greetings: 42 bytes each) and handshakes
OVERHEAD, SMALL_BYTES = 1.02, 32768
PORT = 5000
METHODS = ("none", "carry", "delayed", "eager", "allreduce")


def bytes_of(text):
    number, unit = text.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


class Traffic(NetworkCase):
    def run_done(self, *more, **changes):
        """A run to its end; {site: the kernel's counters of it}."""
        file = self.config(wan={"timeout_s": 10}, **changes)
        before = {name: place.counters("wan") for name, place in self.network.sites.items()}
        self.start_placed(file, "--for-launcher", *more)
        self.wait_for_success(*self.sites.values(), self.coordinator)
        after = {name: place.counters("wan") for name, place in self.network.sites.items()}
        return {name: {way: {key: after[name][way][key] - before[name][way][key] for key in ("bytes", "packets")}
                       for way in ("rx", "tx")} for name in before}

    def check_count(self, said, counted):
        """The kernel's count without headers is what was said, and what carries it."""
        payload = counted["bytes"] - HEADERS_BYTES * counted["packets"]
        self.assertGreaterEqual(payload, said * 0.995)
        self.assertLessEqual(payload, said * OVERHEAD + SMALL_BYTES)
        self.assertGreater(said, 20 * SMALL_BYTES)

    def check_terminal(self, name, steps):
        """Each line that was shown has the bytes of that step's event."""
        lines = re.findall(r"^step \S+ step (\d+)/.* sent (\S+ \w+)  ", self.sites[name].text("stdout"), re.M)
        self.assertGreater(len(lines), 0)
        for step, sent in lines:
            self.assertAlmostEqual(bytes_of(sent) / max(1, steps[int(step)]), 1, delta=0.06)

    def check_speed(self, s, steps):
        """Times and speed fit the moments of the steps, of which evaluations are no part."""
        self.assertEqual(len(steps), s["steps"])
        trained_s = s["compute_s"] + s["wait_s"]
        self.assertLessEqual(trained_s, steps[-1]["time_s"])
        self.assertGreaterEqual(trained_s, 0.7 * (steps[-1]["time_s"] - steps[0]["time_s"]))
        self.assertAlmostEqual(s["tokens_per_s"] * trained_s / (len(steps) * 4 * 32), 1, delta=1e-6)
        self.assertAlmostEqual(s["utilization"] * trained_s, s["compute_s"], delta=1e-6)

    def check_method(self, method):
        # whole matrices in f32, so that there is much to count
        sync = {"overlap": method, "inner_steps": 5, "inner_steps_max": 7, "adaptation": "off", "compression": {"rank": 0, "bits": "none"}}
        counted = self.run_done(train={"batch": 4, "tokens": 25600}, sync=sync)
        whole = summary(self.path("coordinator"))
        for name in self.sites:
            s = summary(self.path(name, name))
            metrics = events(self.path(name, name, "metrics.jsonl"))
            of_steps = [e for e in metrics if e["event"] == "step"]
            self.check_count(s["wan_bytes_sent"], counted[name]["tx"])
            self.check_count(s["wan_bytes_received"], counted[name]["rx"])
            self.check_speed(s, of_steps)
            shown = {e["step"]: e["wan_bytes_sent"] for e in metrics if "wan_bytes_sent" in e}
            self.check_terminal(name, shown)
            sent = [e["wan_bytes_sent"] for e in of_steps]
            self.assertEqual(sent, sorted(sent))
            # nearly all has been sent by the last step; what follows is the report
            self.assertGreater(max(shown.values()), 0.8 * s["wan_bytes_sent"], (method, name))
            self.assertEqual({site["site"]: site["wan_bytes_sent"] for site in whole["per_site"]}[name], s["wan_bytes_sent"])
        mean = sum(site["wan_bytes_sent"] for site in whole["per_site"]) / 2
        self.assertAlmostEqual(whole["wan_bytes_sent"], mean, delta=1)
        printed = re.search(r"^sent by a site +(\S+ \w+);", self.coordinator.text("stdout"), re.M).group(1)
        self.assertAlmostEqual(bytes_of(printed) / mean, 1, delta=0.06)
        return whole

    def test_bytes(self):
        sent = {}
        for method in METHODS:
            with self.subTest(method):
                whole = self.check_method(method)
                sent[method] = whole["wan_bytes_sent"]
                if method == "allreduce":  # it is what the others are compared with
                    self.assertAlmostEqual(whole["compression_ratio"], 1, delta=0.1)
        self.assertGreater(sent["allreduce"], 3 * max(sent[m] for m in METHODS[:-1]))

    def test_listening_on_every_address(self):
        self.run_done("--set", f"wan.listen=0.0.0.0:{PORT}", train={"batch": 4, "tokens": 10240})

    def test_listening_on_an_interface(self):
        self.run_done("--set", "wan.listen=wan", train={"batch": 4, "tokens": 10240})


if __name__ == "__main__":
    try:
        Traffic.network = Network()
    except Unavailable as reason:
        skip(reason)
    try:
        main()
    finally:
        Traffic.network.close()
