"""Patches as columns and back: ``unfold`` (im2col) and ``fold`` (col2im), its adjoint.

On a CPU both walk over the taps of the kernel. One tap meets a strided part of the image at once, and the columns of
the tap are that part, so each step is one copy, or one sum, of whole arrays: NumPy's own are as fast as memory. On a
GPU each is one kernel (``fastconv/gpu/patches.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import adopt, at_home, named_dtype
from fastconv.dispatch import library
from fastconv.parsing import per_axis, several
from fastconv.problem import DTYPES, ConvProblem, compute_dtype


@at_home
def unfold(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Lay the patches that a convolution multiplies with its kernel into columns (im2col).

    ``conv(x, w)`` is ``w.reshape(C_out, -1) @ unfold(x, w.shape[2:])``, but for the shape of the result.

    Parameters
    ----------
    x : array_like
        ``(*batch, C, H, W)``, or as many spatial axes as `kernel_size` has lengths; any dtype that
        :func:`fastconv.conv2d` takes.
    kernel_size : int or sequence of int
        One length for each spatial axis, 1 to 3 of them; an integer stands for two equal ones.
    dilation, padding, stride
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    array
        ``(*batch, C * prod(kernel_size), L)`` of the kind and dtype of `x`, where L is the number of places of the
        kernel.

    Raises
    ------
    ValueError
        If shapes or values do not fit together; the message names the argument and what was expected.
    TypeError
        If an argument is of the wrong type, or the dtype is not supported.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.unfold(np.arange(6.0).reshape(1, 2, 3), 2)
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    x, kind = adopt("x", x)
    kernel = _kernel(kernel_size)
    problem = _problem(x.shape, kernel, x.dtype, dilation, padding, stride)
    columns = _columns_on(kind.device, problem, x)
    rows = problem.in_channels * math.prod(kernel)
    return kind.give(columns.reshape(*problem.batch_shape, rows, math.prod(problem.out_size)))


def _columns_on(device: str, problem: ConvProblem, x: Any) -> Any:
    """The columns of a NumPy or CuPy array, ``(batch, C, KD, KH, KW, TD, TH, TW)``."""
    shape = problem.batch, problem.in_channels, *problem.kernel, *problem.out_size
    columns: Any
    if device == "gpu":
        from fastconv.gpu import patches

        columns = library(device).empty(shape, x.dtype)
        patches.unfold(problem, x, columns)
        return columns
    images = x.reshape(problem.batch, problem.in_channels, *problem.size)
    columns = np.zeros(shape, x.dtype)
    for tap, met, sources in _meetings(problem):
        columns[(..., *tap, *met)] = images[(..., *sources)]
    return columns


@at_home
def fold(x: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Any:
    """Sum columns into the image whose patches they are (col2im): the adjoint of :func:`unfold`.

    Parameters
    ----------
    x : array_like
        ``(*batch, C * prod(kernel_size), L)``, with L the number of places of the kernel on the image.
    output_size : int or sequence of int
        Lengths of the image's axes.
    kernel_size, dilation, padding, stride
        As for :func:`unfold`.

    Returns
    -------
    array
        ``(*batch, C, *output_size)`` of the kind and dtype of `x`; half types are summed in float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`unfold` does.

    Examples
    --------
    Every pixel is summed as often as a patch holds it:

    >>> import numpy as np, fastconv
    >>> fastconv.fold(fastconv.unfold(np.ones((1, 2, 3)), 2), (2, 3), 2)
    array([[[1., 2., 1.],
            [1., 2., 1.]]])
    """
    x, kind = adopt("x", x)
    kernel = _kernel(kernel_size)
    size, taps = per_axis("output_size", output_size, len(kernel), 0), math.prod(kernel)
    if x.ndim < 2 or x.shape[-2] % taps:
        raise ValueError(
            f"x has shape {x.shape}: expected (*batch, C * {taps}, L), as kernel_size={kernel_size!r} has {taps} taps"
        )
    channels = x.shape[-2] // taps
    problem = _problem((*x.shape[:-2], channels, *size), kernel, x.dtype, dilation, padding, stride)
    places = math.prod(problem.out_size)
    if x.shape[-1] != places:
        raise ValueError(
            f"x has shape {x.shape}: expected {places} columns, as the kernel has so many places on an image of "
            f"output_size={output_size!r}"
        )
    return kind.give(_image_on(kind.device, problem, x).reshape(problem.x_shape))


def _image_on(device: str, problem: ConvProblem, x: Any) -> Any:
    """The sums of the columns in a NumPy or CuPy array, ``(batch, C, D, H, W)``."""
    shape = problem.batch, problem.in_channels, *problem.size
    image: Any
    if device == "gpu":
        from fastconv.gpu import patches

        image = library(device).empty(shape, x.dtype)
        patches.fold(problem, library(device).ascontiguousarray(x), image)
        return image
    columns = x.reshape(*shape[:2], *problem.kernel, *problem.out_size)
    wide = x.dtype if x.dtype.kind in "iu" else named_dtype(problem.accumulator_dtype)
    image = recycling.empty(shape, wide)
    image[...] = 0
    once = _is_met_once(problem)
    for tap, met, sources in _meetings(problem):
        if once:
            image[(..., *sources)] = columns[(..., *tap, *met)]
        else:
            image[(..., *sources)] += columns[(..., *tap, *met)]
    return image.astype(x.dtype, copy=False)


def _kernel(kernel_size: Any) -> tuple[int, ...]:
    ndim = len(kernel_size) if several(kernel_size) else 2
    if not 1 <= ndim <= 3:
        raise ValueError(f"kernel_size={kernel_size!r}: expected 1, 2 or 3 lengths, one for each spatial axis")
    return per_axis("kernel_size", kernel_size, ndim, 1)


def _problem(
    shape: tuple[int, ...], kernel: tuple[int, ...], dtype: Any, dilation: Any, padding: Any, stride: Any
) -> ConvProblem:
    """The convolution with one output channel that meets the same patches."""
    if dtype.name not in DTYPES:
        raise TypeError(f"x has dtype {dtype}: expected one of {', '.join(DTYPES)}")
    channels = shape[-len(kernel) - 1] if len(shape) > len(kernel) else 0
    return ConvProblem.forward(
        len(kernel), shape, (1, channels, *kernel), dtype=compute_dtype(dtype, dtype), stride=stride, padding=padding,
        dilation=dilation,
    )  # fmt: skip


def _is_met_once(p: ConvProblem) -> bool:
    """Whether no two taps meet the same element: they lie at different distances from the places' grid."""
    axes = zip(p.kernel, p.dilation, p.stride, strict=True)
    return all(len({k * dilation % stride for k in range(kernel)}) == kernel for kernel, dilation, stride in axes)


def _meetings(p: ConvProblem) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Each tap, the places at which it lies inside the image, and the elements that it meets there."""
    for tap in itertools.product(*map(range, p.kernel)):
        starts = [tap[i] * p.dilation[i] - p.padding[i][0] for i in range(3)]
        met = [meeting(starts[i], p.stride[i], p.out_size[i], p.size[i]) for i in range(3)]
        yield tap, tuple(places for places, _ in met), tuple(elements for _, elements in met)


def meeting(start: int, stride: int, count: int, size: int) -> tuple[slice, slice]:
    """Which of `count` places, ``start + place * stride``, lie on an axis of so many elements, and which those are."""
    low = max(-(start // stride), 0)
    high = max(min((size - 1 - start) // stride + 1, count), low)
    first = start + low * stride
    return slice(low, high), slice(first, max(first + (high - low - 1) * stride + 1, first), stride)
