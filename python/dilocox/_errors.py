# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as exceptions: one per status that a program may want to handle."""
from __future__ import annotations

from typing import Dict, Optional, Type

from . import _c
from ._c import Status
from ._names import in_keywords


class DilocoxError(RuntimeError):
    """A call failed. The message is the library's, one sentence and a hint.

    status: a Status; site: the site that is concerned, or None; round: the same."""

    status = Status.STATE

    def __init__(self, message: str, status: Optional[Status] = None, site: Optional[str] = None,
                 round: Optional[int] = None):
        super().__init__(message)
        if status is not None:
            self.status = status
        self.site = site
        self.round = round


class ConfigError(DilocoxError, ValueError):
    """A value that the caller gave is not usable; nothing was changed."""
    status = Status.CONFIG


class RefusedError(DilocoxError):
    """The coordinator refused this site: another model or other settings than the others have."""
    status = Status.REFUSED


class PeerLostError(DilocoxError, ConnectionError):
    """A site left the run, or is silent, and the run can't go on without it."""
    status = Status.PEER_LOST


class RunTimeoutError(DilocoxError, TimeoutError):
    """The coordinator is silent, or a site did not join in time."""
    status = Status.TIMEOUT


class NumericError(DilocoxError):
    """A parameter of some site is not finite."""
    status = Status.NUMERIC


class DivergedError(DilocoxError):
    """Two sites have different anchors: a bug, or faulty memory."""
    status = Status.DIVERGED


_CLASSES: Dict[int, Type[DilocoxError]] = {
    Status.ARGUMENT: ConfigError, Status.CONFIG: ConfigError, Status.REFUSED: RefusedError,
    Status.PEER_LOST: PeerLostError, Status.TIMEOUT: RunTimeoutError,
    Status.NUMERIC: NumericError, Status.DIVERGED: DivergedError}


def error_of(status: int, error: _c.dlx_error) -> DilocoxError:
    """The exception for a call that returned `status` and filled `error`."""
    return _CLASSES.get(status, DilocoxError)(
        in_keywords(error.message.decode(errors="replace")) or Status(status).name.lower(),
        Status(status),
        error.site.decode(errors="replace") or None, None if error.round < 0 else error.round)
