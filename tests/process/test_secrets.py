# SPDX-License-Identifier: Apache-2.0
"""A secret key is in its file and in the memory of its process, and nowhere else: no file that a run leaves, no line
that it prints, no core dump has one; and a key file that others may read is refused."""
import os
import resource
import shutil
import signal

from harness import Case, SANITIZED, MPIRUN, events, main

NAMES = ("oslo", "paris")
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def z85_decode(text):
    numbers = []
    for at in range(0, len(text), 5):
        number = 0
        for character in text[at:at + 5]:
            number = number * 85 + Z85.index(character)
        numbers.append(number.to_bytes(4, "big"))
    return b"".join(numbers)


def forms(key):
    """A key's 40 characters of Z85, as the bytes of each form that could be found."""
    raw = z85_decode(key)
    return {"Z85": key.encode(), "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode(), "raw": raw}


def halves(path):
    with open(path) as text:
        lines = dict(line.split(": ") for line in text.read().splitlines() if not line.startswith("#"))
    return lines["public"], lines["secret"]


def found(keys, name, content):
    return [(name, whose, form) for whose, key in keys.items() for form, text in forms(key).items() if text in content]


class Secrets(Case):
    def setUp(self):
        super().setUp()
        self.prepare_data()
        self.file = self.config(train={"tokens": "1e12"}, snapshots={"rounds": 2, "minutes": 0},
                                sync={"overlap": "none"})  # endless
        self.keys(NAMES)
        self.holders = {self.path(f"{name}.key") for name in ("coordinator", *NAMES)}

    # ---- searching

    def secrets(self):
        return {name: halves(self.path(f"{name}.key"))[1] for name in ("coordinator", *NAMES)}

    def search(self, keys, directory):
        """(where, whose, form) of each key in the directory's files, but for those that hold one; and their number."""
        hits, count = [], 0
        for place, _, names in os.walk(directory):
            for name in names:
                path = os.path.join(place, name)
                if path in self.holders or not os.path.isfile(path):
                    continue
                with open(path, "rb") as content:
                    hits += found(keys, os.path.relpath(path, directory), content.read())
                count += 1
        return hits, count

    def search_output(self, keys):
        return [hit for process in self.processes for name, content in process.raw.items()
                for hit in found(keys, f"{process.arguments[0]} {name}", content)]

    def check_searching(self):
        """What is planted is found: every key, in every form, at the beginning, in the middle and at the end of a copy
        of each kind of file, and on a stream."""
        keys = self.secrets()
        self.assertEqual(z85_decode("HelloWorld"), bytes.fromhex("864FD26FB559F75B"))  # of ZeroMQ's RFC 32
        copy = shutil.copytree(self.path("run"), self.path("copy"))
        for name in ("metrics.jsonl", "summary.json", "weights/model.safetensors", "kept.db"):
            path = os.path.join(copy, name)
            with open(path, "rb") as file:
                before = file.read()
            for at in (0, len(before) // 2, len(before)):
                for whose, key in keys.items():
                    for form, text in forms(key).items():
                        with open(path, "wb") as file:
                            file.write(before[:at] + text + before[at:])
                        self.assertEqual(self.search(keys, os.path.dirname(path))[0], [(os.path.basename(name), whose, form)])
            with open(path, "wb") as file:
                file.write(before)
        self.assertEqual(self.search(keys, copy)[0], [])
        shutil.rmtree(copy)
        process = self.processes[-1]
        for form, text in forms(keys["paris"]).items():
            process.raw["stderr"] += text
            self.assertEqual(self.search_output(keys), [(f"{process.arguments[0]} stderr", "paris", form)])
            del process.raw["stderr"][-len(text):]

    # ---- a run

    def started(self, *more, secure=True):
        coordinator, endpoint = self.start_coordinator(self.file, len(NAMES), *more, secure=secure)
        sites = [self.start_site(self.file, name, endpoint, *more, secure=secure) for name in NAMES]
        for name in NAMES:
            self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                lambda e: e["event"] == "round" and e["committed_rounds"] >= 3)
        return coordinator, sites, endpoint

    def write_holder(self, name, text, mode=0o600):
        path = self.write(name, text, mode)
        self.holders.add(path)
        return path

    def wrong_uses(self, endpoint):
        """What people do with keys by mistake, each refused."""
        public, secret = halves(self.path("paris.key"))
        other = halves(self.path("oslo.key"))[1]
        with open(self.path("roster.txt")) as text:
            roster = text.read()
        site = ("train", self.file, "--site", "paris", "--coordinator", endpoint, *self.secured("paris"),
                "--run-dir", self.path("elsewhere"))
        torn = self.write_holder("torn.key", f"public: {public}\nsecret: {secret[:-1]}\n")
        mixed = self.write_holder("mixed.key", f"public: {public}\nsecret: {other}\n")
        self.refused(r"wan\.key: '.*torn\.key' is not a key file", *site, "--set", f"wan.key={torn}")
        self.refused(r"wan\.key: the public and secret halves in '.*mixed\.key' do not belong together", *site,
                     "--set", f"wan.key={mixed}")
        turned = self.write_holder("turned.txt", f"{secret} paris\n")
        self.refused(r"wan\.roster: .*turned\.txt:1: begins with a key; allowed are 'name public-key'", *site,
                     "--set", f"wan.roster={turned}")
        pasted = self.write_holder("pasted.txt", roster.replace(public, secret))
        self.refused(r"wan\.roster: '.*pasted\.txt' gives 'paris' the secret half of '.*paris\.key', which was to stay on this "
                     r"machine; make another key", *site, "--set", f"wan.roster={pasted}")
        self.refused(r"wan\.roster: .*paris\.key:2: the name 'public:' is not allowed", *site,
                     "--set", f"wan.roster={self.path('paris.key')}")
        self.refused(r"paris\.key:2: unknown key 'public'", "config", self.path("paris.key"))
        self.refused(r"exists already and a key is never overwritten", "keygen", self.path("paris.key"))

    def test_nothing_but_the_key_file(self):
        """Files and output of a run with a snapshot, a coordinator's store, weights and metrics, which Ctrl-C ends; and
        the messages about keys."""
        coordinator, sites, endpoint = self.started()
        self.wait_until("a snapshot", lambda: any(n.startswith("step-") and not n.endswith(".part") for n in
                                                  self.listed("run", "oslo", "snapshots")))
        self.wrong_uses(endpoint)
        self.call("keygen", self.path("stranger.key"))
        self.holders.add(self.path("stranger.key"))
        self.refused("the coordinator at .* does not admit the key", "train", self.file, "--site", "stranger",
                     "--coordinator", endpoint, "--run-dir", self.path("elsewhere"), *self.secured("stranger"), code=1)
        coordinator.signal(signal.SIGTERM)  # its store stays, for this copy
        self.assertEqual(coordinator.wait(), 1, coordinator.everything())
        kept = shutil.copy(self.path("run", "coordinator.db"), self.path("kept.db"))
        coordinator, _ = self.start_coordinator(self.file, len(NAMES), "--listen", endpoint)
        coordinator.wait_line("goes on with run")
        for name in NAMES:
            coordinator.wait_line(f"site '{name}' is here")
        coordinator.signal(signal.SIGINT)
        for process in (coordinator, *sites):
            self.assertEqual(process.wait(), 1, process.everything())
        shutil.move(kept, self.path("run"))

        self.assertTrue(any(e["event"] == "notice" for e in events(self.path("run", "metrics.jsonl"))))
        for expected in ("kept.db", "metrics.jsonl", "oslo/metrics.jsonl", "oslo/summary.json", "weights/model.safetensors"):
            self.assertTrue(os.path.exists(self.path("run", expected)), expected)
        snapshots = self.listed("run", "paris", "snapshots")
        self.assertIn("manifest.json", {file for s in snapshots for file in self.listed("run", "paris", "snapshots", s)})
        hits, count = self.search(self.secrets(), self.directory)
        self.assertEqual(hits, [])
        self.assertGreater(count, 20)
        self.assertEqual(self.search_output(self.secrets()), [])
        public = {name: halves(self.path(f"{name}.key"))[0] for name in NAMES}
        self.assertIn(("roster.txt", "oslo", "Z85"), self.search(public, self.directory)[0])
        self.write("run/summary.json", "{}\n")  # an interrupted run has none
        self.check_searching()

    def listed(self, *parts):
        path = self.path(*parts)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def test_keys_of_launch(self):
        """They are in a directory that only this user may enter, until all sites have joined."""
        temporary = self.path("temporary")
        os.mkdir(temporary)
        run = self.start("launch", self.file, "--sites", len(NAMES), env={"TMPDIR": temporary})
        run.wait_line("joining at")
        run.signal(signal.SIGSTOP)  # it does not remove them
        (made,) = self.listed("temporary")
        self.assertEqual(os.stat(os.path.join(temporary, made)).st_mode & 0o777, 0o700)
        paths = {name: os.path.join(temporary, made, f"{name}.key") for name in ("coordinator", "site-1", "site-2")}
        keys = {name: halves(path)[1] for name, path in paths.items()}
        for path in paths.values():
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        run.signal(signal.SIGCONT)
        for name in ("site-1", "site-2"):
            self.wait_for_event(self.path("run", name, "metrics.jsonl"),
                                lambda e: e["event"] == "round" and e["committed_rounds"] >= 2)
        self.assertEqual(self.listed("temporary"), [])
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(), 1, run.everything())
        self.assertEqual(self.listed("temporary"), [])
        self.assertEqual(self.search(keys, self.directory)[0], [])
        self.assertEqual(self.search_output(keys), [])

    # ---- key files

    def refused_key(self, pattern, path):
        self.refused(pattern, "train", self.file, "--site", "oslo", "--coordinator", "127.0.0.1:9", *self.secured("oslo"),
                     "--set", f"wan.key={path}")

    def accepted_key(self, path):
        self.refused("no coordinator at 127.0.0.1:9 answered", "train", self.file, "--site", "oslo", "--coordinator",
                     "127.0.0.1:9", *self.secured("oslo"), "--set", f"wan.key={path}", "--set", "wan.join_s=1", code=1)

    def test_modes_of_key_files(self):
        key, link = self.path("oslo.key"), self.path("link.key")
        os.symlink(key, link)
        for mode in (0o604, 0o620, 0o644, 0o601, 0o660):
            os.chmod(key, mode)
            for path in (key, link):  # what counts is the file that was opened
                self.refused_key(r"^dilocox: wan\.key: '%s' is open to other users \(mode %04o, allowed is 0600\); run 'chmod 600 "
                                 % (path, mode), path)
        os.chmod(key, 0o400)
        self.accepted_key(link)
        os.mkfifo(self.path("pipe.key"), 0o600)
        self.refused_key(r"wan\.key: '.*pipe\.key' is not used: it is not a regular file", self.path("pipe.key"))

    def test_owners_of_key_files(self):
        if os.geteuid() != 0:
            self.skipTest("only root can give a file away")
        key = self.path("oslo.key")
        os.chown(key, 65534, -1)
        for mode in (0o600, 0o644):
            os.chmod(key, mode)
            self.refused_key(r"^dilocox: wan\.key: '.*oslo\.key' belongs to user 65534, and this process is user 0's; allowed is", key)
        os.chown(key, 0, -1)
        os.chmod(key, 0o600)
        self.accepted_key(key)

    # ---- core dumps

    def core_limit(self, pid):
        with open(f"/proc/{pid}/limits") as text:
            return next(line.split()[4] for line in text if line.startswith("Max core file size"))

    def dumps_core(self, process):
        """Whether it does if its limit allows it: PR_SET_DUMPABLE forbids it then."""
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_CORE)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (hard, hard))
        process.signal(signal.SIGABRT)
        _, status = os.waitpid(process.pid, 0)
        self.assertEqual(os.WTERMSIG(status), signal.SIGABRT)
        return os.WCOREDUMP(status)

    def test_no_core_dumps(self):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        for secure in (True, False):
            coordinator, sites, _ = self.started(secure=secure)
            allowed = [self.core_limit(p.pid) != "0" for p in (coordinator, *sites)]
            dumped = [self.dumps_core(p) for p in (coordinator, *sites)]
            if secure:
                self.assertEqual((allowed, dumped), ([False] * 3, [False] * 3))
                shutil.rmtree(self.path("run"))
            elif not any(dumped):
                self.skipTest("this machine writes no core dumps")
            else:
                # a sanitizer sets the limit itself
                self.assertEqual((allowed, dumped), ([not SANITIZED] * 3, [True] * 3))

    def test_ranks(self):
        """MPI copies from one rank's memory into another's, which the kernel refuses if that can't be traced: dumps of
        ranks are without memory instead."""
        prefix = ("setpriv", "--bounding-set=-sys_ptrace") if os.geteuid() == 0 else ()
        replicas = ("--set", "site.replicas=2", "--set", "train.micro_batch=1")
        _, endpoint = self.start_coordinator(self.file, 1, *replicas)
        site = self.start("train", self.file, "--site", "oslo", "--coordinator", endpoint, *self.secured("oslo"), *replicas,
                          prefix=(*prefix, *MPIRUN, "-n", "2"))
        self.wait_for_event(self.path("run", "oslo", "metrics.jsonl"),
                            lambda e: e["event"] == "round" and e["committed_rounds"] >= 3)
        trains = [pid for pid in self.pids() if self.command(pid)[1:2] == ["train"]]
        ranks = [pid for pid in trains if self.parent(pid) in trains]  # each has a process that watches it
        self.assertEqual(len(ranks), 2, ranks)
        for pid in ranks:
            self.assertEqual(self.core_limit(pid), "0")
            with open(f"/proc/{pid}/coredump_filter") as text:
                self.assertEqual(int(text.read(), 16), 0)
        self.assertNotIn("Read -1", site.everything())

    def parent(self, pid):
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[1])

    def command(self, pid):
        with open(f"/proc/{pid}/cmdline", "rb") as text:
            return text.read().decode().split("\0")


if __name__ == "__main__":
    main()
