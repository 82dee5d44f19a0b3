"""``verify``: random problems through every registered algorithm, held against the reference on this very machine."""

from __future__ import annotations

import argparse
import time
from typing import Any

from fastconv.commands.console import CommandError, progress, table
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm, algorithms

HELP = "run random problems through every algorithm and compare with the reference"

# Failures printed in full; the table counts them all.
_MOST_TOLD = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="whose algorithms (default: cpu)")
    parser.add_argument("--seconds", type=float, default=10, metavar="N", help="how long to go on (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="problem i is drawn from seed S + i (default: 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Run problems until the time is over, at least one; 1 if any result was further off than promised."""
    import numpy as np

    from fastconv import dispatch
    from fastconv.sampling import random_operands, random_problem

    if args.seed < 0:
        raise CommandError(f"--seed {args.seed}: expected at least 0")
    if args.device == "gpu" and (reason := dispatch.why_no_gpu()):
        raise CommandError(f"--device gpu: {reason}")
    candidates = algorithms(args.device)
    records: dict[tuple[str, str], Record] = {}
    doing = f"random problems through {', '.join(a.name for a in candidates)}"
    start, seed = time.monotonic(), args.seed
    with progress(max(args.seconds, 1)) as report, np.errstate(all="ignore"):
        while seed == args.seed or time.monotonic() - start < args.seconds:
            rng = np.random.default_rng(seed)
            problem = random_problem(rng)
            operands = random_operands(problem, rng)
            on_device = operands if args.device == "cpu" else _on_gpu(operands, rng)
            for algorithm in candidates:
                record = records.setdefault((algorithm.name, problem.dtype), Record(algorithm, problem.dtype))
                record.check(seed, problem, operands, on_device)
            seed += 1
            report(min(time.monotonic() - start, args.seconds), doing)
    failures = [failure for record in records.values() for failure in record.failures]
    rows = [records[key].row() for key in sorted(records) if records[key].ran]
    columns = ("algorithm", "dtype", "run", "declined", "failed", "worst error", "promised there", "worst/promised")
    table(f"{seed - args.seed} random problems, seed {args.seed}, {args.device}", columns, rows)
    if idle := {a.name for a in candidates} - {name for (name, _), record in records.items() if record.ran}:
        print(f"not run, as none of these problems is for them: {', '.join(sorted(idle))}")
    for failed_seed, what in failures[:_MOST_TOLD]:
        print(f"FAILED {what}\n  repeat with: fastconv verify --device {args.device} --seed {failed_seed} --seconds 0")
    return 1 if failures else 0


class Record:
    """What one algorithm did so far with problems of one dtype."""

    def __init__(self, algorithm: Algorithm, dtype: str) -> None:
        self.algorithm = algorithm
        self.dtype = dtype
        self.failures: list[tuple[int, str]] = []
        self.ran = self._declined = 0
        self._worst = (0.0, 0.0, 0.0)

    def check(self, seed: int, problem: ConvProblem, operands: tuple[Any, ...], on_device: tuple[Any, ...]) -> None:
        """Run the algorithm on a problem, drawn from `seed`, and keep how far off it was."""
        from fastconv.accuracy import error

        if self.algorithm.why_not(problem) is not None:
            self._declined += 1
            return
        self.ran += 1
        try:
            result = _compute(self.algorithm, problem, on_device)
            off = error(problem, result, *operands, spread=self.algorithm.spread(problem))
        except Exception as crash:  # of whatever kind: it is the algorithm that failed
            self.failures.append((seed, f"{self.algorithm.name}: {type(crash).__name__}: {crash}: {problem}"))
            return
        promised = self.algorithm.tolerance(problem)
        ratio = off / promised if promised else off  # integers promise 0, and are off by 0 or infinity
        self._worst = max(self._worst, (ratio, off, promised))
        if not off <= promised:
            what = f"{self.algorithm.name}: error {off:.3g}, promised {promised:.3g}: {problem}"
            self.failures.append((seed, what))

    def row(self) -> tuple[str, ...]:
        """This record as a row of the table."""
        counts = (self.ran, self._declined, len(self.failures))
        ratio, off, promised = self._worst
        return (self.algorithm.name, self.dtype, *map(str, counts), f"{off:.2g}", f"{promised:.2g}", f"{ratio:.2f}")


def _on_gpu(operands: tuple[Any, ...], rng: Any) -> tuple[Any, ...]:
    """The operands on the GPU, where copying them has lost their layouts, with new ones."""
    import cupy

    from fastconv.sampling import random_layout

    a, b, bias, residual = (None if v is None else cupy.asarray(v) for v in operands)
    return (
        random_layout(a, rng),
        random_layout(b, rng),
        bias,
        None if residual is None else random_layout(residual, rng),
    )


def _compute(algorithm: Algorithm, problem: ConvProblem, operands: tuple[Any, ...]) -> Any:
    """Run into memory that holds garbage beforehand, so that no element can be left out unseen."""
    import numpy as np

    from fastconv.arrays import named_dtype

    dtype = named_dtype(problem.result_dtype)
    out: Any = np.full(problem.result_shape, 99 if dtype.kind in "iu" else np.nan, dtype)
    a, b, bias, residual = operands
    if algorithm.device == "cpu":
        algorithm.apply(problem, a, b, out, bias, residual)
        return out
    import cupy

    out = cupy.asarray(out)
    algorithm.apply(problem, a, b, out, bias, residual)
    return cupy.asnumpy(out)
