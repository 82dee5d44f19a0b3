"""The plot of ``bench``: bars for every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastconv.commands.bench import Row

_COLOURS = ("#1f6fb4", "#e07b28", "#3a9a5b")


@dataclass(frozen=True)
class Chart:
    """Bars of one panel: for each name a length for every row, None where there is no measurement."""

    title: str
    labels: list[str]
    bars: dict[str, list[float | None]]
    axis: str
    ratio: bool = True


def plot(file: Path, rows: list[Row], title: str) -> None:
    """Draw, for each device and between the two, how many times longer something takes than fastconv."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    charts = _charts(rows)
    height = 1.6 + 0.34 * max(len(chart.labels) for chart in charts)
    figure, panels = plt.subplots(1, len(charts), figsize=(8 * len(charts), height), squeeze=False)
    for panel, chart in zip(panels[0], charts, strict=True):
        _draw(panel, chart)
    figure.suptitle(f"fastconv bench: {title}", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)


def _charts(rows: list[Row]) -> list[Chart]:
    by_device = {device: [row for row in rows if row.device == device] for device in ("cpu", "gpu")}
    charts = [_chart(device.upper(), measured) for device, measured in by_device.items() if measured]
    if len(charts) == 2:
        pairs = list(zip(*by_device.values(), strict=True))
        times = [(on_cpu.entries[0].seconds, on_gpu.entries[0].seconds) for on_cpu, on_gpu in pairs]
        ratios = [slow / fast if slow and fast else None for slow, fast in times]
        labels = [str(on_cpu.layer) for on_cpu, _ in pairs]
        charts.append(Chart("CPU against GPU", labels, {"fastconv": ratios}, "time on the CPU / time on the GPU"))
    return charts


def _chart(title: str, rows: list[Row]) -> Chart:
    labels = [f"{row.layer}  [{row.entries[0].algorithm}]" for row in rows]
    peers = [entry.engine for entry in rows[0].entries[2:]]
    if peers:
        bars = {peer: [row.ratio(row.entries[2 + i]) for row in rows] for i, peer in enumerate(peers)}
        return Chart(title, labels, bars, "time of the peer / time of fastconv (to the right: fastconv is faster)")
    rates = [row.gflop / seconds if (seconds := row.entries[0].seconds) else None for row in rows]
    return Chart(title, labels, {"fastconv": rates}, "GFLOP/s", ratio=False)


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
    panel.invert_yaxis()
    panel.set_title(chart.title, fontsize=10, loc="left")
    panel.grid(axis="x", color="#dddddd", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(chart.bars))
