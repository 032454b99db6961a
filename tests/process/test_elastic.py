# SPDX-License-Identifier: Apache-2.0
"""Three sites on slow connections, of which one may be missing in a round: whatever is cut and comes
back, the rest goes on, who is left out is named, takes over, and is in rounds again; the run ends
well for all, with one anchor. The coordinator and each site have a place of their own."""
import time

from harness import Growing, main, skip, summary
from network import APART, ROUTER, THREE, Network, NetworkCase, Proxy, Unavailable

TIMEOUT_S = 3
H, BATCH, CONTEXT = 10, 4, 32
SITE_TOKENS = H * BATCH * CONTEXT  # of a round
ROUNDS = 100  # of all three; most of them when what is to be seen was seen
KILOBITS = 4000  # a second, so that an exchange takes half a second on any machine
CUT_S = 12
PORT = 5000  # paris listens for the third site at the second one after it
RESETS = 25
NO_DATA = r"no data from site '\w+' to site '\w+' \(\S+:\d+\) for \d+ s"


class Elastic(NetworkCase):
    def setUp(self):
        self.network = Network(THREE, APART)
        self.addCleanup(self.network.close)
        super().setUp()
        self.network.slow(KILOBITS)

    def run_started(self, rounds=ROUNDS, **of_site):
        file = self.config(model={"width": 64, "heads": 4, "kv_heads": 2, "mlp_width": 128, "layers": 2},
                           train={"batch": BATCH, "tokens": rounds * 3 * SITE_TOKENS},
                           sync={"overlap": "none", "inner_steps": H, "inner_steps_max": H, "adaptation": "off",
                                 "compression": {"rank": 0, "bits": "none"}},
                           wan={"timeout_s": TIMEOUT_S})
        self.start_placed(file, **of_site)
        self.all = [self.coordinator, *self.sites.values()]
        self.growing = {name: Growing(self.path(name, name, "metrics.jsonl")) for name in self.sites}
        self.known, self.newest = {}, 0  # committed rounds: anchor, tokens
        self.wait_whole(2)

    # ---- rounds

    def look(self):
        for name, growing in self.growing.items():
            for event in growing.more("round"):
                rounds, now = event["committed_rounds"], (event["anchor_hash"], event["committed_tokens"])
                self.assertEqual(self.known.setdefault(rounds, now), now, f"{name} after round {rounds}")
                self.newest = max(self.newest, rounds)

    def members(self, rounds):
        """How many sites' tokens this round has counted; None: unknown."""
        if rounds - 1 not in self.known or rounds not in self.known:
            return None
        return (self.known[rounds][1] - self.known[rounds - 1][1]) / SITE_TOKENS

    def wait_rounds(self, more):
        """So many more, whoever is in them."""
        self.look()
        until = self.newest + more
        self.wait_until(f"{until} rounds", lambda: self.look() or self.newest >= until)

    def wait_whole(self, more=1):
        """Rounds from now on in which all sites are."""
        self.look()
        after = self.newest + 1
        self.wait_until("rounds of everybody", lambda: self.look() or sum(
            self.members(n) == 3 for n in range(after + 1, self.newest + 1)) >= more)

    # ---- what is shown and checked

    def cut(self, *ways, on=True):
        for source, target in ways:
            self.network.cut(source, target, on)
        self.since_s = time.monotonic()

    def restore(self, *ways):
        """After CUT_S, in which rounds have committed."""
        self.wait_until(f"{CUT_S} s", lambda: time.monotonic() - self.since_s >= CUT_S)
        self.cut(*ways, on=False)

    def took(self, what):
        print(f"{self.id().rsplit('.', 1)[1]}: {what} after {time.monotonic() - self.since_s:.1f} s", flush=True)

    def check_done(self):
        """Quickly from here; the run's summary is returned."""
        self.network.slow(None)
        self.wait_for_success(*self.all)
        self.look()
        s = summary(self.path("coordinator"))
        self.assertEqual((s["status"], s["dropped"]), ("done", []))
        self.assertEqual([site["site"] for site in s["per_site"]], sorted(THREE))
        self.assertEqual({site["anchor_hash"] for site in s["per_site"]}, {s["anchor_hash"]})
        self.assertEqual(self.known.get(s["rounds"], (s["anchor_hash"],))[0], s["anchor_hash"])
        return s

    # ---- cases

    def check_cut(self, *ways):
        """Between paris and tokyo: one of the two goes on with oslo."""
        self.run_started()
        self.cut(*ways)
        for process in self.all:
            process.wait_line(NO_DATA)
        self.took("named on every terminal")
        self.coordinator.wait_line("sites '(paris|tokyo)' and '(paris|tokyo)' are not in one round until they reach each other again")
        out = self.coordinator.wait_line(r"site '(\w+)' was left out of round \d+: no data from site .* for \d+ s; 2 of 3 went on").group(1)
        self.assertIn(out, ("paris", "tokyo"))
        self.wait_rounds(3)
        self.took("three rounds without one")
        self.restore(*ways)
        self.coordinator.wait_line("sites '(paris|tokyo)' and '(paris|tokyo)' reach each other again$")
        self.took("the pair is free")
        self.wait_whole()
        self.took("a round of everybody")
        self.check_done()

    def test_a_link_is_cut(self):
        self.check_cut(("paris", "tokyo"), ("tokyo", "paris"))

    def test_a_link_is_cut_one_way(self):
        self.check_cut(("paris", "tokyo"))

    def test_the_coordinator_is_out_of_reach_of_one(self):
        ways = ("coordinator", "tokyo"), ("tokyo", "coordinator")
        self.run_started()
        self.cut(*ways)
        self.coordinator.wait_line("(no message from site 'tokyo' for|site 'tokyo' has no connection).*; 2 of 3 sites go on")
        self.took("named by the coordinator")
        self.sites["tokyo"].wait_line(f"no message from the coordinator at .* for {TIMEOUT_S} s; training on, then waiting for it")
        self.took("named by the site")
        self.wait_rounds(3)
        self.took("three rounds without it")
        self.restore(*ways)
        self.coordinator.wait_line("site 'tokyo' is back after")
        self.sites["tokyo"].wait_line("the coordinator at .* is back")
        self.took("it is back")
        self.wait_whole()
        self.took("a round of everybody")
        self.check_done()

    def test_the_coordinator_is_out_of_reach(self):
        ways = [way for name in THREE for way in (("coordinator", name), (name, "coordinator"))]
        self.run_started()
        self.cut(*ways)
        for site in self.sites.values():
            site.wait_line(f"no message from the coordinator at .* for {TIMEOUT_S} s; training on, then waiting for it")
        self.took("named by every site")
        self.coordinator.wait_line("; 0 of 3 sites are left, and wait")
        self.took("named by the coordinator")
        self.restore(*ways)
        for site in self.sites.values():
            site.wait_line("the coordinator at .* is back")
        self.took("it is back")
        self.wait_whole()
        self.took("a round of everybody")
        self.check_done()

    def test_reset_again_and_again(self):
        proxy = Proxy(self.network, "paris", PORT + 2, 300_000, 0)
        self.addCleanup(proxy.close)
        self.run_started(paris=["--set", f"wan.listen={ROUTER}:{PORT}"])
        self.since_s, proxy.resets = time.monotonic(), RESETS
        self.wait_until("all resets", lambda: self.look() or proxy.resets == 0)
        self.took(f"{RESETS} resets")
        s = self.check_done()
        print(f"{s['rounds']} rounds in {s['attempts']} attempts, failed: {s['membership']['failed']}", flush=True)
        self.assertEqual(s["membership"]["failed"]["broken"], 0)


if __name__ == "__main__":
    try:
        probe = Network(THREE, APART)
        probe.cut("paris", "tokyo")
        probe.slow(KILOBITS)
        probe.close()
    except Unavailable as reason:
        skip(reason)
    main(at_once=3)
