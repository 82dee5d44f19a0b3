"""The arithmetic of Winograd's short convolutions: their matrices, what they compute, and what they do to errors.

A correlation of r taps gives m outputs from a window of n = m + r - 1 inputs as ``A ((G w) * (B x))``: n products, not
m r. Think of polynomials: B and G evaluate at n points, infinity among them, and A interpolates. So B depends on the
window alone, and one window serves every number of taps: with n = 6, two to five of them give five to two outputs. In
two dimensions each transform is applied along both axes, ``G w G'`` and so on; along an axis with one tap the window
is one input, and there is no transform. Depth is summed along with the channels. A dilated convolution falls apart into
one for each residue of the dilation.

The points other than 0 and infinity come in pairs p, -p; with p = 1/2 and 2 all coefficients but one are powers of two,
whose products are exact.

Winograd, "Arithmetic complexity of computations", SIAM, 1980; Lavin and Gray, "Fast algorithms for convolutional neural
networks", CVPR 2016; Barabasz, Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", ACM TOMS 46(4), 2020.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np

from fastconv.lowering import Correlation, lower
from fastconv.problem import ConvProblem, Triple
from fastconv.registry import UNIT_ROUNDOFF

Matrix = tuple[tuple[Fraction, ...], ...]

#: Finite points, by length of the window. A window of one is no transform: a single point for a single tap.
POINTS = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(1, 2), Fraction(-1, 2), Fraction(2), Fraction(-2)),
}


def window_taps(window: int) -> range:
    """Numbers of taps that a window serves: those for which it saves products, or the one of no transform."""
    return range(2, window) if window > 1 else range(1, 2)


@cache
def matrices(window: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """B, G and A of a window and a number of taps."""
    points, one, zero = POINTS[window], Fraction(1), Fraction(0)
    outputs = window + 1 - taps
    others = [[q for q in points if q != p] for p in points]
    inputs = [(*_with_roots(roots), zero) for roots in others] + [tuple(_with_roots(points))]
    scales = [one / math.prod((p - q for q in roots), start=one) for p, roots in zip(points, others, strict=True)]
    weights = [tuple(scale * p**k for k in range(taps)) for p, scale in zip(points, scales, strict=True)]
    last = tuple(one if k == taps - 1 else zero for k in range(taps))
    results = [(*(p**k for p in points), one if k == outputs - 1 else zero) for k in range(outputs)]
    return tuple(inputs), (*weights, last), tuple(results)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (t - root), from the constant on."""
    product = [Fraction(1)]
    for root in roots:
        product = [a - root * b for a, b in zip([Fraction(0), *product], [*product, Fraction(0)], strict=True)]
    return product


# -- errors -----------------------------------------------------------------------------------------------------------


@cache
def amplification(window: int, taps: int) -> tuple[float, float]:
    """How much larger than the products of the definition those of the transform are: see :func:`error_bound`.

    Let M be the largest ``|x| conv |w|`` around the window. Component f of the sum over channels is at most
    ``S[f] M``: the products ``|x[i]| |w[k]|`` of one i - k are terms of one ``|x| conv |w|``, so

        S[f] = sum over d of max over i - k = d of  |B[f, i]| |G[f, k]|.

    The two numbers are the largest ``sum over f of |A[p, f]| S[f]`` of any output p, and the Euclidean norm of these
    terms in place of their sum.
    """
    inputs, weights, outputs = (np.abs(np.array(m, np.float64)) for m in matrices(window, taps))
    components = np.zeros(window)
    for f in range(window):
        products = np.outer(inputs[f], weights[f][::-1])
        components[f] = sum(np.diagonal(products, d).max(initial=0) for d in range(1 - window, taps))
    terms = outputs * components
    return float(np.max(terms.sum(1))), float(np.max(np.sqrt((terms**2).sum(1))))


@cache
def reach(window: int, taps: int) -> int:
    """How far from an output the products ``x[i] w[k]`` may belong, at i - k, that a component of its sum holds."""
    inputs, weights, outputs = matrices(window, taps)
    return max(
        abs(i - k - p)
        for p, row in enumerate(outputs)
        for f, (x, w) in enumerate(zip(inputs, weights, strict=True))
        for i, k in itertools.product(range(window), range(taps))
        if row[f] and x[i] and w[k]
    )


def error_bound(windows: Sequence[int], taps: Sequence[int], channels: int) -> float:
    """What ``|y - exact|`` may be, in units of ``u M``, for a sum over so many channels.

    Roundings are independent, so that their sum is at most 8 times the root of the sum of their squares, but for a
    probability below 1e-12 (as in `registry.Algorithm.tolerance`). A rounding changes an output by at most
    ``|A[p, f]| S[f] M`` for each component f that it reaches. Those of the sums over channels, and of the transforms
    along the second axis, reach one component: their squares add up to the square of the Euclidean norm. Those of the
    first axis reach all of a row, and those of the last sum all: there the terms themselves add up. A transform
    rounds at most once for each element of the window, and once for its constant.
    """
    (row_sum, row_norm), (sums, norms) = (amplification(n, r) for n, r in zip(windows, taps, strict=True))
    first, second = (n + 1 for n in windows)
    squares = (channels + 2 * second) * (row_norm * norms) ** 2
    squares += 3 * first * max(row_sum * norms, row_norm * sums) ** 2 + second * (row_sum * sums) ** 2
    return 8 * math.sqrt(squares)


# -- problems ---------------------------------------------------------------------------------------------------------


def windows(correlation: Correlation, window: int) -> tuple[int, int]:
    """Windows along height and width."""
    _, kernel_h, kernel_w = correlation.kernel
    return (window if kernel_h > 1 else 1), (window if kernel_w > 1 else 1)


def why_not(problem: ConvProblem, window: int) -> str | None:
    """Why windows of this length do not serve a problem, in words for the user; None if they do."""
    if problem.accumulator_dtype not in ("float32", "float64"):
        return f"its transforms are made for real floating-point numbers, not {problem.dtype}"
    if problem.precision == "highest":
        return "precision='highest' takes no transform, whose rounding errors grow"
    for piece in lower(problem):
        if max(piece.stride[1:]) > 1:
            return "it computes stride 1 along height and width"
        taps = [k for k in piece.kernel[1:] if k != 1]
        if not piece.reduction:
            return "it transforms at least one product"
        if not taps or any(k not in window_taps(window) for k in taps):
            return f"windows of {window} serve kernels of 2 to {window - 1} taps along height or width"
    return None


def tolerance(problem: ConvProblem, window: int) -> float:
    """The promise of windows of this length: that of the transforms, and the rounding of the result."""
    bounds = (
        error_bound(windows(piece, window), piece.kernel[1:], piece.in_channels * piece.kernel[0])
        for piece in lower(problem)
    )
    rounding = UNIT_ROUNDOFF[problem.accumulator_dtype]
    return max(bounds, default=0.0) * rounding + UNIT_ROUNDOFF[problem.result_dtype]


def spread(problem: ConvProblem, window: int) -> Triple:
    """:meth:`fastconv.registry.Algorithm.spread` of windows of this length: their reach, in steps of the dilation."""
    furthest = [0, 0, 0]
    for piece in lower(problem):
        for axis, length in enumerate(windows(piece, window), start=1):
            step = piece.dilation[axis] * (problem.stride[axis] if problem.op == "input_grad" else 1)
            furthest[axis] = max(furthest[axis], reach(length, piece.kernel[axis]) * step)
    return furthest[0], furthest[1], furthest[2]
