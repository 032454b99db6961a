# SPDX-License-Identifier: Apache-2.0
"""Sites behind a router, in network namespaces of the test: what the sites' connections do is the
test's choice. Needs root."""
import os
import random
import shutil
import socket
import struct
import sys
import threading

from harness import Case

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "bench"))
from namespaces import Namespace, Unavailable

ROUTER = "10.77.0.1"  # the router's own address, reached from both sites
SITES = {"paris": "10.77.1.2", "tokyo": "10.77.2.2"}
THREE = {"oslo": "10.77.3.2", **SITES}
APART = {"coordinator": "10.77.4.2"}  # where it has a namespace of its own
NOWHERE = "10.77.9.9"  # routed, and nobody's


class Network:
    def __init__(self, sites=SITES, coordinator=None):
        """The coordinator is on the router, unless it has a place."""
        if os.geteuid() != 0:
            raise Unavailable("only root can make network namespaces")
        if shutil.which("ip") is None:
            raise Unavailable("no ip; Debian's iproute2 has it")
        self.addresses, self.router, self.places = {**sites, **(coordinator or {})}, None, {}
        try:
            self.router = Namespace()
            self.places = {name: Namespace() for name in self.addresses}
            self.sites = {name: self.places[name] for name in sites}
            self.coordinator = self.places.get("coordinator", self.router)
            self.lay()
            self.forward(True)
        except (OSError, Unavailable) as error:
            self.close()
            raise Unavailable(f"no network namespaces: {error}") from None

    def lay(self):
        self.router.ip("link", "set", "lo", "up")
        self.router.ip("address", "add", ROUTER + "/32", "dev", "lo")
        for name, address in self.addresses.items():
            site, gateway = self.places[name], address[:-1] + "1"
            self.router.ip("link", "add", name, "type", "veth", "peer", "name", "wan", "netns", site.path())
            self.router.ip("address", "add", gateway + "/24", "dev", name)
            self.router.ip("link", "set", name, "up")
            site.ip("link", "set", "lo", "up")
            site.ip("address", "add", address + "/24", "dev", "wan")
            site.ip("link", "set", "wan", "up")
            site.ip("route", "add", "default", "via", gateway)

    def forward(self, on):
        """Whether the sites reach each other; both reach the router in any case."""
        def write():
            with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
                switch.write(str(int(on)))
        self.router.inside(write)

    def cut(self, source, target, on=True):
        """Whether the router drops what goes from one place to another; the other way is its own."""
        self.router.ip("rule", "add" if on else "del", "from", self.addresses[source], "to", self.addresses[target], "blackhole")

    def slow(self, kilobits):
        """How much each place sends and receives per second at most; None: anything."""
        for name, place in self.places.items():
            for namespace, device in ((self.router, name), (place, "wan")):
                limit = ["replace", "dev", device, "root", "tbf", "rate", f"{kilobits}kbit", "burst", "16kb", "latency", "300ms"]
                namespace.call("tc", "qdisc", *(limit if kilobits else ["del", "dev", device, "root"]))

    def close(self):
        for namespace in filter(None, [self.router, *self.places.values()]):
            namespace.close()


class Proxy:
    """In the router, from `port` to the same port of a site. Resets its connections `resets` times,
    each time that about `every_bytes` more have passed."""

    def __init__(self, network, site, port, every_bytes, resets):
        self.network, self.target = network, (network.addresses[site], port)
        self.every_bytes, self.resets, self.left_bytes = every_bytes, resets, every_bytes
        self.random = random.Random(1)
        self.lock = threading.Lock()
        self.open = set()
        self.closed = False
        self.listener = network.router.inside(lambda: socket.create_server((ROUTER, port)))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.closed:
            try:
                near = self.listener.accept()[0]
                far = self.network.router.inside(lambda: socket.create_connection(self.target))
            except OSError:
                continue
            with self.lock:
                self.open |= {near, far}
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=pair, daemon=True).start()

    def carry(self, source, target):
        try:
            while data := source.recv(16384):
                self.count(len(data))
                target.sendall(data)
        except OSError:
            pass
        self.end({source, target})

    def count(self, count_bytes):
        with self.lock:
            self.left_bytes -= count_bytes
            if self.left_bytes > 0 or self.resets == 0:
                return
            self.resets -= 1
            self.left_bytes = self.random.randint(self.every_bytes // 2, self.every_bytes * 3 // 2)
            now = set(self.open)
        self.end(now)

    def end(self, sockets):
        """Resets, not closes: what is in flight is lost."""
        with self.lock:
            sockets &= self.open
            self.open -= sockets
        for s in sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def close(self):
        self.closed = True
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            now = set(self.open)
        self.end(now)


class NetworkCase(Case):
    """Runs whose coordinator and sites are in their namespaces."""
    network = None

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.keys(self.network.sites)
        self.network.forward(True)

    def start_placed(self, file, *more, **of_site):
        """Each with a run.dir of its own; `more` for every site, of_site[name] for one."""
        def placed(name):
            return [*self.secured(name), "--run-dir", self.path(name)]
        address = self.network.addresses.get("coordinator", ROUTER)
        self.coordinator = self.network.coordinator.inside(lambda: self.start(
            "coordinator", file, "--sites", len(self.network.sites), "--listen", f"{address}:0", *placed("coordinator")))
        endpoint = self.coordinator.wait_line(r"^listening (\S+)$").group(1)
        self.sites = {name: place.inside(lambda: self.start(
            "train", file, "--site", name, "--coordinator", endpoint, *placed(name), *more, *of_site.get(name, ())))
            for name, place in self.network.sites.items()}
