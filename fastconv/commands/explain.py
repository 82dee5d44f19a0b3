"""``explain``: which algorithm a convolution would run, and why not the others."""

from __future__ import annotations

import argparse
from typing import Any

from fastconv.commands.console import CommandError
from fastconv.dispatch import DEVICES
from fastconv.problem import DTYPES, PADDING_MODES, PRECISIONS

HELP = "say which algorithm a convolution would run, and why not the others"

# Options that are passed on to fastconv.explain if given; what they mean is written there.
_NUMBERS = ("stride", "padding", "dilation", "output_padding")
_WORDS = ("data_format", "weight_format", "activation", "algorithm")
_CHOICES = {"padding_mode": PADDING_MODES, "precision": PRECISIONS, "dtype": tuple(DTYPES), "device": DEVICES}
_FLAGS = ("transposed", "flip_kernel", "bias", "residual")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    given: Any = {"default": argparse.SUPPRESS}
    parser.add_argument("--x", type=int, nargs="+", required=True, metavar="N", help="shape of x, such as 1 64 56 56")
    parser.add_argument("--w", type=int, nargs="+", required=True, metavar="N", help="shape of w, such as 64 64 3 3")
    for name in _NUMBERS:
        words = ", or a word such as same" if name == "padding" else ""
        text = f"one number, or one for each axis{words}"
        parser.add_argument(_option(name), type=_number_or_word, nargs="+", metavar="N", help=text, **given)
    parser.add_argument("--groups", type=int, metavar="N", **given)
    for name in _WORDS:
        parser.add_argument(_option(name), metavar="NAME", **given)
    for name, choices in _CHOICES.items():
        parser.add_argument(_option(name), choices=choices, **given)
    for name in _FLAGS:
        parser.add_argument(_option(name), action="store_true", **given)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    import fastconv

    options = {k: v for k, v in vars(args).items() if k not in ("command", "run", "x", "w")}
    for name in _NUMBERS:
        if len(options.get(name, ())) == 1:
            (options[name],) = options[name]
    try:
        fastconv.explain(args.x, args.w, **options)
    except (ValueError, TypeError) as problem:
        raise CommandError(str(problem)) from None
    return 0


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
