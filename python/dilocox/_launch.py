# SPDX-License-Identifier: Apache-2.0
"""A whole run on this machine: its keys, its coordinator, and a process per site, of any command.

Sites are in sessions of their own, so that Ctrl-C reaches this process alone, which passes it on
once, and ends what a site leaves behind. One queue has all that happens; readers of the sites'
output are threads."""
from __future__ import annotations

import ctypes
import math
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Sequence

from ._coordinator import Coordinator, keygen
from ._errors import ConfigError

GRACE_S = 10.0  # from a signal to SIGKILL
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _make_keys(directory: str, names: Sequence[str]) -> str:
    """NAME.key of each, where it is missing; returns the path of their roster."""
    roster = os.path.join(directory, "roster.txt")
    lines = []
    for name in names:
        path = os.path.join(directory, f"{name}.key")
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as key:
                public = re.search(r"^public: (\S+)$", key.read(), re.MULTILINE)
            if public is None:
                raise ConfigError(f"{path} is no key file; move it away, and a new one is made")
            lines.append(f"{name} {public[1]}\n")
        else:
            lines.append(f"{name} {keygen(path)}\n")
    with open(roster, "w", encoding="ascii") as out:
        out.writelines(lines)
    return roster


def _end_with_parent() -> None:
    """In a new process: SIGTERM if this one is killed, and can't end it."""
    if _prctl is not None:
        _prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class _Site:
    """A process, and what it says, line by line behind its name."""

    printing = threading.Lock()

    def __init__(self, name: str, command: Sequence[str], environment: Dict[str, str],
                 happened: "queue.SimpleQueue[Any]"):
        self.name = name
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=_end_with_parent)
        self.readers = [threading.Thread(target=self._pass_on, args=pair, daemon=True) for pair in
                        ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))]
        for reader in self.readers:
            reader.start()
        threading.Thread(target=lambda: happened.put((self, self.process.wait())),
                         daemon=True).start()

    def _pass_on(self, source: BinaryIO, target: Any) -> None:
        for line in source:
            with _Site.printing:
                try:
                    target.buffer.write(self.name.encode() + b": " + line.rstrip(b"\n") + b"\n")
                    target.buffer.flush()
                except OSError:
                    pass  # nobody reads it; the site goes on

    def signal(self, number: int) -> None:
        """To the process and all that it started."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def finish(self) -> None:
        self.signal(signal.SIGKILL)  # what it left behind
        for reader in self.readers:
            reader.join(GRACE_S)


def _name(number: int) -> str:
    known = {int(one): one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def _how(code: int) -> str:
    return f"was ended by {_name(-code)}" if code < 0 else f"ended with code {code}"


@contextmanager
def _stops(happened: "queue.SimpleQueue[Any]") -> Iterator[None]:
    """Signals that end a run are put in the queue meanwhile."""
    before = {number: signal.signal(number, lambda got, _: happened.put(got)) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(sites: int, tokens: int, command: Sequence[str], directory: Optional[str] = None) -> int:
    """Runs `command` once per site, with DILOCOX_SITE, _COORDINATOR, _KEY and _ROSTER set, and
    returns the exit code: 0, or that of the first site that failed. directory: where the keys are;
    None: a temporary one."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="dilocox-") as temporary:
            return launch(sites, tokens, command, temporary)
    directory = os.path.abspath(directory)
    os.makedirs(directory, exist_ok=True)
    names = [f"site-{number + 1}" for number in range(sites)]
    roster = _make_keys(directory, ["coordinator", *names])
    happened: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
    running: List[_Site] = []
    with Coordinator(sites=sites, tokens=tokens, roster=roster,
                     key=os.path.join(directory, "coordinator.key"),
                     log=lambda line: print(f"coordinator: {line}", flush=True)) as coordinator, \
            _stops(happened):
        try:
            for name in names:
                running.append(_Site(name, command, {
                    "DILOCOX_SITE": name, "DILOCOX_COORDINATOR": coordinator.endpoint,
                    "DILOCOX_KEY": os.path.join(directory, f"{name}.key"),
                    "DILOCOX_ROSTER": roster}, happened))
            threading.Thread(target=_coordinate, args=(coordinator, happened), daemon=True).start()
            return _Watch(coordinator, running).until_over(happened)
        finally:
            coordinator.interrupt()
            for site in running:
                site.finish()


def _coordinate(coordinator: Coordinator, happened: "queue.SimpleQueue[Any]") -> None:
    why: Optional[Exception] = None
    try:
        coordinator.run()
    except Exception as raised:
        why = raised
    happened.put((None, why))


class _Watch:
    """What follows from what happened: the first cause gives the message and the exit code."""

    def __init__(self, coordinator: Coordinator, sites: Sequence[_Site]):
        self.coordinator = coordinator
        self.left = list(sites)
        self.goes_on = True  # the run
        self.code = 0
        self.deadline_s = math.inf

    def until_over(self, happened: "queue.SimpleQueue[Any]") -> int:
        while self.left or self.goes_on:
            wait_s = min(GRACE_S, self.deadline_s - time.monotonic())
            try:
                event = happened.get(timeout=max(0, wait_s))
            except queue.Empty:
                if time.monotonic() >= self.deadline_s:
                    self.on_deadline()
                continue
            if isinstance(event, int):
                self.on_signal(event)
            elif event[0] is None:
                self.on_run_end(event[1])
            else:
                self.on_exit(*event)
        return self.code

    def fail(self, code: int, why: str) -> None:
        if self.code == 0:
            self.code = code
            print(f"dilocox launch: {why}", file=sys.stderr, flush=True)

    def signal(self, number: int) -> None:
        for site in self.left:
            site.signal(number)
        self.deadline_s = time.monotonic() + GRACE_S

    def on_signal(self, number: int) -> None:
        again = self.code != 0
        self.fail(128 + number, f"{_name(number)}: all sites are ended")
        self.signal(signal.SIGKILL if again else number)

    def on_exit(self, site: _Site, code: int) -> None:
        self.left.remove(site)
        if code != 0 and self.code == 0:
            self.fail(128 - code if code < 0 else code,
                      f"{site.name} {_how(code)}; the other sites are ended")
            self.signal(signal.SIGTERM)
        if not self.left:
            self.deadline_s = time.monotonic() + GRACE_S
            if self.code != 0:
                self.coordinator.interrupt()

    def on_run_end(self, why: Optional[Exception]) -> None:
        self.goes_on = False
        if why is not None:  # sites are told, and say what happened
            self.fail(1, str(why))
            self.deadline_s = time.monotonic() + GRACE_S

    def on_deadline(self) -> None:
        if not self.left:
            self.fail(1, "the sites have ended, and the run has not: they train until 'finished'")
        self.coordinator.interrupt()
        self.signal(signal.SIGKILL)
