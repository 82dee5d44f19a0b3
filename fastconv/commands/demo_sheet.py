"""The contact sheet of ``demo``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastconv.commands.demo import Measured
    from fastconv.commands.demo_calls import Array, Panel

# Inches, but for the number of columns and the characters that fit into one.
_COLUMNS, _CHARACTERS = 5, 45
_WIDTH, _GAP, _MARGIN = 2.8, 0.16, 0.25
_TITLE, _CAPTION, _HEAD, _FOOT = 0.28, 0.54, 0.62, 0.3
_INK, _PALE = "#1d2733", "#5c6875"


def draw(file: Path, photo: Array, measured: list[Measured]) -> None:
    """Write a PNG of the photograph and of every panel of every call, each with its call below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    import fastconv

    height, width = photo.shape[1:]
    cells = [("photograph", f"x, {width} x {height} pixels, in colour or grey", photo.transpose(1, 2, 0))]
    cells += [(p.title, _caption(m), _picture(m.result, p)) for m in measured for p in m.call.panels]
    tall = _WIDTH * height / width
    across = _COLUMNS * (_WIDTH + _GAP) - _GAP + 2 * _MARGIN
    down = -(-len(cells) // _COLUMNS) * (_TITLE + tall + _CAPTION) + _HEAD + _FOOT
    figure = plt.figure(figsize=(across, down), facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is so many inches from the sheet's."""
        figure.text(x / across, 1 - y / down, text, va="top", **style)

    write(
        _MARGIN, 0.18, f"One photograph, {len(measured)} calls of fastconv", fontsize=17, fontweight="bold", color=_INK
    )
    for i, (title, caption, picture) in enumerate(cells):
        x = _MARGIN + i % _COLUMNS * (_WIDTH + _GAP)
        y = _HEAD + i // _COLUMNS * (_TITLE + tall + _CAPTION)
        write(x, y + 0.06, title, fontsize=11, fontweight="bold", color=_INK)
        place = figure.add_axes((x / across, 1 - (y + _TITLE + tall) / down, _WIDTH / across, tall / down))
        place.axis("off")
        place.imshow(
            picture, vmin=0, vmax=1, cmap="gray", aspect="auto", interpolation="nearest" if title == "mosaic" else None
        )
        write(x, y + _TITLE + tall + 0.05, caption, fontsize=7.4, family="monospace", color=_PALE, linespacing=1.25)
    note = f"fastconv {fastconv.__version__}. Edges are red above zero, blue below."
    write(_MARGIN, down - _FOOT + 0.08, note, fontsize=8, color=_PALE)
    figure.savefig(file, dpi=100, format="png")
    plt.close(figure)


def _caption(m: Measured) -> str:
    kernel = "x".join(map(str, m.call.w.shape))
    return f"{textwrap.fill(str(m.call), _CHARACTERS)}\nw {kernel}"


def _picture(result: Array, panel: Panel) -> Any:
    """The channels of a panel as matplotlib takes them: grey from 0 to 1, or in colour."""
    from matplotlib import colormaps

    picture = np.clip(result[list(panel.channels)].transpose(1, 2, 0), 0, 1)
    if len(panel.channels) == 3:
        return picture
    if not panel.signed:
        return picture[..., 0]
    # Red above zero and blue below, with contrast enough for all but the strongest edges.
    values = result[panel.channels[0]]
    return colormaps["RdBu_r"](0.5 + 0.5 * values / max(float(np.percentile(np.abs(values), 98)), 1e-6))
