"""Reading arguments: a value for each axis, a data format, a padding; and the errors that name what is wrong.

Spatial values are *lifted* to three axes, whatever the user knows about: a 1-D size ``(W,)`` becomes ``(1, 1, W)``.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Triple = tuple[int, int, int]
Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

DATA_FORMATS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}

# Sizes travel to the kernels as 64-bit integers and are multiplied there; this keeps every product representable.
LARGEST = 2**31 - 1

_MOST_ELEMENTS = sys.maxsize // np.dtype(np.complex128).itemsize


def integer(name: str, value: Any, least: int, most: int = LARGEST) -> int:
    """An integer, Python's or NumPy's, within bounds."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r}: expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected an integer") from None
    if not least <= number <= most:
        bounds = f"from {least} to {most}" if most < sys.maxsize else f"of at least {least}"
        raise ValueError(f"{name}={value!r}: expected an integer {bounds}")
    return number


def addressable(described: object, shape: tuple[int, ...]) -> None:
    """Refuse a result that no array can hold, whatever memory there is."""
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ValueError(f"{described}: expected a result of at most {_MOST_ELEMENTS} elements")


def flag(name: str, value: Any) -> bool:
    """A truth value, Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}={value!r}: expected True or False")
    return bool(value)


def lengths(name: str, shape: Any) -> tuple[int, ...]:
    """The shape of an array that a caller describes by it."""
    of_array = getattr(shape, "shape", ())
    if len(of_array) > 1:  # `explain(x, w)`, which should not print both
        raise TypeError(f"{name}: got an array of shape {tuple(of_array)}, expected its shape")
    try:
        axes = (shape,) if isinstance(shape, str) else tuple(shape)
    except TypeError:
        raise TypeError(f"{name}={shape!r}: expected a sequence of integers, the shape of an array") from None
    try:
        return tuple(integer(name, length, 0, sys.maxsize) for length in axes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={axes!r}: expected integers of at least 0, the shape of an array") from None


def per_axis(name: str, value: Any, ndim: int, least: int) -> tuple[int, ...]:
    """One integer for each of `ndim` axes, from one or from as many."""
    if several(value):
        if len(value) != ndim:
            raise ValueError(f"{name}={value!r}: expected one integer or {ndim}, one for each spatial axis")
        return tuple(integer(name, v, least) for v in value)
    return (integer(name, value, least),) * ndim


def several(value: Any) -> bool:
    """Whether an argument has a value for each axis, not one for all."""
    return (isinstance(value, Sequence) and not isinstance(value, str)) or (
        isinstance(value, np.ndarray) and value.ndim > 0
    )


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """A word out of a few."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")
    return value


def lift(values: Sequence[int], fill: int) -> Triple:
    """Values of the last axes, after as many of `fill` as make three."""
    return triple([fill] * (3 - len(values)) + list(values))


def triple(values: Sequence[int]) -> Triple:
    """Three values as a tuple."""
    a, b, c = values
    return (a, b, c)


@dataclass(frozen=True)
class DataFormat:
    """The order of a data array's axes: any number of batch axes, then channels and space, or space and channels."""

    ndim: int
    channels_last: bool

    @classmethod
    def parse(cls, ndim: int, data_format: Any) -> DataFormat:
        """Read the ``data_format`` argument."""
        names = DATA_FORMATS[ndim]
        one_of("data_format", data_format, (*names, "channels_first", "channels_last"))
        return cls(ndim, data_format in ("channels_last", names[1]))

    @property
    def name(self) -> str:
        """The letters of the axes."""
        return DATA_FORMATS[self.ndim][self.channels_last]

    def split(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, Triple]:
        """Batch axes, channels and lifted spatial size of the data array called `name`."""
        if len(shape) < self.ndim + 1:
            raise ValueError(
                f"{name} has shape {shape}: expected at least {self.ndim + 1} axes, "
                f"(*batch, {', '.join(self.name[1:])})"
            )
        batch, rest = shape[: -self.ndim - 1], shape[-self.ndim - 1 :]
        channels, spatial = (rest[-1], rest[:-1]) if self.channels_last else (rest[0], rest[1:])
        return batch, channels, lift(spatial, 1)

    def join(self, batch: tuple[int, ...], channels: int, size: Triple) -> tuple[int, ...]:
        """The shape of a data array."""
        spatial = size[3 - self.ndim :]
        return batch + ((*spatial, channels) if self.channels_last else (channels, *spatial))


def parse_padding(
    padding: Any, ndim: int, size: Triple, kernel: Triple, stride: Triple, dilation: Triple, *, transposed: bool
) -> Pairs:
    """Read the ``padding`` argument into one ``(lo, hi)`` pair for each of the three axes."""
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(padding, str):
        if padding == "valid":
            pairs = [(0, 0)] * 3
        elif padding in ("same", "same_lower"):
            # TensorFlow's rule: ceil(size / stride) outputs. The adjoint sees size * stride inputs, hence stride.
            totals = [
                max((reach[i] + 1 - stride[i]) if transposed else (-(-size[i] // stride[i]) - 1) * stride[i]
                    + reach[i] + 1 - size[i], 0)
                for i in range(3)
            ]  # fmt: skip
            pairs = [(t // 2, t - t // 2) if padding == "same" else (t - t // 2, t // 2) for t in totals]
        elif padding == "full":
            pairs = [(r, r) for r in reach]
        elif padding == "causal" and ndim == 1:
            pairs = [(r, 0) for r in reach]
        else:
            only = ", 'causal'" if ndim == 1 else " ('causal' is for 1-D)"
            raise ValueError(f"padding={padding!r}: expected 'valid', 'same', 'same_lower', 'full'{only}, or numbers")
        return cast(Pairs, tuple(pairs))
    if isinstance(padding, np.ndarray):
        padding = padding.tolist()
    if isinstance(padding, Sequence) and padding and all(isinstance(p, Sequence) for p in padding):
        if len(padding) != ndim or any(len(p) != 2 for p in padding):
            raise ValueError(f"padding={padding!r}: expected {ndim} (lo, hi) pairs")
        pairs = [(integer("padding", lo, 0), integer("padding", hi, 0)) for lo, hi in padding]
    elif several(padding) and len(padding) != ndim:
        raise ValueError(f"padding={padding!r}: expected one integer, {ndim}, or {ndim} (lo, hi) pairs")
    else:
        pairs = [(p, p) for p in per_axis("padding", padding, ndim, 0)]
    return cast(Pairs, ((0, 0),) * (3 - ndim) + tuple(pairs))
