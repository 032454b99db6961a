# SPDX-License-Identifier: Apache-2.0
"""Addresses: each is checked by the process that it was given to, before it joins, and the message
names the option as it was given. What is written as the help says works."""
import random
import socket
import unittest

from harness import Case, main

# text: what is said of it, of each of the options
MALFORMED = {
    "::1": "write IPv6 in brackets, as \\[::1\\]:4000",
    "::1:4700": "write IPv6 in brackets, as \\[::1\\]:4000",
    "fd00::2%eth0:4700": "write IPv6 in brackets",
    "[::1": "brackets hold an IPv6 address, as \\[::1\\]:4000",
    "[::1]4700": "brackets hold an IPv6 address",
    "[]:4700": "brackets hold an IPv6 address",
    "[localhost]:4700": "brackets hold an IPv6 address",
    "[::1]:": "the port of '\\[::1\\]:' is not a number from 0 to 65535",
    "127.0.0.1:": "the port of '127.0.0.1:' is not a number from 0 to 65535",
    "127.0.0.1:65536": "the port of '127.0.0.1:65536' is not a number from 0 to 65535",
    "127.0.0.1:-1": "the port of '127.0.0.1:-1' is not a number",
    "127.0.0.1: 4700": "the port of '127.0.0.1: 4700' is not a number",
    "127.0.0.1:4700 ": "the port of '127.0.0.1:4700 ' is not a number",
    "127.0.0.1:0x10": "the port of '127.0.0.1:0x10' is not a number",
    "127.0.0.1:٤": "the port of .* is not a number",
    ":4700": "'\\:4700' is not an address; write host",
    "a b:4700": "'a b:4700' is not an address; write host",
    "tcp://127.0.0.1:4700": "is a URL; leave out 'tcp://'",
    "x" * 120 + ":1": "'x{60}' is not an address; write host",
}


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
        return True
    except OSError:
        return False


def two_free_ports():
    """The first of two in a row, below those that the kernel gives to whoever asks for any."""
    while True:
        port = random.randrange(10000, 30000)
        try:
            with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
                return port
        except OSError:
            pass


class Addresses(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()

    def site(self, *more):
        return ["train", self.file, "--site", "a", *self.secured("a"), *more]

    def coordinator(self, *more):
        return ["coordinator", self.file, *self.secured("coordinator"), *more]

    def test_malformed(self):
        self.keys(["a", "b"])
        for text, said in MALFORMED.items():
            with self.subTest(text):
                self.refused(f"^dilocox: wan\\.listen: .*{said}", *self.site("--set", f"wan.listen={text}"))
                self.refused(f"^dilocox: --coordinator: .*{said}", *self.site("--coordinator", text))
                self.refused(f"^dilocox: --listen: .*{said}", *self.coordinator("--listen", text))
                self.refused(f"^dilocox: wan\\.coordinator: .*{said}", *self.coordinator("--set", f"wan.coordinator={text}"))

    def test_malformed_in_a_launch(self):
        self.refused(r"^dilocox: wan\.listen: '::1' is not an address; write IPv6 in brackets", "launch", self.file,
                     "--set", "wan.listen=::1")

    def test_without_a_port(self):
        self.keys(["a", "b"])
        for text in ("127.0.0.1", "[::1]", "lo"):
            self.refused(r"^dilocox: --listen: '.*' is not an address; write host:port", *self.coordinator("--listen", text))
            self.refused(r"^dilocox: --coordinator: '.*' is not an address; write host:port", *self.site("--coordinator", text))

    def test_empty(self):
        self.keys(["a", "b"])
        self.refused(r"^dilocox: --listen: '' is not an address; write host:port", *self.coordinator("--listen", ""))
        self.refused(r"^dilocox: --coordinator: '' is not an address; write host:port", *self.site("--coordinator="))
        self.refused(r"^dilocox: wan\.coordinator: '' is not an address", *self.coordinator("--set", "wan.coordinator="))

    def test_port_0_of_a_site(self):
        self.keys(["a", "b"])
        self.refused(r"^dilocox: --coordinator: port 0 in '127\.0\.0\.1:0' is for the coordinator only",
                     *self.site("--coordinator", "127.0.0.1:0"))

    def test_ports_of_many_ranks(self):
        self.keys(["a", "b"])
        self.refused(r"^dilocox: wan\.listen: the port of '127\.0\.0\.1:65473' is out of range; allowed: 0 to 65472",
                     *self.site("--set", "wan.listen=127.0.0.1:65473"))

    def test_nobody_s(self):
        """Looked up where they are given: a name that leads nowhere, an interface that is not here."""
        self.keys(["a", "b"])
        for text in ("nowhere.invalid", "eth77"):
            self.refused(rf"^dilocox: wan\.listen: '{text}' is no interface of this machine, and as a name leads to no address",
                         *self.site("--coordinator", "127.0.0.1:9", "--set", f"wan.listen={text}:4700"))
            self.refused(rf"^dilocox: --listen: '{text}' is no interface of this machine, and as a name leads to no address",
                         *self.coordinator("--listen", f"{text}:4700"))
            self.refused(rf"^dilocox: --coordinator: '{text}' is a name that leads to no address",
                         *self.site("--coordinator", f"{text}:4700"))
        self.refused(r"^dilocox: --listen: '198\.51\.100\.7' is not an address of this machine",
                     *self.coordinator("--listen", "198.51.100.7:0"))

    def runs(self, listen, coordinator="127.0.0.1:0", secure=True):
        """A whole run; both sites' wan.listen is `listen`. Returns where the coordinator listened."""
        security = self.secured("coordinator") if secure else ["--set", "wan.security=none"]
        first = self.start("coordinator", self.file, "--sites", 2, "--listen", coordinator, *security)
        endpoint = first.wait_line(r"^listening (\S+)$").group(1)
        sites = [self.start_site(self.file, name, endpoint, "--set", f"wan.listen={listen}", secure=secure)
                 for name in ("a", "b")]
        for process in (*sites, first):
            self.assertEqual(process.wait(), 0, process.everything())
        return endpoint

    def test_names_and_interfaces(self):
        self.keys(["a", "b"])
        port = two_free_ports()
        self.runs("localhost")
        self.runs("lo", coordinator="lo:0")
        self.assertRegex(self.runs(f"lo:{port}", coordinator="lo:0", secure=False), r"^127\.0\.0\.1:\d+$")
        self.runs("0.0.0.0")

    @unittest.skipUnless(has_ipv6(), "no IPv6 here")
    def test_ipv6(self):
        self.keys(["a", "b"])
        for secure in (True, False):
            self.assertRegex(self.runs("[::1]", coordinator="[::1]:0", secure=secure), r"^\[::1\]:\d+$")
        self.runs("[::1]:0")
        self.runs("[::]", coordinator="[::1]:0")


if __name__ == "__main__":
    main()
