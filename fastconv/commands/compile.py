"""``compile``: every CUDA kernel for every architecture, and what each takes of a multiprocessor; no GPU needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastconv.commands.console import CommandError, positive_int, progress, table
from fastconv.compilation import (
    ARCHITECTURES,
    CompilationError,
    Table,
    compile_all,
    programs,
    read_table,
    variants,
    write_table,
)
from fastconv.gpu.runtime import KernelSpec

HELP = "compile the CUDA kernels and weigh them; needs no GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    names = [f"sm_{architecture}" for architecture in ARCHITECTURES]
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_const", const=names, dest="arch", help="for every architecture")
    which.add_argument("--arch", nargs="+", choices=names, metavar="NAME", help=f"for some of {', '.join(names)}")
    parser.add_argument("--kernels", nargs="+", default=[""], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE (CSV)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="fail where a kernel takes more than in this table"
    )
    parser.add_argument("--processes", type=positive_int, default=2, metavar="N", help="compilers at once (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Compile and print a table; 1 if any kernel does not compile, or takes more than another table says."""
    known = _table(args.against) if args.against else None
    architectures = [int(name.removeprefix("sm_")) for name in dict.fromkeys(args.arch)]
    kernels = {arch: [spec for together in programs(arch, args.kernels) for spec in together] for arch in architectures}
    if not any(kernels.values()):
        files = sorted({spec.file.removesuffix(".cu") for spec in variants()})
        raise CommandError(
            f"--kernels {' '.join(args.kernels)}: expected beginnings of names, as of {', '.join(files)}"
        )
    cells: dict[tuple[KernelSpec, int], str] = {}
    spilled, heavier = 0, []
    try:
        with progress(sum(map(len, kernels.values()))) as report:
            for done in compile_all(architectures, args.processes, args.kernels):
                cells[done.spec, done.architecture] = done.weight
                spilled += done.spill_bytes > 0
                if known is not None and (what := done.heavier_than(known)):
                    heavier.append(what)
                report(len(cells), f"compiling {done.spec.file}")
    except ImportError as error:
        raise CommandError(str(error)) from None
    except CompilationError as error:
        print(f"fastconv compile: {error}", file=sys.stderr)
        return 1
    every = dict.fromkeys(spec for arch in sorted(architectures, reverse=True) for spec in kernels[arch])
    rows = [(str(spec), *(cells.get((spec, architecture), "-") for architecture in architectures)) for spec in every]
    columns = ("kernel", *(f"sm_{architecture}" for architecture in architectures))
    if args.write:
        write_table(args.write, columns, rows)
    table("registers of a thread / shared bytes of a block / bytes that a thread spills", columns, rows)
    print(f"{len(cells)} kernels compiled, {spilled} of them spill")
    for what in heavier:
        print(f"fastconv compile: {what}", file=sys.stderr)
    return int(bool(heavier))


def _table(file: Path) -> Table:
    try:
        return read_table(file)
    except (OSError, ValueError) as error:
        raise CommandError(f"--against {file}: {error}") from None
