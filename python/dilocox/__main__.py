# SPDX-License-Identifier: Apache-2.0
"""python3 -m dilocox: a run on this machine, a coordinator, keys, the version."""
from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from . import _library
from ._coordinator import Coordinator, keygen
from ._errors import ConfigError, DilocoxError
from ._launch import launch


def _count(text: str) -> int:
    """1000000, 1_000_000 or 1e6"""
    value = float(text)
    if not 1 <= value < 2**63 or value != int(value):
        raise argparse.ArgumentTypeError(f"'{text}' is no count; allowed: whole numbers from 1 on")
    return int(text.replace("_", "")) if text.replace("_", "").isdecimal() else int(value)


_count.__name__ = "count"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python3 -m dilocox", description="Trains one model on sites "
                                     "that are joined by slow links.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="SUBCOMMAND")
    run = commands.add_parser("launch", help="a whole run on this machine",
                              usage="%(prog)s --sites N --tokens T [--dir DIR] -- COMMAND...",
                              description="Runs COMMAND once per site, with DILOCOX_SITE, "
                              "_COORDINATOR, _KEY and _ROSTER set, and the run's coordinator.")
    run.add_argument("--dir", help="where keys are kept; a temporary directory unless given")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    coordinator = commands.add_parser("coordinator", help="rendezvous, leases and commits of a run")
    coordinator.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT",
                             help="port 0: any free one")
    coordinator.add_argument("--key", metavar="FILE", help="of the coordinator; 'keygen' makes it")
    coordinator.add_argument("--roster", metavar="FILE",
                             help="public keys of all, a line 'NAME KEY' each")
    coordinator.add_argument("--unencrypted", action="store_true", help="on loopback only")
    coordinator.add_argument("--timeout", type=float, default=10, metavar="SECONDS",
                             help="a site is lost after this long without a message")
    for each in (run, coordinator):
        each.add_argument("--sites", type=_count, required=True, metavar="N",
                          help="how many take part")
        each.add_argument("--tokens", type=_count, required=True, metavar="T",
                          help="the run ends after so many, of all sites together")
    keys = commands.add_parser("keygen", help="a key pair; prints the public key")
    keys.add_argument("path", metavar="PATH", help="the file to write, never overwritten")
    commands.add_parser("version", help="of the library, and where it is")
    return parser


def _run(given: argparse.Namespace) -> int:
    if given.name == "version":
        print(f"dilocox {_library.version()} ({_library.path()})")
    elif given.name == "keygen":
        print(keygen(given.path))
    elif given.name == "launch":
        command = given.command[1:] if given.command[:1] == ["--"] else given.command
        if not command:
            raise ConfigError("no COMMAND; give it behind '--'")
        return launch(given.sites, given.tokens, command, given.dir)
    else:
        with Coordinator(sites=given.sites, tokens=given.tokens, listen=given.listen,
                         key=given.key, roster=given.roster, unencrypted=given.unencrypted,
                         timeout=given.timeout, on_report=_print_report,
                         log=lambda line: print(line, flush=True)) as coordinator:
            print(f"listening {coordinator.endpoint}", flush=True)
            coordinator.run()
    return 0


def _print_report(site: str, text: str) -> None:
    print(f"{site}: {text or 'done'}", flush=True)


def main(arguments: Optional[List[str]] = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        return _run(given)
    except (DilocoxError, OSError) as why:
        print(f"dilocox {given.name}: {why}", file=sys.stderr)
        return 2 if isinstance(why, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
