"""``bench``: layers of real networks on CPU and GPU, beside PyTorch, SciPy and ONNX Runtime where installed."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastconv.commands.console import CommandError, installed, positive_int, progress, require, table
from fastconv.commands.engines import ENGINES, PEERS
from fastconv.commands.race import EngineError, Entry, Racer, race
from fastconv.networks import LAYERS, NETWORKS, Layer

HELP = "time layers of real networks on CPU and GPU, beside other libraries"

_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Row:
    """One layer on one device."""

    layer: Layer
    device: str
    gflop: float
    entries: tuple[Entry, ...]

    def ratio(self, peer: Entry) -> float | None:
        """How many times longer `peer` takes than the form of fastconv it is comparable with."""
        rival = next(e for e in self.entries if e.engine == ENGINES[peer.engine].rival)
        return peer.seconds / rival.seconds if peer.seconds and rival.seconds else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    names = f"all, or some of: {' '.join(NETWORKS)} (default: alexnet)"
    parser.add_argument("--network", nargs="+", default=["alexnet"], metavar="NAME", help=names)
    parser.add_argument("--device", choices=("cpu", "gpu", "both"), default="both", help="(default: both)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="(default: float32)")
    parser.add_argument(
        "--batch", type=positive_int, metavar="N", help="batch size (default: that of the layer table, 1)"
    )
    peers = f"some of {','.join(PEERS)}, or none (default: those installed)"
    parser.add_argument("--peers", metavar="NAMES", help=peers)
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="CPU threads of every engine (default: all cores)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and every row")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG plot")


def run(args: argparse.Namespace) -> int:
    """Race the engines over the layers; print, write and plot what was measured."""
    import fastconv
    from fastconv import dispatch
    from fastconv.commands import info

    if args.plot:
        require("bench", "matplotlib")
    for file in filter(None, (args.json, args.plot)):
        if not file.absolute().parent.is_dir():
            raise CommandError(f"{file}: there is no folder {file.absolute().parent}")
    layers, peers = _layers(args.network, args.batch), _peers(args.peers)
    threads = args.threads or fastconv.get_num_threads()
    no_gpu = dispatch.why_no_gpu() if args.device != "cpu" else None
    if no_gpu and args.device == "gpu":
        raise CommandError(f"--device gpu: {no_gpu}")
    devices = ["cpu", "gpu"] if args.device == "both" else [args.device]
    if no_gpu:
        devices = ["cpu"]
        print(f"CPU only: {no_gpu}")
    rows: list[Row] = []
    versions: dict[str, str] = {}
    for device in devices:
        names = [e for e in ENGINES if device in ENGINES[e].devices and (e.startswith("fastconv") or e in peers)]
        try:
            rows += _measure(layers, names, device, args.dtype, threads, versions)
        except EngineError as error:
            print(f"fastconv bench: {error}", file=sys.stderr)
            return 1
        _print([row for row in rows if row.device == device], f"{device}, {args.dtype}, threads: {threads}")
    if devices == ["cpu", "gpu"]:
        _print_cpu_against_gpu(rows)
    if args.json:
        _write(args.json, rows, versions, args.dtype, threads)
    if args.plot:
        from fastconv.commands.bench_plot import plot

        plot(args.plot, rows, f"{info.cpu_model()}, {args.dtype}, threads: {threads}")
    return 0


def _layers(networks: list[str], batch: int | None) -> list[Layer]:
    for name in networks:
        if name not in (*NETWORKS, "all"):
            raise CommandError(f"--network {name}: expected all, or some of {', '.join(NETWORKS)}")
    layers = [layer for layer in LAYERS if "all" in networks or layer.network in networks]
    if batch is None:
        return layers
    # The same layer may stand in the table with two batches.
    return list(dict.fromkeys(replace(layer, batch=batch) for layer in layers))


def _peers(names: str | None) -> set[str]:
    """Names of the engines that `names`, the argument, stands for."""
    if names is None:
        chosen = [name for name, engines in PEERS.items() if all(map(installed, engines[0].modules))]
    else:
        chosen = [] if names == "none" else names.split(",")
    for name in chosen:
        if name not in PEERS:
            raise CommandError(f"--peers {names}: expected none, or some of {','.join(PEERS)}")
        require(PEERS[name][0].extra, *PEERS[name][0].modules)
    return {engine.name for name in chosen for engine in PEERS[name]}


def _measure(
    layers: list[Layer], engines: list[str], device: str, dtype: str, threads: int, versions: dict[str, str]
) -> list[Row]:
    """Race the engines over the layers, and note in `versions` what they are."""
    racers = [Racer(engine, device, threads) for engine in engines]
    rows = []
    try:
        with progress(len(layers)) as report:
            report(0, f"starting {', '.join(engines)}")
            versions.update({racer.engine: racer.ask("version") for racer in racers})
            for done, layer in enumerate(layers):
                report(done, f"{device} {layer}")
                gflop = 2e-9 * layer.problem(dtype).macs
                rows.append(Row(layer, device, gflop, tuple(race(racers, layer, dtype, device))))
    finally:
        for racer in racers:
            racer.close()
    return rows


def _print(rows: list[Row], title: str) -> None:
    own, prepared, *peers = rows[0].entries
    columns = ["layer", "GFLOP", "algorithm", "fastconv ms", "GFLOP/s", "prepared ms"]
    columns += [f"{peer.engine} ms (ratio)" for peer in peers]
    lines = []
    for row in rows:
        own, prepared, *peers = row.entries
        rate = f"{row.gflop / own.seconds:.1f}" if own.seconds else ""
        cells = [str(row.layer), f"{row.gflop:.3g}", own.algorithm, _ms(own), rate, _ms(prepared)]
        ratios = [row.ratio(peer) for peer in peers]
        cells += [_ms(peer) + (f" ({ratio:.2f})" if ratio else "") for peer, ratio in zip(peers, ratios, strict=True)]
        lines.append(cells)
    means = [_geometric_mean([row.ratio(row.entries[2 + i]) for row in rows]) for i in range(len(peers))]
    if peers:
        lines.append(["geometric mean", "", "", "", "", "", *(f"({mean:.2f})" if mean else "" for mean in means)])
    table(f"{title}{'; ratios above 1: fastconv is faster' if peers else ''}", columns, lines)
    if any(e.wrong for row in rows for e in row.entries):
        print("! agrees with fastconv's result in fewer than half of the digits of the dtype")
    declined = Counter((e.engine, e.why_not) for row in rows for e in row.entries if e.why_not)
    for (engine, reason), layers in declined.items():
        print(f"- {engine}, {layers} layer{'s' * (layers > 1)}: {reason}")


def _print_cpu_against_gpu(rows: list[Row]) -> None:
    half = len(rows) // 2
    lines, ratios = [], []
    for on_cpu, on_gpu in zip(rows[:half], rows[half:], strict=True):
        slow, fast = on_cpu.entries[0].seconds, on_gpu.entries[0].seconds
        ratios.append(slow / fast if slow and fast else None)
        ratio = f"{ratios[-1]:.1f}" if ratios[-1] else ""
        lines.append([str(on_cpu.layer), _ms(on_cpu.entries[0]), _ms(on_gpu.entries[0]), ratio])
    mean = _geometric_mean(ratios)
    lines.append(["geometric mean", "", "", f"{mean:.1f}" if mean else ""])
    table("fastconv on CPU and GPU, each on arrays of its own memory", ("layer", "CPU ms", "GPU ms", "CPU/GPU"), lines)


def _ms(entry: Entry) -> str:
    return "-" if entry.seconds is None else f"{entry.seconds * 1e3:.3f}{'!' * entry.wrong}"


def _geometric_mean(ratios: list[float | None]) -> float | None:
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _write(file: Path, rows: list[Row], versions: dict[str, str], dtype: str, threads: int) -> None:
    from fastconv.commands import info

    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": info.collect(),
        "engines": versions,
        "dtype": dtype,
        "threads": threads,
        "rows": [_plain(row) for row in rows],
    }
    file.write_text(json.dumps(found, indent=1) + "\n")


def _plain(row: Row) -> dict[str, Any]:
    ratios = {entry.engine: row.ratio(entry) for entry in row.entries[2:]}
    return asdict(row) | {"ratios": ratios}
