"""Roofline plots: how near each layer comes to what the machine can do, one picture for each algorithm.

A point is a layer: its operations over the bytes that a call must at least move, and the operations per second that the
algorithm reached in the prepared form, or a gradient as a function. Operations are those of the definition, so an
algorithm that does fewer of them, as Winograd's and the FFT do, may stand above the peak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastconv.commands.bench_results import Row, Run
from fastconv.commands.ceilings import Ceilings
from fastconv.commands.race import Entry

_COLOUR = "#1f6fb4"


def plot_rooflines(folder: Path, runs: list[Run], title: str) -> None:
    """Write ``ALGORITHM-roofline.png`` for every algorithm that was raced by itself, a panel for each run it was in."""
    measured = [run for run in runs if isinstance(run.ceilings, Ceilings)]
    for name in dict.fromkeys(entry.algorithm for run in measured for row in run.rows for entry in row.algorithms):
        taken = [run for run in measured if _points(run, name)]
        _plot(folder / f"{name}-roofline.png", name, taken, title)


def _plot(file: Path, algorithm: str, runs: list[Run], title: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(runs), figsize=(7.5 * len(runs), 5), squeeze=False, layout="constrained")
    for panel, run in zip(panels[0], runs, strict=True):
        _draw(panel, algorithm, run)
    figure.suptitle(f"{algorithm}: {title}", fontsize=11)
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _points(run: Run, algorithm: str) -> list[tuple[Row, Entry]]:
    """The layers that an algorithm took."""
    return [(row, entry) for row in run.rows for entry in row.algorithms if entry.algorithm == algorithm]


def _draw(panel: Any, algorithm: str, run: Run) -> None:
    assert isinstance(run.ceilings, Ceilings)
    points = _points(run, algorithm)
    intensities = [_intensity(row) for row in run.rows]
    span = np.geomspace(min(intensities) / 2, max(intensities) * 2)
    for size, rate in run.ceilings.reads.items():
        panel.plot(span, np.minimum(span * rate, run.ceilings.flops) / 1e9, color="#999999", linewidth=1, zorder=1)
        panel.annotate(_bytes(size, run), (span[0], span[0] * rate / 1e9), fontsize=7, color="#666666", va="bottom")
    peak = run.ceilings.flops / 1e9
    panel.axhline(peak, color="black", linewidth=1, zorder=1)
    panel.annotate(f"{peak:.0f} GFLOP/s of multiply-adds", (span[-1], peak), fontsize=7, ha="right", va="bottom")
    for chosen in (True, False):
        marked = [(row, e) for row, e in points if (row.choice == algorithm) is chosen]
        panel.scatter(
            [_intensity(row) for row, _ in marked], [_rate(row, e) for row, e in marked], s=22, edgecolor=_COLOUR,
            facecolor=_COLOUR if chosen else "white", zorder=3, label="chosen" if chosen else "another is chosen",
        )  # fmt: skip
    for row, entry in points:
        place = (_intensity(row), _rate(row, entry))
        panel.annotate(str(row.layer), place, xytext=(3, 2), textcoords="offset points", fontsize=5, color="#444444")
    panel.set(xscale="log", yscale="log", xlabel="operations / byte (input, weight and result once)", ylabel="GFLOP/s")
    panel.set_title(str(run), fontsize=10, loc="left")
    panel.grid(color="#eeeeee", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, loc="lower right")


def _intensity(row: Row) -> float:
    return row.gflop * 1e9 / row.nbytes


def _rate(row: Row, entry: Entry) -> float:
    assert entry.seconds is not None
    return row.gflop / entry.seconds


def _bytes(size: int, run: Run) -> str:
    assert isinstance(run.ceilings, Ceilings)
    if size == max(run.ceilings.reads):
        return "memory"
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
