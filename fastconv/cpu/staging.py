"""Staging: the part of an input that a task sees, copied next to its registers' reach, where every difficulty ends.

Padding of any mode, half types and strides in memory are dealt with once, as elements are copied; what follows finds
the input of position p under the tap k of channel c at ``staged[places[p] + offsets[c, k]]``, and two small tables hold
the whole geometry. Along height and width the copy has all samples from the first to the last that is needed. Where
most of those are not, because strides or dilations leap over them, it has a run of samples for each tap instead, which
neighbouring taps do not share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastconv.cpu.elements import resolve
from fastconv.cpu.jit import inline
from fastconv.cpu.microkernel import odd_lines
from fastconv.cpu.rows import read_pixels, read_planes
from fastconv.lowering import Correlation
from fastconv.problem import Triple

_GATHER = 1.5  # staging single elements of a row costs as much as staging so many in whole rows

Table = np.ndarray[Any, np.dtype[np.int64]]

#: How an input is staged: `depth` taps along that axis; along height and width `length` elements, in runs of `span`,
#: of which those of a run are `step` apart in the input, and runs `jump`. The element (c, kd, h, w) lies at its product
#: with `pitches`. `padded` says whether any may be padding.
STAGING = np.dtype(
    [(name, np.int64) for name in ("depth", "channels_last", "padded")]
    + [(name, np.int64, (2,)) for name in ("length", "span", "step", "jump")]
    + [("pitches", np.int64, (4,))]
)


@inline
def clear(shape, first_d, step_d, first_h, first_w, how, staged):  # type: ignore[no-untyped-def]
    """Make the staged part of an input ``(…, D, H, W)`` zeros if positions from the given one on see any padding."""
    if how.padded:
        last_d = first_d + (how.depth - 1) * step_d
        last_h = first_h + (how.length[0] // how.span[0] - 1) * how.jump[0] + (how.span[0] - 1) * how.step[0]
        last_w = first_w + (how.length[1] // how.span[1] - 1) * how.jump[1] + (how.span[1] - 1) * how.step[1]
        inside = last_d < shape[-3] and last_h < shape[-2] and last_w < shape[-1]
        if min(first_d, first_h, first_w) < 0 or not inside:
            staged[:] = 0


@inline
def stage(volumes, first_d, step_d, first_h, first_w, mode, half, how, staged):  # type: ignore[no-untyped-def]
    """Copy what positions from the given one on see of ``volumes (C, D, H, W)``; zero padding is there already."""
    pitch_c, pitch_d, pitch_h, pitch_w = how.pitches[0], how.pitches[1], how.pitches[2], how.pitches[3]
    for kd in range(how.depth):
        source_d = resolve(first_d + kd * step_d, volumes.shape[1], mode)
        if source_d < 0:
            continue
        planes = volumes[:, source_d]
        for h in range(0, how.length[0], how.span[0]):
            for w in range(0, how.length[1], how.span[1]):
                from_h = first_h + h // how.span[0] * how.jump[0]
                from_w = first_w + w // how.span[1] * how.jump[1]
                part = staged[kd * pitch_d + h * pitch_h + w * pitch_w :]
                if how.channels_last:
                    read_pixels(
                        planes, from_h, how.step[0], from_w, how.step[1], mode, half, part, pitch_w, pitch_h,
                        how.span[0], how.span[1],
                    )  # fmt: skip
                else:
                    read_planes(
                        planes, from_h, how.step[0], from_w, how.step[1], mode, half, part, pitch_c, pitch_h,
                        how.span[0], how.span[1],
                    )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """How the input is staged along height or width: see :data:`STAGING`; positions and taps are so far apart in it."""

    length: int
    span: int
    step: int
    jump: int
    position_step: int
    tap_step: int


def _axis(positions: int, kernel: int, stride: int, dilation: int, gather: float) -> Axis:
    """All from the first to the last that is needed; or, where most of that is not, the positions' own for each tap."""
    together = (positions - 1) * stride + (kernel - 1) * dilation + 1 if kernel else 0
    if together <= kernel * positions * gather:
        return Axis(together, max(together, 1), 1, 0, stride, dilation)
    return Axis(kernel * positions, positions, stride, dilation, 1, positions)


class Staging(NamedTuple):
    """Some channels as they are staged: how, in how many elements, and where positions and (channel, tap) then lie."""

    how: np.ndarray[Any, Any]
    elements: int
    places: Table
    offsets: Table


class Window:
    """What the taps of a kernel see of a channel from some positions.

    Parameters
    ----------
    positions : tuple of int
        How many rows of how many columns there are.
    kernel, stride, dilation : tuple of int
        Along depth, height and width: taps, and how far apart positions and taps are in the input.
    """

    def __init__(self, positions: tuple[int, int], kernel: Triple, stride: Triple, dilation: Triple) -> None:
        self._positions, self._kernel = positions, kernel
        self.height = _axis(positions[0], kernel[1], stride[1], dilation[1], 1)
        self.width = _axis(positions[1], kernel[2], stride[2], dilation[2], _GATHER)
        self.elements = kernel[0] * self.height.length * self.width.length

    def staging(self, channels: int, itemsize: int, *, channels_last: bool, padded: bool) -> Staging:
        """How so many channels of it are staged."""
        h, w = self.height, self.width
        plane = odd_lines(h.length * w.length, itemsize)
        pitches = self._kernel[0] * plane, plane, w.length, 1
        channels_last = channels_last and channels != 1  # a plane of one channel is read in rows
        if channels_last:
            pitches = 1, h.length * w.length * channels, w.length * channels, channels
        how = np.zeros((), STAGING)
        how["depth"], how["channels_last"], how["padded"], how["pitches"] = (
            self._kernel[0], channels_last, padded, pitches
        )  # fmt: skip
        for name in ("length", "span", "step", "jump"):
            how[name] = getattr(h, name), getattr(w, name)
        last = channels - 1, self._kernel[0] - 1, h.length - 1, w.length - 1
        elements = 1 + sum(max(n, 0) * pitch for n, pitch in zip(last, pitches, strict=True))
        places = grid(self._positions, (h.position_step * pitches[2], w.position_step * pitches[3]))
        steps = pitches[0], pitches[1], h.tap_step * pitches[2], w.tap_step * pitches[3]
        return Staging(how, elements, places, grid((channels, *self._kernel), steps))


def grid(counts: tuple[int, ...], steps: tuple[int, ...]) -> Table:
    """The sums of multiples of the steps, the last one running fastest."""
    axes = np.ix_(*(np.arange(count) * step for count, step in zip(counts, steps, strict=True)))
    return np.asarray(sum(axes[1:], axes[0]).ravel())


def sees_padding(c: Correlation) -> bool:
    """Whether any position of a correlation meets padding."""
    return any(
        offset > 0 or (count - 1) * stride + (kernel - 1) * dilation - offset >= size
        for offset, count, stride, kernel, dilation, size in zip(
            c.offset, c.count, c.stride, c.kernel, c.dilation, c.size, strict=True
        )
    )
