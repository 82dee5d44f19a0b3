"""The plot of ``bench``: bars for every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastconv.commands.bench_results import Run, quotient
from fastconv.commands.own_engines import Functional

_COLOURS = ("#1f6fb4", "#e07b28", "#3a9a5b", "#8a5fb0")


@dataclass(frozen=True)
class Chart:
    """Bars of one panel: for each name a length for every row, None where there is no measurement."""

    title: str
    labels: list[str]
    bars: dict[str, list[float | None]]
    axis: str
    ratio: bool = True


def plot(file: Path, runs: list[Run], title: str) -> None:
    """Draw, for each run and between CPU and GPU, how many times longer something takes than fastconv."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    charts = [*map(_chart, runs), *_cpu_against_gpu(runs)]
    height = 1.6 + 0.34 * max(len(chart.labels) for chart in charts)
    figure, panels = plt.subplots(1, len(charts), figsize=(8 * len(charts), height), squeeze=False)
    for panel, chart in zip(panels[0], charts, strict=True):
        _draw(panel, chart)
    figure.suptitle(f"fastconv bench: {title}", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)


def _chart(run: Run) -> Chart:
    own = [row.entry(Functional.name) for row in run.rows]
    labels = [f"{row.layer}  [{entry.algorithm}]" for row, entry in zip(run.rows, own, strict=True)]
    peers = [entry.engine for entry in run.rows[0].peers]
    if peers:
        bars = {peer: [row.ratio(row.peers[i]) for row in run.rows] for i, peer in enumerate(peers)}
        return Chart(str(run), labels, bars, "time of the peer / time of fastconv (to the right: fastconv is faster)")
    rates = [row.gflop / e.seconds if e.seconds else None for row, e in zip(run.rows, own, strict=True)]
    return Chart(str(run), labels, {"fastconv": rates}, "GFLOP/s", ratio=False)


def _cpu_against_gpu(runs: list[Run]) -> list[Chart]:
    """A chart for each dtype that ran on both; on the CPU, the last run counts."""
    charts = []
    on_cpu = {run.dtype: run for run in runs if run.device == "cpu"}
    for run in runs:
        if run.device == "gpu" and run.dtype in on_cpu:
            pairs = zip(on_cpu[run.dtype].rows, run.rows, strict=True)
            ratios = [quotient(*(row.entry(Functional.name).seconds for row in pair)) for pair in pairs]
            labels = [str(row.layer) for row in run.rows]
            title = f"CPU against GPU, {run.dtype}"
            charts.append(Chart(title, labels, {"fastconv": ratios}, "time on the CPU / time on the GPU"))
    return charts


def _draw(panel: Any, chart: Chart) -> None:
    start = 1.0 if chart.ratio else 0.0
    thickness = 0.8 / len(chart.bars)
    for i, (name, lengths) in enumerate(chart.bars.items()):
        places = [n + (i - (len(chart.bars) - 1) / 2) * thickness for n in range(len(lengths))]
        widths = [0.0 if length is None else length - start for length in lengths]
        colour = _COLOURS[i % len(_COLOURS)]
        panel.barh(places, widths, thickness * 0.92, left=start, label=name, color=colour, zorder=2)
    if chart.ratio:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        panel.axvline(1, color="black", linewidth=1, zorder=3)
    panel.set_xlabel(chart.axis)
    panel.set_yticks(range(len(chart.labels)), chart.labels, fontsize=8)
    panel.set_ylim(len(chart.labels) - 0.4, -0.6)
    panel.set_title(chart.title, fontsize=10, loc="left")
    panel.grid(axis="x", color="#dddddd", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(chart.bars))
