"""What ``bench`` measured: rows, the runs they belong to, and the contests that a run decides."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastconv.arrays import named_dtype
from fastconv.commands.engines import ENGINES
from fastconv.commands.own_engines import ChannelsLast, Functional, Prepared, PreparedChannelsLast
from fastconv.commands.peers import CudnnFused, PyTorch, PyTorchChannelsLast
from fastconv.commands.race import Entry
from fastconv.networks import Layer

if TYPE_CHECKING:
    from fastconv.commands.ceilings import Ceilings
    from fastconv.commands.gpu_ceilings import GpuCeilings


@dataclass(frozen=True)
class Row:
    """One layer in one run; `nbytes` is what a call must at least move: its input, weight and result, once each."""

    layer: Layer
    gflop: float
    nbytes: int
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, layer: Layer, dtype: str, entries: list[Entry]) -> Row:
        """The row of a layer that was raced."""
        problem = layer.problem(dtype)
        arrays = [(shape, problem.dtype) for shape in problem.operand_shapes]
        arrays.append((problem.result_shape, problem.result_dtype))
        nbytes = sum(math.prod(shape) * named_dtype(name).itemsize for shape, name in arrays)
        return cls(layer, 2e-9 * problem.macs, nbytes, tuple(entries))

    def floor(self, ceilings: Ceilings | GpuCeilings) -> float:
        """The least time that the rates allow, unless an algorithm multiplies less than the definition."""
        return max(self.gflop * 1e9 / ceilings.flops, self.nbytes / ceilings.memory)

    def entry(self, engine: str) -> Entry:
        """What that engine, which took part, did."""
        return next(e for e in self.entries if e.engine == engine)

    def best(self, engines: Iterable[str]) -> float | None:
        """The least time of those engines that took part and have one."""
        return min((e.seconds for e in self.entries if e.engine in engines and e.seconds), default=None)

    @property
    def peers(self) -> list[Entry]:
        """Entries of other libraries."""
        return [e for e in self.entries if not e.engine.startswith("fastconv")]

    @property
    def failures(self) -> list[Entry]:
        """Entries of fastconv that ended in an error."""
        return [e for e in self.entries if e.failed and e.engine.startswith("fastconv")]

    @property
    def algorithms(self) -> list[Entry]:
        """Entries of fastconv's algorithms, each raced by itself, that took the layer."""
        return [e for e in self.entries if ":" in e.engine and e.seconds]

    @property
    def choice(self) -> str:
        """The algorithm that the dispatcher chose: for the prepared form, or the function of a gradient."""
        return self.entry(Prepared.name).algorithm or self.entry(Functional.name).algorithm

    def ratio(self, peer: Entry) -> float | None:
        """How many times longer `peer` takes than the form of fastconv it is comparable with."""
        return quotient(peer.seconds, self.entry(ENGINES[peer.engine].rival).seconds)


@dataclass(frozen=True)
class Run:
    """The rows of one device, dtype and number of threads; of what they have in common, the first one speaks."""

    device: str
    dtype: str
    threads: int
    ceilings: Ceilings | GpuCeilings | None
    rows: list[Row]

    @property
    def disturbance(self) -> float | None:
        """How many times longer the median call took than the shortest: near 1 on a quiet machine."""
        return geometric_mean(quotient(e.median, e.seconds) for row in self.rows for e in row.entries)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        layer = self.rows[0].layer
        op = f", {layer.op}" if layer.op != "forward" else ", bias+relu" if layer.fused else ""
        return f"{self.device}, {self.dtype}{threads}{op}"


@dataclass(frozen=True)
class Contest:
    """One question to all rows of a run: at least `bar` is wanted of the ratio of two times."""

    title: str
    bar: float
    ratios: list[tuple[float, Layer]]

    @property
    def below(self) -> list[tuple[float, Layer]]:
        """The rows under the bar, the worst one first."""
        return sorted((pair for pair in self.ratios if pair[0] < self.bar), key=lambda pair: pair[0])

    @property
    def mean(self) -> float | None:
        """The geometric mean."""
        return geometric_mean(ratio for ratio, _ in self.ratios)


def contests(run: Run) -> list[Contest]:
    """The contests of a run in which somebody took part."""
    own, prepared, last = Functional.name, Prepared.name, PreparedChannelsLast.name
    torch = (PyTorch.name, PyTorchChannelsLast.name)
    timed = {e.engine for row in run.rows for e in row.peers if e.seconds}
    rivals = [e.engine for e in run.rows[0].peers if e.engine in timed and e.engine != "scipy"]
    op = run.rows[0].layer.op
    against = "function against torch.nn.functional" if op == "forward" else f"{op} against PyTorch's"
    asked: list[tuple[str, float, Callable[[Row], float | None]]] = [
        (against, 1.0, lambda row: quotient(row.best(torch), row.best([own]))),
        (f"prepared against the best of {', '.join(rivals)}", 1.0,
         lambda row: quotient(row.best(rivals), row.best([prepared]))),
        *_gpu_questions(run),
        ("NHWC against NCHW", 0.9, lambda row: quotient(row.best([prepared]), row.best([last]))),
        ("choice against the fastest algorithm", 0.9, _choice),
    ]  # fmt: skip
    found = []
    for title, bar, ratio in asked:
        ratios = [(value, row.layer) for row in run.rows if (value := ratio(row))]
        if ratios:
            found.append(Contest(title, bar, ratios))
    return found


def _gpu_questions(run: Run) -> list[tuple[str, float, Callable[[Row], float | None]]]:
    """What is asked of channels-last data on a GPU: how many times faster than PyTorch, and how near to the limit."""
    ours, cudnn = ChannelsLast.name, PyTorchChannelsLast.name

    def against(theirs: str) -> Callable[[Row], float | None]:
        return lambda row: quotient(row.best([theirs]), row.best([ours]))

    def if_grouped(row: Row) -> float | None:
        return against(cudnn)(row) if row.layer.groups > 1 else None

    def share_of_cores(row: Row) -> float | None:
        if not (run.device == "gpu" and run.ceilings and _is_bound_by_cores(row.layer)):
            return None
        return quotient(row.gflop * 1e9 / run.ceilings.flops, row.best([ours]))

    bar = 1.5 if run.dtype == "float32" else 1.3 if run.rows[0].layer.fused else 1.0
    return [
        (f"{ours} against {cudnn}", bar, against(cudnn)),
        (f"{ours} against {PyTorch.name}", 1.5, against(PyTorch.name)),
        (f"{ours} against {CudnnFused.name}", 1.0, against(CudnnFused.name)),
        (f"grouped and depthwise: {ours} against {cudnn}", 2.0, if_grouped),
        (f"3x3 of ResNet, VGG conv3_2: share of a matrix product's rate in {run.dtype}", 0.75, share_of_cores),
    ]


def _is_bound_by_cores(layer: Layer) -> bool:
    """Whether only the rate of multiplying can hold a layer up, at a batch of many images."""
    in_resnet = layer.network == "resnet50" and layer.kernel == (3, 3)
    return in_resnet or (layer.network, layer.name) == ("vgg16", "conv3_2")


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(sum(logs) / len(logs)) if logs else None


def quotient(theirs: float | None, ours: float | None) -> float | None:
    """One time over another, if both were taken."""
    return theirs / ours if theirs and ours else None


def write(file: Path, runs: list[Run], versions: dict[str, str]) -> None:
    """Write machine, versions, date, commit and every row as JSON."""
    from fastconv import remembered
    from fastconv.commands import info

    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": info.collect(places=False),
        "engines": versions,
        "tuned": {device: list(remembered.recall_all(device)) for device in dict.fromkeys(run.device for run in runs)},
        "runs": [_plain(run) for run in runs],
    }
    file.write_text(json.dumps(found, indent=1) + "\n")


def read(file: Path) -> tuple[str, list[Run]]:
    """The processor and the runs of a file that :func:`write` wrote.

    Raises
    ------
    OSError, ValueError, TypeError, KeyError
        If it is not one.
    """
    found = json.loads(file.read_text())
    return found["machine"]["cpu"], [_run(plain) for plain in found["runs"]]


def _run(plain: dict[str, Any]) -> Run:
    rows = []
    for row in plain["rows"]:
        layer: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in row["layer"].items()
        }
        known = {f.name for f in fields(Entry)}
        entries = tuple(Entry(**{k: v for k, v in entry.items() if k in known}) for entry in row["entries"])
        rows.append(Row(Layer(**layer), row["gflop"], row["nbytes"], entries))
    ceilings = _ceilings(plain["device"], plain["ceilings"]) if plain["ceilings"] else None
    return Run(plain["device"], plain["dtype"], plain["threads"], ceilings, rows)


def _ceilings(device: str, plain: dict[str, Any]) -> Ceilings | GpuCeilings:
    if device == "gpu":
        from fastconv.commands.gpu_ceilings import GpuCeilings

        return GpuCeilings(**plain)
    from fastconv.commands.ceilings import Ceilings

    return Ceilings(**plain | {"reads": {int(size): rate for size, rate in plain["reads"].items()}})


def _plain(run: Run) -> dict[str, Any]:
    found = asdict(run)
    for plain, row in zip(found["rows"], run.rows, strict=True):
        plain["floor_seconds"] = row.floor(run.ceilings) if run.ceilings else None
        plain["ratios"] = {peer.engine: row.ratio(peer) for peer in row.peers}
        for entry in plain["entries"]:
            entry["gflops"] = row.gflop / entry["seconds"] if entry["seconds"] else None
            entry["of_ceilings"] = _of_ceilings(run.ceilings, row, entry["seconds"])
    found["disturbance"] = run.disturbance
    found["contests"] = [
        {"title": c.title, "bar": c.bar, "rows": len(c.ratios), "below": len(c.below), "geometric_mean": c.mean}
        for c in contests(run)
    ]
    return found


def _of_ceilings(ceilings: Ceilings | GpuCeilings | None, row: Row, seconds: float | None) -> dict[str, float] | None:
    """What a time is of each rate that was measured."""
    if not (ceilings and seconds):
        return None
    flops, nbytes = row.gflop * 1e9 / seconds, row.nbytes / seconds
    found = {"flops": flops / ceilings.flops, "memory": nbytes / ceilings.memory, "copy": nbytes / ceilings.copy}
    bfloat16 = getattr(ceilings, "bfloat16_flops", None)  # of GPUs
    return found | ({"bfloat16_flops": flops / bfloat16} if bfloat16 else {})


def _choice(row: Row) -> float | None:
    """How much of the fastest algorithm's speed the dispatcher's choice has."""
    times = {e.algorithm: e.seconds for e in row.algorithms if e.seconds}
    return quotient(min(times.values(), default=None), times.get(row.choice))
