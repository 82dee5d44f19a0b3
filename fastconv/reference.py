"""The oracle: convolution by its definition, in NumPy float64, sharing no code with any kernel.

Slow, short, and meant to be checked by eye. Pad the input as asked; then, tap by tap,

    y[n, o, t]  = sum over c, k of  w[o, c, k] * padded[n, c, t * stride + k * dilation]

and the two gradients are the other two ways to read the same sum. Complex input is computed in complex128, integers in
int64 (which wraps round exactly as the kernels' integers do once cut to the result's dtype).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.problem import Activation, ConvProblem, Triple

Array = Any  # numpy.ndarray; its generic types say nothing about axes

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def reference(
    problem: ConvProblem, a: Any, b: Any, bias: Any = None, residual: Any = None, *, activate: bool = True
) -> Array:
    """Compute `problem` from the two arrays that its ``op`` reads.

    Parameters
    ----------
    problem : ConvProblem
        What to compute.
    a, b : array
        ``x, w`` for forward, ``y gradient, w`` for input_grad, ``x, y gradient`` for weight_grad, in the problem's
        formats.
    bias : array, optional
        ``(channels of the result,)``.
    residual : array, optional
        Of the result's shape.
    activate : bool
        False leaves out the activation.

    Returns
    -------
    numpy.ndarray
        float64, complex128 or int64, of shape ``problem.result_shape``.

    Examples
    --------
    >>> problem = ConvProblem.forward(1, (1, 1, 4), (1, 1, 2), dtype="float64")
    >>> reference(problem, np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[[1.0, 10.0]]]))
    array([[[21., 32., 43.]]])
    """
    p = problem
    if p.op == "forward":
        y = _forward(p, _split_data(p, a, p.in_channels), _split_weight(p, b))
        result = _join_data(p, y)
    elif p.op == "input_grad":
        x = _input_grad(p, _split_data(p, a, p.out_channels), _split_weight(p, b))
        result = _join_data(p, x)
    else:
        w = _weight_grad(p, _split_data(p, a, p.in_channels), _split_data(p, b, p.out_channels))
        result = _join_weight(p, w)
    if bias is not None:
        channel_axis = -1 if p.channels_last else -1 - p.ndim
        shape = [1] * result.ndim
        shape[channel_axis] = -1
        result = result + _widen(p, bias).reshape(shape)
    if residual is not None:
        result = result + _widen(p, residual)
    if not activate:
        return result
    if result.dtype.kind == "i":  # sums wrap round before an activation sees them
        result = result.astype(p.accumulator_dtype).astype(np.int64)
    return activation(result, p.activation)


def magnitude(
    problem: ConvProblem, a: Any, b: Any, bias: Any = None, residual: Any = None, spread: Triple = (0, 0, 0)
) -> Array:
    """What an error is measured against: ``|a| conv |b| + |bias| + |residual|``, elementwise, in float64.

    With a `spread` the first term is the largest that the full correlation has at most so many results away along each
    axis. NaN and infinity count as zero there: no finite result has one in its window. What is below the least normal
    number of the accumulator, and not zero, counts as that number: a transform rounds it no better.
    """
    a, b, bias, residual = (None if v is None else np.abs(_widen(problem, v)) for v in (a, b, bias, residual))
    if any(spread):
        least = float(np.finfo(problem.accumulator_dtype).tiny)
        a, b = (np.where(np.isfinite(v) & (v > 0), np.maximum(v, least), 0) for v in (a, b))
        added = reference(problem, np.zeros_like(a), np.zeros_like(b), bias, residual, activate=False)
        return np.abs(added) + np.maximum(_largest_near(problem, a, b, spread), least)
    return np.abs(reference(problem, a, b, bias, residual, activate=False))


def activation(v: Array, act: Activation) -> Array:
    """Apply an activation in the precision of `v`."""
    if act.kind == "clip":
        low, high = act.a, act.b
        if v.dtype.kind == "i":
            limits = np.iinfo(v.dtype)
            low, high = (int(min(max(bound, limits.min), limits.max)) for bound in (low, high))
        return np.clip(v, low, high)
    if act.kind == "leaky_relu":
        return np.where(v < 0, act.a * v, v)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-v)) if act.kind in ("sigmoid", "silu") else v
    if act.kind == "sigmoid":
        return sigmoid
    if act.kind == "silu":
        return v * sigmoid
    if act.kind == "tanh":
        return np.tanh(v)
    if act.kind == "gelu":
        return v * 0.5 * np.vectorize(math.erfc, otypes=[float])(-v / math.sqrt(2))
    return v


# -- the three sums; arrays here are x (N, G, C, D, H, W), w (G, O, C, KD, KH, KW), y (N, G, O, D, H, W) ------------


def _forward(p: ConvProblem, x: Array, w: Array) -> Array:
    padded = _pad(p, x)
    y: Array = np.zeros((p.batch, p.groups, p.out_channels // p.groups, *p.out_size), x.dtype)
    for k in itertools.product(*map(range, p.kernel)):
        y += np.einsum("ngcdhw,goc->ngodhw", padded[(..., *_samples(p, k))], w[(..., *k)])
    return y


def _input_grad(p: ConvProblem, y: Array, w: Array) -> Array:
    lengths = [n + lo + hi for n, (lo, hi) in zip(p.size, p.padding, strict=True)]
    padded: Array = np.zeros((p.batch, p.groups, p.in_channels // p.groups, *lengths), y.dtype)
    for k in itertools.product(*map(range, p.kernel)):
        padded[(..., *_samples(p, k))] += np.einsum("ngodhw,goc->ngcdhw", y, w[(..., *k)])
    return _unpad(p, padded)


def _weight_grad(p: ConvProblem, x: Array, y: Array) -> Array:
    padded = _pad(p, x)
    w: Array = np.zeros((p.groups, p.out_channels // p.groups, p.in_channels // p.groups, *p.kernel), x.dtype)
    for k in itertools.product(*map(range, p.kernel)):
        w[(..., *k)] = np.einsum("ngcdhw,ngodhw->goc", padded[(..., *_samples(p, k))], y)
    return w


def _largest_near(p: ConvProblem, a: Array, b: Array, spread: Triple) -> Array:
    """For each result, the largest of the full correlation within `spread` results of it.

    The full one has a result wherever a sample and a tap meet; those of `p` begin there at `starts`, `steps` apart.
    """
    wide: dict[str, Any]
    if p.op == "input_grad":  # nothing is cropped or folded yet
        counts = tuple(n + lo + hi for n, (lo, hi) in zip(p.size, p.padding, strict=True))
        wide = {"size": counts, "padding": ((0, 0),) * 3, "padding_mode": "zeros"}
        full = _input_grad(replace(p, **wide), _split_data(p, a, p.out_channels), _split_weight(p, b))
        starts, steps = [0, 0, 0], (1, 1, 1)
    else:
        x = _pad(p, _split_data(p, a, p.in_channels))
        kernel, apart, counts, steps = (p.kernel, p.dilation, p.out_size, p.stride)
        if p.op == "weight_grad":
            kernel, apart, counts, steps = counts, steps, kernel, apart
        starts = [d * (k - 1) for d, k in zip(apart, kernel, strict=True)]
        results = tuple(n + start for n, start in zip(x.shape[3:], starts, strict=True))
        wide = {"size": x.shape[3:], "padding": tuple((n, n) for n in starts), "padding_mode": "zeros"}
        if p.op == "forward":
            full = _forward(replace(p, out_size=results, stride=(1, 1, 1), **wide), x, _split_weight(p, b))
        else:
            y = _split_data(p, b, p.out_channels)
            full = _weight_grad(replace(p, kernel=results, dilation=(1, 1, 1), **wide), x, y)
    for axis in range(3):
        reach = min(spread[axis] * steps[axis], full.shape[3 + axis])
        margins = [(reach, reach) if i == 3 + axis else (0, 0) for i in range(6)]
        near = np.lib.stride_tricks.sliding_window_view(np.pad(full, margins), 2 * reach + 1, 3 + axis)
        places = slice(starts[axis], starts[axis] + (counts[axis] - 1) * steps[axis] + 1, steps[axis])
        full = near[(slice(None),) * (3 + axis) + (places,)].max(-1)
    if p.op == "input_grad":
        full = _unpad(p, full)
    return _join_weight(p, full) if p.op == "weight_grad" else _join_data(p, full)


def _samples(p: ConvProblem, k: tuple[int, ...]) -> tuple[slice, ...]:
    """Where tap `k` reads the padded input: ``t * stride + k * dilation`` for every target t."""
    starts = [k[i] * p.dilation[i] for i in range(3)]
    return tuple(
        slice(starts[i], starts[i] + max(p.out_size[i] - 1, 0) * p.stride[i] + (p.out_size[i] > 0), p.stride[i])
        for i in range(3)
    )


def _sources(p: ConvProblem) -> list[Array]:
    """For each axis, the input index that each padded position holds, -1 where it holds a zero."""
    options = {"constant_values": -1} if p.padding_mode == "zeros" else {}
    indices = [np.arange(n) for n in p.size]
    return [
        np.pad(index, pair, mode=_PAD_MODES[p.padding_mode], **options)  # type: ignore[call-overload]
        if any(pair)
        else index
        for index, pair in zip(indices, p.padding, strict=True)
    ]


def _pad(p: ConvProblem, x: Array) -> Array:
    for axis, source in enumerate(_sources(p), start=3):
        if x.shape[axis] == 0:
            x = np.zeros((*x.shape[:axis], len(source), *x.shape[axis + 1 :]), x.dtype)
            continue
        keep = np.expand_dims(source >= 0, tuple(range(1, 6 - axis)))
        x = np.where(keep, np.take(x, source, axis=axis), np.zeros((), x.dtype))
    return x


def _unpad(p: ConvProblem, padded: Array) -> Array:
    """The adjoint of padding: what a padded position received goes to the input it was a copy of."""
    for axis, source in enumerate(_sources(p), start=3):
        moved = np.moveaxis(padded, axis, 0)
        folded = np.zeros((p.size[axis - 3], *moved.shape[1:]), padded.dtype)
        np.add.at(folded, source[source >= 0], moved[source >= 0])
        padded = np.moveaxis(folded, 0, axis)
    return padded


# -- formats ----------------------------------------------------------------------------------------------------


def _widen(p: ConvProblem, a: Any) -> Array:
    a = np.asarray(a)
    if "complex" in p.dtype and a.dtype.kind == "c":
        return a.astype(np.complex128)
    return a.astype(np.int64 if a.dtype.kind in "iu" else np.float64)


def _split_data(p: ConvProblem, a: Any, channels: int) -> Array:
    a = _widen(p, a)
    if p.channels_last:
        a = np.moveaxis(a, -1, -1 - p.ndim)
    spatial = a.shape[a.ndim - p.ndim :]
    return a.reshape(p.batch, p.groups, channels // p.groups, *(1,) * (3 - p.ndim), *spatial)


def _join_data(p: ConvProblem, a: Array) -> Array:
    channels = a.shape[1] * a.shape[2]
    a = a.reshape(*p.batch_shape, channels, *a.shape[6 - p.ndim :])
    return np.moveaxis(a, -1 - p.ndim, -1) if p.channels_last else a


def _split_weight(p: ConvProblem, a: Any) -> Array:
    a = _widen(p, a)
    order = {"OI*": range(a.ndim), "O*I": (0, a.ndim - 1, *range(1, a.ndim - 1))}
    order["*IO"] = (a.ndim - 1, a.ndim - 2, *range(a.ndim - 2))
    a = a.transpose(*order[p.weight_order])
    a = a.reshape(p.groups, p.out_channels // p.groups, p.in_channels // p.groups, *p.kernel)
    return np.flip(a, (3, 4, 5)) if p.flip_kernel else a


def _join_weight(p: ConvProblem, a: Array) -> Array:
    a = np.flip(a, (3, 4, 5)) if p.flip_kernel else a
    a = a.reshape(p.out_channels, p.in_channels // p.groups, *p.kernel[3 - p.ndim :])
    if p.weight_order == "O*I":
        return np.moveaxis(a, 1, -1)
    return np.moveaxis(a, (0, 1), (-1, -2)) if p.weight_order == "*IO" else a
