"""``warmup``: compiles the CPU kernels of common layers ahead."""

from __future__ import annotations

import argparse
import time

from fastconv.commands.console import CommandError, progress
from fastconv.problem import DTYPES

HELP = "compile the CPU kernels that common layers choose, ahead of the first call"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    text = f"some of {', '.join(DTYPES)} (default: float32)"
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="NAME", help=text)


def run(args: argparse.Namespace) -> int:
    """Compile, then say how long it took and where the kernels are."""
    from fastconv import settings
    from fastconv.cpu import objects
    from fastconv.warming import chosen

    start = time.perf_counter()
    plans = [(algorithm, problem) for dtype in dict.fromkeys(args.dtype) for algorithm, problem in chosen(dtype)]
    with progress(len(plans)) as report:
        for done, (algorithm, problem) in enumerate(plans):
            report(done, f"{algorithm.name} for {problem.dtype}")
            algorithm.plan(problem, settings.workspace_limit())
    took = time.perf_counter() - start
    folder = objects.directory()
    sizes = [path.stat().st_size for path in folder.glob("*.o")]
    if not sizes:
        raise CommandError(f"nothing could be written to {folder}: FASTCONV_CACHE_DIR can name another folder")
    print(f"{took:.1f} s; {len(sizes)} kernels, {sum(sizes) / 2**20:.2f} MiB, in {folder}")
    return 0
