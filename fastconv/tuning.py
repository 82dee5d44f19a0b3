"""Measuring instead of predicting: which algorithm is fastest here, found out once and remembered on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastconv import calling
from fastconv.dispatch import Execution, place
from fastconv.explanation import Explanation, describe, read_problem
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from fastconv.timing import operands, turn

_ROUNDS = 5
_TURN_SECONDS = 0.02
_HOPELESS = 2.0  # times slower than the fastest: measured no more


def tune(
    x_shape: Any,
    w_shape: Any,
    *,
    dtype: Any = "float32",
    transposed: bool = False,
    device: str = "auto",
    **options: Any,
) -> Explanation:
    """Measure a convolution with every algorithm that takes it, and choose the fastest from now on.

    An algorithm that can do it in several configurations, as ``implicit_gemm`` on GPUs in several tiles, is measured in
    each.

    What was measured is remembered on this machine (in the folder ``FASTCONV_CACHE_DIR``, or else in the user's cache
    directory) until the algorithms or the processor change. It holds for functions and for prepared layers of these
    shapes and options, with any bias, residual and activation. The CPU is measured with the number of threads in force,
    and the choice holds for any number, so that results do not depend on it.

    Parameters
    ----------
    x_shape, w_shape, dtype, transposed, device, **options
        As for :func:`fastconv.explain`.

    Returns
    -------
    Explanation
        As of :func:`fastconv.explain`, with measured times instead of predicted ones.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.
    OSError
        If the times cannot be written to the cache directory.

    Examples
    --------
    >>> import fastconv
    >>> explanation = fastconv.tune((1, 2, 9), (4, 2, 3), device="cpu")
    >>> all(row.call.measured for row in explanation.rows if row.call)
    True
    """
    problem = read_problem(x_shape, w_shape, dtype, transposed, options)
    at = place(problem, device, "cpu")
    tune_problem(problem, at)
    return describe(problem, device=at)


def tune_problem(problem: ConvProblem, device: str) -> None:
    """Measure a problem, gradients included, on ``"cpu"`` or ``"gpu"``, and remember."""
    from fastconv import remembered  # and what it imports, which `import fastconv` should not wait for

    plain = remembered.plain(problem)
    remembered.remember(plain, device, remembered.Record(**measure(plain, device)))
    calling.choose_anew()


def measure(problem: ConvProblem, device: str) -> dict[str, dict[str, float]]:
    """Seconds of every algorithm that takes `problem`, in the two forms of a record; they take turns.

    The least is kept on the CPU, where everything that disturbs a run makes it slower, and the median on a GPU.
    """
    x, w = operands(problem, device)
    calls: dict[str, dict[str, Callable[[], Any]]] = {"call": {}, "prepared": {}}
    for algorithm in algorithms(device):
        if algorithm.why_not(problem) is None:
            for candidate in (algorithm, *algorithm.configurations(problem)):
                execution = Execution(problem, candidate)
                packed = execution.pack(w)
                calls["call"][candidate.key] = partial(execution, x, w)
                calls["prepared"][candidate.key] = partial(execution, x, w, packed=packed)
    return {form: _race(racers, device) for form, racers in calls.items()}


def _race(calls: dict[str, Callable[[], Any]], device: str) -> dict[str, float]:
    quantile = 0.0 if device == "cpu" else 0.5
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    racing = set(calls)
    for _ in range(_ROUNDS):
        for name in sorted(racing):
            times[name] += turn(calls[name], device, _TURN_SECONDS)
        so_far = {name: float(np.quantile(measured, quantile)) for name, measured in times.items()}
        racing = {name for name in racing if so_far[name] <= _HOPELESS * min(so_far.values())}
    return so_far
