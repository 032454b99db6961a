# SPDX-License-Identifier: Apache-2.0
"""A site's training hangs while its connections are alive: the rest goes on, says who it is, and gives its windows to
others; when it goes on, it is in rounds again.

A debugger holds the main thread, which trains; the threads of the connections run on."""
import ctypes
import os
import signal
import time

from harness import Case, Growing, main, skip, summary

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
WALL = 0x40000000  # wait for a thread of any kind
H, BATCH, CONTEXT = 10, 4, 32
SITE_TOKENS = H * BATCH * CONTEXT  # of a round
EVAL_TOKENS = 200_000  # half a second
PATIENCE_S = 10

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Held:
    """Holds the main thread of a process until it is let go, both by one and the same thread."""

    def __init__(self, pid):
        self.pid = pid
        self.trace(PTRACE_SEIZE)
        self.trace(PTRACE_INTERRUPT)
        os.waitpid(pid, WALL)  # it has stopped; whoever waits for its end does not see that

    def trace(self, request):
        if libc.ptrace(request, self.pid, None, None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def let_go(self):
        self.trace(PTRACE_DETACH)


class Hangs(Case):
    def start_run(self, names, rounds, **wan):
        self.prepare_data()
        file = self.config(train={"batch": BATCH, "tokens": rounds * len(names) * SITE_TOKENS, "eval_tokens": EVAL_TOKENS},
                           sync={"overlap": "carry", "inner_steps": H, "inner_steps_max": H, "adaptation": "off"},
                           wan={"timeout_s": 2, "patience_s": PATIENCE_S, **wan})
        self.coordinator, endpoint = self.start_coordinator(file, len(names), secure=False)
        self.sites = {name: self.start_site(file, name, endpoint, secure=False) for name in names}
        self.growing = {name: Growing(self.path("run", name, "metrics.jsonl")) for name in names}
        self.rounds, self.anchors = {name: 0 for name in names}, {}

    def look(self):
        for name, growing in self.growing.items():
            for event in growing.more("round"):
                rounds, now = event["committed_rounds"], (event["anchor_hash"], event["committed_tokens"])
                self.assertEqual(self.anchors.setdefault(rounds, now), now, f"{name} after round {rounds}")
                self.rounds[name] = rounds

    def wait_rounds(self, name, more):
        self.look()
        until = self.rounds[name] + more
        self.wait_until(f"round {until} at {name}", lambda: self.look() or self.rounds[name] >= until)

    def hold(self, name):
        self.addCleanup(self.sites[name].popen.kill)  # as long as it is held, it can't end in another way
        return Held(self.sites[name].pid)

    def test_one_of_three(self):
        """The rest commits without it; after eight rounds its windows are others'; what it then submits first is void."""
        self.start_run(("oslo", "paris", "tokyo"), 1000)
        self.wait_rounds("paris", 3)
        held = self.hold("tokyo")
        self.wait_rounds("paris", 8)
        self.coordinator.wait_line("site 'tokyo' was left out of round [0-9]+: it was not ready after [0-9.]+ s; 2 of 3 went on")
        self.coordinator.wait_line("site 'tokyo' is here, and has submitted nothing for [0-9]+ s and 8 rounds; its windows go to others")
        self.look()
        back = self.rounds["paris"]
        held.let_go()
        self.wait_rounds("tokyo", 2)
        self.wait_until("a round of all three", lambda: self.look() or any(
            self.anchors[n][1] - self.anchors[n - 1][1] == 3 * SITE_TOKENS for n in self.anchors if n > back and n - 1 in self.anchors))
        self.coordinator.signal(signal.SIGTERM)
        self.assertEqual(self.coordinator.wait(), 1, self.coordinator.everything())
        later = [m for r in self.records(self.path("run", "coordinator.db")) for m in r["members"] if m["site"] == 2 and r["round"] > back]
        self.assertEqual([(m["voided"], m["tokens"]) for m in later[:2]], [(1, 0)] * 2)
        self.assertEqual({(m["voided"], m["tokens"]) for m in later[2:]}, {(0, SITE_TOKENS)})

    def test_one_of_two(self):
        """No majority: the other one waits for it for half of the patience, and goes on."""
        self.start_run(("oslo", "paris"), 1000)
        self.wait_rounds("oslo", 3)
        held = self.hold("paris")
        since_s = time.monotonic()
        self.coordinator.wait_line("round [0-9]+ has waited [0-9.]+ s for 'paris': here, and not ready; the rest goes on after")
        self.wait_rounds("oslo", 2)
        print(f"test_one_of_two: two rounds without it after {time.monotonic() - since_s:.1f} s", flush=True)
        self.coordinator.wait_line("site 'paris' was left out of round [0-9]+: it was not ready after [0-9.]+ s; 1 of 2 went on")
        held.let_go()
        self.wait_rounds("paris", 2)

    def test_at_the_end(self):
        """All tokens are committed, and it never evaluates: the others report and end."""
        self.start_run(("oslo", "paris", "tokyo"), 6)
        target = 6 * 3 * SITE_TOKENS
        self.wait_until("the last round", lambda: self.look() or any(tokens >= target for _, tokens in self.anchors.values()))
        held = self.hold("tokyo")
        self.coordinator.wait_line("site 'tokyo' has not reported for [0-9]+ s after the others; 2 of 3 sites go on")
        self.wait_for_success(self.coordinator, self.sites["oslo"], self.sites["paris"])
        s = summary(self.path("run"))
        self.assertEqual((s["status"], [site["site"] for site in s["dropped"]]), ("done", ["tokyo"]))
        self.assertEqual({site["anchor_hash"] for site in s["per_site"]}, {s["anchor_hash"]})
        self.assertIsNotNone(s["val_loss"])
        held.let_go()
        self.assertIn(self.sites["tokyo"].wait(), (0, 1), self.sites["tokyo"].everything())


if __name__ == "__main__":
    probe = os.fork()
    if probe == 0:
        time.sleep(60)
    try:
        Held(probe).let_go()
    except OSError as reason:
        skip(f"no process may be debugged here: {reason}")
    finally:
        os.kill(probe, 9)
        os.waitpid(probe, 0)
    main(at_once=3)
