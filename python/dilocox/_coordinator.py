# SPDX-License-Identifier: Apache-2.0
"""A run's coordinator; the hub for a run within one process; keys."""
from __future__ import annotations

import os
import threading
from ctypes import byref, c_void_p, create_string_buffer, sizeof
from typing import Any, Callable, Optional, Union

from . import _c
from ._c import Status
from ._calls import SLICE_MS, Handle, logger
from ._errors import ConfigError, DilocoxError, error_of
from ._library import library
from ._names import in_keywords
from ._options import encoded_path, integer, set_link, set_options

Path = Union[str, "os.PathLike[str]"]
TOKENS_MAX = 2**63 - 1


def keygen(path: Path) -> str:
    """Writes a new key pair to a file (mode 0600; never overwrites) and returns its public half, 40
    characters, for rosters. From then on this process writes no core dumps. ConfigError: the file
    exists; DilocoxError: it can't be written. Any thread."""
    error, public = _c.dlx_error(), create_string_buffer(41)
    status = library().dlx_key_generate(encoded_path("path", path), public, byref(error))
    if status != Status.OK:
        raise error_of(status, error)
    return public.value.decode()


class Hub(Handle):
    """Joins a coordinator and sites that are threads of this process, instead of addresses. Any
    thread may use it, and any Sync or Coordinator on it keeps it."""

    _exit_order = 2

    def __init__(self) -> None:
        super().__init__()
        self._users = 0
        self._condemned = False
        self._call(lambda error: self._library.dlx_hub_open(byref(self._pointer), error))

    def _join(self) -> Optional[int]:
        """The C hub, for an object that calls _leave once it is freed."""
        with self._any_thread:
            self._check()
            if self._condemned:
                raise DilocoxError("this Hub is closed")
            self._users += 1
            return self._pointer.value

    def _leave(self) -> None:
        with self._any_thread:
            self._users -= 1
        if self._condemned:
            self.close()

    def _free(self, pointer: c_void_p) -> None:
        self._library.dlx_hub_close(byref(pointer))

    def _abandon(self, until_s: float) -> None:
        self.close()

    def close(self) -> None:
        """Closes it: now, or with the last Sync or Coordinator on it; new ones are refused."""
        with self._any_thread:
            self._condemned = True
            in_use = self._users > 0
        if not in_use:
            self._end()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_hub(given: Any) -> Hub:
    if not isinstance(given, Hub):
        raise ConfigError(f"hub: give a Hub, not {type(given).__name__}")
    return given


class Coordinator(Handle):
    """Rendezvous, leases and commits of a run. It listens from its construction on; `run` or
    `start` runs the run, once.

    sites: how many take part, 1 to 64
    tokens: the run ends once this many are committed, on all sites together; 1 or more
    listen: "host:port" or "[IPv6]:port"; port 0: any free one, see `endpoint`
    key, roster: paths of this coordinator's key and of all public keys; `keygen`. Its name on
        rosters is "coordinator"
    unencrypted: without keys, on loopback addresses only
    hub: a Hub instead of addresses and keys
    timeout: seconds; a site is lost after this long without a message. 1 to 86400
    join_timeout: seconds to wait for all sites to join. 1 to 86400
    on_report: called with a site's name and its report, in order of names, as the run ends
    log: called with a line for a person; None: the logger "dilocox"
    options: sites_min, patience_ms and limbo_ms, of DLX_COORDINATOR_OPTION_TABLE

    All callbacks come inside `run`, on its thread; what one raises ends the run. ConfigError,
    DilocoxError: it can't listen there."""

    _exit_order = 1

    def __init__(self, *, sites: int, tokens: int, listen: str = "127.0.0.1:0",
                 key: Optional[Path] = None, roster: Optional[Path] = None,
                 unencrypted: bool = False, hub: Optional[Hub] = None, timeout: float = 10.0,
                 join_timeout: float = 600.0,
                 on_report: Optional[Callable[[str, str], object]] = None,
                 log: Optional[Callable[[str], object]] = None, **options: Any) -> None:
        super().__init__()
        self._hub = None
        self._thread: Optional[threading.Thread] = None
        self.failure: Optional[BaseException] = None
        config = _c.dlx_coordinator_config()
        self._library.dlx_coordinator_config_default(byref(config), sizeof(config))
        set_options(config, _c.COORDINATOR_OPTIONS,
                    {"sites": sites, "timeout": timeout, "join_timeout": join_timeout, **options},
                    Coordinator.__init__.__kwdefaults__)
        config.tokens = integer("tokens", tokens, 1, TOKENS_MAX)
        config.wait_ms = SLICE_MS
        say = log or logger.info
        config.log = self._callbacks.without(_c.dlx_log, lambda line: say(in_keywords(line)))
        if on_report is not None:
            prototype = dict(config._fields_)["on_report"]
            config.on_report = self._callbacks.without(prototype, on_report)
        self._borrowed.append(config)
        if hub is None:
            set_link(config.link, listen, key, roster, unencrypted)
        else:
            config.link.hub = check_hub(hub)._join()
            self._hub = hub
        try:
            self._call(lambda error: self._library.dlx_coordinator_open(
                byref(self._pointer), byref(config), error))
        except BaseException:
            self.close()
            raise

    def _wait(self, error: Any) -> int:
        return self._library.dlx_coordinator_run(self._pointer, error)

    def _interrupt(self) -> None:
        with self._any_thread:
            if self._pointer:
                self._library.dlx_coordinator_interrupt(self._pointer)

    def _free(self, pointer: c_void_p) -> None:
        self._library.dlx_coordinator_close(byref(pointer))
        if self._hub is not None:
            self._hub._leave()

    @property
    def endpoint(self) -> str:
        """"host:port" that it listens on; "" on a hub."""
        with self._any_thread:
            self._check()
            return self._library.dlx_coordinator_endpoint(self._pointer).decode()

    def run(self) -> None:
        """Blocks until every site has reported. Ctrl-C ends the run for all sites.

        Raises the first cause of a run that failed; RunTimeoutError: not all sites joined in time;
        DilocoxError with Status.INTERRUPTED: `interrupt`."""
        try:
            self._call(self._wait)
        except BaseException:
            if self._pending:  # tells the sites
                self._call(lambda error: Status.OK)
            raise

    def start(self) -> threading.Thread:
        """`run` in a thread of its own, which `close` joins. What it raises is logged, and then in
        `failure`."""
        def body() -> None:
            try:
                self.run()
            except BaseException as why:
                self.failure = why
                logger.error("coordinator: %s", why)
        self._thread = threading.Thread(target=body, name="dilocox-coordinator", daemon=True)
        self._thread.start()
        return self._thread

    def interrupt(self) -> None:
        """Ends the run as failed: `run` tells the sites, and raises within 1.1 s. Any thread, and
        handlers of signals; after close it does nothing."""
        if os.getpid() == self._process:
            self._interrupt()

    def close(self) -> None:
        """Waits for the run's end if it was started, then up to 1 s for the last messages to leave
        this machine. Call `interrupt` before, to end the run."""
        if self._thread is not None and os.getpid() == self._process:
            self._thread.join()
        self._end(apart=True)

    def __enter__(self) -> "Coordinator":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self.interrupt()
        self.close()
