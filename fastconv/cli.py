"""The command line: ``fastconv COMMAND`` or ``python -m fastconv COMMAND``.

Each command is one module of :mod:`fastconv.commands` with a ``HELP`` line, ``add_arguments(parser)`` and
``run(args) -> exit status``; modules import what is heavy only when they run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from fastconv import __version__
from fastconv.commands.console import CommandError

COMMANDS = ("demo", "bench", "explain", "tune", "warmup", "verify", "info", "compile")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (by default the process's arguments) names; return its exit status.

    Exit status 0 is success, 1 a check that failed, 2 arguments or an installation that do not allow the command, and
    130 an interruption by Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="fastconv", description="Convolution for NumPy and CuPy arrays.")
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"fastconv.commands.{name}")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except CommandError as problem:
        print(f"fastconv {args.command}: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastconv {args.command}: interrupted", file=sys.stderr)
        return 130
    return status
