"""The CUDA C++ sources: where they are, and each kernel file as one self-contained program."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_INCLUDE = re.compile(r'^#include "(?P<name>[^"]+)"\n', re.MULTILINE)
_PRAGMA = re.compile(r"^#pragma once\n", re.MULTILINE)
_ENTRY = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(')


def directory() -> Traversable:
    """Where the sources are: ``fastconv/_cuda`` in an installed wheel, ``cuda`` beside the package in a checkout."""
    installed = files("fastconv") / "_cuda"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "cuda"


@cache
def program(file: str) -> str:
    """The text of a kernel file with everything that it includes put in its place, once each.

    A program in one piece needs no include path, can be read from a zipped package, and is its own complete cache key.
    """
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = _PRAGMA.sub("", (directory() / name).read_text(encoding="utf-8"))
        return _INCLUDE.sub(lambda match: expand(match["name"]), text)

    return expand(file)


def entries(file: str) -> tuple[str, ...]:
    """Names of the kernels in a file."""
    return tuple(_ENTRY.findall(program(file)))
