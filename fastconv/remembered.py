"""Measured times, kept on disk between processes: what ``tune`` finds out and the dispatcher asks for.

There is one small file for each problem, in a folder whose name is a digest of all that a time depends on beside the
problem: the sources of the algorithms, the processor and its cores. A file is written under another name and renamed,
so readers see an old one or a new one, never half of one; writers of different problems never meet, and of two that
measured the same one the last is kept. So no locks are needed. A file that cannot be read is ignored with a warning,
until its problem is tuned again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastconv import machine, settings
from fastconv.files import write_at_once
from fastconv.problem import Activation, ConvProblem


class Record(NamedTuple):
    """Seconds of each algorithm that was measured on a problem: called as a function, and as a prepared layer."""

    call: dict[str, float]
    prepared: dict[str, float]


def folder() -> Path:
    """Where records of all machines and versions are."""
    return settings.cache_directory() / "tuning"


def plain(problem: ConvProblem) -> ConvProblem:
    """The problem as it is remembered: its batch as one axis, and no epilogue, which hardly change what is fastest."""
    return dataclasses.replace(
        problem, batch_shape=(problem.batch,), bias=False, residual=False, activation=Activation("none")
    )


def recall(problem: ConvProblem, device: str) -> Record | None:
    """What is remembered of a problem on this machine; None if nothing is, or nothing that can be read."""
    if not os.path.isdir(folder()):  # spares whoever never tunes the reading of the sources
        return None
    found = _read(_path(problem, device))
    return found and found.record


def recall_all(device: str) -> dict[str, Record]:
    """Everything remembered on this machine: problems in words, and their records."""
    found = map(_read, sorted((folder() / _version(device)).glob("*.json")))
    return {each.problem: each.record for each in found if each}


def remember(problem: ConvProblem, device: str, record: Record) -> None:
    """Keep a record, in place of an older one of the same problem.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    write(_path(problem, device), {"problem": str(plain(problem)), **record._asdict()})


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a file in one piece.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    write_at_once(path, json.dumps(found, indent=1).encode())


def forget() -> int:
    """Remove all records, those of other machines and versions too; how many there were."""
    paths = list(folder().glob("*/*.json"))
    for path in paths:
        path.unlink(missing_ok=True)  # another process may forget too
    return len(paths)


class _File(NamedTuple):
    problem: str
    record: Record


def _path(problem: ConvProblem, device: str) -> Path:
    return folder() / _version(device) / f"{digest(repr(plain(problem)).encode())}.json"


def _read(path: Path) -> _File | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _File(str(found["problem"]), Record(_seconds(found["call"]), _seconds(found["prepared"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        warnings.warn(
            f"{path} holds no times that can be read ({type(error).__name__}: {error}); it is ignored until its "
            "problem is tuned again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _seconds(times: Any) -> dict[str, float]:
    """The times of a file, checked.

    Raises
    ------
    ValueError, TypeError
        If they are not names with positive numbers.
    """
    if not isinstance(times, dict) or not times or not all(0 < seconds < math.inf for seconds in times.values()):
        raise ValueError(f"expected names of algorithms with seconds, found {times!r}")
    return times


def _version(device: str) -> str:
    """A name for everything that times depend on beside the problem."""
    return _named(device, machine.identity(device))


@cache
def _named(device: str, identity: str) -> str:
    here = Path(__file__).parent
    sources: list[Any] = [here / "lowering.py", *sorted((here / device).glob("*.py"))]
    if device == "gpu":
        from fastconv.gpu.source import directory

        sources += sorted(directory().iterdir(), key=lambda file: file.name)
    return digest(identity.encode(), *(file.read_bytes() for file in sources))


def digest(*parts: bytes) -> str:
    """A name for what is in all parts."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()[:24]
