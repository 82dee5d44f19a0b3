"""Why an algorithm was chosen, and why the others were not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv import settings
from fastconv.arrays import named_dtype
from fastconv.dispatch import choose, machine_of, place, why_no_gpu
from fastconv.problem import ConvProblem, compute_dtype, ndim_of
from fastconv.registry import Algorithm, algorithms


@dataclass(frozen=True)
class Row:
    """What :func:`explain` says of one algorithm."""

    algorithm: str
    device: str
    chosen: bool
    predicted_seconds: float | None
    workspace_bytes: int | None
    tolerance: float | None
    why_not: str | None


@dataclass(frozen=True)
class Explanation:
    """Why an algorithm was chosen: one row for each registered one. ``str()`` of it is a table."""

    problem: ConvProblem
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        head = ("", "algorithm", "predicted", "workspace", "tolerance", "")
        lines = [head]
        for row in self.rows:
            mark, name = "->" if row.chosen else "", f"{row.device} {row.algorithm}"
            if row.predicted_seconds is None or row.workspace_bytes is None or row.tolerance is None:
                lines.append((mark, name, "-", "-", "-", f"declines: {row.why_not}"))
                continue
            time, space = f"{row.predicted_seconds * 1e3:.3g} ms", f"{row.workspace_bytes / 2**20:.3g} MiB"
            lines.append((mark, name, time, space, f"{row.tolerance:.1e}", ""))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        table = ["  ".join([*(c.ljust(n) for c, n in zip(line, widths, strict=False)), line[5]]) for line in lines]
        return "\n".join([str(self.problem), *(line.rstrip() for line in table)])


def explain(
    x_shape: Any,
    w_shape: Any,
    *,
    dtype: Any = "float32",
    transposed: bool = False,
    algorithm: str = "auto",
    device: str = "auto",
    **options: Any,
) -> Explanation:
    """Say, for each registered algorithm, why it would or would not compute a convolution; printed and returned.

    Parameters
    ----------
    x_shape, w_shape : sequence of int
        Shapes of the arrays; the number of spatial axes is that of the weight less two.
    dtype : dtype_like
        Of both arrays.
    transposed : bool
        True for ``conv_transpose*d``.
    algorithm, device : str
        As for :func:`fastconv.conv2d`.
    **options
        Any of ``stride``, ``padding``, ``dilation``, ``groups``, ``output_padding``, ``padding_mode``, ``data_format``,
        ``weight_format``, ``activation``, ``flip_kernel``, ``precision`` as for :func:`fastconv.conv2d` and
        :func:`fastconv.conv_transpose2d`; ``bias`` and ``residual`` are True or False.

    Returns
    -------
    Explanation
        Its ``rows`` hold, for each algorithm, whether it is chosen, its predicted seconds, workspace bytes and promised
        tolerance, or why it declines; ``print`` shows them as a table.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    >>> import fastconv
    >>> explanation = fastconv.explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1)  # doctest: +ELLIPSIS
    conv2d (1, 64, 56, 56) * (64, 64, 3, 3) -> (1, 64, 56, 56) float32 padding=((1, 1), (1, 1))
    ...
    >>> sum(row.chosen for row in explanation.rows)
    1
    """
    numbers = named_dtype(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    build = ConvProblem.transposed if transposed else ConvProblem.forward
    problem = build(ndim_of(w_shape), x_shape, w_shape, dtype=compute_dtype(numbers, numbers), **options)
    chosen = choose(problem, place(problem, device, "cpu"), algorithm)
    explanation = Explanation(problem, tuple(_row(a, problem, chosen) for at in ("cpu", "gpu") for a in algorithms(at)))
    print(explanation)
    return explanation


def _row(candidate: Algorithm, problem: ConvProblem, chosen: Algorithm) -> Row:
    name, device = candidate.name, candidate.device
    reason = candidate.why_not(problem) or (why_no_gpu() if device == "gpu" else None)
    if reason is not None:
        return Row(name, device, False, None, None, None, reason)
    predicted = candidate.cost(problem, machine_of(device))
    workspace = candidate.workspace_bytes(problem, settings.workspace_limit())
    return Row(name, device, candidate is chosen, predicted, workspace, candidate.tolerance(problem), None)
