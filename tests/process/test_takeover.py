# SPDX-License-Identifier: Apache-2.0
"""A run goes on without its store: another coordinator takes it over from what the sites have, and
whoever coordinated it before does not go on beside it."""
import os
import signal
import socket
import threading

from harness import main, summary
from test_coordinator import SITES, TOKENS, Coordinator as Case


class Relay:
    """Passes connections on to an endpoint that may change; then those that are there end."""

    def __init__(self, case, target):
        self.target = target
        self.sockets = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        case.addCleanup(self.end)
        self.endpoint = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                host, port = self.target.split(":")
                try:
                    far = socket.create_connection((host, int(port)))
                except OSError:
                    near.close()
                    continue
                self.sockets += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self.copy, args=(a, b), daemon=True).start()

    @staticmethod
    def copy(a, b):
        with a:
            try:
                while data := a.recv(65536):
                    b.sendall(data)
                b.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def end(self):
        self.listener.close()
        self.turn(None)

    def turn(self, target):
        with self.lock:
            self.target = target
            for s in self.sockets:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.sockets = []


class Takeover(Case):
    def take_over(self, endpoint, *more):
        return self.start("coordinator", self.file, "--sites", 2, "--listen", endpoint, "--set", "wan.security=none", "--takeover", *more)

    def store_lose(self):
        os.remove(self.path("run", "coordinator.db"))
        os.remove(self.path("run", "coordinator.db-journal"))

    def test_store_is_lost(self):
        """One that begins a new run says what to do; the one that takes over goes on, and can be
        killed like any other."""
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        self.store_lose()
        for site in sites:
            site.wait_line("no message from the coordinator at .*; training on")
        other = self.start("coordinator", self.file, "--sites", 2, "--listen", endpoint, "--set", "wan.security=none",
                           "--run-dir", self.path("other"))
        other.wait_line(f"a site of run {self.rounds_run_id()} is looking for its coordinator here; to go on with that run: --takeover")
        other.signal(signal.SIGINT)
        self.assertEqual(other.wait(), 1)
        coordinator = self.take_over(endpoint)
        coordinator.wait_line(f"takes over run {self.rounds_run_id()} at round [0-9]+, as term [0-9]+")
        for site in sites:
            site.wait_line("the coordinator at .* is back")
        before = self.committed()
        self.wait_for_rounds(before + 3)
        self.kill(coordinator)
        coordinator = self.again(endpoint)
        self.check_done([coordinator, *sites])

    def test_store_is_damaged(self):
        """What is wrong, where, and what to do, which works."""
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        store = self.path("run", "coordinator.db")
        with open(store, "r+b") as file:
            file.seek(4096)  # the page of the state
            file.write(bytes(512))
        if os.path.exists(store + "-journal"):
            os.unlink(store + "-journal")  # of a commit that was under way: it would mend the page
        again = ["coordinator", self.file, "--sites", 2, "--listen", endpoint,
                 "--set", "wan.security=none"]
        for arguments in (again, [*again, "--takeover"]):
            self.refused(r"run/coordinator\.db: damaged: .*; move it away, then go on from what the "
                         r"sites have with --takeover, or from snapshots with --resume$", *arguments, code=1)
        os.rename(store, self.path("run", "moved.db"))
        coordinator = self.take_over(endpoint)
        coordinator.wait_line(f"takes over run {self.rounds_run_id()} at round [0-9]+")
        self.wait_for_success(coordinator, *sites)
        self.assertEqual(summary(self.path("run"))["status"], "done")

    def test_sites_of_two_ranks(self):
        """All ranks of a site answer and promise."""
        self.file = self.config(train={"tokens": TOKENS, "batch": 4, "micro_batch": 2}, wan={"timeout_s": 2},
                                sync={"overlap": "none", "inner_steps": 10, "adaptation": "off"}, site={"replicas": 2})
        coordinator, endpoint = self.coordinator()
        sites = [self.start_site(self.file, name, endpoint, secure=False, ranks=2) for name in SITES]
        self.wait_for_rounds(3)
        self.kill(coordinator)
        self.store_lose()
        coordinator = self.take_over(endpoint)
        coordinator.wait_line("takes over run .* at round [0-9]+, as term [0-9]+")
        self.wait_for_success(coordinator, *sites)
        s = summary(self.path("run"))
        self.assertEqual(len({site["anchor_hash"] for site in s["per_site"]}), 1)
        self.assertGreaterEqual(s["tokens"], TOKENS)

    def test_without_a_site(self):
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        self.store_lose()
        sites[1].signal(signal.SIGKILL)
        sites[1].wait()
        coordinator = self.take_over(endpoint)
        coordinator.wait_line("waits for site 'tokyo', which may have gone on after round [0-9]+; --without tokyo gives it up, "
                              "with all that it trained since")
        coordinator.signal(signal.SIGINT)
        self.assertEqual(coordinator.wait(), 1)
        self.assertIn("the takeover was interrupted", coordinator.text("stderr"))
        self.assertFalse(os.path.exists(self.path("run", "coordinator.db")))
        coordinator = self.take_over(endpoint, "--without", "tokyo")
        coordinator.wait_line("site 'tokyo' was given up when round [0-9]+ was the next; 0 of 2 sites go on")
        self.wait_for_success(coordinator, sites[0])
        s = summary(self.path("run"))
        self.assertEqual([site["site"] for site in s["per_site"]], ["paris"])
        self.assertEqual([d["site"] for d in s["dropped"]], ["tokyo"])
        self.assertGreaterEqual(s["tokens"], TOKENS)

    def test_a_site_that_was_given_up(self):
        """It ends, as soon as it reaches the new coordinator. The store that was there is kept."""
        self.configure(tokens=5 * TOKENS)  # the run is not over before it does
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        sites[1].signal(signal.SIGSTOP)
        coordinator = self.take_over(endpoint, "--without", "tokyo")
        coordinator.wait_line("site 'tokyo' was given up when round [0-9]+ was the next")
        sites[1].signal(signal.SIGCONT)
        self.assertTrue(os.path.exists(self.path("run", "coordinator.db.replaced")))
        self.assertEqual(sites[1].wait(), 1, sites[1].everything())
        self.assertIn("site 'tokyo' was given up when round", sites[1].text("stderr"))
        self.wait_for_success(coordinator, sites[0])

    def test_other_settings(self):
        coordinator, endpoint, sites = self.started()
        self.kill(coordinator)
        self.store_lose()
        for more, pattern in ((("--set", "train.learning_rate=1e-3"), "the settings are not those of the run: start the coordinator with"),
                              (("--without", "oslo"), "--without: 'oslo' is no site of this run")):
            other = self.take_over(endpoint, *more)
            self.assertEqual(other.wait(), 2, other.everything())
            self.assertIn(pattern, other.text("stderr"))
        self.refused("coordinator: --without goes with --takeover", "coordinator", self.file, "--without", "tokyo")
        self.check_done([self.take_over(endpoint), *sites])


class Two(Case):
    """Both run; which one a site reaches is up to the network."""

    def started(self):
        coordinator, endpoint = self.coordinator()
        self.relays = [Relay(self, endpoint) for _ in SITES]
        sites = [self.start_site(self.file, name, relay.endpoint, secure=False) for name, relay in zip(SITES, self.relays)]
        self.wait_for_rounds(3)
        return coordinator, endpoint, sites

    def second(self):
        coordinator, endpoint = self.coordinator("--run-dir", self.path("other"), "--takeover")
        return coordinator, endpoint

    def turn(self, endpoint, *which):
        for i in which:
            self.relays[i].turn(endpoint)

    def test_one_commits(self):
        """What the first one commits before is known to the second one; then it can't any more."""
        self.configure(tokens=12 * TOKENS, inner_steps=400)  # so few rounds that all their records are kept
        first, first_at, sites = self.started()
        second, second_at = self.second()
        self.turn(second_at, 1)
        second.wait_line("waits for site 'paris', which may have gone on")  # and rightly so
        before = self.committed()
        self.wait_until("rounds of paris alone", lambda: self.rounds("paris")[-1]["committed_rounds"] > before)
        self.turn(second_at, 0)
        second.wait_line("takes over run .* at round [0-9]+, as term [0-9]+")
        before = self.committed()
        self.wait_for_rounds(before + 3)
        self.turn(first_at, 0)
        self.assertEqual(first.wait(), 2, first.everything())
        self.assertRegex(first.text("stderr"), r"another coordinator has taken over this run \(term [0-9]{7}; this one has 1\); start that one, or take the run over with --takeover")
        self.turn(second_at, 0)
        self.wait_for_success(second, *sites)
        s = summary(self.path("other"))
        self.assertEqual(len({site["anchor_hash"] for site in s["per_site"]}), 1)
        self.assertTrue(os.path.exists(self.path("run", "coordinator.db")))

    def test_the_first_one_is_there(self):
        """A takeover that nobody needs changes nothing."""
        self.configure(timeout_s=8)
        first, first_at, sites = self.started()
        second, second_at = self.second()
        self.turn(second_at, 0, 1)
        second.wait_line("site 'paris' hears its coordinator: the run needs no other one, or wait for 8 s")
        self.turn(first_at, 0, 1)
        before = self.committed()
        self.wait_for_rounds(before + 3)
        second.signal(signal.SIGINT)
        self.assertEqual(second.wait(), 1)
        self.wait_for_success(first, *sites)


if __name__ == "__main__":
    main()
