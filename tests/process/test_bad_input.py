# SPDX-License-Identifier: Apache-2.0
"""Bad input, as a person meets it: every message by its text, and the exit code (2: wrong use or config, 1: the run failed)."""
import os
import socket

from harness import Case, main


class Options(Case):
    """What is said before anything runs."""

    def setUp(self):
        super().setUp()
        self.file = self.config()

    def bad_config(self, line, pattern):
        file = self.write("bad.yaml", f"run: {{name: bad}}\n{line}\n")
        self.refused("^dilocox: " + pattern.replace("FILE", file), "launch", file)

    def test_unknown_key(self):
        self.bad_config("sync: {iner_steps: 5}", r"FILE:2: unknown key 'sync\.iner_steps'; did you mean 'sync\.inner_steps'\?$")
        self.bad_config("snyc: {inner_steps: 5}", r"FILE:2: unknown key 'snyc'; did you mean 'sync'\?$")
        self.refused(r"^dilocox: --set train\.token=5: unknown key 'train\.token'; did you mean 'train\.tokens'\?$",
                     "launch", self.file, "--set", "train.token=5")

    def test_wrong_type(self):
        self.bad_config("train: {batch: many}", r"FILE:2: train\.batch: 'many' is not a whole number; allowed: ")
        self.bad_config("sync: {compression: {error_feedback: 3}}",
                        r"FILE:2: sync\.compression\.error_feedback: '3' is not a choice; allowed: true, false")
        self.bad_config("sync: {overlap: sometimes}", r"FILE:2: sync\.overlap: 'sometimes' is not a choice; allowed: "
                        r"allreduce, none, delayed, eager,? (or )?carry")
        self.bad_config("sync: 5", r"FILE:2: sync: is a section; its keys, as 'overlap', go below it, indented")
        self.bad_config("train: {batch: [1, 2]}", r"FILE:2: train\.batch: one value is expected, not a list")

    def test_out_of_range(self):
        self.bad_config("sync: {inner_steps: 0}", r"FILE:2: sync\.inner_steps: 0 is out of range; allowed: 1 to 100000")
        self.refused(r"^dilocox: --set sync\.outer_momentum=1: sync\.outer_momentum: 1 is out of range; allowed: .*0 to 0\.999",
                     "launch", self.file, "--set", "sync.outer_momentum=1")

    def test_what_does_not_fit_together(self):
        self.refused(r"^dilocox: train\.micro_batch: 3 does not divide train\.batch, 4; set a divisor", "launch", self.file,
                     "--set", "train.micro_batch=3")
        self.refused(r"^dilocox: sync\.exchange_steps: 11 is out of range; allowed: 0 to sync\.inner_steps, 10", "launch",
                     self.file, "--set", "sync.exchange_steps=11")
        self.refused(r"^dilocox: model\.(width|heads): .*33", "launch", self.file, "--set", "model.width=33")

    def test_broken_yaml(self):
        self.bad_config("train: {batch: 4", r"FILE:\d: not valid YAML: .*; look for a missing colon, quote or indent")
        self.refused(r"^dilocox: .*none\.yaml: no such file; 'dilocox config --defaults > .*none\.yaml' writes one",
                     "launch", self.path("none.yaml"))

    def test_command_line(self):
        self.refused(r"^dilocox: 'lunch' is no subcommand; 'dilocox --help' lists them", "lunch")
        self.refused(r"^dilocox: launch: no option '--site'; 'dilocox launch --help' lists them", "launch", self.file, "--site", "2")
        self.refused(r"^dilocox: launch: --sites needs a value, N", "launch", self.file, "--sites")
        self.refused(r"^dilocox: launch: --sites: 0 is out of range; allowed: 1 to 64$", "launch", self.file, "--sites", "0")
        self.refused(r"^dilocox: launch: --sites: 'two' is not a whole number; allowed: 1 to 64$", "launch", self.file,
                     "--sites", "two")
        self.refused(r"^dilocox: coordinator: --sites: 65 is out of range", "coordinator", self.file, "--sites=65")
        self.refused(r"^dilocox: launch: --stages: 257 is out of range; allowed: 0 to 256", "launch", self.file, "--stages", "257")
        self.refused(r"^dilocox: eval: --tokens: '1x' is not a number; allowed: 0 to 1e\+15", "eval", "w", "--tokens", "1x")
        self.refused(r"^dilocox: config: --set: given more than 128 times", "config", *["--set", "train.batch=4"] * 129)
        self.refused(r"^dilocox: launch: an argument is missing; 'dilocox launch --help' shows the use", "launch")
        self.refused(r"^dilocox: launch: 'more' is one argument too many", "launch", self.file, "more")
        self.refused(r"^dilocox: train: --site NAME is needed", "train", self.file)
        self.refused(r"^dilocox: eval: --data FILE is needed", "eval", self.path("weights"))
        self.refused(r"^dilocox: bench: unknown benchmark 'gpu'; choose model, codec or stages", "bench", "gpu")
        self.refused(r"^dilocox: launch: --set .*no '='|--set inner_steps: no '=' in it", "launch", self.file, "--set", "inner_steps")

    def test_no_subcommand_shows_help(self):
        shown = self.call(code=2)
        self.assertIn("dilocox launch", shown.text("stderr"))
        self.assertEqual(shown.text("stdout"), "")
        self.assertIn("dilocox launch", self.call("--help").text("stdout"))
        for name in ("launch", "train", "coordinator", "eval", "generate", "tokenize", "config", "inspect", "keygen", "plan", "bench"):
            shown = self.call(name, "--help")
            self.assertTrue(shown.text("stdout").startswith(f"dilocox {name} "), shown.everything())
            self.assertEqual(shown.text("stderr"), "")
            self.assertRegex(shown.text("stdout"), r"\n  [A-Z]+ +\S.*\n")  # its positional arguments
        shown = self.call("launch", "--help").text("stdout")
        for pattern in (r"CONFIG +the run's options", "--run-dir DIR", "--set KEY=VALUE", r"--sites N +how many sites "
                        r"\(1 to 64; 2 unless given\)", "--stages S", "--replicas R", "--help"):
            self.assertRegex(shown, r"\n  " + pattern)

    def test_printed_defaults_load_back(self):
        defaults = self.call("config", "--defaults").text("stdout")
        file = self.write("defaults.yaml", defaults + "\n")
        as_loaded = self.call("config", file).text("stdout")  # numbers in one spelling
        again = self.write("again.yaml", as_loaded + "\n")
        self.assertEqual(self.call("config", again).text("stdout"), as_loaded)
        self.assertEqual(as_loaded, self.call("config").text("stdout"))
        self.assertIn("sync.inner_steps", self.call("config", "--options").text("stdout"))
        changed = self.call("config", file, "--set", "sync.inner_steps=7").text("stdout")
        self.assertRegex(changed, r"inner_steps: 7\b")


class Files(Case):
    """What is said of files."""

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()

    def launch(self, *more):
        return ["launch", self.file, "--sites", 2, "--set", "wan.link=mem", *more]

    def test_missing_data(self):
        self.refused(r"data\.train: no such file '/none'; run 'dilocox tokenize' \(or 'make data'\) first",
                     *self.launch("--set", "data.train=/none"))
        self.refused(r"data\.validation: no such file '/none'", *self.launch("--set", "data.validation=/none"))
        self.refused(r"^dilocox: --data: no such file '/none'", "eval", self.weights(), "--data", "/none")

    def weights(self):
        self.call(*self.launch("--set", "train.tokens=1"))
        return self.path("run", "weights")

    def test_no_mpirun(self):
        self.refused(r"^dilocox: site-[12] failed: mpirun: No such file or directory; install openmpi-bin$", "launch", self.file,
                     "--set", "model.layers=2", "--stages", 2, "--set", "train.micro_batch=1", code=1, env={"PATH": "/none"})

    def test_vocabulary_too_small(self):
        self.refused(r"data\.train: '.*data\.train\.tokens' has a vocabulary of 256, the model one of 100; set "
                     r"model\.vocabulary to 256 or more", *self.launch("--set", "model.vocabulary=100"))

    def test_too_little_data(self):
        self.write("short.txt", "short")
        self.call("tokenize", "short.txt", "short.tokens")
        self.refused(r"data\.train: '.*short\.tokens'.*; ", *self.launch("--set", "data.train=" + self.path("short.tokens")))

    def damaged(self, pattern, change):
        with open(self.path("data.train.tokens"), "rb") as shard:
            content = bytearray(shard.read())
        self.write("damaged.tokens", bytes(change(content)))
        self.refused(pattern, *self.launch("--set", "data.train=" + self.path("damaged.tokens")), code=1)

    def test_damaged_shard(self):
        def flip(at):
            def change(content):
                content[at] ^= 1
                return content
            return change

        self.damaged(r"data\.train: '.*damaged\.tokens' is damaged: its tokens' checksum does not match; ", flip(-100))
        self.damaged(r"data\.train: '.*damaged\.tokens' is damaged: its header's checksum does not match; ", flip(20))
        self.damaged(r"data\.train: '.*damaged\.tokens' is cut short: its header says \d+ tokens of 1 bytes, \d+ bytes follow",
                     lambda content: content[:-100])
        self.damaged(r"data\.train: '.*damaged\.tokens' is cut short: it has 50 bytes, its header alone 128",
                     lambda content: content[:50])
        self.damaged(r"data\.train: '.*damaged\.tokens' is not a token file; run 'dilocox tokenize'",
                     lambda content: self.license_text())

    def test_weights(self):
        self.refused(r"^dilocox: .*/nowhere/config\.json: no such file; give a directory of weights: RUN_DIR/weights after a run",
                     "eval", self.path("nowhere"), "--data", self.path("data.validation.tokens"))
        weights = self.weights()
        with open(os.path.join(weights, "model.safetensors"), "rb") as file:
            content = file.read()
        self.write("run/weights/model.safetensors", content[:-1000])
        self.refused(r"^dilocox: .*model\.safetensors.*cut short", "generate", weights, "--prompt", "x", code=1)

    def test_run_dir(self):
        self.write("file", "")
        self.refused(r"/file", *self.launch("--run-dir", self.path("file", "run")))

    def test_tokenize(self):
        self.refused(r"^dilocox: .*none\.txt: no such file; name the text to tokenize", "tokenize", self.path("none.txt"), self.path("out"))
        self.write("empty.txt", "")
        self.refused(r"^dilocox: .*empty\.txt", "tokenize", self.path("empty.txt"), self.path("out"), code=1)


class Keys(Case):
    """What is said of keys, rosters and addresses."""

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()
        self.roster = self.keys(["a", "b"])

    def site(self, *more, name="a"):
        return ["train", self.file, "--site", name, "--coordinator", "127.0.0.1:9", *self.secured("a"), *more]

    def coordinator(self, *more):
        return ["coordinator", self.file, "--listen", "127.0.0.1:0", *self.secured("coordinator"), *more]

    def test_key_file(self):
        self.refused(r"^dilocox: wan\.key: no such file '/none'; run 'dilocox keygen /none' first",
                     *self.site("--set", "wan.key=/none"))
        os.chmod(self.path("a.key"), 0o644)
        self.refused(r"^dilocox: wan\.key: '.*a\.key' is open to other users \(mode 0644, allowed is 0600\); run 'chmod 600 .*a\.key'",
                     *self.site())
        self.write("a.key", "no key at all\n", mode=0o600)
        self.refused(r"^dilocox: wan\.key: '.*a\.key'.*", *self.site())

    def test_keygen_never_overwrites(self):
        self.refused(r"^dilocox: '.*a\.key' exists already and a key is never overwritten; choose another name or remove it",
                     "keygen", self.path("a.key"))

    def test_roster(self):
        def roster(text, pattern):
            self.write("roster.txt", text)
            self.refused(r"^dilocox: wan\.roster: " + pattern, *self.site())

        with open(self.roster) as text:
            good = text.read()
        roster(good + "c tooshort\n", r"'?.*roster\.txt'?:4: .*")
        roster(good + "c\n", r".*roster\.txt'?:4: .*")
        roster(good + good.splitlines()[1] + "\n", r".*roster\.txt:4: the name 'a' appears twice; a name has one key")
        roster("\n".join(good.splitlines()[1:]) + "\n", r"'.*roster\.txt' has no line for the coordinator; add 'coordinator PUBLIC-KEY'")
        os.remove(self.roster)
        self.refused(r"^dilocox: wan\.roster: .*roster\.txt'?.*no such file|^dilocox: wan\.roster: no such file '.*roster\.txt'",
                     *self.site())

    def test_who_is_who(self):
        self.refused(r"^dilocox: wan\.key: '.*a\.key' is not the key that '.*roster\.txt' gives 'b'", *self.site(name="b"))
        self.refused(r"^dilocox: wan\.key: '.*a\.key' is the key that '.*roster\.txt' gives 'a', not 'c'", *self.site(name="c"))
        self.refused(r"^dilocox: site: 'a b' is not allowed; names have 1 to 63 of the characters", *self.site(name="a b"))
        self.refused(r"'coordinator' is taken", *self.site(name="coordinator"))

    def test_not_on_the_roster(self):
        coordinator, endpoint = self.start_coordinator(self.file, 2)
        public = self.call("keygen", "c.key").text("stdout")
        self.refused(r"^dilocox: wan\.key: the coordinator at %s does not admit the key " % endpoint, "train", self.file,
                     "--site", "c", "--coordinator", endpoint, *self.secured("c"), code=1)
        said = coordinator.wait_line(r"refused a connection from 127\.0\.0\.1: its key (\S+) is not a site's on the roster")
        self.assertEqual(said.group(1), public)

    def test_addresses(self):
        self.refused(r"^dilocox: --coordinator: 'nowhere'.*host:port", *self.site("--coordinator", "nowhere"))
        self.refused(r"^dilocox: wan\.listen: the port of '127\.0\.0\.1:99999' is not a number from 0 to 65535",
                     *self.site("--set", "wan.listen=127.0.0.1:99999"))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused(r"^dilocox: --listen: port %d on 127\.0\.0\.1 is in use; choose another or 0 for any free port" % port,
                         *self.coordinator("--listen", f"127.0.0.1:{port}"))

    def test_no_coordinator(self):
        self.refused(r"^dilocox: no coordinator at 127\.0\.0\.1:9 answered for 1 s \(wan\.join_s\); check wan\.coordinator, wan\.key "
                     r"and the roster, and that it runs", *self.site("--set", "wan.join_s=1"), code=1)

    def test_unencrypted_off_loopback(self):
        for arguments in (self.coordinator("--listen", "192.0.2.1:0"), self.site("--coordinator", "192.0.2.1:9")):
            self.refused(r"^dilocox: wan\.security: .*none.*loopback|^dilocox: .*192\.0\.2\.1.*security.*none|^dilocox: .*security.*192\.0\.2\.1",
                         *arguments, "--set", "wan.security=none")


class Rendezvous(Case):
    """Sites that must not train together."""

    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()

    def unequal(self, pattern, *more, name="b"):
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        first = self.start_site(self.file, "a", endpoint, secure=False)
        coordinator.wait_line("site 'a' connected")
        second = self.start_site(self.file, name, endpoint, *more, secure=False)
        self.assertEqual(second.wait(), 1, second.everything())
        self.assertRegex(second.text("stderr"), "^dilocox: " + pattern)
        third = self.start_site(self.file, "b", endpoint, secure=False)  # a good one can still join, and the run is well
        for process in (third, first, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())

    def test_unequal_configs(self):
        self.unequal(r"sync\.inner_steps: '11' on site 'b', '10' in the run and on site 'a'; all sites must use the same value",
                     "--set", "sync.inner_steps=11")

    def test_unequal_seeds(self):
        self.unequal(r"run\.seed: '2' on site 'b', '1' in the run and on site 'a'; all sites must use the same value", "--set",
                     "run.seed=2")

    def test_unequal_learning_rates_in_the_last_digit(self):
        self.unequal(r"train\.learning_rate: '0?\.?[0-9.e-]+' on site 'b', '[0-9.e-]+' in the run", "--set",
                     "train.learning_rate=5.0000001e-3")

    def test_unequal_data(self):
        self.write("other.txt", self.license_text()[:6000])
        self.call("tokenize", "other.txt", self.path("other.tokens"))
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        sites = [self.start_site(self.file, "a", endpoint, secure=False),
                 self.start_site(self.file, "b", endpoint, "--set", "data.train=" + self.path("other.tokens"), secure=False)]
        refused = self.wait_for_exit_of_one(sites)
        self.assertEqual(refused.wait(), 1)
        self.assertRegex(refused.text("stderr"), r"^dilocox: data\.train: site '.' has \d+ windows \(hash [0-9a-f]{16}\), '.' has "
                         r"\d+ \([0-9a-f]{16}\); all sites need the same tokens")
        self.assertIsNone(coordinator.popen.poll())

    def test_what_may_differ(self):
        """Threads, kernels, paths: a site's own affair."""
        with open(self.path("data.train.tokens"), "rb") as shard:
            self.write("copy/train", shard.read())
        coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
        sites = [self.start_site(self.file, "a", endpoint, secure=False),
                 self.start_site(self.file, "b", endpoint, "--set", "site.threads=2", "--set", "train.backend=ref", "--set",
                                 "data.train=" + self.path("copy/train"), "--run-dir", self.path("other"), secure=False)]
        for process in (*sites, coordinator):
            self.assertEqual(process.wait(), 0, process.everything())


if __name__ == "__main__":
    main()
