"""``python -m adaptsplit.profiles.published list | show NAME | write OUT [NAME ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adaptsplit.errors import AdaptsplitError
from adaptsplit.profiles.published.build import DEFAULT_FRAMES
from adaptsplit.profiles.published.library import published_names, published_profile, published_table, write_published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad usage or input)."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.command == "list":
            _list()
        elif parsed.command == "show":
            sys.stdout.write(published_profile(parsed.name, "train").describe() + "\n")
        else:
            for name in parsed.names or published_names():
                sys.stdout.write(f"{write_published(name, parsed.out / name, parsed.frames)}\n")
    except AdaptsplitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m adaptsplit.profiles.published", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names, networks and devices of the shipped tables")
    commands.add_parser("show", help="one table as a profile").add_argument("name")
    write = commands.add_parser("write", help="write PROFILE folders OUT/NAME")
    write.add_argument("out", type=Path)
    write.add_argument("names", nargs="*", help="default: all")
    write.add_argument("--frames", type=int, default=DEFAULT_FRAMES)
    return parser


def _list() -> None:
    for name in published_names():
        table = published_table(name)
        sys.stdout.write(f"{name:24} {table.network}; {table.device.name} -> {table.server.name}\n")


if __name__ == "__main__":
    sys.exit(main())
