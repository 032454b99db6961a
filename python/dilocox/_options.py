# SPDX-License-Identifier: Apache-2.0
"""Keywords to fields of a C config: names, types, ranges, and what is said of a wrong one."""
from __future__ import annotations

import difflib
import operator
import os
import re
from ctypes import Structure
from enum import IntEnum
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, Type, Union

from . import _c
from ._errors import ConfigError
from ._names import FIELDS, KEYWORDS

WORDS: Dict[str, Type[IntEnum]] = {"OVERLAP": _c.Overlap, "ADAPTATION": _c.Adaptation}
BITS = (4, 8, 16, 32)


def unknown_keyword(keyword: str, known: Iterable[str]) -> ConfigError:
    nearest = difflib.get_close_matches(keyword, list(known), 1, 0)[0]
    return ConfigError(f"'{keyword}' is no keyword; the nearest one is "
                       f"'{KEYWORDS.get(keyword, nearest)}'")


def _in_range(keyword: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN never is
        raise ConfigError(
            f"{keyword}: {value} is out of range; allowed: {low:.15g} to {high:.15g}")


def integer(keyword: str, value: Any, low: int, high: int) -> int:
    """A bool is none, nor is a float."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigError(f"{keyword}: {value!r} is no integer; allowed: {low} to {high}")
    _in_range(keyword, number, low, high)
    return number


def real(keyword: str, value: Any, low: float, high: float) -> float:
    try:
        number = None if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise ConfigError(f"{keyword}: {value!r} is no number; allowed: {low:.15g} to {high:.15g}")
    _in_range(keyword, number, low, high)
    return number


def whole(keyword: str, value: Any, least: int) -> None:
    """Raises for what is no integer of at least so many."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{keyword}: {value!r} must be a whole number, at least {least}")


def word(keyword: str, value: Any, words: Iterable[str]) -> str:
    if value not in words:
        raise ConfigError(f"{keyword}: {value!r} is unknown; choose {', '.join(words)}")
    return value


def flag(keyword: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{keyword}: {value!r} is unknown; choose True, False")
    return value


def encoded(keyword: str, value: Any) -> bytes:
    """A text as C has it."""
    if not isinstance(value, str):
        raise ConfigError(f"{keyword}: {value!r} is no text")
    if "\0" in value:
        raise ConfigError(f"{keyword}: {value!r} has a zero byte in it")
    return value.encode(errors="replace")


def encoded_path(keyword: str, value: Any) -> bytes:
    try:
        name = os.fsencode(value)
    except TypeError:
        raise ConfigError(f"{keyword}: {value!r} is no path") from None
    encoded(keyword, os.fsdecode(name))
    return name


def _value(keyword: str, value: Any, option: _c.Option) -> Union[bool, int, float]:
    if option.kind == "FLAG":
        return flag(keyword, value)
    if option.kind in WORDS:
        words = {one.name.lower(): one for one in WORDS[option.kind]}
        return words[word(keyword, value, words)]
    if option.kind == "AUTO" and value is None:
        return option.default
    if option.kind in ("AUTO", "REAL"):
        return real(keyword, value, option.min, option.max)
    if option.kind == "MS" and keyword in FIELDS:  # in seconds
        return round(1000 * real(keyword, value, option.min / 1000, option.max / 1000))
    number = integer(keyword, value, int(option.min), int(option.max))
    if option.kind == "BITS" and number not in BITS:
        raise ConfigError(f"{keyword}: {number} is not allowed; choose 4, 8, 16, or 32, which is "
                          "not quantised")
    return number


def set_options(config: Structure, table: Mapping[str, _c.Option], given: Mapping[str, Any],
                others: Iterable[str]) -> None:
    """config ← each keyword's value. `others`: keywords that are no options."""
    known = {KEYWORDS.get(field, field) for field in table} - {"wait_ms"}  # the package's own
    for keyword, value in given.items():
        if keyword not in known:
            raise unknown_keyword(keyword, known.union(others))
        field = FIELDS.get(keyword, keyword)
        setattr(config, field, _value(keyword, value, table[field]))


def listen_address(keyword: str, value: str) -> Tuple[bytes, int]:
    """"host", "host:port" or "[IPv6]:port" as host and port; 0: none was given."""
    encoded(keyword, value)
    address = re.fullmatch(r"(?:\[([^][]+)\]|([^][:]*))(?::(\d{1,5}))?", value)
    if address is None or int(address[3] or 0) > 65535:
        raise ConfigError(f"{keyword}: {value!r} is no address; give 'host', 'host:port' or "
                          "'[IPv6]:port', with a port of 0 to 65535")
    return encoded(keyword, address[1] or address[2] or ""), int(address[3] or 0)


def from_environment(value: Optional[str], name: str) -> Optional[str]:
    """The value; for None that of the environment, where empty is None."""
    return value if value is not None else os.environ.get(name) or None


def set_link(link: _c.dlx_link_config, coordinator: str, key: Any, roster: Any, unencrypted: bool,
             instead: str = "") -> None:
    """Address and keys of a link between processes. `instead`: how else keys can be given."""
    link.coordinator = encoded("coordinator", coordinator)
    link.unencrypted = flag("unencrypted", unencrypted)
    if unencrypted:
        return
    if key is None or roster is None:
        raise ConfigError(
            f"{'key' if key is None else 'roster'}: no path; give key and roster{instead}: the "
            "file of this process's key, which 'python3 -m dilocox keygen' makes, and that of all "
            "public keys, a line 'NAME KEY' each; unencrypted=True does without, on loopback only")
    link.key_path, link.roster_path = encoded_path("key", key), encoded_path("roster", roster)
