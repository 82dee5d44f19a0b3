"""The first use of a kernel in a process, on each device: is it right there?

What a tensor core does is read from a manual, and drivers and compilers change. So before such a kernel computes
anything for a user it computes a small problem, which ``direct``, plain arithmetic, computes as well. One that
disagrees, or that does not compile, load or start on this machine, is not used again: a warning names it, ``explain``
says so, and its work goes to ``direct``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.gpu.direct import run_piece
from fastconv.gpu.runtime import KernelSpec, Runtime, only_before_capture, runtime
from fastconv.lowering import Views, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm
from fastconv.sampling import random_values

# Of each kernel on each device: the problems that it was tried on.
_verdicts: dict[tuple[Runtime, int, KernelSpec], dict[ConvProblem, bool]] = {}


def failed(spec: KernelSpec) -> bool:
    """Whether a kernel was found wrong on the current device."""
    return not all(_verdicts.get((runtime(), runtime().device(), spec), {}).values())


def is_right(spec: KernelSpec, problem: ConvProblem, algorithm: Algorithm, run: Callable[..., None]) -> bool:
    """Whether `run` computes `problem`, by a launch of the kernel `spec`, as well as `algorithm` promises.

    Parameters
    ----------
    spec : KernelSpec
        What is judged, once on each device and problem.
    problem : ConvProblem
        A small one of one piece, without epilogue; another one where the kernel does other things.
    algorithm : Algorithm
        Its tolerance is what is promised.
    run : callable
        Takes six-axis views of x, w and y.
    """
    verdicts = _verdicts.setdefault((runtime(), runtime().device(), spec), {})
    if problem not in verdicts:
        only_before_capture()
        fault = _fault(problem, algorithm.tolerance(problem), run)
        verdicts[problem] = fault is None
        if fault is not None:
            values = " ".join(f"{name}={value}" for name, value in spec.defines)
            warnings.warn(
                f"the GPU kernel {spec.entry} ({values}) {fault}; it is not used any more in this process",
                RuntimeWarning,
                stacklevel=2,
            )
    return verdicts[problem]


def _fault(problem: ConvProblem, promised: float, run: Callable[..., None]) -> str | None:
    """What is wrong with a kernel, in words that go on from its name; None if nothing is."""
    device, views = runtime(), Views(problem)
    (piece,) = lower(problem)
    rng = np.random.default_rng(1)
    a, b = (random_values(shape, problem.dtype, rng) for shape in problem.operand_shapes)

    # What is not a convolution is done on the host: CuPy would have to compile a kernel for each operation.
    def result(compute: Callable[..., None], a: Any, b: Any) -> np.ndarray[Any, Any]:
        out = device.xp.zeros(problem.result_shape, named_dtype(problem.result_dtype))
        compute(views.source(device.xp.asarray(a)), views.weight(device.xp.asarray(b)), views.result(out))
        return device.download(out).astype(np.float64)

    def direct(*operands: Any) -> None:
        run_piece(problem, piece, *operands)

    try:
        computed = result(run, a, b)
    except RuntimeError as error:  # as CuPy's are, of compiler and driver
        return f"could not compute a small convolution ({error})"
    difference = abs(computed - result(direct, a, b))
    # Both are at most as far from the truth as they promise, in units of the sum of the sizes of all products.
    agrees = bool((difference <= 2 * promised * result(direct, abs(a), abs(b))).all())
    return None if agrees else "computed a small convolution otherwise than direct does"
