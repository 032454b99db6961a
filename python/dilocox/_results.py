# SPDX-License-Identifier: Apache-2.0
"""What a site shows while it trains, and what it writes: a live line on a terminal, and the run
directory with the trainer's files and keys (docs/formats.md, "Results")."""
from __future__ import annotations

import datetime
import fcntl
import json
import math
import os
import resource
import socket
import struct
import sys
import time

from . import ConfigError, DilocoxError
from ._c import Status

OF_THE_RUN = ("summary.json", "metrics.jsonl", "weights")
RESERVED = ("coordinator.db", "coordinator.db-journal")
PLAIN_EVERY_S, LIVE_EVERY_S = 5, 0.1
DIAGNOSES = ("agreement", "persistence", "mean_over_own", "unsent_share")


def real(value):
    return value if math.isfinite(value) else None


def ratio(a, b):
    return a / b if b > 0 else None


def size_text(count):
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


# ---- the terminal --------------------------------------------------------------------------------

class Display:
    """A line that is drawn over itself, or lines in intervals; on standard error."""

    def __init__(self, site, progress):
        self.site, self.out = site, sys.stderr
        terminal = self.out is not None and self.out.isatty()
        self.live = terminal and progress is not False
        self.plain = not self.live and progress is True
        self.drawn, self.line, self.shown_s = False, "", -math.inf

    def step(self, line_of):
        now_s = time.monotonic()
        if now_s - self.shown_s < (LIVE_EVERY_S if self.live else PLAIN_EVERY_S):
            return
        self.shown_s, self.line = now_s, f"{self.site}  {line_of()}"
        # a line too long for the terminal is cut, not wrapped
        self._put(f"\r\033[K\033[?7l{self.line}\033[?7h" if self.live else self.line + "\n")
        self.drawn = self.live

    def say(self, text):
        if self.live or self.plain:
            self._put(("\r\033[K" if self.drawn else "") + f"{self.site}  {text}\n")
            if self.drawn:
                self._put(f"\033[?7l{self.line}\033[?7h")

    def close(self):
        if self.drawn:
            self._put("\n")
            self.drawn = False

    def _put(self, text):
        try:
            self.out.write(text)
            self.out.flush()
        except (OSError, ValueError):  # its reader is gone; training goes on
            self.live = self.plain = False


# ---- the run directory ---------------------------------------------------------------------------

def check_directory(run_dir, site):
    """ConfigError if the results can't go there, as far as that is known before joining."""
    if site in OF_THE_RUN + RESERVED or site.startswith("previous-"):
        raise ConfigError(f"site: '{site}' is not allowed with run_dir: it is the name of another "
                          "file there")
    part = os.path.abspath(run_dir)
    while not os.path.lexists(part):
        part = os.path.dirname(part)
    if not os.path.isdir(part) or not os.access(part, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir: '{run_dir}' can't be used: '{part}' is not a directory that "
                          "can be written; set another one")


def _lock(fd, kind, wait=False):
    whole = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, whole)


class Directory:
    """RUN_DIR, shared with the run's other processes and no other run."""

    def __init__(self, path, site, run_id, say):
        os.makedirs(path, exist_ok=True)
        self.path, self.run_id = path, f"{run_id:016x}"
        self.fd = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            first = self._enter(site, say)
            if first:
                _lock(self.fd, fcntl.F_RDLCK)
        except BaseException:
            os.close(self.fd)
            raise

    def _named(self):
        """The lock file's run and holder."""
        lines = os.pread(self.fd, 512, 0).decode(errors="replace").split("\n")
        run = lines[0][4:] if lines[0].startswith("run ") and len(lines[0]) == 20 else ""
        return run, lines[1] if run and len(lines) > 1 and lines[1] else "another process"

    def _enter(self, site, say):
        for attempt in range(2):
            try:
                _lock(self.fd, fcntl.F_WRLCK)
                self._take(site, say)
                return True
            except (BlockingIOError, PermissionError):
                pass
            except OSError:
                say("the file system of run_dir has no locks: start no other run in it")
                self._take(site, say)
                return False
            if attempt == 0:  # the first process of a run has it exclusively for a moment
                _lock(self.fd, fcntl.F_RDLCK, wait=True)
            run, holder = self._named()
            if run == self.run_id:
                return False
        raise ConfigError(f"run_dir: '{self.path}' is in use by {holder}; wait until that run "
                          "ends, or set another run_dir")

    def _take(self, site, say):
        if self._named()[0] == self.run_id:  # a process of this run came and went
            return
        since = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"run {self.run_id}\nsite '{site}' (process {os.getpid()} on host "
                           f"{socket.gethostname()}, since {since})\n".encode(), 0)
        moved = [name for name in os.listdir(self.path) if self._is_result(name)]
        if moved:
            number = 1
            while os.path.lexists(os.path.join(self.path, f"previous-{number}")):
                number += 1
            to = os.path.join(self.path, f"previous-{number}")
            os.mkdir(to)
            for name in moved:
                os.rename(os.path.join(self.path, name), os.path.join(to, name))
            say(f"the results of the run before are now in {to}")

    def _is_result(self, name):
        if name in OF_THE_RUN:
            return True
        if name in RESERVED or name.startswith("previous-"):
            return False
        return os.path.exists(os.path.join(self.path, name, "metrics.jsonl"))

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Metrics:
    """RUN_DIR/<site>/metrics.jsonl: one object per line, each written at once."""

    def __init__(self, path, goes_on):
        self.path, self.file = path, open(path, "a+b" if goes_on else "w+b", buffering=0)
        self.file.seek(0)
        text = self.file.read()
        self.file.truncate(text.rfind(b"\n") + 1)  # a killed process may have left a part of one
        self.file.seek(0, os.SEEK_END)

    def write(self, event, **keys):
        line = json.dumps({"event": event, **keys}, ensure_ascii=False, allow_nan=False)
        try:
            self.file.write(line.encode(errors="replace") + b"\n")
        except OSError as error:
            raise DilocoxError(f"{self.path}: can't be written: {error.strerror}",
                               Status.SYSTEM) from error

    def close(self):
        self.file.close()


# ---- results -------------------------------------------------------------------------------------

class Results:
    """Of one site, on its first rank; `site` is a dict of what does not change: site, sites,
    run_id, overlap, ranks, precision, before (steps of the process that was resumed)."""

    def __init__(self, run_dir, progress, **site):
        self.facts = site
        self.display = Display(site["site"], progress)
        self.directory = self.metrics = None
        self.run_dir = run_dir
        self.begun_s = time.monotonic()
        self.steps, self.trained, self.compute_s, self.wait_s = site["before"], 0, 0.0, 0.0
        self.recent_s = self.recent_tokens = 0.0
        self.exchange_steps = self.exchange_rounds = self.diagnosed = 0
        self.diagnosis = dict.fromkeys(DIAGNOSES, 0.0)
        self.early = []

    @property
    def wanted(self):
        """Whether anything is shown or written at a step."""
        return self.display.live or self.display.plain or self.metrics is not None

    def begin(self, sites, run_id, goes_on):
        """All sites have joined. ConfigError: another run uses the directory."""
        self.facts.update(sites=sites, run_id=run_id)
        self.begun_s = time.monotonic()
        if self.run_dir is not None:
            own = os.path.join(self.run_dir, self.facts["site"])
            try:
                self.directory = Directory(self.run_dir, self.facts["site"], run_id, self.say)
                os.makedirs(own, exist_ok=True)
                self.metrics = Metrics(os.path.join(own, "metrics.jsonl"), goes_on)
            except OSError as error:
                raise DilocoxError(f"run_dir: '{self.run_dir}' can't be used: {error}",
                                   Status.SYSTEM) from error
            self.metrics.write("run", run_id=f"{run_id:016x}", site=self.facts["site"],
                               sites=sites)
            for line in self.early:
                self.metrics.write("notice", **line)
        self.early = None

    @property
    def shows(self):
        """Whether lines are on the terminal."""
        return self.display.live or self.display.plain

    def say(self, text):
        """A line for persons."""
        now = datetime.datetime.now(datetime.timezone.utc)
        line = {"time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "text": text}
        if self.metrics is not None:
            self.metrics.write("notice", **line)
        elif self.early is not None and self.run_dir is not None:
            self.early.append(line)
        self.display.say(text)

    def step(self, step, tokens, compute_s, wait_s, run_tokens, target, rate, statistics):
        """After each inner step. statistics: of the site, all ranks together."""
        self.steps += 1
        self.trained += tokens
        self.compute_s += compute_s
        self.wait_s += wait_s
        self.exchange_steps += step.exchange_steps if step.applied else 0
        self.exchange_rounds += step.applied
        self.recent_s = 0.9 * self.recent_s + compute_s + wait_s
        self.recent_tokens = 0.9 * self.recent_tokens + tokens
        if self.metrics is not None:
            self._record(step, run_tokens, rate, statistics)
        if self.display.live or self.display.plain:
            self.display.step(lambda: self._line(step, run_tokens, target, statistics))

    def _record(self, step, run_tokens, rate, st):
        time_s = time.monotonic() - self.begun_s
        self.metrics.write(
            "step", time_s=time_s, step=self.steps, loss=None, gradient_norm=None,
            learning_rate=rate, tokens=run_tokens, round=step.round,
            wan_bytes_sent=st.wan_bytes_sent, wan_bytes_received=st.wan_bytes_received)
        if not (step.submitted or step.applied):
            return
        found = {}
        if step.applied and st.submitted_norm > 0:  # else the site was not in that round
            found = dict(zip(DIAGNOSES, (st.agreement, st.persistence,
                                         st.mean_norm / st.submitted_norm,
                                         st.unsent_norm / st.submitted_norm)))
            self.diagnosed += 1
            for name, value in found.items():
                self.diagnosis[name] += value
        self.metrics.write(
            "round", time_s=time_s, step=self.steps, submitted=step.submitted,
            applied=step.applied, waited_s=step.waited_s, committed_rounds=st.rounds,
            committed_tokens=st.committed_tokens, rank_mean=st.factor_rank_mean,
            update_norm=st.update_norm, inner_steps=step.inner_steps,
            wan_bytes_sent=st.wan_bytes_sent, exchange_s=st.exchange_s,
            anchor_hash=f"{st.anchor_hash:016x}", **{k: real(v) for k, v in found.items()})

    def _line(self, step, run_tokens, target, st):
        speed = self.recent_tokens / max(self.recent_s, 1e-9)
        left_s = max(target - run_tokens, 0) / max(speed * self.facts["sites"], 1e-9)
        left = int(min(left_s, 9999999))
        share = min(run_tokens / max(target, 1), 1)
        steps = max(self.steps, round(self.steps / share)) if share > 0 else 0
        busy = self.compute_s / max(self.compute_s + self.wait_s, 1e-9)
        return (f"step {self.steps}/{steps}  {speed / 1000:.1f}k tokens/s  round {step.round}  "
                f"rank {st.factor_rank_mean:.1f}  H {step.inner_steps}  "
                f"sent {size_text(st.wan_bytes_sent)}  busy {100 * busy:.0f}%  "
                f"left {left // 60}:{left % 60:02d}")

    def summarize(self, outcome, st):
        """The site's summary, as the coordinator merges it."""
        f, time_s = self.facts, self.compute_s + self.wait_s
        sites, step_tokens = f["sites"], self.trained / max(self.steps - f["before"], 1)
        equivalent = (st.committed_tokens / (sites * step_tokens) * 2 * st.raw_bytes
                      * (sites - 1) / sites) if step_tokens > 0 else 0
        return {
            "version": 1, "run_id": f"{f['run_id']:016x}", "site": f["site"], "status": outcome,
            "overlap": f["overlap"], "sites": sites, "stages": 1, "replicas": f["ranks"],
            "parameters": st.raw_bytes // 4, "kernels": "torch", "precision": f["precision"],
            "steps": self.steps, "rounds": st.rounds, "attempts": st.attempts,
            "tokens": st.committed_tokens, "val_loss": None, "val_loss_initial": None,
            "val_loss_sum": 0.0, "val_loss_initial_sum": 0.0, "val_tokens": 0.0,
            "val_tokens_initial": 0.0, "wall_s": time.monotonic() - self.begun_s,
            "tokens_per_s": ratio(self.trained, time_s),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "compute_s": self.compute_s, "wait_s": self.wait_s,
            "utilization": ratio(self.compute_s, time_s), "wan_bytes_sent": st.wan_bytes_sent,
            "wan_bytes_received": st.wan_bytes_received,
            "allreduce_bytes_equivalent": int(equivalent),
            "compression_ratio": ratio(equivalent, st.wan_bytes_sent),
            "codec_ratio": ratio(st.rounds * st.raw_bytes, st.payload_bytes),
            "outer_learning_rate": st.outer_learning_rate, "outer_momentum": st.outer_momentum,
            "outer_momentum_rate": st.outer_momentum_rate, "inner_steps": st.inner_steps,
            "rank_mean": st.factor_rank_mean,
            "exchange_s_mean": ratio(st.exchange_total_s, st.rounds),
            "exchange_steps_mean": ratio(self.exchange_steps, self.exchange_rounds),
            "anchor_hash": f"{st.anchor_hash:016x}",
            **{k: ratio(v, self.diagnosed) for k, v in self.diagnosis.items()}}

    def write_summary(self, summary, hashes):
        """RUN_DIR/<site>/summary.json, whole or not at all."""
        path = os.path.join(self.run_dir, self.facts["site"], "summary.json")
        whole = {**summary, "anchor_hashes": {k: f"{v:016x}" for k, v in hashes.items()}}
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=2)
            file.write("\n")
        os.replace(path + ".part", path)

    def close(self):
        self.display.close()
        for thing in (self.metrics, self.directory):
            if thing is not None:
                thing.close()
        self.metrics = self.directory = None


# ---- the site's statistics, over its ranks -------------------------------------------------------

SUMS = ("wan_bytes_sent", "wan_bytes_received", "round_bytes", "raw_bytes", "payload_bytes",
        "low_rank_tensors", "plain_tensors", "low_rank_parameters")


class Merged:
    """Statistics of a site's ranks as one, as of a rank alone."""

    def __init__(self, ranks):
        self.__dict__.update(ranks[0])

        def cross(value, a, b):
            """cos(a, b) of whole vectors, from those of their parts."""
            norms = [math.sqrt(sum(r[name] ** 2 for r in ranks)) for name in (a, b)]
            product = sum(r[value] * r[a] * r[b] for r in ranks)
            return product / (norms[0] * norms[1]) if norms[0] * norms[1] > 0 else 0.0

        low_rank = sum(r["low_rank_parameters"] for r in ranks)
        self.factor_rank_mean = sum(r["factor_rank_mean"] * r["low_rank_parameters"]
                                    for r in ranks) / max(low_rank, 1)
        self.agreement = cross("agreement", "submitted_norm", "mean_norm")
        self.persistence = cross("persistence", "mean_norm", "momentum_norm")
        for name in SUMS:
            setattr(self, name, sum(r[name] for r in ranks))
        for name in ("update_norm", "submitted_norm", "mean_norm", "momentum_norm", "unsent_norm"):
            setattr(self, name, math.sqrt(sum(r[name] ** 2 for r in ranks)))
        for name in ("exchange_s", "exchange_total_s"):
            setattr(self, name, max(r[name] for r in ranks))
        self.anchor_hash = sum(r["anchor_hash"] for r in ranks) % 2 ** 64  # a sum over tensors


def compact(summary):
    return json.dumps(summary, separators=(",", ":"))
