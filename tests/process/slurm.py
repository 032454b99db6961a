# SPDX-License-Identifier: Apache-2.0
"""A Slurm for the test: Debian's munged, slurmctld and slurmd, with their own directory and ports,
and one node on this machine. Needs root; close() ends all of it."""
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
NODE_CPUS = 16  # claimed, so that two jobs of four ranks run at the same time
UP_S, DOWN_S, COMMAND_S = 60, 30, 30
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)

CONFIG = """
ClusterName=dilocox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """Slurm cannot run here, and why."""


def free_ports(count):
    """Ports that were free a moment ago; the caller checks that they still are."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def parents():
    """The parent of every process that is not a zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as stat:
                state, parent = stat.read().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(entry)] = int(parent)
    return found


def descendants(roots):
    """Of these processes, including themselves."""
    parent_of, found = parents(), []
    for pid in parent_of:
        above = pid
        while above in parent_of and above not in roots:
            above = parent_of[above]
        if above in roots:
            found.append(pid)
    return found


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as text:
            return text.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


class Slurm:
    def __init__(self):
        if os.geteuid() != 0:
            raise Unavailable("only root can start Slurm's daemons")
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
        missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
        if missing:
            raise Unavailable(f"no {', '.join(missing)}; scripts/setup.sh installs them")
        self.daemons, self.asked_s = {}, 0.0
        self.others = set(descendants({os.getpid()}))
        self.directory = tempfile.mkdtemp(prefix="dilocox-slurm-")
        os.chmod(self.directory, 0o711)  # munged runs as its own user
        # orphans of the daemons become children of this process, and so are found
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.env = {**os.environ, "PATH": path, "SLURM_CONF": self.path("slurm.conf")}
        for name in [name for name in self.env if name.startswith(("SBATCH_", "SLURM_")) and name != "SLURM_CONF"]:
            del self.env[name]  # of a job around this test
        try:
            self.start_munge()
            for attempt in range(3):
                if self.start_slurm():
                    break
            else:
                raise Unavailable("no free ports for Slurm in three attempts")
            self.check_pmix()
        except BaseException:
            self.close()
            raise

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    # ---- daemons

    def start(self, name, *arguments, user=None):
        """In the foreground; ends with this process."""
        with open(self.path(f"{name}.output"), "ab") as output:
            self.daemons[name] = subprocess.Popen(
                [name, *arguments], env=self.env, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                user=user, group=user, extra_groups=[] if user else None, start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))

    def output(self, name):
        with open(self.path(f"{name}.output"), errors="replace") as text:
            return text.read()

    def wait_up(self, happened, *names):
        """True once it happened, False if one of these daemons has ended."""
        until = time.monotonic() + UP_S
        while not happened():
            if any(self.daemons[name].poll() is not None for name in names):
                return False
            if time.monotonic() > until:
                raise Unavailable(f"{' and '.join(names)}: not up within {UP_S} s\n" + self.all_output())
            time.sleep(0.02)
        return True

    def all_output(self):
        return "\n".join(f"--- {name}\n{self.output(name)[-1500:]}" for name in self.daemons)

    def start_munge(self):
        os.mkdir(self.path("munge"))
        with open(self.path("munge", "key"), "wb", opener=lambda p, f: os.open(p, f, 0o600)) as key:
            key.write(os.urandom(1024))
        try:
            for path in (self.path("munge"), self.path("munge", "key")):
                shutil.chown(path, "munge", "munge")
        except LookupError:
            raise Unavailable("no user munge; Debian's munge package makes it") from None
        files = [f"--{what}-file={self.path('munge', what)}" for what in ("key", "log", "pid", "seed")]
        self.start("munged", "--foreground", "--socket=" + self.path("munge", "socket"), *files, user="munge")
        if not self.wait_up(lambda: os.path.exists(self.path("munge", "socket")), "munged"):
            raise Unavailable("munged ended\n" + self.all_output())

    def start_slurm(self):
        """False: one of the ports was taken meanwhile."""
        controller_port, node_port = free_ports(2)
        for name in ("state", "spool"):
            os.makedirs(self.path(name), exist_ok=True)
        with open(self.path("slurm.conf"), "w") as config:
            config.write(CONFIG.format(host=socket.gethostname().split(".")[0], directory=self.directory, cpus=NODE_CPUS,
                                       controller_port=controller_port, node_port=node_port))
        self.start("slurmctld", "-D", "-c")
        self.start("slurmd", "-D", "-N", "node")
        if self.wait_up(lambda: self.ask("sinfo", "--noheader", "--format=%T") == "idle", "slurmctld", "slurmd"):
            return True
        output = self.output("slurmctld") + self.output("slurmd")
        if "Address already in use" not in output:
            raise Unavailable("a daemon of Slurm ended\n" + self.all_output())
        for name in ("slurmctld", "slurmd"):
            self.end(name)
        return False

    def check_pmix(self):
        """Is there a plugin for MPI, and does a step start with it?"""
        listed = self.run("srun", "--mpi=list")
        if "pmix" not in (listed.stdout + listed.stderr).split():
            raise Unavailable("this Slurm has no PMIx plugin\n" + listed.stdout + listed.stderr)
        tried = self.run("srun", "--immediate=20", "--ntasks=2", "--mpi=pmix", "true")
        if tried.returncode != 0:
            raise Unavailable("srun --mpi=pmix starts nothing\n" + tried.stderr + self.all_output())

    # ---- commands

    def run(self, *arguments, **options):
        return subprocess.run(arguments, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=COMMAND_S, **options)

    def ask(self, *arguments):
        """Its output; None if it fails, as before the daemons are up."""
        try:
            done = self.run(*arguments)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def submit(self, script, directory, **environment):
        """Returns the job's number."""
        given = ",".join(["ALL"] + [f"{name}={value}" for name, value in environment.items()])
        done = self.run("sbatch", "--parsable", f"--export={given}", script, cwd=directory)
        if done.returncode != 0:
            raise AssertionError(f"sbatch {script}: {done.stderr}")
        return int(done.stdout)

    def jobs(self):
        """scontrol's fields of every job, by number."""
        lines = (self.ask("scontrol", "--oneliner", "show", "job") or "").splitlines()
        found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        return {int(job["JobId"]): job for job in found if "JobId" in job}

    def ended(self):
        """The states of jobs that have ended. None if polled faster than four times per second, since
        each question is a process."""
        if time.monotonic() < self.asked_s + 0.25:
            return None
        self.asked_s = time.monotonic()
        return {number: job["JobState"] for number, job in self.jobs().items()
                if job["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")}

    # ---- the end

    def end(self, name):
        process = self.daemons.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def left(self):
        return [pid for pid in descendants({os.getpid()}) if pid not in self.others]

    def close(self):
        """Ends jobs and daemons, removes the directory. Returns the processes that it killed."""
        if "slurmctld" in self.daemons and "slurmd" in self.daemons:
            self.ask("scancel", "--signal=KILL", "--full", "--user=root")
            until = time.monotonic() + DOWN_S
            while self.ask("squeue", "--noheader") and time.monotonic() < until:
                time.sleep(0.02)
        for name in ("slurmd", "slurmctld", "munged"):
            self.end(name)
        until = time.monotonic() + DOWN_S
        while self.left() and time.monotonic() < until:  # steps that are ending
            time.sleep(0.02)
        stayed = self.left()
        lines = [f"{pid} {command_line(pid)}" for pid in stayed]
        for pid in stayed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.directory, ignore_errors=True)
        return lines
