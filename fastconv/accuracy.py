"""How far a result is from the reference, in the unit in which algorithms promise their tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.problem import ConvProblem, Triple
from fastconv.reference import magnitude, reference

# Largest slope of each activation: by so much it can enlarge the error of its argument.
_SLOPE = {"silu": 1.0999, "gelu": 1.1290}


def error(
    problem: ConvProblem,
    result: Any,
    a: Any,
    b: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    spread: Triple = (0, 0, 0),
    exact: Any = None,
) -> float:
    """Worst error of `result` over all its elements, to be held against ``algorithm.tolerance(problem)``.

    The error of an element is ``|y - exact| / (slope * (|a| conv |b| + |bias| + |residual|) + |exact|)``, where the
    slope is the activation's and the last term (there only with an activation) is for the rounding of its own value;
    half a unit of the smallest number of the result's dtype is allowed for underflow. NaN and infinity must stand
    exactly where the exact result has them; integers must be equal. Where they do not, the error is infinite.

    An algorithm whose rounding errors reach other results than their own says how far in ``algorithm.spread(problem)``.
    Then ``|a| conv |b|`` is the largest value that the full correlation (which has a result wherever a sample and a tap
    meet, needed or not) takes within so many results of the element.

    Parameters
    ----------
    problem : ConvProblem
    result : numpy.ndarray
        Of shape ``problem.result_shape``.
    a, b, bias, residual : array
        The operands, as for :func:`fastconv.reference.reference`.
    spread : triple of int
        Results along depth, height and width that a rounding error may be away from what it is measured against.
    exact : numpy.ndarray, optional
        What the result is held against; by default what :func:`fastconv.reference.reference` computes.

    Returns
    -------
    float

    Examples
    --------
    >>> problem = ConvProblem.forward(1, (1, 1, 2), (1, 1, 2))
    >>> x, w = np.ones((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32)
    >>> error(problem, np.array([[[2.0]]], np.float32), x, w)
    0.0
    """
    if exact is None:
        exact = reference(problem, a, b, bias, residual)
    if result.size == 0:
        return 0.0
    if exact.dtype.kind == "i":
        return 0.0 if np.array_equal(result, exact.astype(result.dtype)) else np.inf
    y = np.asarray(result).astype(exact.dtype)
    finite = np.isfinite(exact)
    if not np.array_equal(y[~finite], exact[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return np.inf
    scale = magnitude(problem, a, b, bias, residual, spread)
    if problem.activation.kind != "none":
        scale = scale * _SLOPE.get(problem.activation.kind, 1.0) + np.abs(exact)
    with np.errstate(invalid="ignore"):
        difference = np.abs(y - exact) - _smallest(problem.result_dtype) / 2
    wrong = finite & (difference > 0)
    return float(np.max(difference[wrong] / scale[wrong], initial=0.0)) if wrong.any() else 0.0


def _smallest(dtype: str) -> float:
    if dtype == "bfloat16":
        return 2.0**-133
    return float(np.finfo(dtype).smallest_subnormal)
