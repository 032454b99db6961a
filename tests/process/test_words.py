# SPDX-License-Identifier: Apache-2.0
"""Small words of the command line, and files as editors and exports leave them."""
import os
import re

from harness import Case, main

COMMANDS = ("launch", "train", "coordinator", "eval", "generate", "tokenize", "config", "inspect", "keygen",
            "plan", "bench")


class CommandLine(Case):
    def test_short_help(self):
        self.assertEqual(self.call("-h").text("stdout"), self.call("--help").text("stdout"))
        for name in COMMANDS:
            self.assertEqual(self.call(name, "-h").text("stdout"), self.call(name, "--help").text("stdout"))
            self.assertIn("\n  --help, -h ", self.call(name, "x", "-h").text("stdout"))

    def test_unknown_short_options(self):
        for name in COMMANDS:
            for word in ("-x", "-help", "-1"):
                self.refused(rf"^dilocox: {name}: no option '{word}'; 'dilocox {name} --help' lists them$", name, word)

    def test_the_end_of_options(self):
        self.write("-t", "some text")
        self.call("tokenize", "--", "-t", "--out")
        self.assertTrue(os.path.exists(self.path("--out")))
        self.refused("^dilocox: tokenize: '--block' is one argument too many", "tokenize", "--", "a", "b", "--block")
        self.refused("^dilocox: -h: no such file", "config", "--", "-h")
        self.refused("^dilocox: config: no option '--no'", "config", "--no", "--")

    def test_a_config_whose_name_begins_with_a_dash(self):
        """launch gives it to its children."""
        self.prepare_data()
        os.rename(self.config(train={"tokens": 1}), self.path("-c.yaml"))
        self.call("launch", "--sites", 1, "--", "-c.yaml")

    def test_standard_input(self):
        self.write("s.txt", self.license_text())
        self.call("tokenize", "s.txt", "by-name")
        for prefix in (("sh", "-c", '"$@" < s.txt', "sh"), ("sh", "-c", 'cat s.txt | "$@"', "sh")):
            self.call("tokenize", "-", "piped", prefix=prefix)
            with open(self.path("by-name"), "rb") as a, open(self.path("piped"), "rb") as b:
                self.assertEqual(a.read(), b.read())
        self.refused("^dilocox: standard input: is empty; ", "tokenize", "-", "none", code=1)
        self.refused("^dilocox: standard input: can't be (opened|read): ", "tokenize", "-", "none", code=1,
                     prefix=("sh", "-c", '"$@" <&-', "sh"))

    def test_every_number(self):
        """Each numeric option refuses a word, and names what is allowed."""
        numbers = 0
        for name in COMMANDS:
            text = self.call(name, "--help").text("stdout")
            for flag, allowed in re.findall(r"^  (--[a-z-]+) \w+ +.*?\(([-0-9.e+]+ to [-0-9.e+]+); .* unless given\)$", text,
                                            re.MULTILINE):
                for word in ("two", "", "0x2", "1 2", "nan", "2,5", "٢"):
                    numbers += 1
                    self.refused(rf"^dilocox: {name}: {flag}: '.*' is not a (whole )?number; allowed: {re.escape(allowed)}$", name,
                                 f"{flag}={word}")
        self.assertGreater(numbers, 100)


class Encodings(Case):
    def refused_yaml(self, content, pattern):
        file = self.write("c.yaml", content)
        self.refused(f"^dilocox: {file}{pattern}", "config", file)

    def test_tabs(self):
        tab = ": a tab; YAML is indented with spaces$"
        for content, place in (("train:\n\ttokens: 5\n", ":2:1"), ("train:\n  \ttokens: 5\n", ":2:3"), ("\trun: {seed: 1}\n", ":1:1"),
                               ("train:\n  batch: 4\n\ttokens: 5\n", ":3:1"), ("train:\n  batch: 4\n \ttokens: 5\n", ":3:2"),
                               ("run:\r\n\tseed: 1\r\n", ":2:1"), ("\ufeffrun:\n\tseed: 1\n", ":2:1"),
                               ("run:\n  name: é\n\tseed: 1\n", ":3:1"), ("sync:\n  compression:\n  \trank: 4\n", ":3:3")):
            with self.subTest(content):
                self.refused_yaml(content, place + tab)

    def test_tabs_that_yaml_allows(self):
        file = self.write("c.yaml", "run:\n  seed:\t7\t# seven\ntrain: {\n\tbatch: 4 }\n")
        self.assertRegex(self.call("config", file).text("stdout"), r"seed: 7\b")

    def test_not_utf8(self):
        self.refused_yaml(b"# caf\xe9\n", r":1:6: not UTF-8: the byte 0xE9, as Latin-1 has it; save the file as UTF-8$")
        self.refused_yaml("run:\n  name: é".encode() + b"\xfc\n", r":2:10: not UTF-8: the byte 0xFC")
        self.refused_yaml(b"\xef\xbb\xbf\xe9\n", r":1:1: not UTF-8: the byte 0xE9")
        self.refused_yaml(b"run: {name: \xc3", r":1:13: not UTF-8: the byte 0xC3")
        self.refused_yaml(b"run: {seed: 1}\n\0\0", r":2:1: the control character 0x00 is not allowed; remove it$")
        self.refused_yaml("run: {seed: 1}".encode("utf-16-le"), ": is UTF-16; save it as UTF-8$")
        self.refused_yaml("run: {seed: 1}".encode("utf-16-be"), ": is UTF-16; save it as UTF-8$")

    def test_what_yaml_reads(self):
        for encoding in ("utf-8-sig", "utf-16"):  # with their marks
            file = self.write("c.yaml", "run: {seed: 7, name: é}\n".encode(encoding))
            self.assertRegex(self.call("config", file).text("stdout"), r'name: "é" +#.*\n +seed: 7\b')

    def test_texts(self):
        for encoding in ("utf-16", "utf-32"):  # with their marks
            self.write("s.txt", "text".encode(encoding))
            self.refused(r"^dilocox: s\.txt: is UTF-16; convert it to UTF-8 first$", "tokenize", "s.txt", "out", code=1)
            self.assertFalse(os.path.exists(self.path("out")))
        for content in (b"\xef\xbb\xbftext", b"abc\0def\xff\xfe\xc3(", b"\xff", b"caf\xe9"):  # bytes are tokens
            self.write("s.txt", content)
            self.assertIn(f"{len(content)} tokens", self.call("tokenize", "s.txt", "out").text("stdout"))

    def test_rosters(self):
        self.prepare_data()
        roster = self.keys(["a"])
        site = ["train", self.config(), "--site", "a", "--coordinator", "127.0.0.1:9", *self.secured("a"), "--set",
                "wan.join_s=1"]
        with open(roster) as text:
            good = text.read()
        for content in (good.encode("utf-8-sig"), good.replace("\n", "\r\n").encode("utf-8-sig")):
            self.write("roster.txt", content)
            self.refused("^dilocox: no coordinator at 127.0.0.1:9 answered", *site, code=1)  # it was read
        for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
            self.write("roster.txt", good.encode(encoding))
            self.refused(rf"^dilocox: wan\.roster: {roster}: is UTF-16; save it as UTF-8$", *site)

    def test_keys(self):
        self.prepare_data()
        self.keys(["a"])
        with open(self.path("a.key")) as text:
            lines = [line for line in text.read().splitlines() if not line.startswith("#")]
        self.write("a.key", "\n".join(lines).encode("utf-8-sig"), mode=0o600)
        self.refused("^dilocox: no coordinator at 127.0.0.1:9 answered", "train", self.config(), "--site", "a", "--coordinator", "127.0.0.1:9",
                     *self.secured("a"), "--set", "wan.join_s=1", code=1)


if __name__ == "__main__":
    main(at_once=4)
