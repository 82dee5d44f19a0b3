"""Every convolution as plain correlations on strided views: what the kernels actually run.

A kernel never sees formats, 1-D or 2-D, transposes, gradients or flips. It sees :class:`Correlation`,

    y[n, g, o, t] = sum over c, k of  w[g, o, c, k] * x[n, g, c, t * stride + k * dilation - offset]

with ``t``, ``k`` and the strides triples (depth, height, width), on six-axis views ``x (N, G, C, D, H, W)``,
``w (G, O, C, KD, KH, KW)`` and ``y (N, G, O, TD, TH, TW)`` of the user's memory. The three ops become that by choosing
views alone:

* forward: as it stands.
* input_grad (transposed convolution): the targets fall into ``stride`` residue classes along each axis. Within one
  class only every ``stride / gcd(stride, dilation)``-th tap meets a sample, and the class is a stride-1 correlation
  of the gradient with those taps, flipped: one piece per class, no zero insertion, no wasted product.
* weight_grad: batch and channels trade places and the output gradient is the kernel; stride and dilation swap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from fastconv.problem import PADDING_MODES, ConvProblem, Triple
from fastconv.remembering import once

#: The numbers of a correlation as kernels receive them: `struct Geometry` in cuda/geometry.cuh is the same record.
GEOMETRY = np.dtype(
    [(name, np.int64) for name in ("batch", "groups", "in_channels", "out_channels")]
    + [(name, np.int64, (3,)) for name in ("size", "kernel", "count", "stride", "dilation", "offset")]
    + [("padding_mode", np.int64)]
)

_ALL = slice(None)

T = TypeVar("T")
P = TypeVar("P", bound="Correlation")


@dataclass(frozen=True)
class Correlation:
    """One strided correlation; channels are per group. `taps` and `targets` select its part of the w and y views."""

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    size: Triple
    kernel: Triple
    count: Triple
    stride: Triple
    dilation: Triple
    offset: Triple
    padding_mode: str
    taps: tuple[slice, slice, slice]
    targets: tuple[slice, slice, slice]

    @once
    def reduction(self) -> int:
        """Number of products summed into one output."""
        return self.in_channels * math.prod(self.kernel)

    @once
    def positions(self) -> int:
        """Number of target positions of one image."""
        return math.prod(self.count)

    @once
    def macs(self) -> int:
        """Multiply-adds, products with padding counted."""
        return self.batch * self.groups * self.out_channels * self.positions * self.reduction

    @once
    def reach(self) -> int:
        """The largest number that arithmetic on indices along an axis comes to, padding counted."""
        axes = zip(self.size, self.kernel, self.dilation, self.count, self.stride, self.offset, strict=True)
        return max(max(n, k * d + t * s + abs(low)) for n, k, d, t, s, low in axes)

    @once
    def geometry(self) -> np.ndarray:
        """A one-element array of :data:`GEOMETRY`."""
        record = np.zeros(1, GEOMETRY)
        for name in GEOMETRY.names or ():
            value = getattr(self, name)
            record[name] = PADDING_MODES.index(value) if name == "padding_mode" else value
        return record

    def weight_view(self, w: Any) -> Any:
        """The taps of this piece, of a ``(G, O, C, KD, KH, KW)`` view."""
        return w if self.whole else w[(..., *self.taps)]

    def target_view(self, y: Any) -> Any:
        """The targets of this piece, of an ``(N, G, O, TD, TH, TW)`` view."""
        return y if self.whole else y[(..., *self.targets)]

    @once
    def flat(self) -> Correlation | None:
        """The same correlation of images laid out as one row each, where every target sees its own sample alone."""
        pointwise = self.kernel == self.stride == (1, 1, 1) and self.offset == (0, 0, 0) and self.size == self.count
        if not pointwise or not self.whole or self.count[2] == self.positions:
            return None
        row = (1, 1, self.positions)
        return replace(self, size=row, count=row)

    def turned(self) -> Correlation:
        """The same correlation with height and width exchanged, of views that are :func:`exchanged`."""
        names = ("size", "kernel", "count", "stride", "dilation", "offset", "taps", "targets")
        turned: dict[str, Any] = {}
        for name in names:
            depth, height, width = getattr(self, name)
            turned[name] = depth, width, height
        return replace(self, **turned)

    def undone(self) -> Correlation:
        """The forward correlation whose weight gradient this is."""
        return replace(
            self, batch=self.in_channels, in_channels=self.batch, kernel=self.count, count=self.kernel,
            stride=self.dilation, dilation=self.stride,
        )  # fmt: skip

    @once
    def kind(self) -> tuple[Any, ...]:
        """What pieces have in common that differ in where their taps and targets begin alone."""
        steps = [part.step for part in (*self.taps, *self.targets)]
        return *(getattr(self, name) for name in GEOMETRY.names or ()), self.whole, *steps

    @once
    def whole(self) -> bool:
        """Whether this piece has all taps and all targets."""
        return self.taps == self.targets == (_ALL,) * 3


def once_a_kind(pieces: Iterable[P], make: Callable[[P], T]) -> list[T]:
    """What `make` returns for each piece, made once for each kind: of a thousand pieces all but a few are alike."""
    made: dict[Any, T] = {}
    found = []
    for piece in pieces:
        if piece.kind not in made:
            made[piece.kind] = make(piece)
        found.append(made[piece.kind])
    return found


def exchanged(view: Any) -> Any:
    """A six-axis view with height and width exchanged."""
    return view.transpose(0, 1, 2, 3, 5, 4)


@lru_cache(maxsize=4096)
def lower(problem: ConvProblem) -> tuple[Correlation, ...]:
    """The correlations that make up `problem`; together they write every element of the result once."""
    p = problem
    if p.op == "input_grad" and p.padding_mode != "zeros":
        raise ValueError(f"padding_mode={p.padding_mode!r}: an input gradient is computed for 'zeros' only")
    if 0 in p.result_shape:
        return ()
    inner, outer = p.in_channels // p.groups, p.out_channels // p.groups
    lows = _lows(p)
    if p.op == "forward":
        pieces = [
            Correlation(p.batch, p.groups, inner, outer, p.size, p.kernel, p.out_size, p.stride, p.dilation, lows,
                        p.padding_mode, (_ALL,) * 3, (_ALL,) * 3)
        ]  # fmt: skip
    elif p.op == "weight_grad":
        pieces = [
            Correlation(inner, p.groups, p.batch, outer, p.size, p.out_size, p.kernel, p.dilation, p.stride, lows,
                        p.padding_mode, (_ALL,) * 3, (_ALL,) * 3)
        ]  # fmt: skip
    else:
        axes = [_phases(p.size[i], p.kernel[i], p.stride[i], p.dilation[i], lows[i]) for i in range(3)]
        pieces = []
        for d, h, w in itertools.product(*axes):
            pieces.append(
                Correlation(p.batch, p.groups, outer, inner, p.out_size, (d.kernel, h.kernel, w.kernel),
                            (d.count, h.count, w.count), (1, 1, 1), (d.dilation, h.dilation, w.dilation),
                            (d.offset, h.offset, w.offset), "zeros", (d.taps, h.taps, w.taps),
                            (d.targets, h.targets, w.targets))
            )  # fmt: skip
    return tuple(pieces)


def _lows(p: ConvProblem) -> Triple:
    (d, _), (h, _), (w, _) = p.padding
    return d, h, w


@dataclass(frozen=True)
class _Phase:
    """Along one axis of an input gradient: the targets of one residue class and the taps that reach them."""

    targets: slice
    count: int
    taps: slice
    kernel: int
    dilation: int
    offset: int


def _phases(size: int, kernel: int, stride: int, dilation: int, low: int) -> list[_Phase]:
    common = math.gcd(stride, dilation)
    step = stride // common
    phases = []
    for residue in range(min(stride, size)):
        # Tap k meets target t where t + low - k * dilation is a multiple of the stride. If any k < step does, the
        # others that do are step apart; source = (t + low - k * dilation) / stride falls by dilation / common a step.
        first = next((k for k in range(min(step, kernel)) if (residue + low - k * dilation) % stride == 0), kernel)
        used = range(first, kernel, step)
        # Kernels want sources that rise with the tap, so the taps are taken last to first.
        last = used[-1] if used else 0
        stop = first - 1 if first > 0 else None
        phases.append(
            _Phase(
                targets=slice(residue, None, stride) if stride > 1 else _ALL,
                count=len(range(residue, size, stride)),
                taps=_ALL if kernel == 1 and used else slice(last, stop, -step) if used else slice(0, 0),
                kernel=len(used),
                dilation=dilation // common,
                offset=-((residue + low - last * dilation) // stride),
            )
        )
    return phases


class Views:
    """How the arrays of a problem become the six-axis views that its correlations read and write.

    Parameters
    ----------
    problem : ConvProblem
    """

    def __init__(self, problem: ConvProblem) -> None:
        p = problem
        x = (p.batch, p.groups, p.in_channels // p.groups, *p.size)
        y = (p.batch, p.groups, p.out_channels // p.groups, *p.out_size)
        w = (p.groups, p.out_channels // p.groups, p.in_channels // p.groups, *p.kernel)
        x_shape, w_shape, y_shape = {"forward": (x, w, y), "input_grad": (y, w, x), "weight_grad": (x, y, w)}[p.op]
        lead = len(p.batch_shape)
        last = lead + p.ndim
        spatial = range(p.ndim)
        data = (*range(lead), last, *range(lead, last)) if p.channels_last else None
        kernel = {
            "OI*": None,
            "O*I": (0, p.ndim + 1, *(1 + i for i in spatial)),
            "*IO": (p.ndim + 1, p.ndim, *spatial),
        }[p.weight_order]
        #: Views the first operand (x, or for input_grad the output gradient) as ``(N, G, C, D, H, W)``.
        self.source: Callable[[Any], Any]
        #: Views the second operand (w, or for weight_grad the output gradient) as ``(G, O, C, KD, KH, KW)``.
        self.weight: Callable[[Any], Any]
        #: Views the result (or a residual of its shape) as ``(N, G, O, TD, TH, TW)``.
        self.result: Callable[[Any], Any]
        if p.op == "weight_grad":
            self.source = _viewer(data, x_shape, after=(2, 1, 0, 3, 4, 5))
            self.weight = _viewer(data, w_shape, after=(1, 2, 0, 3, 4, 5))
            self.result = _viewer(kernel, y_shape, p.flip_kernel, after=(2, 0, 1, 3, 4, 5))
        else:
            exchanged = (0, 2, 1, 3, 4, 5) if p.op == "input_grad" else None
            self.source = _viewer(data, x_shape)
            self.weight = _viewer(kernel, w_shape, p.flip_kernel, after=exchanged)
            self.result = _viewer(data, y_shape)


def _viewer(
    before: tuple[int, ...] | None, shape: tuple[int, ...], flip: bool = False, after: tuple[int, ...] | None = None
) -> Callable[[Any], Any]:  # fmt: skip
    """A function that exchanges axes, gives a shape, flips the kernel's axes and exchanges axes again."""
    if before is None and after is None and not flip:
        return lambda a: a.reshape(shape)  # nearly all calls; those of small layers take as long as their views

    def view(a: Any) -> Any:
        a = (a if before is None else a.transpose(before)).reshape(shape)
        a = a[..., ::-1, ::-1, ::-1] if flip else a
        return a if after is None else a.transpose(after)

    return view
