"""Why an algorithm was chosen, and why the others were not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv import settings
from fastconv.arrays import named_dtype
from fastconv.dispatch import choose, configured, estimate, place, why_no_gpu
from fastconv.parsing import flag
from fastconv.problem import DTYPES, ConvProblem, Triple, ndim_of
from fastconv.registry import Algorithm, algorithms


@dataclass(frozen=True)
class Form:
    """An algorithm in one form of a convolution: seconds, predicted or measured, and whether it is the one chosen.

    Where one of its configurations was measured fastest, that is the one.
    """

    seconds: float
    measured: bool
    chosen: bool
    configuration: str = ""

    def __str__(self) -> str:
        configuration = f" ({self.configuration})" if self.configuration else ""
        return (
            f"{'->' if self.chosen else '  '} {self.seconds * 1e3:.3g} ms{' measured' * self.measured}{configuration}"
        )


@dataclass(frozen=True)
class Row:
    """What :func:`explain` says of one algorithm: as a function call, and as a prepared layer (its weight packed)."""

    algorithm: str
    device: str
    call: Form | None
    prepared: Form | None
    workspace_bytes: int | None
    tolerance: float | None
    spread: Triple | None
    why_not: str | None


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why an algorithm was chosen: one row for each registered one. It is shown as a table."""

    problem: ConvProblem
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        lines = [("algorithm", "   call", "   prepared", "workspace", "tolerance")]
        declined: dict[tuple[str, str], list[str]] = {}  # names by device and reason: many share theirs
        for row in self.rows:
            if row.why_not is not None:
                declined.setdefault((row.device, row.why_not), []).append(row.algorithm)
                continue
            space = f"{(row.workspace_bytes or 0) / 2**20:.3g} MiB"
            promise = f"{row.tolerance:.1e}" + (f" near {row.spread}" if any(row.spread or ()) else "")
            lines.append((f"{row.device} {row.algorithm}", str(row.call), str(row.prepared), space, promise))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip() for line in lines]
        reasons = [f"{device} {', '.join(names)}: {reason}" for (device, reason), names in declined.items()]
        return "\n".join([str(self.problem), *table, *(["declined by"] if reasons else []), *reasons])


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
    """Say, for each registered algorithm, why it would or would not compute a convolution.

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
        Its ``rows`` hold, for each algorithm, seconds (predicted, or measured by :func:`fastconv.tune`) and whether it
        is chosen, both for a ``call`` of the function, which packs the weight, and for a ``prepared`` layer, whose
        weight is packed; workspace bytes and promised tolerance; or why it declines. Printed, they are a table.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    >>> import fastconv
    >>> explanation = fastconv.explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    >>> print(explanation)  # doctest: +ELLIPSIS
    conv2d (1, 64, 56, 56) * (64, 64, 3, 3) -> (1, 64, 56, 56) float32 padding=((1, 1), (1, 1))
    ...
    >>> [row.algorithm for row in explanation.rows if row.call and row.call.chosen]  # doctest: +ELLIPSIS
    [...]
    """
    return describe(read_problem(x_shape, w_shape, dtype, transposed, options), algorithm, device)


def read_problem(x_shape: Any, w_shape: Any, dtype: Any, transposed: bool, options: Mapping[str, Any]) -> ConvProblem:
    """The problem that the arguments of :func:`explain` describe."""
    try:
        name = named_dtype(dtype).name if isinstance(dtype, str) else np.dtype(dtype).name
    except (TypeError, SyntaxError):  # NumPy reads the text of a structured dtype as Python
        name = ""
    if name not in DTYPES:
        raise TypeError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    build = ConvProblem.transposed if flag("transposed", transposed) else ConvProblem.forward
    return build(ndim_of(w_shape), x_shape, w_shape, dtype=name, **options)


def describe(problem: ConvProblem, algorithm: str = "auto", device: str = "auto") -> Explanation:
    """What each registered algorithm would make of `problem`."""
    chosen = [
        choose(problem, place(problem, device, "cpu", prepared=prepared), algorithm, prepared=prepared)
        for prepared in (False, True)
    ]
    rows = (_row(a, problem, *chosen) for at in ("cpu", "gpu") for a in algorithms(at))
    return Explanation(problem, tuple(rows))


def _row(candidate: Algorithm, problem: ConvProblem, called: Algorithm, prepared: Algorithm) -> Row:
    name, device = candidate.name, candidate.device
    reason = candidate.why_not(problem) or (why_no_gpu() if device == "gpu" else None)
    if reason is not None:
        return Row(name, device, None, None, None, None, None, reason)
    call = _form(candidate, problem, called, prepared=False)
    layer = _form(candidate, problem, prepared, prepared=True)
    workspace = candidate.workspace_bytes(problem, settings.workspace_limit())
    promise = candidate.tolerance(problem), candidate.spread(problem)
    return Row(name, device, call, layer, workspace, *promise, None)


def _form(candidate: Algorithm, problem: ConvProblem, chosen: Algorithm, *, prepared: bool) -> Form:
    fastest = configured(candidate, problem, prepared=prepared)
    time = estimate(fastest, problem, prepared=prepared)
    is_chosen = (candidate.name, candidate.device) == (chosen.name, chosen.device)
    return Form(time.seconds, not time.predicted, is_chosen, fastest.configuration)
