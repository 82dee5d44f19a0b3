"""The tables of measured figures on these pages: ``python docs/tables.py`` writes them anew from ``bench/results``.

In a page a table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; the function of that name in `TABLES`
returns its lines.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from fastconv.commands.bench_results import Contest, Run, contests, geometric_mean, quotient, read
from fastconv.networks import LAYERS, Layer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = "bench/results/cpu-epyc7003-{}.json"


@cache
def runs(name: str) -> list[Run]:
    """The runs of a file that ``bench --json`` wrote."""
    return read(ROOT / RESULTS.format(name))[1]


@cache
def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file that a script of ``bench/`` wrote."""
    found = json.loads((ROOT / RESULTS.format(name)).read_text())["rows"]
    return [row for row in found if "error" not in row]


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]


def contest(run: Run, title: str) -> Contest:
    """The contest of a run whose title begins so."""
    return next(found for found in contests(run) if found.title.startswith(title))


def layer(name: str) -> Layer:
    """The layer of that name."""
    return next(one for one in LAYERS if str(one) == name)


def described(one: Layer) -> str:
    """A layer's channels, kernel and input, as ``vgg16 conv1_1: 3>64 3x3 on 224x224``."""
    kernel, size = ("x".join(map(str, numbers)) for numbers in (one.kernel, one.size))
    kinds = [f" {letter}{value[0]}" for letter, value in (("s", one.stride), ("d", one.dilation)) if max(value) > 1]
    kinds += [f" g{one.groups}"] * (one.groups > 1) + [f" n{one.batch}"] * (one.batch > 1)
    what = "transposed " * one.transposed
    return f"{one.network} {one.name}: {what}{one.in_channels}>{one.out_channels} {kernel}{''.join(kinds)} on {size}"


def short(ratio: float) -> str:
    """A ratio to three digits."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


_SHOWN = (
    "vgg16 conv3_2", "resnet50 2_3x3", "resnet50 2_reduce", "mobilenetv2 2_dw", "replknet 1_dw", "dcgan deconv5",
    "unet3d down1_2",
)  # fmt: skip


def survey() -> list[str]:
    """Both forms against their peers, at one and two threads."""
    pairs = [[contest(run, title) for run in runs("survey")] for title in ("function", "prepared")]
    titles = [f"geometric mean of {len(pairs[0][0].ratios)} layers", "layers below 1", "layers below 0.9", "least"]
    asked = [
        lambda c: short(c.mean), lambda c: str(len(c.below)), lambda c: str(sum(ratio < 0.9 for ratio, _ in c.ratios)),
        lambda c: short(min(ratio for ratio, _ in c.ratios)),
    ]  # fmt: skip
    titles += [described(layer(name)) for name in _SHOWN]
    asked += [lambda c, name=name: short(next(r for r, one in c.ratios if str(one) == name)) for name in _SHOWN]
    lines = [[title, *(" / ".join(map(ask, pair)) for pair in pairs)] for title, ask in zip(titles, asked, strict=True)]
    return table(["ratio, one thread / two threads", "function, to PyTorch", "prepared, to the best of three"], lines)


def summed_up(ratios: list[float]) -> list[str]:
    """How many there are, their geometric mean, how many are below 1, and the least."""
    mean = geometric_mean(ratios)
    assert mean
    return [str(len(ratios)), short(mean), str(sum(ratio < 1 for ratio in ratios)), short(min(ratios))]


_OTHERS = (
    ("float64 functions, to PyTorch", "float64", "function"),
    ("gradients of the input, to PyTorch", "gradients", "input_grad"),
    ("gradients of the weight, to PyTorch", "gradients", "weight_grad"),
    ("int8, prepared, to ONNX Runtime", "int8", "prepared"),
    ("poolings and their gradients, to PyTorch", "pooling", None),
    ("sigpy's convolutions and adjoints, to its own", "sigpy", None),
)


def others() -> list[str]:
    """One line for each of the other results files, at one thread."""
    lines = []
    for what, name, title in _OTHERS:
        if not (ROOT / RESULTS.format(name)).exists():
            continue
        if title is None:
            ratios = [row["ratio"] for row in rows(name)]
        else:
            found = [one for run in runs(name) for one in contests(run) if one.title.startswith(title)]
            ratios = [ratio for ratio, _ in found[0].ratios]  # fewer threads come first
        lines.append([f"[{what}]({RESULTS.format(name)})", *summed_up(ratios)])
    return table(["one thread", "rows", "geometric mean", "below 1", "least"], lines)


_FOLDED = ("wav2vec2 conv1", "vit patches", "alexnet conv1", "vgg16 conv1_1", "resnet50 conv1", "c3d conv1a")


def folded() -> list[str]:
    """Gradients of the input of first layers, as functions."""
    run, lines = next(run for run in runs("gradients") if run.rows[0].layer.op == "input_grad"), []
    assert run.ceilings
    for name in _FOLDED:
        row = next(row for row in run.rows if str(row.layer).startswith(name))
        ours, theirs = row.best(["fastconv"]), row.best(["pytorch"])
        times = (f"{1e3 * seconds:.2f}" for seconds in (row.floor(run.ceilings), ours, theirs))
        lines.append([described(layer(name)), row.choice, *times, short(quotient(theirs, ours))])
    return table(["layer", "algorithm", "floor ms", "fastconv ms", "PyTorch ms", "ratio"], lines)


def integers() -> list[str]:
    """Prepared int8 layers beside ONNX Runtime's, and what the float32 of the survey reached."""
    run, lines = runs("int8")[0], []
    floats = {str(row.layer): row for row in runs("survey")[0].rows}
    for row in run.rows:
        ours, theirs = row.best(["fastconv prepared"]), row.best(["onnxruntime"])
        if ours and theirs:
            rates = [row.gflop / ours, row.gflop / theirs]
            float32 = quotient(row.gflop, floats[str(row.layer)].best(["fastconv prepared"]))
            lines.append([described(row.layer), row.choice, *(f"{rate:.0f}" for rate in (*rates, float32 or 0)),
                          short(theirs / ours)])  # fmt: skip
    found, peaks = contest(run, "prepared"), [one.ceilings for one in (run, runs("survey")[0])]
    lines.append([f"geometric mean of {len(found.ratios)}", *[""] * 4, short(found.mean or 0)])
    lines.append(
        [
            "all in registers",
            "",
            *(f"{peak.flops / 1e9:.0f}" if peak else "" for peak in (peaks[0], None, peaks[1])),
            "",
        ]
    )
    return table(["layer", "algorithm", "int8", "ONNX Runtime", "float32", "ratio of int8"], lines)


def pooling() -> list[str]:
    """The geometric mean of each kind of call."""
    lines = []
    for call in dict.fromkeys(row["call"] for row in rows("pooling")):
        found = [(row["ratio"], row["name"]) for row in rows("pooling") if row["call"] == call]
        lines.append([call.replace("_", " "), *summed_up([ratio for ratio, _ in found]), min(found)[1]])
    return table(["PyTorch's time over fastconv's", "rows", "geometric mean", "below 1", "least", "which"], lines)


TABLES = {each.__name__: each for each in (survey, others, folded, integers, pooling)}
_TABLE = re.compile(r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)", re.DOTALL)


def lines_of(name: str) -> list[str]:
    """The lines of a table, or what is missing for it."""
    try:
        return TABLES[name]()
    except FileNotFoundError as error:
        return [f"Not measured yet: there is no `{Path(error.filename).relative_to(ROOT)}`."]


def filled(text: str) -> str:
    """A page with its tables written anew."""
    return _TABLE.sub(lambda found: "\n".join([found[1], *lines_of(found[2]), found[3]]), text)


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(page)
