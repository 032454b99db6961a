# SPDX-License-Identifier: Apache-2.0
"""A connection between two sites that is never there, breaks, comes back, or breaks all the time:
each terminal names the pair, and the run goes on or ends for all. The coordinator is on the router
between them, which both reach."""
import os

from harness import events, main, skip, summary
from network import NOWHERE, ROUTER, SITES, Network, NetworkCase, Proxy, Unavailable

TIMEOUT_S, PATIENCE_S = 3, 5
H, H_MAX = 20, 30
ROUND_TOKENS = 2 * H * 4 * 32  # of two sites: steps, batch, context
PORT = 5000  # the namespaces have no other programs
RESETS = 25
FRAMES_LOST = "were lost, and are sent again"
NO_DATA = r"no data from site '(paris|tokyo)' to site '(paris|tokyo)' \((\S+):\d+\) for (\d+) s: check wan.listen and the firewall"


class Broken(NetworkCase):
    def run_started(self, rounds=100, timeout_s=TIMEOUT_S, patience_s=600, paris=()):
        file = self.config(train={"batch": 4, "tokens": rounds * ROUND_TOKENS},
                           sync={"inner_steps": H, "inner_steps_max": H_MAX, "adaptation": "off"},
                           wan={"timeout_s": timeout_s, "patience_s": patience_s, "min_sites": 0})
        self.start_placed(file, paris=paris)
        self.all = [self.coordinator, *self.sites.values()]

    def metrics(self, name):
        return self.path(name, name, "metrics.jsonl")

    def wait_committed(self, rounds):
        for name in self.sites:
            self.wait_for_event(self.metrics(name), lambda e: e["event"] == "round" and e["committed_rounds"] >= rounds)

    def check_named(self, address=SITES["paris"]):
        """On every terminal, and within the timeout, as far as the machine lets it."""
        for process in self.all:
            named = process.wait_line(NO_DATA)
            self.assertNotEqual(named.group(1), named.group(2))
            self.assertEqual(named.group(3), address)
            self.assertIn(int(named.group(4)), range(TIMEOUT_S, 2 * TIMEOUT_S), process.everything())

    def check_failed(self, why):
        for process in self.all:
            self.assertEqual(process.wait(), 1, process.everything())
            self.assertRegex(process.text("stderr"), f"^dilocox: {why} \\(wan.patience_s\\); last: {NO_DATA}")

    def check_done(self):
        """The run's summary is returned."""
        for process in self.all:
            self.assertEqual(process.wait(), 0, process.everything())
        s = summary(self.path("coordinator"))
        self.assertEqual(s["status"], "done")
        hashes = {site["anchor_hash"] for site in s["per_site"]}
        self.assertEqual(hashes, {s["anchor_hash"]})
        return s

    def test_sites_never_reach_each_other(self):
        self.network.forward(False)
        self.run_started(patience_s=PATIENCE_S)
        self.check_named()
        self.check_failed(f"gave up on joining after [{PATIENCE_S}-9] s of trouble")
        for process in self.all:
            self.assertNotRegex(process.text("stdout"), "joined: |all sites reach")

    def test_an_address_that_is_wrong(self):
        self.run_started(patience_s=1, paris=["--set", f"wan.listen={NOWHERE}"])
        self.sites["paris"].wait_line(f"wan.listen: '{NOWHERE}' is not an address of this machine; other sites will connect to it")
        self.check_named(NOWHERE)
        self.check_failed(r"gave up on joining after \d s of trouble")

    def test_cut_and_restored(self):
        self.run_started()
        self.wait_committed(3)
        self.network.forward(False)
        self.check_named()
        committed = max(events(self.metrics(name), "round", partial=True)[-1]["committed_rounds"] for name in self.sites)
        self.network.forward(True)
        self.wait_committed(committed + 1)
        self.coordinator.wait_line(r"^round \d+ committed after \d+ failed attempts? in \d+\.\d s$")
        for process in self.sites.values():
            process.wait_line(r"round \d+ committed$")
        s = self.check_done()
        self.assertGreater(s["attempts"], s["rounds"])
        for name in self.sites:
            self.assertEqual(set(self.steps_of_long_rounds(name)), {H_MAX})

    def steps_of_long_rounds(self, name):
        """How long rounds were that waited at their end, for longer than a calm exchange takes."""
        submissions = [e for e in events(self.metrics(name), "round") if e["submitted"]]
        return [after["step"] - before["step"] for before, after in zip(submissions, submissions[1:])
                if after["waited_s"] > TIMEOUT_S / 2]

    def test_cut_for_good(self):
        self.run_started(patience_s=PATIENCE_S)
        self.wait_committed(3)
        self.network.forward(False)
        self.check_named()
        self.check_failed(rf"gave up on round \d+ after [{PATIENCE_S}-9] s of trouble")
        saved = []
        # the first site's are the run's
        for place in (self.path("paris", "weights"), self.path("tokyo", "tokyo", "weights")):
            with open(os.path.join(place, "model.safetensors"), "rb") as weights:
                saved.append(weights.read())
        self.assertEqual(saved[0], saved[1])
        for name in self.sites:
            s = summary(self.path(name, name))
            self.assertEqual(s["status"], "failed")
            self.assertGreaterEqual(s["rounds"], 3)

    def test_reset_again_and_again(self):
        proxy = Proxy(self.network, "paris", PORT + 1, 40_000, RESETS)
        self.addCleanup(proxy.close)
        self.run_started(rounds=200, timeout_s=20, paris=["--set", f"wan.listen={ROUTER}:{PORT}"])
        s = self.check_done()
        self.assertEqual(proxy.resets, 0)
        lost = [line for process in self.sites.values() for line in process.lines["stdout"] if FRAMES_LOST in line]
        print(f"{RESETS} resets: {s['rounds']} rounds in {s['attempts']} attempts", flush=True)
        self.assertGreater(len(lost), 0)
        self.assertEqual(s["attempts"], s["rounds"])
        self.assertEqual(sum(s["membership"]["failed"].values()), 0)


if __name__ == "__main__":
    try:
        Broken.network = Network()
    except Unavailable as reason:
        skip(reason)
    try:
        main()
    finally:
        Broken.network.close()
