"""Compile every GPU kernel without a GPU, by NVRTC alone, and weigh it: registers, shared memory, spills."""

from __future__ import annotations

import csv
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastconv.gpu import patches, pooling
from fastconv.gpu.algorithm import GpuAlgorithm
from fastconv.gpu.runtime import KernelSpec
from fastconv.gpu.source import program
from fastconv.registry import algorithms

#: Compute capabilities that kernels are compiled for: Turing, Ampere (A100 and RTX 30), Ada, Hopper, Blackwell (two).
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

#: Registers of a thread that another version of the compiler may add.
SLACK_REGISTERS = 8

# What ptxas says of one kernel, from its name on.
_WEIGHT = re.compile(
    r"Compiling entry function '(?P<entry>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")


#: What each kernel weighs, by its name and then by its architecture, as ``sm_90``.
Table = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one architecture, and what it takes of a multiprocessor."""

    spec: KernelSpec
    architecture: int
    registers: int  # of a thread
    shared_bytes: int  # of a block
    spill_bytes: int  # of a thread, stores and loads
    stack_bytes: int  # of a thread
    cubin_bytes: int  # of the whole program
    remarks: str  # what the compiler has to say of the program

    @property
    def weight(self) -> str:
        """Registers, shared memory and spills, as the tables of kernels have them."""
        return f"{self.registers} / {self.shared_bytes} / {self.spill_bytes}"

    def heavier_than(self, table: Table) -> str | None:
        """How the kernel takes more of a multiprocessor than a table says; None if it does not."""
        known = table.get(str(self.spec), {}).get(f"sm_{self.architecture}", "-")
        if known == "-":
            return f"{self.spec}, sm_{self.architecture}: is not in the table"
        registers, shared, spilled = map(int, known.split(" / "))
        if self.registers > registers + SLACK_REGISTERS or self.shared_bytes > shared or self.spill_bytes > spilled:
            return f"{self.spec}, sm_{self.architecture}: takes {self.weight}, took {known}"
        return None


def write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write what kernels weigh: a row for each kernel, a column for each architecture."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([columns, *rows])


def read_table(file: Path) -> Table:
    """What :func:`write_table` wrote, by kernel and then by architecture.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such table.
    """
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        if not reader.fieldnames or reader.fieldnames[0] != "kernel":
            raise ValueError(f"{file}: expected a table whose first column is 'kernel', not {reader.fieldnames}")
        return {row.pop("kernel"): row for row in reader}


class CompilationError(RuntimeError):
    """A kernel did not compile; the message is the compiler's log."""


def compile_all(
    architectures: Sequence[int] = ARCHITECTURES, processes: int = 2, kernels: Sequence[str] = ("",)
) -> Iterator[Compiled]:
    """Compile every kernel that a plan can launch, and give each result as soon as there is one.

    Parameters
    ----------
    architectures : sequence of int
        Compute capabilities, as 90 for 9.0.
    processes : int
        How many compilers to run at once.
    kernels : sequence of str
        How the names begin of those to compile.

    Yields
    ------
    Compiled
        In the order in which they are ready.

    Raises
    ------
    ImportError
        If ``cuda-bindings`` or NVRTC is not installed.
    CompilationError
        If a kernel does not compile.
    """
    _nvrtc()
    jobs = [(specs, architecture) for architecture in architectures for specs in programs(architecture, kernels)]
    # A forked child would inherit the locks of whatever threads run here, so children start afresh.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(compile_program, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def programs(architecture: int = ARCHITECTURES[-1], kernels: Sequence[str] = ("",)) -> list[tuple[KernelSpec, ...]]:
    """Every kernel that an architecture can run and whose name begins so, those of one program together."""
    together: dict[tuple[str, tuple[str, ...]], list[KernelSpec]] = {}
    for spec in variants():
        if spec.runs_on(architecture) and str(spec).startswith(tuple(kernels)):
            together.setdefault((spec.file, spec.options), []).append(spec)
    return [tuple(specs) for specs in together.values()]


def variants() -> Iterator[KernelSpec]:
    """Every kernel that can be launched: those of the registered GPU algorithms, of pooling and of patches."""
    for algorithm in algorithms("gpu"):
        assert isinstance(algorithm, GpuAlgorithm)
        yield from algorithm.variants()
    yield from pooling.variants()
    yield from patches.variants()


def compile_program(specs: Sequence[KernelSpec], architecture: int) -> list[Compiled]:
    """Compile one program, of which `specs` are the kernels."""
    options = *specs[0].options, specs[0].architecture(architecture)
    cubin, log = _compile(program(specs[0].file), specs[0].file, options)
    weights = {match["entry"]: match for match in _WEIGHT.finditer(log)}
    compiled = []
    for spec in specs:
        weight = weights[spec.entry]
        shared = _SHARED.search(weight["rest"])
        compiled.append(
            Compiled(
                spec,
                architecture,
                registers=int(weight["registers"]),
                shared_bytes=spec.shared_bytes + (int(shared[1]) if shared else 0),
                spill_bytes=int(weight["stores"]) + int(weight["loads"]),
                stack_bytes=int(weight["stack"]),
                cubin_bytes=len(cubin),
                remarks=remarks(log),
            )
        )
    return compiled


def remarks(log: str) -> str:
    """The lines of a log that are more than figures: warnings, and where the assembler had to make a kernel slower."""
    return "\n".join(line for line in log.splitlines() if re.search(r"\([CW]\d+\)|warning|Potential", line))


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise ImportError(
            f"compiling kernels needs cuda-bindings: pip install 'fastconv[compile]' ({error})"
        ) from error
    return nvrtc


def _compile(text: str, name: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Cubin and log of a program."""
    nvrtc = _nvrtc()

    def call(function: Any, *args: Any) -> Any:
        status, *results = function(*args)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilationError(f"{function.__name__}: {status.name}")
        return results[0] if results else None

    handle = call(nvrtc.nvrtcCreateProgram, text.encode(), name.encode(), 0, [], [])
    arguments = [o.encode() for o in (*options, "--ptxas-options=-v")]
    (status,) = nvrtc.nvrtcCompileProgram(handle, len(arguments), arguments)
    buffer = b" " * call(nvrtc.nvrtcGetProgramLogSize, handle)
    call(nvrtc.nvrtcGetProgramLog, handle, buffer)
    log = buffer.rstrip(b"\0").decode()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilationError(f"{name} {' '.join(options)}: {status.name}\n{log}")
    cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, handle)
    call(nvrtc.nvrtcGetCUBIN, handle, cubin)
    call(nvrtc.nvrtcDestroyProgram, handle)
    return cubin, log
