"""Races of a peer's call and ours on one thread of one process, for peers whose threads do not spin.

Both take turns, and the least CPU time of each is kept. A race is a name and a function that yields rows; a row names
the call, has what :func:`raced` returns, and whatever else its script adds. `main` runs the races that are asked for,
prints a table, and writes machine, versions and every row. A race that raises becomes a row that says why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv.commands import info
from fastconv.commands.bench_results import geometric_mean
from fastconv.commands.console import progress, table
from fastconv.timing import turn

ROUNDS = 5

Row = dict[str, Any]
Race = tuple[str, Callable[[], Iterable[Row]]]


def raced(theirs: Callable[[], Any], ours: Callable[[], Any], seconds: float) -> Row:
    """Least CPU seconds of two calls, in rounds of turns that take so many seconds each, and their ratio."""
    best = [math.inf, math.inf]
    for _ in range(ROUNDS):
        for i, call in enumerate((theirs, ours)):
            # The clock of a thread was seen to stand still on a virtual machine.
            best[i] = min(best[i], *filter(None, turn(call, "cpu", seconds, time.thread_time)))
    return {"peer_seconds": best[0], "fastconv_seconds": best[1], "ratio": best[0] / best[1]}


def difference(result: Any, expected: Any) -> float:
    """The largest difference of two arrays, relative to the largest element of the second."""
    return float(np.max(np.abs(result - expected)) / np.max(np.abs(expected)))


def main(about: str, peer: str, races: Iterable[Race], **more: Any) -> int:
    """Run, print and write; the exit status is 1 if a race failed.

    Parameters
    ----------
    about : str
        The script's docstring.
    peer : str
        The peer, and its version.
    races : iterable of (str, callable)
    more : object
        What else belongs into the file.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.json", help="write machine, versions and every row")
    parser.add_argument("--only", metavar="WORDS", default="", help="run the races whose names contain this")
    arguments = parser.parse_args()
    chosen = [(name, rows_of) for name, rows_of in races if arguments.only in name]
    rows: list[Row] = []
    with fastconv.threads(1), progress(len(chosen)) as report:
        for done, (name, rows_of) in enumerate(chosen):
            report(done, name)
            try:
                rows += rows_of()
            except Exception as error:  # a fact about this row, to be reported
                rows.append({"name": name, "error": f"{type(error).__name__}: {error}"})
    means = _print(rows, peer)
    if arguments.file:
        found = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                 "machine": info.collect(places=False), "threads": 1, "peer": peer, **more,
                 "geometric_means": means, "rows": rows}  # fmt: skip
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
    return int(any("error" in row for row in rows))


def _print(rows: list[Row], peer: str) -> dict[str, float | None]:
    """Every row, and the geometric mean of each kind of call; returns the means."""
    floor = any("floor_seconds" in row for row in rows)
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["name"], "", "", "failed", *[""] * floor, ""])
            continue
        times = (row[f"{name}_seconds"] for name in ("peer", "fastconv", *["floor"] * floor))
        theirs, ours, *least = (f"{1e6 * seconds:.1f}" for seconds in times)
        lines.append([f"{row['name']}, {row['call']}", theirs, ours, f"{row['ratio']:.2f}", *least,
                      f"{row['difference']:.1e}"])  # fmt: skip
    columns = [f"{peer} us", "fastconv us", "ratio", *["floor us"] * floor, "difference"]
    table("one thread; ratios above 1: fastconv is faster", ["", *columns], lines)
    means = {}
    for call in dict.fromkeys(row["call"] for row in rows if "error" not in row):
        ratios = [row["ratio"] for row in rows if row.get("call") == call]
        means[call] = geometric_mean(ratios)
        print(f"{call}: geometric mean {means[call]:.2f} of {len(ratios)}, least {min(ratios):.2f}")
    for row in rows:
        if "error" in row:
            print(f"! {row['name']} failed: {row['error']}")
    return means
