"""The arguments that describe one convolution: what ``explain`` and ``tune`` share."""

from __future__ import annotations

import argparse
from typing import Any

from fastconv.dispatch import DEVICES
from fastconv.problem import DTYPES, PADDING_MODES, PRECISIONS

# Options that are passed on if given; what they mean is written at fastconv.conv2d.
_NUMBERS = ("stride", "padding", "dilation", "output_padding")
_WORDS = ("data_format", "weight_format", "activation")
_CHOICES = {"padding_mode": PADDING_MODES, "precision": PRECISIONS, "dtype": tuple(DTYPES), "device": DEVICES}
_FLAGS = ("transposed", "flip_kernel", "bias", "residual")
_NAMES = (*_NUMBERS, *_WORDS, *_CHOICES, *_FLAGS, "groups")


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare ``--x``, ``--w`` and the options of a convolution."""
    given: Any = {"default": argparse.SUPPRESS}
    for name, example in {"x": "1 64 56 56", "w": "64 64 3 3"}.items():
        text = f"shape of {name}, such as {example}"
        parser.add_argument(f"--{name}", type=int, nargs="+", required=required, metavar="N", help=text)
    for name in _NUMBERS:
        words = ", or two (before, after) for each axis, or a word such as same" if name == "padding" else ""
        text = f"one number, or one for each axis{words}"
        parser.add_argument(_option(name), type=_number_or_word, nargs="+", metavar="N", help=text, **given)
    parser.add_argument("--groups", type=int, metavar="N", **given)
    for name in _WORDS:
        parser.add_argument(_option(name), metavar="NAME", **given)
    for name, choices in _CHOICES.items():
        parser.add_argument(_option(name), choices=choices, **given)
    for name in _FLAGS:
        parser.add_argument(_option(name), action="store_true", **given)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keyword arguments of ``fastconv.explain`` and ``fastconv.tune``."""
    found = {name: value for name, value in vars(args).items() if name in _NAMES}
    for name in _NUMBERS:
        if len(found.get(name, ())) == 1:
            (found[name],) = found[name]
    padding = found.get("padding")
    if isinstance(padding, list) and len(padding) == 2 * (len(args.w or ()) - 2):
        found["padding"] = list(zip(padding[::2], padding[1::2], strict=True))
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
