"""Input gradients through padding that repeats the input.

Reflection, replication and a circle fill the padding with copies of inputs, so the gradient of an input is the sum of
those of its copies. A kernel computes the gradient of the padded input, an input gradient like any other, and what it
finds in the padding is then folded back, axis by axis, onto the inputs that were copied there. In between the numbers
are of the accumulator's dtype, so that half types are rounded once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from fastconv.problem import ConvProblem, Triple


def folds(problem: ConvProblem) -> bool:
    """Whether `problem` is the gradient of an input that its padding repeats."""
    return problem.op == "input_grad" and problem.padding_mode != "zeros"


def unfolded(problem: ConvProblem) -> ConvProblem:
    """What a kernel computes for `problem`: itself, or if it folds the gradient of the padded input.

    Raises
    ------
    ValueError
        If it folds and has a bias, a residual or an activation, which belong after the folding.

    Examples
    --------
    >>> forward = ConvProblem.forward(1, (1, 1, 5), (1, 1, 3), padding=1, padding_mode="circular")
    >>> print(unfolded(replace(forward, op="input_grad")))
    conv_transpose1d (1, 1, 5) * (1, 1, 3) -> (1, 1, 7) float32
    """
    if not folds(problem):
        return problem
    if problem.bias or problem.residual or problem.activation.kind != "none":
        raise ValueError(
            f"padding_mode={problem.padding_mode!r}: an input gradient takes a bias, a residual or an activation with "
            "'zeros' only"
        )
    size = [n + low + high for n, (low, high) in zip(problem.size, problem.padding, strict=True)]
    return replace(
        problem, size=cast(Triple, tuple(size)), padding=((0, 0),) * 3, padding_mode="zeros",
        dtype=problem.accumulator_dtype,
    )  # fmt: skip


def fold(problem: ConvProblem, padded: Any) -> Any:
    """Add the gradient of padding to that of the inputs it repeats.

    Parameters
    ----------
    problem : ConvProblem
        One that folds.
    padded : numpy.ndarray or cupy.ndarray
        The result of its unfolded problem; used up.

    Returns
    -------
    numpy.ndarray or cupy.ndarray
        Of shape ``problem.result_shape``: a view of `padded`.
    """
    for axis in range(-problem.ndim, 0):
        place = axis - problem.channels_last
        size, (low, high) = problem.size[axis], problem.padding[axis]
        lines = padded.swapaxes(0, place)
        inner, before, after = lines[low : low + size], lines[:low], lines[low + size :]
        if problem.padding_mode == "reflect":
            inner[1 : 1 + low] += before[::-1]
            inner[size - 1 - high : size - 1] += after[::-1]
        elif problem.padding_mode == "circular":
            inner[size - low :] += before
            inner[:high] += after
        elif size:  # replicate
            inner[0] += before.sum(0, dtype=lines.dtype)
            inner[-1] += after.sum(0, dtype=lines.dtype)
        padded = inner.swapaxes(0, place)
    return padded
