# SPDX-License-Identifier: Apache-2.0
"""A Slurm of the test's own: munged, slurmctld and slurmd of Debian's packages in a folder and on ports of their own,
one node on this machine. Root starts it; nothing of it outlives close()."""
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
NODE_CPUS = 16  # claimed: two jobs of four ranks run beside each other, however few cores there are
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
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
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
    """Why there can be no Slurm here."""


def free_ports(count):
    """Ports that were free a moment ago; who starts there looks whether they still are."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def parents():
    """The parent of every process that runs, without those that have ended and only wait to be collected."""
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
    """Of these processes, themselves included."""
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
            raise Unavailable(f"no {', '.join(missing)} here; scripts/setup.sh installs them")
        self.daemons, self.asked_s = {}, 0.0
        self.others = set(descendants({os.getpid()}))
        self.folder = tempfile.mkdtemp(prefix="dilocox-slurm-")
        os.chmod(self.folder, 0o711)  # munged runs as its own user
        # what daemons leave behind becomes this process's child, and so is found
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.env = {**os.environ, "PATH": path, "SLURM_CONF": self.path("slurm.conf")}
        for name in [name for name in self.env if name.startswith(("SBATCH_", "SLURM_")) and name != "SLURM_CONF"]:
            del self.env[name]  # of a job that this runs in
        try:
            self.start_munge()
            for attempt in range(3):
                if self.start_slurm():
                    break
            else:
                raise Unavailable("no free ports for Slurm, three times over")
            self.check_pmix()
        except BaseException:
            self.close()
            raise

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    # ---- daemons

    def start(self, name, *arguments, user=None):
        """In the foreground; it ends with this process."""
        with open(self.path(f"{name}.said"), "ab") as said:
            self.daemons[name] = subprocess.Popen(
                [name, *arguments], env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                user=user, group=user, extra_groups=[] if user else None, start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))

    def said(self, name):
        with open(self.path(f"{name}.said"), errors="replace") as text:
            return text.read()

    def wait_up(self, happened, *names):
        """True once it happened, False once one of these daemons has ended."""
        until = time.monotonic() + UP_S
        while not happened():
            if any(self.daemons[name].poll() is not None for name in names):
                return False
            if time.monotonic() > until:
                raise Unavailable(f"{' and '.join(names)}: not up within {UP_S} s\n" + self.all_said())
            time.sleep(0.02)
        return True

    def all_said(self):
        return "\n".join(f"--- {name}\n{self.said(name)[-1500:]}" for name in self.daemons)

    def start_munge(self):
        os.mkdir(self.path("munge"))
        with open(self.path("munge", "key"), "wb", opener=lambda p, f: os.open(p, f, 0o600)) as key:
            key.write(os.urandom(1024))
        try:
            for path in (self.path("munge"), self.path("munge", "key")):
                shutil.chown(path, "munge", "munge")
        except LookupError:
            raise Unavailable("there is no user munge here; Debian's munge package makes it") from None
        files = [f"--{what}-file={self.path('munge', what)}" for what in ("key", "log", "pid", "seed")]
        self.start("munged", "--foreground", "--socket=" + self.path("munge", "socket"), *files, user="munge")
        if not self.wait_up(lambda: os.path.exists(self.path("munge", "socket")), "munged"):
            raise Unavailable("munged ended\n" + self.all_said())

    def start_slurm(self):
        """False: somebody took one of the ports meanwhile."""
        controller_port, node_port = free_ports(2)
        for name in ("state", "spool"):
            os.makedirs(self.path(name), exist_ok=True)
        with open(self.path("slurm.conf"), "w") as config:
            config.write(CONFIG.format(host=socket.gethostname().split(".")[0], folder=self.folder, cpus=NODE_CPUS,
                                       controller_port=controller_port, node_port=node_port))
        self.start("slurmctld", "-D", "-c")
        self.start("slurmd", "-D", "-N", "node")
        if self.wait_up(lambda: self.ask("sinfo", "--noheader", "--format=%T") == "idle", "slurmctld", "slurmd"):
            return True
        said = self.said("slurmctld") + self.said("slurmd")
        if "Address already in use" not in said:
            raise Unavailable("a daemon of Slurm ended\n" + self.all_said())
        for name in ("slurmctld", "slurmd"):
            self.end(name)
        return False

    def check_pmix(self):
        """Without anything of dilocox: is there a plugin for MPI, and does a step start with it?"""
        listed = self.run("srun", "--mpi=list")
        if "pmix" not in (listed.stdout + listed.stderr).split():
            raise Unavailable("this Slurm has no PMIx plugin\n" + listed.stdout + listed.stderr)
        tried = self.run("srun", "--immediate=20", "--ntasks=2", "--mpi=pmix", "true")
        if tried.returncode != 0:
            raise Unavailable("srun --mpi=pmix starts nothing here\n" + tried.stderr + self.all_said())

    # ---- commands

    def run(self, *arguments, **options):
        return subprocess.run(arguments, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=COMMAND_S, **options)

    def ask(self, *arguments):
        """What it says; None where it fails, as before the daemons are there."""
        try:
            done = self.run(*arguments)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def submit(self, script, folder, **environment):
        """The job's number."""
        given = ",".join(["ALL"] + [f"{name}={value}" for name, value in environment.items()])
        done = self.run("sbatch", "--parsable", f"--export={given}", script, cwd=folder)
        if done.returncode != 0:
            raise AssertionError(f"sbatch {script}: {done.stderr}")
        return int(done.stdout)

    def jobs(self):
        """What scontrol knows of every job, by number."""
        lines = (self.ask("scontrol", "--oneliner", "show", "job") or "").splitlines()
        found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
        return {int(job["JobId"]): job for job in found if "JobId" in job}

    def ended(self):
        """The states of jobs that have ended. For a caller that looks often: a question is a process, so four a second
        are asked, and None is said between."""
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
        """Ends jobs and daemons and removes the folder. What had to be killed: its command lines."""
        if "slurmctld" in self.daemons and "slurmd" in self.daemons:
            self.ask("scancel", "--signal=KILL", "--full", "--user=root")
            until = time.monotonic() + DOWN_S
            while self.ask("squeue", "--noheader") and time.monotonic() < until:
                time.sleep(0.02)
        for name in ("slurmd", "slurmctld", "munged"):
            self.end(name)
        until = time.monotonic() + DOWN_S
        while self.left() and time.monotonic() < until:  # steps that are on their way out
            time.sleep(0.02)
        stayed = self.left()
        lines = [f"{pid} {command_line(pid)}" for pid in stayed]
        for pid in stayed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)
        return lines
