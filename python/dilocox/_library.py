# SPDX-License-Identifier: Apache-2.0
"""Finds libdilocox, loads it once, and refuses one that these bindings are not made for."""
from __future__ import annotations

import ctypes
import functools
import os

from . import _c
from ._errors import DilocoxError

PACKAGE = os.path.dirname(os.path.abspath(__file__))
BESIDE = os.path.join(PACKAGE, "libdilocox.so")
BUILD = os.path.join(os.path.dirname(os.path.dirname(PACKAGE)), "build", "src", "libdilocox.so")
LOADER = "libdilocox.so.1"


def _load() -> ctypes.CDLL:
    """$DILOCOX_LIBRARY, if it is set; else the first that is there."""
    given = os.environ.get("DILOCOX_LIBRARY")
    if given:
        paths = [given]
    else:
        paths = [path for path in (BESIDE, BUILD) if os.path.exists(path)][:1] or [LOADER]
    try:
        return ctypes.CDLL(paths[0])
    except OSError as why:
        raise DilocoxError(
            f"libdilocox cannot be loaded ({why}); looked for, in this order: DILOCOX_LIBRARY, "
            f"which is {given or 'not set'}; {BESIDE}; {BUILD}, which 'make build' makes; and "
            f"{LOADER} by the system's loader") from None


def _compatible(library: "tuple[int, ...]", own: "tuple[int, ...]") -> bool:
    """Of one major version, not older; at 0.x of one minor version."""
    same = 2 if own[0] == 0 else 1
    return library[:same] == own[:same] and library[:2] >= own[:2]


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """libdilocox with its prototypes. DilocoxError: not found, or another version."""
    loaded = _load()
    try:
        number = loaded.dlx_version_number()
    except AttributeError:
        raise DilocoxError(f"{path_of(loaded)} is not libdilocox: it has no version") from None
    version = (number // 10000, number // 100 % 100, number % 100)
    if not _compatible(version, _c.VERSION):
        raise DilocoxError(
            f"{path_of(loaded)} is libdilocox {dotted(version)}, and the package in {PACKAGE} is "
            f"made for {dotted(_c.VERSION)}; install the two together, or set DILOCOX_LIBRARY")
    for name, (returned, arguments) in _c.FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = returned, arguments
    return loaded


def path_of(loaded: ctypes.CDLL) -> str:
    return os.path.realpath(loaded._name) if os.sep in loaded._name else loaded._name


def dotted(version: "tuple[int, ...]") -> str:
    return ".".join(map(str, version))


def version() -> str:
    """The version of the library that is loaded, as "0.2.0"."""
    return library().dlx_version().decode()
