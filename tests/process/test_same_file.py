# SPDX-License-Identifier: Apache-2.0
"""A command does not replace what it reads, by whatever name, nor what another program or person made."""
import os

from harness import Case, main


class Tokenize(Case):
    def setUp(self):
        super().setUp()
        self.text = self.license_text()
        self.write("s.txt", self.text)

    def refused_for(self, out, *more, said=None, **options):
        self.refused(rf"^dilocox: {said or out}: is the text itself, .*; name another file to write$", "tokenize", "s.txt", out,
                     *more, **options)
        with open(self.path("s.txt"), "rb") as text:
            self.assertEqual(text.read(), self.text)

    def test_other_names(self):
        os.symlink("s.txt", self.path("symbolic"))
        os.symlink("symbolic", self.path("symbolic-2"))
        os.link(self.path("s.txt"), self.path("hard"))
        os.mkdir(self.path("d"))
        os.symlink(self.directory, self.path("d", "up"))
        for out in ("s.txt", "./s.txt", self.path("s.txt"), "symbolic", "symbolic-2", "hard", "d/../s.txt", "d/up/s.txt"):
            with self.subTest(out):
                self.refused_for(out)

    def test_derived_names(self):
        for name in ("o.train.tokens", "o.validation.tokens"):
            with self.subTest(name):
                os.symlink("s.txt", self.path(name))
                self.refused_for("o", "--validation-every", 2, "--block", 1024, said=name)
                self.assertEqual(sorted(os.listdir(self.directory)), sorted(["s.txt", name]))
                os.remove(self.path(name))

    def test_standard_input(self):
        self.refused("^dilocox: s.txt: is the text itself, standard input; ", "tokenize", "-", "s.txt",
                     prefix=("sh", "-c", '"$@" < s.txt', "sh"))

    def test_what_is_no_file(self):
        os.mkfifo(self.path("pipe"))
        os.mkdir(self.path("d"))
        os.symlink("/dev/null", self.path("null"))
        for out, what in (("pipe", "not a regular file"), ("d", "a directory"), ("null", "not a regular file")):
            self.refused(rf"^dilocox: {out}: is {what}; name a file to write, new or to be replaced$", "tokenize", "s.txt", out)
        self.assertTrue(os.path.islink(self.path("null")))

    def test_other_files_are_replaced(self):
        self.write("old.tokens", "an older one")
        self.call("tokenize", "s.txt", "old.tokens")
        self.assertGreater(os.path.getsize(self.path("old.tokens")), len(self.text))


class Runs(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": 1})

    def test_data_among_the_results(self):
        for place, key in (("run/site-1/metrics.jsonl", "data.train"), ("run/site-2/summary.json", "data.validation"),
                           ("run/summary.json", "data.train"), ("run/weights/model.safetensors", "data.validation")):
            for link in (os.symlink, os.link, os.rename):
                with self.subTest(place=place, key=key, link=link.__name__):
                    self.prepare_data()
                    source, there = self.path(key + ".tokens"), self.path(place)
                    os.makedirs(os.path.dirname(there), exist_ok=True)
                    link(source, there)
                    given = there if place.endswith("safetensors") or link == os.rename else source
                    before = os.path.getsize(there)
                    self.refused(rf"failed: .*/{os.path.dirname(place)}.*: the run would replace '{given}', which is its {key}; "
                                 "choose another run.dir", "launch", self.file, "--sites", 2, "--set", f"{key}={given}")
                    self.assertEqual(os.path.getsize(there), before)
                    os.remove(there)

    def test_a_directory_called_keys(self):
        """launch keeps its own keys elsewhere."""
        os.makedirs(self.path("run", "keys"))
        path = self.write("run/keys/roster.txt", "mine\n")
        self.call("launch", self.file, "--sites", 2)
        with open(path) as text:
            self.assertEqual(text.read(), "mine\n")

    def test_a_key_replaces_nothing(self):
        self.write("roster.txt", "a roster\n")
        os.symlink("nowhere", self.path("dangling"))
        for name in ("roster.txt", "dangling", "/dev/null"):
            self.refused(rf"^dilocox: '{name}' exists already and a key is never overwritten", "keygen", name)
        self.assertFalse(os.path.exists(self.path("nowhere")))


if __name__ == "__main__":
    main()
