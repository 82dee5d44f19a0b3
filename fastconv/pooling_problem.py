"""One frozen description of a pooling: its windows along each axis and every error about its arguments.

A pooling window is a box, so it is the product of one window on each axis, and everything that makes poolings differ
(padding, stride, dilation, the rounding of ``ceil_mode``, the uneven windows of adaptive pooling) is said by where the
windows of each axis begin and how many elements they hold. Kernels get that as a table and know nothing else.

As in :class:`fastconv.problem.ConvProblem` there are always three axes; a 1-D problem has size ``(1, 1, W)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from fastconv.parsing import (
    DataFormat,
    Triple,
    addressable,
    flag,
    integer,
    lengths,
    lift,
    parse_padding,
    per_axis,
    several,
    triple,
)
from fastconv.problem import DTYPES

#: A window as kernels receive it. It holds the elements ``first, first + dilation, …``, `taps` of them, all inside the
#: axis; an average is taken over `span` of them, padding among them or not.
WINDOW = np.dtype([("first", np.int64), ("taps", np.int64), ("span", np.int64)])


@dataclass(frozen=True)
class Axis:
    """The windows along one axis: `count` of them, `stride` apart, or with no kernel spread evenly over the axis."""

    size: int
    count: int
    kernel: int | None = None
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @property
    def full(self) -> int:
        """Elements of a window of which nothing is cut off."""
        return -(-self.size // max(self.count, 1)) if self.kernel is None else self.kernel

    def windows(self, count_include_pad: bool = False) -> np.ndarray[Any, Any]:
        """The windows as an array of :data:`WINDOW`."""
        table, t = np.empty(self.count, WINDOW), np.arange(self.count)
        if self.kernel is None:
            table["first"] = t * self.size // self.count
            table["taps"] = table["span"] = -(-(t + 1) * self.size // self.count) - table["first"]
            return table
        start = t * self.stride - self.padding[0]
        before = -(np.minimum(start, 0) // self.dilation)
        end = self._taps_before(self.size, start)
        table["first"], table["taps"] = start + before * self.dilation, end - before
        table["span"] = self._taps_before(self.size + self.padding[1], start) if count_include_pad else table["taps"]
        return table

    def holds_padding_alone(self) -> bool:
        """Whether a window of the kernel holds no element of the input."""
        first, last = -self.padding[0], (self.count - 1) * self.stride - self.padding[0]
        # The two at the ends are looked at first: with large paddings, a table of all may not fit into memory.
        if first + self.dilation * (self.full - 1) < 0 or last >= self.size:
            return True
        return bool(self.windows()["taps"].min(initial=1) < 1)

    def _taps_before(self, end: int, start: Any) -> Any:
        """Taps of the windows that begin at `start`, counted up to where the axis, or its padding, ends."""
        return np.minimum(-((start - end) // self.dilation), self.full)

    @property
    def period(self) -> int:
        """After how many windows they repeat themselves, further on."""
        return self.count // math.gcd(self.size, self.count) if self.kernel is None else 1

    @property
    def is_one_window(self) -> bool:
        """Whether there is one window, and it is the axis."""
        return self.count == 1 and self.kernel == self.size and self.padding == (0, 0)

    @property
    def window_size(self) -> int:
        """Elements of the axis, if it is one window."""
        return self.size

    def scaled(self, size: int, count: int) -> Axis:
        """So many axes of that size behind one another, each of them one window."""
        return Axis(size * count, count, kernel=size, stride=size)

    def adjoint(self) -> Covering:
        """The axis of a gradient: for each element the windows that hold it."""
        return Covering(self.count, self.size, dilation=self.dilation // math.gcd(self.stride, self.dilation), of=self)


@dataclass(frozen=True)
class Covering(Axis):
    """For each element of the axis `of`, the windows that hold it, which are the elements of this one."""

    of: Axis = Axis(1, 1)

    @property
    def full(self) -> int:
        """The most windows that hold an element."""
        return int(self.windows()["taps"].max(initial=0))

    @property
    def period(self) -> int:
        """After how many elements their windows repeat themselves, further on."""
        return super().period if self.of.kernel is None else self.of.stride

    @property
    def is_one_window(self) -> bool:
        """As for the axis itself."""
        return self.of.is_one_window

    @property
    def window_size(self) -> int:
        """As for the axis itself."""
        return self.of.window_size

    def scaled(self, size: int, count: int) -> Axis:
        """As for the axis itself."""
        return self.of.scaled(size, count).adjoint()

    def windows(self, count_include_pad: bool = False) -> np.ndarray[Any, Any]:
        """The windows of each element."""
        if self.of.kernel is None:  # where windows are spread evenly, they and elements trade places
            return super().windows()
        # Window t holds element i if t * stride + k * dilation = i + padding for a tap k.
        stride, dilation = self.of.stride, self.of.dilation
        common, place = math.gcd(stride, dilation), np.arange(self.count) + self.of.padding[0]
        low = np.maximum(-((dilation * (self.of.kernel - 1) - place) // stride), 0)
        high = np.minimum(place // stride, self.size - 1)
        remainder = place // common * pow(stride // common, -1, self.dilation) % self.dilation
        first = low + (remainder - low) % self.dilation
        taps = np.where(place % common == 0, np.maximum((high - first) // self.dilation + 1, 0), 0)
        table = np.zeros(self.count, WINDOW)
        table["first"], table["taps"], table["span"] = np.where(taps == 0, 0, first), taps, taps
        return table


@dataclass(frozen=True)
class PoolProblem:
    """A pooling without the data: ``max``, or ``sum``, which is ``(scale * mean of x ** exponent) ** (1 / exponent)``.

    An average is a sum of exponent 1 and scale 1; an Lp pooling's scale is the number of elements of a whole window.
    Build one with :meth:`sliding` or :meth:`adaptive`.
    """

    op: str
    ndim: int
    batch_shape: tuple[int, ...]
    channels: int
    axes: tuple[Axis, Axis, Axis]
    dtype: str
    channels_last: bool
    count_include_pad: bool = False
    divisor: int | None = None
    exponent: float = 1.0
    scale: int = 1

    def __post_init__(self) -> None:
        addressable(self, self.y_shape)

    @classmethod
    def sliding(
        cls,
        op: str,
        ndim: int,
        x_shape: Sequence[int],
        kernel_size: Any,
        *,
        dtype: str = "float32",
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        divisor_override: Any = None,
        norm_type: Any = None,
        data_format: str = "channels_first",
    ) -> PoolProblem:
        """Describe a pooling whose windows are a stride apart, or say what is wrong with the arguments.

        A `norm_type` makes it an Lp pooling.
        """
        layout = DataFormat.parse(ndim, data_format)
        x_shape = lengths("x_shape", x_shape)
        batch, channels, size = layout.split("x", x_shape)
        kernel = lift(per_axis("kernel_size", kernel_size, ndim, 1), 1)
        steps = lift(kernel[3 - ndim :] if stride is None else per_axis("stride", stride, ndim, 1), 1)
        apart = lift(per_axis("dilation", dilation, ndim, 1), 1)
        pads = parse_padding(padding, ndim, size, kernel, steps, apart, transposed=False)
        ceil_mode = flag("ceil_mode", ceil_mode)
        axes = [
            Axis(n, _count(n, k, s, d, p, ceil_mode, x_shape), k, s, d, p)
            for n, k, s, d, p in zip(size, kernel, steps, apart, pads, strict=True)
        ]
        for axis in axes:
            if axis.holds_padding_alone():
                raise ValueError(
                    f"padding={padding!r}: a window of kernel_size={axis.kernel} and dilation={axis.dilation} holds "
                    f"padding alone on an axis of length {axis.size} (x has shape {x_shape})"
                )
        exponent = 1.0 if norm_type is None else _exponent(norm_type)
        return cls(
            op=op,
            ndim=ndim,
            batch_shape=batch,
            channels=channels,
            axes=(axes[0], axes[1], axes[2]),
            dtype=_check_dtype(op, dtype),
            channels_last=layout.channels_last,
            count_include_pad=flag("count_include_pad", count_include_pad),
            divisor=None if divisor_override is None else _divisor(divisor_override),
            exponent=exponent,
            scale=1 if norm_type is None else math.prod(kernel),
        )

    @classmethod
    def adaptive(
        cls,
        op: str,
        ndim: int,
        x_shape: Sequence[int],
        output_size: Any,
        *,
        dtype: str = "float32",
        data_format: str = "channels_first",
    ) -> PoolProblem:
        """Describe a pooling to a given size; an axis of None keeps its length.

        Window t of T covers the elements from ``floor(t * size / T)`` to ``ceil((t + 1) * size / T)``.
        """
        layout = DataFormat.parse(ndim, data_format)
        x_shape = lengths("x_shape", x_shape)
        batch, channels, size = layout.split("x", x_shape)
        if min(size) < 1:
            raise ValueError(f"x has shape {x_shape}: there is nothing to pool along an axis of length 0")
        wanted = list(output_size) if several(output_size) else [output_size] * ndim
        if len(wanted) != ndim:
            raise ValueError(f"output_size={output_size!r}: expected one length or {ndim}, one for each spatial axis")
        given = [
            size[3 - ndim + i] if count is None else integer("output_size", count, 0) for i, count in enumerate(wanted)
        ]
        axes = [_even(n, count) for n, count in zip(size, lift(given, 1), strict=True)]
        return cls(
            op=op,
            ndim=ndim,
            batch_shape=batch,
            channels=channels,
            axes=(axes[0], axes[1], axes[2]),
            dtype=_check_dtype(op, dtype),
            channels_last=layout.channels_last,
        )

    @property
    def batch(self) -> int:
        """Number of items: the product of the leading batch axes."""
        return math.prod(self.batch_shape)

    @cached_property
    def size(self) -> Triple:
        """Lengths of the input's axes."""
        return triple([axis.size for axis in self.axes])

    @cached_property
    def out_size(self) -> Triple:
        """Lengths of the result's axes."""
        return triple([axis.count for axis in self.axes])

    @property
    def accumulator_dtype(self) -> str:
        """Name of the dtype in which elements are summed and compared."""
        return self.dtype if "int" in self.dtype else DTYPES[self.dtype][1]

    @cached_property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the input, in the user's format."""
        return DataFormat(self.ndim, self.channels_last).join(self.batch_shape, self.channels, self.size)

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the result, in the user's format."""
        return DataFormat(self.ndim, self.channels_last).join(self.batch_shape, self.channels, self.out_size)

    def gradient(self, divisor: int) -> PoolProblem:
        """The sums over the windows that hold each element, divided: the gradient of an average."""
        depth, height, width = (axis.adjoint() for axis in self.axes)
        return replace(self, axes=(depth, height, width), exponent=1.0, divisor=divisor)

    @cached_property
    def views(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of input and result as kernels take them, ``(N, G, D, H, W, C)``.

        Channels are groups, or C if they come last.
        """
        if self.channels_last:
            return (self.batch, 1, *self.size, self.channels), (self.batch, 1, *self.out_size, self.channels)
        return (self.batch, self.channels, *self.size, 1), (self.batch, self.channels, *self.out_size, 1)

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __hash__(self) -> int:
        return self._hash  # asked for in every call

    @property
    def elements(self) -> int:
        """Elements of all windows together."""
        return self.batch * self.channels * math.prod(axis.count * axis.full for axis in self.axes)

    def __str__(self) -> str:
        name = "max_pool" if self.op == "max" else "avg_pool" if self.exponent == 1 else "lp_pool"
        return f"{name}{self.ndim}d {self.x_shape} -> {self.y_shape} {self.dtype}"


def _count(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil_mode: bool, x_shape: tuple[int, ...]
) -> int:
    """How many windows fit; rounded up, the last one may stick out, but must not begin in the padding at the end."""
    room = size + sum(pads) - dilation * (kernel - 1) - 1
    if size < 1:
        raise ValueError(f"x has shape {x_shape}: there is nothing to pool along an axis of length 0")
    if room < 0 and not (ceil_mode and room + stride > 0):
        raise ValueError(
            f"kernel_size={kernel} with dilation={dilation} covers {dilation * (kernel - 1) + 1} elements, but x of "
            f"shape {x_shape} has only {size + sum(pads)} on that axis with padding {pads}"
        )
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pads[0] else count


def _even(size: int, count: int) -> Axis:
    """Windows spread evenly; where they come out alike, as a kernel at its own length's stride."""
    if count == 0 or size % count:
        return Axis(size, count)
    return Axis(size, count, kernel=size // count, stride=size // count)


def _check_dtype(op: str, dtype: str) -> str:
    allowed = [name for name in DTYPES if "complex" not in name and (op == "max" or "int" not in name)]
    if dtype not in allowed:
        raise TypeError(f"x has dtype {dtype}: expected one of {', '.join(allowed)}")
    return dtype


def _divisor(value: Any) -> int:
    divisor = integer("divisor_override", value, -(2**31))
    if divisor == 0:
        raise ValueError("divisor_override=0: expected an integer other than zero")
    return divisor


def _exponent(value: Any) -> float:
    try:
        exponent = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"norm_type={value!r}: expected a number") from None
    if not 0 < exponent < math.inf:
        raise ValueError(f"norm_type={value!r}: expected a positive, finite number")
    return exponent
