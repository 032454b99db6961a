# SPDX-License-Identifier: Apache-2.0
"""Finds libdilocox, loads it once, and refuses one that this package is not made for."""
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


def path() -> str:
    """$DILOCOX_LIBRARY if it is set, else the first that there is of the other three."""
    found = [one for one in (BESIDE, BUILD) if os.path.exists(one)]
    return os.environ.get("DILOCOX_LIBRARY") or (found or [LOADER])[0]


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path())
    except OSError as why:
        raise DilocoxError(
            f"libdilocox cannot be loaded: {why}; the package looks at DILOCOX_LIBRARY, which is "
            f"{os.environ.get('DILOCOX_LIBRARY') or 'not set'}, for {BESIDE}, for {BUILD}, which "
            f"'make build' writes, and for {LOADER} where the system's loader looks") from None


def _fits(version: "tuple[int, ...]", own: "tuple[int, ...]") -> bool:
    """The same major version and not an older one; at 0.x, the same minor version."""
    return version[0] == own[0] and version[1] >= own[1] and (own[0] > 0 or version[1] == own[1])


def _dotted(version: "tuple[int, ...]") -> str:
    return ".".join(map(str, version))


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """libdilocox with its prototypes. DilocoxError: not found, or of another version."""
    loaded = _load()
    package = f"the package in {PACKAGE} is made for {_dotted(_c.VERSION)}"
    mend = "install both from one version, or set DILOCOX_LIBRARY"
    try:
        number = loaded.dlx_version_number()
        version = (number // 10000, number // 100 % 100, number % 100)
        if not _fits(version, _c.VERSION):
            raise DilocoxError(f"{path()} is libdilocox {_dotted(version)}, and {package}; {mend}")
        for name, (returned, arguments) in _c.FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = returned, arguments
    except AttributeError as missing:
        raise DilocoxError(f"{path()} is another libdilocox ({missing}), and {package}; "
                           f"{mend}") from None
    return loaded


def version() -> str:
    """Of the library that is loaded: "0.2.0"."""
    return library().dlx_version().decode()
