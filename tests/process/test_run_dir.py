# SPDX-License-Identifier: Apache-2.0
"""run.dir: a start that fails changes nothing in it, a run has it for itself, and the results before it are kept; paths are
checked as what they are; and a run's processes read one config."""
import json
import os
import signal
import tempfile
import threading

from harness import Case, events, main, summary

LONG = 10 ** 9  # tokens: never reached


def tree(directory):
    """Every file below it, with content and times; a missing directory is None."""
    if not os.path.exists(directory):
        return None
    found = {}
    for parent, directories, files in os.walk(directory):
        for name in directories:
            found[os.path.join(parent, name)] = None
        for name in files:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
                continue
            with open(path, "rb") as file:
                found[path] = (file.read(), os.stat(path).st_mtime_ns)
    return found


class Folder(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config()
        self.temporary = self.path("tmp")
        os.mkdir(self.temporary)
        # two mpirun at once may fail in a temporary directory that neither has used before
        self.env = {"TMPDIR": self.temporary, "OMPI_MCA_orte_tmpdir_base": tempfile.gettempdir()}

    def launch(self, *more, link="zmq", **options):
        return self.call("launch", self.file, "--sites", 2, "--set", f"wan.link={link}", *more, env=self.env, **options)

    def run_id(self, directory):
        """The id that all results in a run's directory name."""
        s = summary(directory)
        with open(os.path.join(directory, "weights", "config.json")) as text:
            ids = {s["run_id"], json.load(text)["dilocox_run_id"]}
        for site in s["per_site"]:
            own = os.path.join(directory, site["site"])
            first = events(os.path.join(own, "metrics.jsonl"))[0]
            self.assertEqual((first["event"], first["site"], first["sites"]), ("run", site["site"], 2))
            ids |= {site["run_id"], summary(own)["run_id"], first["run_id"]}
        self.assertEqual(len(ids), 1, ids)
        self.assertRegex(s["run_id"], "^[0-9a-f]{16}$")
        self.assertNotEqual(int(s["run_id"], 16), 0)
        return s["run_id"]

    def assert_no_temporary_files(self):
        self.assertEqual([name for name in os.listdir(self.temporary) if name.startswith("dilocox")], [])


class FailedStart(Folder):
    """Whatever stops a start, run.dir is what it was."""

    def check_unchanged(self, what):
        for name, before in (("run", True), ("new", False)):
            with self.subTest(directory=name):
                if before and not os.path.exists(self.path("run")):
                    self.launch(link="mem")
                kept = tree(self.path(name))
                what(self.path(name))
                self.assertEqual(tree(self.path(name)), kept)
        self.assert_no_temporary_files()

    def refuse(self, pattern, *arguments, code=2, env=None):
        def what(directory):
            self.refused(pattern, *arguments, "--run-dir", directory, code=code, env={**self.env, **(env or {})})
        self.check_unchanged(what)

    def test_data(self):
        for link in ("zmq", "mem"):
            self.refuse("data.train: no such file", "launch", self.file, "--set", "data.train=/none", "--set", f"wan.link={link}")
            self.refuse("data.validation: no such file", "launch", self.file, "--set", "data.validation=/none", "--set",
                        f"wan.link={link}")
            self.refuse("data.train: .* vocabulary", "launch", self.file, "--set", "model.vocabulary=100", "--set",
                        f"wan.link={link}")

    def test_data_of_a_cluster(self):
        self.refuse("data.train: no such file", "launch", self.file, "--stages", 2, "--set", "model.layers=2", "--set",
                    "train.micro_batch=1", "--set", "data.train=/none")

    def test_no_mpirun(self):
        self.refuse("mpirun: No such file", "launch", self.file, "--stages", 2, "--set", "model.layers=2", "--set",
                    "train.micro_batch=1", code=1, env={"PATH": "/none"})

    def test_keys(self):
        self.refuse("wan.key: no such file", "train", self.file, "--site", "a", "--coordinator", "127.0.0.1:9", "--set",
                    "wan.key=/none")
        self.refuse("wan.key: no such file", "coordinator", self.file, "--set", "wan.key=/none")
        self.keys(["a"])
        self.refuse("wan.roster: no such file", "train", self.file, "--site", "a", "--coordinator", "127.0.0.1:9",
                    *self.secured("a"), "--set", "wan.roster=/none")

    def test_no_coordinator(self):
        self.refuse("no coordinator at 127.0.0.1:9 answered", "train", self.file, "--site", "site-1", "--coordinator", "127.0.0.1:9", "--set",
                    "wan.security=none", "--set", "wan.join_s=1", code=1)

    def test_refused_by_the_coordinator(self):
        coordinator, endpoint = self.start_coordinator(self.file, 2, "--run-dir", self.path("elsewhere"), secure=False)
        self.refuse("run.seed: ", "train", self.file, "--site", "site-1", "--coordinator", endpoint, "--set",
                    "wan.security=none", "--set", "run.seed=2", code=1)
        coordinator.signal(signal.SIGINT)
        self.assertEqual(coordinator.wait(), 1)
        self.assertFalse(os.path.exists(self.path("elsewhere")))

    def test_interrupted_before_the_run(self):
        def what(directory):
            site = self.start("train", self.file, "--site", "site-1", "--coordinator", "127.0.0.1:9", "--run-dir", directory,
                              "--set", "wan.security=none", env=self.env)
            site.wait_line("joining")
            site.signal(signal.SIGINT)
            self.assertEqual(site.wait(), 1)
        self.check_unchanged(what)

    def test_names_of_sites(self):
        for name in ("", ".", "..", "../x", "a/b", "/x", "-x", "a b", "x" * 64, "weights", "summary.json", "metrics.jsonl", "previous-1", "é"):
            self.refuse("site: '.*' is not allowed; ", "train", self.file, "--site=" + name, "--coordinator", "127.0.0.1:9",
                        "--set", "wan.security=none")


class InUse(Folder):
    """A run has its directory for itself."""

    def start_long(self, *more):
        process = self.start("launch", self.file, "--sites", 2, "--set", f"train.tokens={LONG}", *more, env=self.env)
        self.wait_for_event(self.path("run", "site-1", "metrics.jsonl"), lambda e: e["event"] == "step")
        return process

    def check_whole(self, name):
        """Its metrics are one run's, line by line."""
        lines = events(self.path("run", name, "metrics.jsonl"), partial=True)
        steps = [e["step"] for e in lines if e["event"] == "step"]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        self.assertEqual([e["event"] for e in lines].count("run"), 1)

    def test_second_start(self):
        first = self.start_long()
        holder = (rf"run\.dir: '.*' is in use by (the coordinator|site 'site-\d') \(process \d+ on host \S+, since "
                  rf"\d{{4}}-\d\d-\d\d [\d:]+ UTC\); wait until that run ends, or set another run\.dir$")
        os.symlink(self.path("run"), self.path("link"))
        for arguments in (["launch", self.file], ["launch", self.file, "--set", "wan.link=mem"],
                          ["train", self.file, "--site", "site-1", "--set", "wan.security=none"],
                          ["train", self.file, "--site", "another", "--set", "wan.security=none"],
                          ["coordinator", self.file, "--set", "wan.security=none"],
                          ["launch", self.file, "--run-dir", self.path("link")],
                          ["launch", self.file, "--run-dir", self.path("run", "..", "run") + "/"]):
            self.refused(holder, *arguments, env=self.env)
        first.signal(signal.SIGINT)
        self.assertEqual(first.wait(), 1)
        self.assertIn("partial results are in", first.text("stderr"))
        for name in ("site-1", "site-2"):
            self.check_whole(name)
        self.assertEqual(sorted(os.listdir(self.path("run"))), [".lock", "metrics.jsonl", "site-1", "site-2", "weights"])

    def test_lock_of_a_killed_run(self):
        self.start_long()
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.wait_until_nothing_is_left()
        self.launch()
        kept = set(os.listdir(self.path("run", "previous-1"))) - {"weights"}  # if a site outlived its launcher
        self.assertEqual(kept, {"metrics.jsonl", "site-1", "site-2"})

    def test_two_at_once(self):
        two = [self.start("launch", self.file, "--sites", 2, "--set", f"train.tokens={LONG}", env=self.env) for _ in range(2)]
        loser = self.wait_for_exit_of_one(two)
        self.assertEqual(loser.wait(), 2, loser.everything())
        self.assertRegex(loser.text("stderr"), r"run\.dir: .* is in use by ")
        winner = two[1 - two.index(loser)]
        for name in ("site-1", "site-2"):
            self.wait_for_event(self.path("run", name, "metrics.jsonl"), lambda e: e["event"] == "step")
        winner.signal(signal.SIGINT)
        self.assertEqual(winner.wait(), 1)
        ids = set()
        for name in ("site-1", "site-2"):
            self.check_whole(name)
            ids |= {events(self.path("run", name, "metrics.jsonl"))[0]["run_id"], summary(self.path("run", name))["run_id"]}
        self.assertEqual(len(ids), 1)
        self.assertFalse(os.path.exists(self.path("run", "previous-1")))
        self.wait_until_nothing_is_left()
        self.assert_no_temporary_files()

    def test_two_runs_that_wait_in_one_directory(self):
        """Both are refused nothing while they wait: the one whose sites come first has the directory."""
        runs = [self.start_coordinator(self.file, 1, "--set", f"train.tokens={LONG}", secure=False) for _ in range(2)]
        more = ("--set", f"train.tokens={LONG}")
        first = self.start_site(self.file, "a", runs[0][1], *more, secure=False)
        self.wait_for_event(self.path("run", "a", "metrics.jsonl"), lambda e: e["event"] == "step")
        second = self.start_site(self.file, "b", runs[1][1], *more, "--run-dir", self.path("other"), secure=False)
        self.assertEqual(runs[1][0].wait(), 2)
        self.assertRegex(runs[1][0].text("stderr"), r"run\.dir: '.*/run' is in use by ")
        self.assertEqual(second.wait(), 2 if "run.dir" in second.text("stderr") else 1)
        first.signal(signal.SIGINT)
        self.assertEqual(first.wait(), 1)
        self.check_whole("a")


class Previous(Folder):
    """The results of the run before are kept."""

    def check_kept(self, run):
        ids = []
        for number in range(3):
            kept = tree(self.path("run"))
            run()
            ids.append(self.run_id(self.path("run")))
            for path, content in (kept or {}).items():
                name = os.path.relpath(path, self.path("run"))
                if name.startswith((".lock", "previous-")):
                    continue
                moved = self.path("run", f"previous-{number}", name)
                self.assertTrue(os.path.exists(moved), name)
                if content is not None:
                    with open(moved, "rb") as file:
                        self.assertEqual(file.read(), content[0], name)
        self.assertEqual([self.run_id(self.path("run", f"previous-{n}")) for n in (1, 2)], ids[:2])
        self.assertEqual(len(set(ids)), 3)

    def test_launch(self):
        for link in ("zmq", "mem"):
            with self.subTest(link):
                self.check_kept(lambda: self.launch(link=link))
                os.rename(self.path("run"), self.path("run-" + link))
        self.assert_no_temporary_files()

    def test_of_one_job(self):
        self.check_kept(lambda: self.launch("--set", "wan.link=mpi"))

    def test_own_files_stay(self):
        self.write("run/notes.txt", "mine")
        self.write("run/scripts/plot.py", "mine")
        self.launch(link="mem")
        said = self.launch(link="mem").text("stdout")
        self.assertIn(f"the results of the run before are now in {self.path('run')}/previous-1", said)
        self.assertTrue(os.path.exists(self.path("run", "notes.txt")) and os.path.exists(self.path("run", "scripts", "plot.py")))
        self.assertEqual(sorted(os.listdir(self.path("run", "previous-1"))), ["metrics.jsonl", "site-1", "site-2", "summary.json", "weights"])

    def test_processes_by_themselves(self):
        def run():
            coordinator, endpoint = self.start_coordinator(self.file, 2, secure=False)
            sites = [self.start_site(self.file, name, endpoint, secure=False) for name in ("paris", "tokyo")]
            for process in (coordinator, *sites):
                self.assertEqual(process.wait(), 0, process.everything())
        self.check_kept(run)

    def test_lock_file_of_another_hand(self):
        for content in (b"", b"run", b"run 0123456789abcdef", b"run 0123456789abcdef\n" + b"\xff" * 5000, b"\0" * 100):
            self.write("run/.lock", content)
            self.launch(link="mem")
            self.run_id(self.path("run"))


class Paths(Folder):
    """A path is checked as what it is, before anything is made."""

    def everything(self):
        return {name: content for name, content in tree(self.directory).items() if not name.startswith(self.temporary)}

    def bad(self, pattern, *arguments, **options):
        kept = self.everything()
        self.refused(pattern, *arguments, env=self.env, **options)
        self.assertEqual(self.everything(), kept)

    def test_run_dir(self):
        for command in (["launch", self.file], ["train", self.file, "--site", "a"], ["coordinator", self.file]):
            for give in (lambda path: ["--set", "run.dir=" + path], lambda path: ["--run-dir", path]):
                self.bad(r"run\.dir: the path is empty; set one", *command, *give(""))
                self.bad(r"run\.dir: '~/run' begins with '~', which only a shell replaces", *command, *give("~/run"))
                self.bad(r"run\.dir: 512 bytes are too many", *command, *give("x/" * 256))
                self.bad(r"run\.dir: 2000 bytes are too many", *command, *give("x" * 2000))
        for command in (["train", self.file, "--site", "a", "--set", "wan.security=none"],
                        ["coordinator", self.file, "--set", "wan.security=none"], ["launch", self.file],
                        ["launch", self.file, "--set", "wan.link=mem"]):
            for root in ("/", "//", "/./../", "/proc/self/root"):
                self.bad(r"run\.dir: '%s' is the root of the file system" % root, *command, "--run-dir", root)
            self.bad(r"run\.dir: '.*x+.*' can't be used: '.*': File name too long", *command, "--run-dir", self.path("x" * 256))
            self.bad(r"run\.dir: '.*/config\.yaml/run' can't be used: '.*': Not a directory", *command, "--run-dir",
                     self.path("config.yaml", "run"))
            self.bad(r"run\.dir: '.*/config\.yaml' can't be used: '.*': not a directory", *command, "--run-dir", self.file)
            self.bad(r"run\.dir: '/proc/run' can't be used: '/proc/': ", *command, "--run-dir", "/proc/run") \
                if os.geteuid() != 0 else None

    def test_run_dir_of_a_dangling_link(self):
        os.symlink(self.path("nowhere"), self.path("link"))
        self.bad(r"run\.dir: .* a link to a file that does not exist", "launch", self.file, "--run-dir", self.path("link"))

    def test_run_dir_in_a_file(self):
        for text in (r'"a\0b"', r'"a\nb"', '""', '"~"'):
            file = self.write("bad.yaml", f"run:\n  dir: {text}\n")
            self.bad(r"run\.dir: ", "launch", file)

    def test_odd_but_good(self):
        """A path that fills its option, one that YAML would read otherwise, a slash at the end."""
        longest = self.path("y" * 200, "y" * 200, "y")
        longest += "y" * (511 - len(longest))
        for directory in (longest, self.path("null: # 'a' \"b\" {c} é") + "/", self.path("a//b/../b/./")):
            self.launch("--set", "run.dir=" + directory)
            self.run_id(directory)

    def test_data(self):
        for key in ("data.train", "data.validation"):
            self.bad(rf"{key}: the path is empty; set one", "launch", self.file, "--set", key + "=")
            self.bad(rf"{key}: '~/t' begins with '~'", "launch", self.file, "--set", key + "=~/t")
            self.bad(rf"{key}: '.*' is .*not a regular file|{key}: .*not a regular file", "launch", self.file, "--set",
                     key + "=" + self.directory, code=1)

    def test_keys(self):
        site = ["train", self.file, "--site", "a", "--coordinator", "127.0.0.1:9"]
        for key in ("wan.key", "wan.roster"):
            self.bad(rf"{key}: the path is empty; set one", *site, "--set", key + "=")
            self.bad(rf"{key}: '~x' begins with '~'", *site, "--set", key + "=~x")
            self.bad(rf"{key}: 600 bytes are too many", *site, "--set", key + "=" + "k" * 600)

    def test_files_of_tools(self):
        for path in ("", "d/"):
            self.bad(r"OUT: '.*' names no file; ", "tokenize", self.path("text.txt"), path, "--validation-every", 4)
            self.bad(r"^dilocox: '.*' names no file; ", "keygen", path)
        self.bad(r"IN: '' names no file; ", "tokenize", "", self.path("out"))
        self.bad(r"CHECKPOINT: the path is empty; ", "generate", "", "--prompt", "x")
        self.bad(r"CHECKPOINT: the path is empty; ", "eval", "", "--data", self.path("data.validation.tokens"))


class OneConfig(Folder):
    """What launch has read and checked is what its children run."""

    def setUp(self):
        super().setUp()
        with open(self.file) as text:
            self.text = text.read()
        self.pipe = self.path("pipe")
        os.mkfifo(self.pipe)

    def feed(self, later=None):
        """The pipe's first reader gets the config, and later ones find `later` in its place."""
        def write():
            with open(self.pipe, "w") as out:
                if later is not None:
                    os.replace(self.write("later.yaml", later), self.pipe)
                out.write(self.text)
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def check(self, *more):
        feeder = self.feed()
        self.call("launch", self.pipe, "--sites", 2, "--set", "run.seed=7", "--set", "train.batch=8", *more, env=self.env)
        feeder.join()
        self.assertEqual(events(self.path("run", "site-2", "metrics.jsonl"), "step")[0]["tokens"], 8 * 32 * 2)
        self.run_id(self.path("run"))

    def test_pipe(self):
        self.check()

    def test_pipe_to_ranks(self):
        self.check("--stages", 2, "--set", "model.layers=2", "--set", "train.micro_batch=1")

    def test_pipe_to_one_job(self):
        self.check("--set", "wan.link=mpi")

    def test_file_that_changes(self):
        """As if the file was edited after launch had read it: later readers find another one."""
        self.feed("run: {dir: elsewhere}\nmodel: {layers: 3}\n")
        self.call("launch", self.pipe, "--sites", 2, env=self.env)
        self.run_id(self.path("run"))
        self.assertFalse(os.path.exists(self.path("elsewhere")))

    def parent(self, pid):
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[1])

    def test_pipe_to_a_rank_that_dies(self):
        """The message names the rank's place, from the config that was read once."""
        self.feed()
        rank = self.start("train", self.pipe, "--site", "a", "--coordinator", "127.0.0.1:9", "--set", "wan.security=none",
                          env={"PMIX_RANK": "0", **self.env}, prefix=("mpirun", "-q", "--allow-run-as-root", "-n", "1"))
        rank.wait_line("joining")
        pids = [pid for pid in self.pids() if os.readlink(f"/proc/{pid}/exe").endswith("dilocox")]
        os.kill(next(pid for pid in pids if self.parent(pid) in pids), signal.SIGKILL)
        self.assertNotEqual(rank.wait(), 0)
        self.assertIn("rank 0 (stage 0, replica 0) of site 'a' was ended by signal 9", rank.text("stderr"))


if __name__ == "__main__":
    main(at_once=2)
