"""``bench``: layers of real networks on CPU and GPU, beside the other libraries that are installed."""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastconv.commands.bench_results import Row, Run, read, write
from fastconv.commands.bench_tables import print_cpu_against_gpu, print_run
from fastconv.commands.console import CommandError, installed, positive_int, progress, require
from fastconv.commands.engine import EngineError
from fastconv.commands.engines import ENGINES, PEERS
from fastconv.commands.race import Racer, race
from fastconv.networks import LAYERS, NETWORKS, SURVEY, TF32, Layer
from fastconv.problem import DTYPES, OPS

if TYPE_CHECKING:
    from fastconv.commands.ceilings import Ceilings
    from fastconv.commands.gpu_ceilings import GpuCeilings

HELP = "time layers of real networks on CPU and GPU, beside other libraries"

_DTYPES = (*(dtype for dtype in DTYPES if not dtype.startswith("complex")), TF32)
_EPILOGUES = ("none", "bias+relu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    names = f"all, survey ({len(SURVEY)} layers of every kind), or some of: {' '.join(NETWORKS)} (default: alexnet)"
    parser.add_argument("--network", nargs="+", default=["alexnet"], metavar="NAME", help=names)
    parser.add_argument("--device", choices=("cpu", "gpu", "both"), default="both", help="(default: both)")
    parser.add_argument(
        "--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="tf32: on GPUs (default: float32)"
    )
    parser.add_argument(
        "--op", nargs="+", choices=OPS, default=["forward"], help="the layers or their gradients (default: forward)"
    )
    parser.add_argument(
        "--epilogue",
        nargs="+",
        choices=_EPILOGUES,
        default=["none"],
        help="what follows the layers, but not gradients (default: none)",
    )
    parser.add_argument(
        "--batch", type=positive_int, metavar="N", help="batch size (default: that of the layer table, 1)"
    )
    peers = f"some of {','.join(PEERS)}, or none (default: those installed)"
    parser.add_argument("--peers", metavar="NAMES", help=peers)
    parser.add_argument(
        "--threads", nargs="+", type=positive_int, metavar="N", help="CPU threads of every engine (default: all cores)"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=0.6, metavar="S", help="for each engine on each layer (default: 0.6)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and every row")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG plot")
    parser.add_argument(
        "--algorithms", metavar="NAMES", help="time CPU algorithms each by itself too: all, or some, between commas"
    )
    parser.add_argument(
        "--roofline",
        type=Path,
        metavar="FOLDER",
        help="write a roofline plot of each algorithm timed by itself: all, unless --algorithms names some",
    )
    parser.add_argument(
        "--read", nargs="+", type=Path, metavar="FILE", help="measure nothing: print and plot what --json wrote"
    )


def run(args: argparse.Namespace) -> int:
    """Race the engines over the layers; print, write and plot what was measured.

    The exit status is 1 if fastconv failed on a layer.
    """
    from fastconv import machine

    _check_outputs(args)
    if args.read:
        title, runs = _recall(args.read)
        for one in runs:
            print_run(one)
    else:
        title, runs = machine.cpu_model(), []
        try:
            _race(args, runs)
        except EngineError as error:
            print(f"fastconv bench: {error}", file=sys.stderr)
            return 1
    if args.plot:
        from fastconv.commands.bench_plot import plot

        plot(args.plot, runs, title)
    if args.roofline:
        from fastconv.commands.roofline import plot_rooflines

        plot_rooflines(args.roofline, runs, title)
    return int(any(row.failures for one in runs for row in one.rows))


def _recall(files: list[Path]) -> tuple[str, list[Run]]:
    """The processor and the runs of results files, which must be of one machine."""
    runs: list[Run] = []
    titles: list[str] = []
    for file in files:
        try:
            title, found = read(file)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CommandError(f"--read {file}: expected a file that bench --json wrote ({error!r})") from None
        titles.append(title)
        runs += found
    if len(set(titles)) > 1:
        raise CommandError(f"--read: expected results of one machine, not of {', '.join(dict.fromkeys(titles))}")
    return titles[0], runs


def _race(args: argparse.Namespace, runs: list[Run]) -> None:
    """Add what is measured to `runs`, printing and writing it on the way."""
    import fastconv
    from fastconv import dispatch

    layers, peers = _layers(args.network, args.batch), _peers(args.peers)
    if TF32 in args.dtype and args.device != "gpu":
        raise CommandError("--dtype tf32: expected --device gpu")
    algorithms = _algorithms(args.algorithms or ("all" if args.roofline else None))
    no_gpu = dispatch.why_no_gpu() if args.device != "cpu" else None
    if no_gpu and args.device == "gpu":
        raise CommandError(f"--device gpu: {no_gpu}")
    if no_gpu and args.device == "both":
        print(f"CPU only: {no_gpu}")
    all_threads = args.threads or [fastconv.get_num_threads()]
    machines = [("cpu", threads) for threads in all_threads if args.device != "gpu"]
    machines += [("gpu", all_threads[-1])] if args.device != "cpu" and not no_gpu else []
    versions: dict[str, str] = {}
    forms = [(op, epilogue) for op in args.op for epilogue in (args.epilogue if op == "forward" else ["none"])]
    for (op, epilogue), dtype in itertools.product(forms, args.dtype):
        meant = [replace(layer, op=op, fused=epilogue != "none") for layer in layers]
        for device, threads in machines:
            engines = [e for e in ENGINES if device in ENGINES[e].devices and (e.startswith("fastconv") or e in peers)]
            engines += [f"fastconv:{name}" for name in algorithms if device == "cpu"]
            runs.append(_measure(meant, engines, device, dtype, threads, args.seconds, versions))
            print_run(runs[-1])
            if args.json:
                write(args.json, runs, versions)
        if args.device == "both" and not no_gpu:
            print_cpu_against_gpu(*runs[-2:])


def _algorithms(names: str | None) -> list[str]:
    """The CPU algorithms that `names`, the argument, stands for."""
    from fastconv import registry

    known = [algorithm.name for algorithm in registry.algorithms("cpu")]
    chosen = [] if names is None else known if names == "all" else names.split(",")
    for name in chosen:
        if name not in known:
            raise CommandError(f"--algorithms {names}: expected all, or some of {','.join(known)}")
    return chosen


def _positive(text: str) -> float:
    """An argument type of argparse."""
    try:
        if (value := float(text)) > 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")


def _check_outputs(args: argparse.Namespace) -> None:
    if args.plot or args.roofline:
        require("bench", "matplotlib")
    folders = {file: file.absolute().parent for file in (args.json, args.plot) if file}
    if args.roofline:
        folders[args.roofline] = args.roofline
    for file, folder in folders.items():
        if not folder.is_dir():
            raise CommandError(f"{file}: there is no folder {folder}")


def _layers(networks: list[str], batch: int | None) -> list[Layer]:
    for name in networks:
        if name not in (*NETWORKS, "all", "survey"):
            raise CommandError(f"--network {name}: expected all, survey, or some of {', '.join(NETWORKS)}")
    layers = [
        layer
        for layer in LAYERS
        if "all" in networks or layer.network in networks or ("survey" in networks and layer in SURVEY)
    ]
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


def _ceilings(device: str, dtype: str, threads: int) -> Ceilings | GpuCeilings | None:
    """What the device can do at most, where there is a way to measure it."""
    if device == "cpu":
        from fastconv.commands import ceilings  # which imports Numba: a GPU can be measured without

        return ceilings.measure(dtype, threads)
    from fastconv.commands import gpu_ceilings

    return gpu_ceilings.measure(dtype) if installed("torch") and "int" not in dtype else None


def _measure(
    layers: list[Layer],
    engines: list[str],
    device: str,
    dtype: str,
    threads: int,
    seconds: float,
    versions: dict[str, str],
) -> Run:
    """Race the engines over the layers, and note in `versions` what they are."""
    rows = []
    with progress(len(layers)) as report:
        report(0, "measuring the ceilings")  # before the engines: their threads may spin
        ceilings = _ceilings(device, dtype, threads)
        report(0, f"starting {', '.join(engines)}")
        racers = [Racer(engine, device, threads) for engine in engines]
        try:
            versions.update({racer.engine: racer.ask("version") for racer in racers})
            for done, layer in enumerate(layers):
                report(done, f"{device} {layer}")
                rows.append(Row.of(layer, dtype, race(racers, layer, dtype, device, seconds)))
        finally:
            for racer in racers:
                racer.close()
    return Run(device, dtype, threads, ceilings, rows)
