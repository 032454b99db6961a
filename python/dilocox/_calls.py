# SPDX-License-Identifier: Apache-2.0
"""How the package calls the library: one call at a time, in the process that opened the object, and
so that signals are seen.

Python runs signal handlers between its own instructions only. So no call waits for more than
SLICE_MS; it is called on until it is through, and handlers run in between. And since an exception
that leaves a callback is lost, SIGINT's handler is replaced while the main thread is in the library
by one that notes the signal, for the handler to run when the call is back, and that runs it at once
only inside of what a callback catches."""
from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import sys
import threading
import time
import weakref
from ctypes import byref, c_void_p
from typing import Any, Callable, List, Optional

from . import _c
from ._c import Status
from ._errors import DilocoxError, error_of
from ._library import library

SLICE_MS = 100
SIGINT = int(signal.SIGINT)  # signal.signal takes it faster
EXIT_S = 10  # at the interpreter's end, for all objects that are still open

logger = logging.getLogger("dilocox")


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


class _Sigint:
    """SIGINT while the main thread is in the library."""

    def __init__(self) -> None:
        self.handler: Any = None
        self.held = False
        self.noted = False
        self.in_callback = False
        self.note = self._note  # one object, to be recognised
        self.possible = signal.getsignal(SIGINT) is not None  # None could not be put back

    def _note(self, number: int, frame: Any) -> None:
        if not self.in_callback:
            self.noted = True
            return
        self.in_callback = False  # if it raises
        self.handler(number, frame)
        self.in_callback = True

    def hold(self) -> bool:
        """False: off the main thread, held already, or the signal has no handler in Python."""
        if self.held or not self.possible or not _in_main_thread():
            return False
        self.noted = False
        handler = signal.signal(SIGINT, self.note)
        self.held = callable(handler)
        if self.held:
            self.handler = handler
        else:
            signal.signal(SIGINT, handler)
        return self.held

    def run(self) -> None:
        """The handler, if the signal came."""
        if self.noted and _in_main_thread():
            self.noted = False
            self.handler(SIGINT, sys._getframe(1))

    def let_go(self) -> None:
        self.held = False
        now = signal.signal(SIGINT, self.handler)
        if now is not self.note:  # the handler has set another one
            signal.signal(SIGINT, now)
        self.run()


_sigint = _Sigint()


class Callbacks:
    """Python functions as C callbacks. What one raises ends the library's call, which raises."""

    def __init__(self) -> None:
        self.raised: Optional[BaseException] = None

    def run(self, function: Callable[..., object], *values: Any) -> bool:
        """Whether it raised nothing; what it did ends the call that is under way."""
        interruptible = _in_main_thread()
        try:
            if interruptible:
                _sigint.in_callback = True
            function(*values)
            if interruptible:
                _sigint.in_callback = False
            return True
        except BaseException as why:
            if interruptible:
                _sigint.in_callback = False
            self.raised = self.raised or why  # the first counts
            return False

    def with_status(self, prototype: Any, function: Callable[..., object]) -> Any:
        """A callback (context, values…, error): function(values…)."""
        def called(_: object, *arguments: Any) -> int:
            if self.run(function, *arguments[:-1]):
                return Status.OK
            if arguments[-1]:
                error, why = arguments[-1].contents, self.raised
                text = f"a callback raised {type(why).__name__}: {why}"
                error.status, error.system_errno, error.round = Status.SYSTEM, 0, -1
                error.site, error.message = b"", text.encode(errors="replace")[:511]
            return Status.SYSTEM
        return prototype(called)

    def without(self, prototype: Any, function: Callable[..., object]) -> Any:
        """A callback (context, texts…) that returns nothing."""
        def called(_: object, *texts: bytes) -> None:
            self.run(function, *(text.decode(errors="replace") for text in texts))
        return prototype(called)

    def take(self) -> Optional[BaseException]:
        raised, self.raised = self.raised, None
        return raised


_open: "weakref.WeakSet[Handle]" = weakref.WeakSet()


class Handle:
    """An object of the library, of the process that opened it. Subclasses say how to go on with a
    call that returned AGAIN, how to make one end, and how to free the object."""

    _exit_order = 0

    def __init__(self) -> None:
        self._closed = False
        self._pointer = c_void_p()
        self._process = os.getpid()
        self._freed = threading.Event()  # the library has nothing of it any more
        self._library = library()
        self._busy = threading.Lock()  # held by a call
        self._any_thread = threading.RLock()  # held by short calls that may run beside another
        self._pending = False  # a signal's handler raised while a call waited
        self._error = _c.dlx_error()
        self._callbacks = Callbacks()
        self._borrowed: List[Any] = []  # what the library uses until close
        _open.add(self)

    def _wait(self, error: Any) -> int:
        raise NotImplementedError

    def _interrupt(self) -> None:
        raise NotImplementedError

    def _free(self, pointer: c_void_p) -> None:
        raise NotImplementedError

    def _refresh(self) -> None:
        """After each call: reads what Python has as attributes."""

    # ---- calls -----------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Before it is freed: reads what Python has afterwards."""

    def _check(self, closed: bool = False) -> None:
        """closed: it may be."""
        if os.getpid() != self._process:
            raise DilocoxError(
                f"this {type(self).__name__} is of process {self._process}, and process "
                f"{os.getpid()} is a fork of that: use it there only")
        if self._closed and not closed:
            raise DilocoxError(f"this {type(self).__name__} is closed")

    def _lock(self, timeout_s: float = 0) -> None:
        if not self._busy.acquire(timeout=timeout_s):
            raise DilocoxError(
                f"a call on this {type(self).__name__} is running: calls come from one thread at a "
                "time, and neither from callbacks nor from handlers of signals")

    def _call(self, function: Callable[[Any], int], wait: Optional[Callable[[Any], int]] = None,
              waits: bool = True, until_s: float = math.inf) -> None:
        """function(error) to its end, going on with wait(error) while it returns AGAIN. Raises what
        it returns, or what a callback or a signal's handler raised. At until_s of the monotonic
        clock it is interrupted."""
        self._check()
        held = _sigint.hold()
        try:
            self._lock()
            try:
                self._check()
                self._callbacks.raised = None
                if self._pending:
                    self._give_up(until_s)
                status = function(byref(self._error))
                if waits:
                    status = self._wait_through(status, wait or self._wait, until_s)
                self._refresh()
            finally:
                self._busy.release()
        finally:
            if held:
                _sigint.let_go()
        raised = self._callbacks.take()
        if raised is not None and (isinstance(raised, DilocoxError) or
                                   not isinstance(raised, Exception)):
            raise raised
        if status != Status.OK:
            raise error_of(status, self._error) from raised
        if raised is not None:
            raise raised

    def _give_up(self, until_s: float) -> None:
        """Ends the call that a handler left, and with it this object's part in the run."""
        self._interrupt()
        self._wait_through(Status.AGAIN, self._wait, until_s)

    def _wait_through(self, status: int, wait: Callable[[Any], int], until_s: float) -> int:
        self._pending = status == Status.AGAIN
        while status == Status.AGAIN:
            _sigint.run()
            if self._callbacks.raised is not None or time.monotonic() > until_s:
                self._interrupt()
            status = wait(byref(self._error))
        self._pending = False
        return status

    # ---- close -----------------------------------------------------------------------------------

    def _end(self, timeout_s: float = 0, apart: bool = False) -> None:
        """Frees the object, in a thread of its own if Ctrl-C should not have to wait for that.
        timeout_s: for a call that another thread is in."""
        if self._closed or os.getpid() != self._process:
            return
        held = _sigint.hold()
        try:
            self._lock(timeout_s)
            with self._any_thread:
                if not self._closed:
                    self._keep()
                pointer, self._pointer = self._pointer, c_void_p()
                closed, self._closed = self._closed, True
            self._busy.release()
            if closed:  # by another thread, while this one waited for a call to end
                return
            if apart:
                freeing = threading.Thread(target=self._free_now, args=(pointer,))
                freeing.start()
            else:
                self._free_now(pointer)
        finally:
            if held:
                _sigint.let_go()
        if apart:
            freeing.join()

    def _free_now(self, pointer: c_void_p) -> None:
        try:
            self._free(pointer)
        finally:
            self._freed.set()

    def _abandon(self, until_s: float) -> None:
        """Close for one that nobody closed: it must end by until_s of the monotonic clock, and has
        nobody to raise to."""
        while not self._closed and os.getpid() == self._process:
            self._interrupt()  # again: it does nothing while a thread opens the object
            try:
                self._end(SLICE_MS / 1000)
            except DilocoxError:
                if time.monotonic() > until_s:
                    return  # a thread is in it still
        if os.getpid() == self._process:  # another thread's close calls back until it is through
            self._freed.wait(max(0.0, until_s - time.monotonic()))

    def __del__(self) -> None:
        if hasattr(self, "_borrowed") and not sys.is_finalizing():
            self._abandon(time.monotonic() + EXIT_S)


@atexit.register
def _abandon_all() -> None:
    until_s = time.monotonic() + EXIT_S
    for handle in sorted(_open, key=lambda one: one._exit_order):
        try:
            handle._abandon(until_s)
        except KeyboardInterrupt:
            until_s = 0
