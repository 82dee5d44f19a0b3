"""The figures of these pages: ``python docs/figures.py [NAME …]`` draws ``docs/NAME-tiling.png``, or all of them.

A figure is a function of `FIGURES`, named after its page. It asks for `panels` and fills each with `grid`, `frame` and
`note`. A panel is 24 units wide and 14 high; y points down, as the rows of an image do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

WIDTH, HEIGHT = 24, 14
INPUT, OUTPUT, WEIGHT, SCRATCH, EMPTY = "#9ecae1", "#a1d99b", "#fdae6b", "#dadaeb", "white"


def panels(*titles: str) -> list[Axes]:
    """A figure of panels side by side, each with its title."""
    _, axes = plt.subplots(1, len(titles), figsize=(4.8 * len(titles), 3.1), squeeze=False, layout="constrained")
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect="equal")
        panel.axis("off")
    return list(axes[0])


def grid(panel: Axes, x: float, y: float, columns: int, rows: int, colour: str, cell: float = 1) -> None:
    """Square cells, the upper left corner of the first at (x, y)."""
    for i in range(columns):
        for j in range(rows):
            corner = (x + i * cell, y + j * cell)
            panel.add_patch(Rectangle(corner, cell, cell, facecolor=colour, edgecolor="#555555", linewidth=0.5))


def frame(panel: Axes, x: float, y: float, width: float, height: float) -> None:
    """An outline round some cells."""
    panel.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#c51b1b", linewidth=1.8, zorder=3))


def note(panel: Axes, x: float, y: float, text: str, ha: str = "center", fontsize: float = 8) -> None:
    """Words at a place."""
    panel.text(x, y, text, ha=ha, va="center", fontsize=fontsize)


def direct() -> None:
    """The staged line and the register tile."""
    image, line, tile = panels("the rows a task reads", "one staged line of a channel", "the register tile")
    grid(image, 6, 0.5, 8, 8, EMPTY, 1.5)
    grid(image, 6, 3.5, 8, 4, INPUT, 1.5)
    frame(image, 6, 5, 12, 3)
    note(image, 12, 13.2, "outlined: the rows it computes; kernel 3 x 3")

    period, rows, cell = 10, 4, 0.5
    for row in range(rows):
        start = 3.6 + row * period * cell
        grid(line, start, 1, period, 1, EMPTY, cell)
        grid(line, start + cell, 1, period - 2, 1, INPUT, cell)
    for i, (kh, kw) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (2, 2)]):
        start, y = 3.6 + (kh * period + kw) * cell, 3 + 1.5 * i
        grid(line, start, y, 2 * period - 2, 1, OUTPUT, cell)
        note(line, start - 0.2, y + 0.25, f"tap {kh},{kw}", "right", 7)
    note(line, 13, 0.2, "rows one after another, padding (white) written")
    note(
        line,
        12,
        12,
        "each tap reads the line from an offset of its own,\nat unit stride through two output rows at once",
    )

    channels, vectors, lanes = 4, 3, 4
    for v in range(vectors):
        left = 5.6 + v * (lanes + 0.5) * 1.2
        grid(tile, left, 1.8, lanes, 1, INPUT, 1.2)
        grid(tile, left, 4.6, lanes, channels, OUTPUT, 1.2)
    grid(tile, 3.6, 4.6, 1, channels, WEIGHT, 1.2)
    note(tile, 13.4, 0.8, "a load for each vector: lines[offset of the tap + j]")
    note(tile, 3.3, 7, "a broad-\ncast for\neach\nchannel", "right")
    note(tile, 13.4, 11, "channels x vectors of sums stay in registers\nwhile the taps go by")


def implicit_gemm() -> None:
    """The staged input, the two tables into it, and the tile with output channels or pixels across its vectors."""
    staged, tables, tile, turned = panels(
        "what a task stages", "a patch is two tables", "channels across", "pixels across"
    )
    for c in range(3):
        left, top = 4.5 + 2.2 * c, 1 + 1.3 * c
        grid(staged, left, top, 8, 6, EMPTY, 1.2)
        grid(staged, left + 1.2, top + 1.2, 6, 4, INPUT, 1.2)
    note(
        staged,
        12,
        12.6,
        "some input channels, padding (white) written,\nplanes an odd number of cache lines apart",
    )

    grid(tables, 6, 1.5, 8, 6, INPUT, 1.4)
    for left, top in ((6, 1.5), (8.8, 1.5), (6, 4.3)):
        frame(tables, left, top, 4.2, 4.2)
        note(tables, left + 0.7, top + 0.7, "p", fontsize=9)
    note(
        tables,
        12,
        11.3,
        "places[p]: where a pixel's patch begins (stride 2)\noffsets[k]: where in a patch a tap lies",
    )
    note(tables, 12, 13, "patches[p, k] = lines[places[p] + offsets[k]]")

    rows, vectors, lanes = 6, 2, 6
    for axes, across, along in ((tile, WEIGHT, INPUT), (turned, INPUT, WEIGHT)):
        for v in range(vectors):
            left = 6 + v * (lanes + 0.5) * 1.2
            grid(axes, left, 1.6, lanes, 1, across, 1.2)
            grid(axes, left, 3.6, lanes, rows, OUTPUT, 1.2)
        grid(axes, 4, 3.6, 1, rows, along, 1.2)
        note(axes, 13.6, 12.4, "sums stay in registers\nwhile the taps of the block go by")
    note(tile, 13.6, 0.7, "weights of a tap, for 2 vectors of output channels")
    note(tile, 3.6, 7.2, "a broad-\ncast for\neach\npixel", "right")
    note(turned, 13.6, 0.7, "a tap of a panel: 2 vectors of pixels")
    note(turned, 3.6, 7.2, "a broad-\ncast for\neach\nchannel", "right")


def im2col() -> None:
    """The patch matrix of one tile."""
    image, product = panels("the patches of some positions", "one matrix product a tile")
    grid(image, 5.5, 1, 7, 6, INPUT, 1.8)
    for i in range(3):
        frame(image, 5.5 + 1.8 * (1 + i) + 0.12 * i, 4.6 + 0.12 * i, 3.6, 3.6)
    note(image, 12, 13, "kernel 2 x 2: each outlined patch becomes a column")

    grid(product, 0.8, 4, 4, 6, WEIGHT, 0.8)
    grid(product, 5.6, 4, 9, 4, INPUT, 0.8)
    grid(product, 14.8, 4, 9, 6, OUTPUT, 0.8)
    note(product, 2.4, 2.8, "weight\n(O, taps)")
    note(product, 9.2, 2.8, "patches\n(taps, positions)")
    note(product, 18.4, 2.8, "sums\n(O, positions)")
    note(product, 4.8, 6.4, "x", fontsize=12)
    note(product, 13.8, 6.4, "=", fontsize=12)
    note(
        product,
        12,
        11,
        "about 1 MiB of patches; bias, residual and activation\nare applied as the sums are written out",
    )


def fully_connected() -> None:
    """Rows of a weight that are read side by side, and how their lanes are added up."""
    stream, turned = panels("eight rows and an image", "adding up lanes")
    for row in range(8):
        grid(stream, 5.6, 3.2 + 1.1 * row, 16, 1, EMPTY, 1.1)
        grid(stream, 5.6, 3.2 + 1.1 * row, 4, 1, WEIGHT, 1.1)
        grid(stream, 0.6, 3.2 + 1.1 * row, 4, 1, OUTPUT, 1.1)
    grid(stream, 5.6, 1.2, 16, 1, INPUT, 1.1)
    frame(stream, 5.6, 1.2, 4.4, 1.1)
    frame(stream, 5.6, 3.2, 4.4, 8.8)
    note(stream, 5.2, 1.8, "image", "right")
    note(stream, 12, 13, "outlined: what is multiplied; the sums of each row, left, stay in registers")
    for row in range(4):
        grid(turned, 1.5, 4.4 + 1.1 * row, 4, 1, OUTPUT, 1.1)
        grid(turned, 9.5, 4.4 + 1.1 * row, 4, 1, OUTPUT, 1.1)
    frame(turned, 1.5, 4.4, 4.4, 1.1)
    frame(turned, 9.5, 4.4, 1.1, 4.4)
    grid(turned, 18, 6, 4, 1, OUTPUT, 1.1)
    for left, right in ((6.2, 9.2), (14.2, 17.7)):
        turned.annotate("", (right, 6.6), (left, 6.6), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
    note(turned, 3.7, 10, "lanes of\nfour rows")
    note(turned, 11.7, 10, "transposed")
    note(turned, 20.2, 10, "one sum\nof each row")
    note(turned, 12, 13, "of as many rows as a vector has lanes, in registers")


def kn2row() -> None:
    """The pixels that a tap meets, and the tile that takes them from a list."""
    plane, tile = panels("the pixels of one tap", "the register tile")
    grid(plane, 3, 2.2, 9, 9, EMPTY, 0.95)
    grid(plane, 3 + 0.95, 2.2 + 0.95, 7, 7, INPUT, 0.95)
    frame(plane, 3, 2.2, 7 * 0.95, 7 * 0.95)
    grid(plane, 14.5, 3.15, 7, 7, EMPTY, 0.95)
    grid(plane, 14.5 + 0.95, 3.15 + 0.95, 6, 6, OUTPUT, 0.95)
    note(plane, 7.3, 1.2, "samples in zero padding")
    note(plane, 17.8, 1.2, "pixels that meet one")
    note(plane, 12, 12.2, "outlined: what tap (0, 0) of a 3 x 3 kernel sees;\n36 of 49 pixels are listed")
    for i, row in enumerate((0.8, 2.2, 3.6, 6.4, 7.8, 9.2)):
        grid(tile, 1, row, 7, 1, INPUT, 1)
        grid(tile, 14.5, row, 8, 1, OUTPUT, 1)
        note(tile, 8.6, row + 0.5, f"pixel {(11, 12, 13, 15, 16, 17)[i]}", "left", 7)
    grid(tile, 14.5, 12.2, 8, 1, WEIGHT, 1)
    frame(tile, 1 + 2, 0.8, 1, 9.4)
    note(
        tile,
        4.6,
        12.3,
        "outlined: a channel of six listed pixels, times\nits weights for two vectors of outputs",
        fontsize=7,
    )


def fft() -> None:
    """Overlapping tiles along one axis, and what a vector holds."""
    tiles, lanes, product = panels("overlap-save along one axis", "a unit: one tile in each lane", "at each frequency")
    samples, reach, kept, cell = 22, 5, 6, 1
    grid(tiles, 1, 1.2, samples, 1, INPUT, cell)
    note(tiles, 12, 0.5, "samples; the kernel reaches over 5")
    for i in range(3):
        y = 3.4 + 2.2 * i
        grid(tiles, 1 + i * kept, y, reach - 1, 1, SCRATCH, cell)
        grid(tiles, 1 + i * kept + reach - 1, y, kept, 1, OUTPUT, cell)
    frame(tiles, 1 + kept, 1.2, kept + reach - 1, 1)
    note(tiles, 12, 10.8, "a tile of 10 samples (outlined: the second)\ngives 6 outputs (green);")
    note(tiles, 12, 12.7, "its first 4 results have wrapped round")

    for lane in range(4):
        for j in range(9):
            grid(lanes, 4 + 1.8 * j, 3 + 1.4 * lane, 1, 1, INPUT, 1.4)
    frame(lanes, 4 + 1.8 * 3, 3, 1.4, 4 * 1.4)
    note(lanes, 12, 1.6, "samples, then frequencies")
    note(lanes, 3.6, 5.8, "lanes:\ntiles or\ngroups", "right")
    note(lanes, 12, 11, "outlined: a vector. Every step of a transform\nis the same in all lanes")

    grid(product, 1, 4, 4, 5, WEIGHT, 0.9)
    for i, part in enumerate(("-im", "re", "im")):
        grid(product, 6.4 + 5.6 * i, 4, 6, 4, INPUT, 0.9)
        note(product, 9.1 + 5.6 * i, 3.4, part)
    frame(product, 6.4, 4, 11, 3.6)
    frame(product, 12, 4, 11, 3.6)
    note(product, 2.8, 2.6, "taps\n(O, C)")
    note(product, 14.7, 2.2, "samples (C, tiles) of one frequency")
    note(product, 12, 11, "outlined: what the imaginary (left) and the real part\nof a tap multiply")


def winograd() -> None:
    """Windows that overlap, their components, and the product of one of them."""
    windows, components, product = panels(
        "windows of 6 x 6, tiles of 4 x 4", "a window becomes components", "for each component"
    )
    cell = 0.9
    grid(windows, 4, 0.8, 14, 10, EMPTY, cell)
    grid(windows, 4 + cell, 0.8 + cell, 12, 8, OUTPUT, cell)
    for column in range(2):
        frame(windows, 4 + 4 * column * cell, 0.8, 6 * cell, 6 * cell)
    note(windows, 12, 11.5, "outlined: two windows, which share 2 columns;")
    note(windows, 12, 12.7, "each gives the 4 x 4 outputs (green) in its middle")

    grid(components, 1, 3, 6, 6, INPUT, 0.9)
    for plane in range(4):
        grid(components, 11 + 1.1 * plane, 1.5 + 1.1 * plane, 8, 5, SCRATCH, 0.9)
    note(components, 8.6, 5.7, "B x B'", fontsize=10)
    note(components, 3.7, 9.3, "a window\nof one channel")
    note(components, 16.5, 10.6, "36 planes of (tile, channel):\na window is one element of each")
    note(components, 12, 13, "channels lie side by side, whatever the caller's format")

    grid(product, 1.5, 3.5, 4, 6, INPUT, 0.9)
    grid(product, 7.6, 4.4, 7, 4, WEIGHT, 0.9)
    grid(product, 16.4, 3.5, 7, 6, OUTPUT, 0.9)
    note(product, 6.4, 6.2, "x", fontsize=12)
    note(product, 15.1, 6.2, "=", fontsize=12)
    note(product, 3.3, 2.4, "inputs\n(tile, C)")
    note(product, 10.7, 2.4, "weights\n(C, O)")
    note(product, 19.5, 2.4, "sums\n(tile, O)")
    note(product, 12, 11, "36 matrix products for 16 outputs of each channel;\nA turns 36 sums into the tile")


def space_to_depth() -> None:
    """Phases of the input, and the kernel's taps on them."""
    image, phases, taps = panels("the input, stride 2", "its phases, as channels", "4 x 4 taps: 2 x 2 on each phase")
    colours = INPUT, OUTPUT, WEIGHT, SCRATCH
    for y in range(8):
        for x in range(8):
            grid(image, 6 + 1.5 * x, 0.5 + 1.5 * y, 1, 1, colours[y % 2 * 2 + x % 2], 1.5)
    frame(image, 9, 3.5, 6, 6)
    note(image, 12, 13.2, "outlined: what an output sees with 4 x 4 taps")
    for i, colour in enumerate(colours):
        left, top = 4.5 + i * 2.6, 1 + i * 1.7
        grid(phases, left, top, 4, 4, colour, 1.5)
        frame(phases, left + 1.5, top + 1.5, 3, 3)
        left, top = 3 + i % 2 * 10, 0.8 + i // 2 * 6
        for y in range(4):
            for x in range(4):
                grid(taps, left + 1.2 * x, top + 1.2 * y, 1, 1, colour if y % 2 * 2 + x % 2 == i else EMPTY, 1.2)
    note(phases, 12, 13.2, "every second row and column, at stride 1")
    note(taps, 12, 13.2, "with 3 x 3 taps the last row and column are zeros")


def depthwise() -> None:
    """The two layouts of staged input, and the tile with a run of three taps."""
    planes, pixels, tile = panels("planes: vectors along the row", "pixels: vectors of channels", "a run of three taps")
    grid(planes, 5, 1, 14, 10, EMPTY)
    grid(planes, 6, 2, 12, 8, INPUT)
    for row in range(8):
        frame(planes, 6, 2 + row, 4, 1)
    note(
        planes,
        12,
        12.6,
        "staged in whole vectors, padding (white) written once;\noutlined: what a tile reads of tap 1,1",
    )

    for c in range(3):
        left, top = 8.4 - 2.6 * c, 1 + 1.3 * c
        grid(pixels, left, top, 9, 7, EMPTY, 1.2)
        grid(pixels, left + 1.2, top + 1.2, 7, 5, INPUT, 1.2)
    note(
        pixels,
        12,
        13,
        "a vector holds one pixel of neighbouring channels;\ntiles, runs and order of the sums are the same",
    )

    height, taps, lanes = 5, 3, 4
    grid(tile, 5.5, 1.2, lanes, height + taps - 1, INPUT, 1.2)
    grid(tile, 15, 2.4, lanes, height, OUTPUT, 1.2)
    grid(tile, 12, 6, 1, taps, WEIGHT, 1.2)
    frame(tile, 5.5, 3.6, lanes * 1.2, 1.2)
    for row in range(taps):
        tile.annotate("", (14.9, 3.0 + 1.2 * row), (10.4, 4.2), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
    note(tile, 5, 5.4, "staged\nrows", "right")
    note(tile, 20.2, 5.4, "sums in\nregisters", "left")
    note(
        tile,
        12,
        12.4,
        "one loaded row (outlined) meets the three taps of a\nkernel column, each for another row of results",
    )


def col2im() -> None:
    """A band of the input, the product of all taps, and the lines that it is folded into."""
    band, product, lines = panels("a band of the input", "one product for all taps", "folded into lines of results")
    for c in range(3):
        grid(band, 8.4 - 2.6 * c, 1 + 1.3 * c, 9, 7, INPUT if c < 2 else EMPTY, 1.2)
    grid(band, 3.2, 6, 9, 2, INPUT, 1.2)
    frame(band, 3.2, 6, 10.8, 2.4)
    note(band, 12, 13.2, "rows of pixels that reach a task's results, all channels", fontsize=7.5)

    grid(product, 1, 3, 4, 6, WEIGHT, 0.9)
    grid(product, 6.4, 3.9, 9, 4, INPUT, 0.9)
    grid(product, 15.6, 3, 9, 6, SCRATCH, 0.9)
    note(product, 2.8, 2, "weights\n((kh, o, kw), C)")
    note(product, 10.4, 2, "band\n(C, pixels)")
    note(product, 19.6, 2, "products")
    note(product, 12, 11.4, "as many rows as taps times outputs,\nwhere a correlation has outputs alone")

    for tap in range(4):
        grid(lines, 1, 2 + 1.6 * tap, 8, 1, SCRATCH, 1)
        note(lines, 0.7, 2.5 + 1.6 * tap, f"{tap}", "right")
        to = (12.4 + tap // 2, 3.5 + 4 * (tap % 2))
        lines.annotate("", to, (9.2, 2.5 + 1.6 * tap), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
    for residue in range(2):
        grid(lines, 12.5, 3 + 4 * residue, 9, 1, OUTPUT, 1)
        note(lines, 17, 2.4 + 4 * residue, f"residue {residue}")
    note(
        lines,
        12,
        11.4,
        "taps 0 and 2 of stride 2 meet in one residue, a result\napart; residues are interleaved as they are written",
    )


def integers() -> None:
    """Two planes of channels as one of words, and what one instruction does with words."""
    planes, instruction = panels("two channels become a plane of words", "one instruction: products of words")
    for c in range(2):
        grid(planes, 1 + 1.2 * c, 2 + 1.4 * c, 6, 5, INPUT if c else SCRATCH, 1.1)
    for row in range(5):
        for column in range(6):
            grid(planes, 13.5 + 1.6 * column, 2.6 + 1.6 * row, 1, 1, SCRATCH, 0.8)
            grid(planes, 14.3 + 1.6 * column, 2.6 + 1.6 * row, 1, 1, INPUT, 0.8)
    planes.annotate("", (13.2, 6), (9.4, 6), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
    note(planes, 12, 12.6, "int8, widened to int16: the even channel low, the odd one high")

    for lane in range(4):
        left = 6.4 + 3.6 * lane
        for y, colours in ((2, (WEIGHT, "#fdd0a2")), (4.6, (SCRATCH, INPUT))):
            for half, colour in enumerate(colours):
                grid(instruction, left + 1.4 * half, y, 1, 1, colour, 1.4)
        grid(instruction, left + 0.2, 8, 1, 1, OUTPUT, 2.4)
        for half in range(2):
            instruction.annotate(
                "",
                (left + 1.4, 7.9),
                (left + 0.7 + 1.4 * half, 6.1),
                arrowprops={"arrowstyle": "->", "color": "#c51b1b"},
            )
    note(instruction, 6, 2.7, "weights of\n4 outputs", "right")
    note(instruction, 6, 5.3, "one word,\nbroadcast", "right")
    note(instruction, 6, 9.2, "sums,\nint32", "right")
    note(instruction, 12, 12.6, "each lane adds two products: low by low and high by high")


def parts() -> None:
    """The weight of the real convolution."""
    (product,) = panels("a complex convolution is a real one of twice the channels")
    for i in range(2):
        for j in range(2):
            colour = WEIGHT if i == j else "#fdd0a2"
            grid(product, 7 + 3 * j, 2.5 + 3 * i, 3, 3, colour, 1)
            note(product, 8.5 + 3 * j, 4 + 3 * i, ("re w", "-im w", "im w", "re w")[2 * i + j], fontsize=7)
        grid(product, 1.5, 2.5 + 3 * i, 3, 3, OUTPUT, 1)
        note(product, 3, 4 + 3 * i, ("re y", "im y")[i], fontsize=7)
        grid(product, 15, 2.5 + 3 * i, 7, 3, INPUT, 1)
        note(product, 18.5, 4 + 3 * i, ("re x", "im x")[i], fontsize=7)
    note(product, 5.8, 5.5, "=", fontsize=12)
    note(product, 14, 5.5, "*", fontsize=12)
    note(
        product,
        12,
        11,
        "real parts of all channels before the imaginary ones;\nany algorithm for real numbers computes it",
    )


def weight_gradient() -> None:
    """A step of the sum over positions, and the tile of taps by outputs."""
    step, tile = panels("a step: some rows of one image", "the register tile")
    for c in range(3):
        grid(step, 5.4 - 1.6 * c, 1 + 1.3 * c, 8, 6, EMPTY, 1.1)
        grid(step, 5.4 - 1.6 * c, 2.1 + 1.3 * c, 8, 4, INPUT, 1.1)
        grid(step, 19 - 1.6 * c, 1 + 1.3 * c, 6, 6, EMPTY, 0.8)
        grid(step, 19 - 1.6 * c, 2.6 + 1.3 * c, 6, 2, OUTPUT, 0.8)
    note(step, 7, 12.4, "x: the window of the step,\nstaged once for all taps")
    note(step, 19, 12.4, "dy: up to 288 positions,\nturned to (t, o)")

    height, lanes = 6, 5
    for v in range(2):
        left = 8 + v * (lanes + 0.5) * 1.2
        grid(tile, left, 1.6, lanes, 1, OUTPUT, 1.2)
        grid(tile, left, 3.8, lanes, height, WEIGHT, 1.2)
    grid(tile, 5.8, 3.8, 1, height, INPUT, 1.2)
    note(tile, 14.3, 0.7, "dy of one position, for 2 vectors of output channels")
    note(tile, 5.4, 7.4, "x of six\n(c, kh, kw),\na broadcast\neach", "right")
    note(tile, 12, 12.6, "sums dw[(c, k), o] stay in registers\nwhile the positions of the step go by")


def depthwise_weight_gradient() -> None:
    """A run of three taps, of which each has a sum."""
    planes, tile = panels("a tap is a dot product of two planes", "a run of three taps")
    grid(planes, 1, 1, 9, 9, EMPTY)
    grid(planes, 2, 2, 7, 7, INPUT)
    for i in range(2):
        frame(planes, 1 + 1.07 * i, 1 + 1.07 * i, 7, 7)
    grid(planes, 14, 2, 7, 7, OUTPUT)
    note(planes, 5.5, 11.2, "x, staged")
    note(planes, 17.5, 11.2, "dy, where it lies")
    note(planes, 12, 13, "outlined: what taps 0,0 and 1,1 of a 3 x 3 kernel meet")

    lanes = 4
    grid(tile, 2.4, 6, lanes, 1, INPUT, 1.2)
    frame(tile, 2.4, 6, lanes * 1.2, 1.2)
    for row in range(3):
        y = 3 + 3 * row
        grid(tile, 9.6, y, lanes, 1, OUTPUT, 1.2)
        grid(tile, 17.6, y, lanes, 1, WEIGHT, 1.2)
        tile.annotate("", (9.5, y + 0.6), (7.3, 6.6), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
        tile.annotate("", (17.5, y + 0.6), (14.5, y + 0.6), arrowprops={"arrowstyle": "->", "color": "#c51b1b"})
        note(tile, 12, y - 0.6, f"row {('r', 'r - 1', 'r - 2')[row]} of dy", fontsize=7)
        note(tile, 20, y - 0.6, f"sum of tap {row}", fontsize=7)
    note(tile, 4.8, 5.2, "row r of x", fontsize=7)
    note(
        tile,
        12,
        12.4,
        "rows of dy stay in registers and each meets three rows of x;\nlanes are added up at the end of a task",
    )


FIGURES = {
    figure.__name__: figure
    for figure in (
        direct, implicit_gemm, integers, im2col, fully_connected, kn2row, fft, winograd, space_to_depth, depthwise,
        depthwise_weight_gradient, col2im, weight_gradient, parts,
    )
}  # fmt: skip


def main() -> None:
    """Draw the figures that are named, or all."""
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
        plt.savefig(Path(__file__).parent / f"{name}-tiling.png", dpi=110)
        plt.close()


if __name__ == "__main__":
    main()
