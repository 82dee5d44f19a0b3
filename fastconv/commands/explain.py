"""``explain``: which algorithm a convolution would run, and why not the others."""

from __future__ import annotations

import argparse

from fastconv.commands import convolution
from fastconv.commands.console import CommandError

HELP = "say which algorithm a convolution would run, and why not the others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    convolution.add_arguments(parser, required=True)
    parser.add_argument("--algorithm", default="auto", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    import fastconv

    try:
        print(fastconv.explain(args.x, args.w, algorithm=args.algorithm, **convolution.options(args)))
    except (ValueError, TypeError) as problem:
        raise CommandError(str(problem)) from None
    return 0
