# SPDX-License-Identifier: Apache-2.0
"""Processes start in any order, hours apart, and some never: who waits says for whom, and how long
at most."""
import os
import random
import unittest

from harness import Case, main

PORT = 4700


def own_address():
    """Of this machine alone, and of no other program."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}:{PORT}"


class Order(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.at = own_address()
        self.file = self.config(wan={"timeout_s": 1, "link": "zmq"})

    def start_coordinator_at(self, sites, *more):
        return self.start("coordinator", self.file, "--sites", sites, "--listen", self.at, *self.secured("coordinator"), *more)

    def test_sites_first(self):
        self.keys(["a", "b"])
        sites = [self.start_site(self.file, name, self.at) for name in ("a", "b")]
        for site in sites:  # for longer than wan.timeout_s
            site.wait_line(rf"no coordinator at {self.at} yet after [2-9] s; waiting up to 600 s \(wan\.join_s\)")
        coordinator = self.start_coordinator_at(2)
        for process in (*sites, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())
        for name in ("a", "b"):
            self.assertEqual(coordinator.text("stdout").count(f"site '{name}' connected"), 1)

    def test_a_site_that_joins_late(self):
        self.keys(["a", "b", "c"])
        coordinator = self.start_coordinator_at(2)
        first = self.start_site(self.file, "b", self.at)
        coordinator.wait_line(r"1 of 2 sites have joined after \d+ s; waiting for 1 of 'a', 'c', up to 600 s \(wan\.join_s\)")
        last = self.start_site(self.file, "c", self.at)
        for process in (first, last, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())

    def test_no_coordinator(self):
        self.keys(["a"])
        self.refused(rf"^dilocox: no coordinator at {self.at} answered for 1 s \(wan\.join_s\); check wan\.coordinator, wan\.key and "
                     r"the roster, and that it runs", "train", self.file, "--site", "a", "--coordinator", self.at,
                     *self.secured("a"), "--set", "wan.join_s=1", code=1)

    def test_sites_that_do_not_come(self):
        self.keys(["a", "b", "c"])
        coordinator = self.start_coordinator_at(3, "--set", "wan.join_s=5")
        joined = self.start_site(self.file, "b", self.at)
        for process in (coordinator, joined):
            self.assertEqual(process.wait(), 1, process.everything())
            self.assertRegex(process.text("stderr"), r"^dilocox: gave up after 5 s \(wan\.join_s\): 1 of 3 sites have joined, "
                                                     r"missing is 'a', 'c'$")
        self.assertFalse(os.path.exists(self.path("run", "summary.json")))

    def test_sites_without_a_roster(self):
        coordinator = self.start("coordinator", self.file, "--sites", 3, "--listen", self.at, "--set", "wan.security=none",
                                 "--set", "wan.join_s=1")
        self.assertEqual(coordinator.wait(), 1)
        self.assertRegex(coordinator.text("stderr"), r"0 of 3 sites have joined, missing is 3 more$")

    def test_more_sites_than_the_roster_names(self):
        roster = self.keys(["a", "b"])
        for sites in (3, 64):
            self.refused(rf"^dilocox: --sites: {sites} is out of range; '{roster}' \(wan\.roster\) names 2 sites; ",
                         "coordinator", self.file, "--sites", sites, "--listen", self.at, *self.secured("coordinator"))
        self.keys_of_coordinator_alone()
        self.refused(r"^dilocox: --sites: 1 is out of range; '.*' \(wan\.roster\) names 0 sites; ",
                     "coordinator", self.file, "--sites", 1, "--listen", self.at, *self.secured("coordinator"))

    def keys_of_coordinator_alone(self):
        with open(self.path("roster.txt")) as roster:
            first = roster.readline()
        self.write("roster.txt", first)

    def test_a_refusal_is_no_wait(self):
        """Another key, another setting: the site ends although wan.join_s is long."""
        self.keys(["a", "b"])
        self.start_coordinator_at(2).wait_line("^listening")
        other = self.start_site(self.file, "a", self.at, "--set", "run.seed=7")
        self.assertEqual(other.wait(), 1)
        self.assertRegex(other.text("stderr"), r"^dilocox: run\.seed: '7' on site 'a', '1' in the run")
        with open(self.path("roster.txt")) as roster:
            lines = roster.read().splitlines()
        self.call("keygen", "false.key")
        false = self.call("keygen", "other.key").text("stdout")
        self.write("roster.txt", "\n".join([f"coordinator {false}", *lines[1:]]) + "\n")
        deceived = self.start_site(self.file, "a", self.at)
        self.assertEqual(deceived.wait(), 1)
        self.assertRegex(deceived.text("stderr"), r"^dilocox: the coordinator at .* ended every handshake for \d+ ms "
                                                  r"\(wan\.timeout_s\); its key may not be the one on this site's roster")


if __name__ == "__main__":
    main(at_once=4)
