"""A strided convolution as one of stride 1 with more channels, which transforms can compute with fewer products.

Output t of a stride s sees the samples ``t s + k - offset``. With the taps counted as ``k = i s + p``, those of one p
are every s-th sample, and what they sum is a convolution of stride 1:

    y[t] = sum over p  sum over i of  w[i s + p] x_p[t + i],    x_p[j] = x[j s + p - offset]

So the s phases of the input, along height and width, become channels (space to depth), of which the kernel has
``ceil(k / s)`` taps; those past its end are zeros. That adds products where s does not divide k, and saves none. But
where the taps are then 2 to 5, :mod:`fastconv.cpu.winograd` computes them with a half to a fourth of the products: 11 x
11 taps at stride 4 become 3 x 3, and 4 x 4 at stride 2 become 2 x 2. (Huang and others, "DWM: a decomposable Winograd
method for convolution acceleration", AAAI 2020, compute phase by phase.) What it costs is a copy of the input, in which
padding ends.

A sample that is not finite would spoil outputs that see it under an added tap. The copy looks for such samples, and
where it finds one, `direct` computes the whole convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.cpu.copying import copy_planes
from fastconv.cpu.costs import CostModel, Work
from fastconv.cpu.direct import DirectPlan
from fastconv.cpu.elements import resolve
from fastconv.cpu.jit import TaskKernel, array, inline, integer, records
from fastconv.cpu.rewriting import Rewriting, RewritingPlan
from fastconv.cpu.rows import inside, read_row, split_row
from fastconv.lowering import GEOMETRY, lower
from fastconv.problem import ConvProblem
from fastconv.registry import Plan, register
from fastconv.settings import available_cores

#: What becomes of height and width: so many `phases` of the input, `step` samples apart and `length` samples long, of
#: which the first begins at `first`, and `taps` of each.
AXES = np.dtype([(name, np.int64, (2,)) for name in ("phases", "step", "taps", "length", "first")])

_TASKS = 8  # for a core, at least

# The bits of the exponent, all of which are set where a number is not finite.
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


@lru_cache(maxsize=4096)
def _axes(problem: ConvProblem) -> np.ndarray[Any, Any]:
    """An array of one element of :data:`AXES`; an axis of stride 1 stays as it is."""
    p = problem
    axes = [
        (1, 1, p.kernel[i], p.size[i], 0)
        if p.stride[i] == 1
        else (min(p.stride[i], p.kernel[i]), p.stride[i], taps, p.out_size[i] - 1 + taps, -p.padding[i][0])
        for i, taps in ((i, -(-p.kernel[i] // p.stride[i])) for i in (1, 2))
    ]
    record = np.zeros(1, AXES)
    for name, pair in zip(AXES.names or (), zip(*axes, strict=True), strict=True):
        record[name] = pair
    return record


@lru_cache(maxsize=4096)
def _deep(problem: ConvProblem) -> ConvProblem:
    """The convolution of stride 1."""
    p, axes = problem, _axes(problem)[0]
    depth, *planes = p.padding
    height, width = ((0, 0) if stride > 1 else pair for stride, pair in zip(p.stride[1:], planes, strict=True))
    return replace(
        p, in_channels=p.in_channels * math.prod(axes["phases"].tolist()), size=(p.size[0], *axes["length"].tolist()),
        kernel=(p.kernel[0], *axes["taps"].tolist()), stride=(p.stride[0], 1, 1), padding=(depth, height, width),
        weight_order="OI*", flip_kernel=False,
    )  # fmt: skip


@inline
def _special(values, begin, end, exponent):  # type: ignore[no-untyped-def]
    """Whether any of these numbers, given by their bits, is not finite."""
    found, mask = np.uint8(0), values.dtype.type(exponent)
    part = values[begin:end]
    for i in range(np.uintp(part.shape[0])):
        found |= np.uint8(part[i] & mask == mask)
    return found


@inline
def _split_rows(x, n, g, c, d, first, last, geo, axes, exponent, deep):  # type: ignore[no-untyped-def]
    """Copy rows `first` to `last` of all phases of a channel's plane to ``deep (N, G, PH, PW, C, D, H, W)``.

    The result says whether they have a number that is not finite.
    """
    phases, step, first_w, length, found = axes.phases[1], axes.step[1], axes.first[1], axes.length[1], np.uint8(0)
    plane = geo.size[0] * axes.length[0] * length
    apart = geo.in_channels * plane
    for h in range(first, last):
        for p in range(axes.phases[0]):
            source = resolve(h * axes.step[0] + p + axes.first[0], geo.size[1], geo.padding_mode)
            channel = ((n * geo.groups + g) * axes.phases[0] + p) * phases * geo.in_channels + c
            at = channel * plane + (d * axes.length[0] + h) * length
            if source >= 0 and phases == step:
                row = x[n, g, c, d, source]
                split_row(row, first_w, step, geo.padding_mode, 0, deep[at:], apart, length)
            for q in range(phases):
                begin, end = at + q * apart, at + q * apart + length
                if source < 0:
                    deep[begin:end] = 0
                elif phases != step:
                    read_row(x[n, g, c, d, source], first_w + q, step, geo.padding_mode, 0, deep[begin:end])
                found |= _special(deep, begin, end, exponent)
    return found


@inline
def _split_pixels(x, n, d, h, geo, axes, exponent, deep):  # type: ignore[no-untyped-def]
    """Copy row `h` of all phases of all channels to ``deep (N, D, H, W, G, PH, PW, C)``, likewise."""
    phases, step, length, channels = axes.phases[1], axes.step[1], axes.length[1], geo.in_channels
    pixel = geo.groups * axes.phases[0] * phases * channels
    begin = ((n * geo.size[0] + d) * axes.length[0] + h) * length * pixel
    # All phases of a pixel are a run of memory, if pixels lie side by side; else each is one.
    together = phases if x.strides[5] == channels * x.itemsize else 1
    for g in range(geo.groups):
        for p in range(axes.phases[0]):
            source = resolve(h * axes.step[0] + p + axes.first[0], geo.size[1], geo.padding_mode)
            for q in range(0, phases, together):
                at, first = begin + ((g * axes.phases[0] + p) * phases + q) * channels, axes.first[1] + q
                low, high = inside(first, step, geo.size[2] - together + 1, length)
                if source < 0 or x.strides[2] != x.itemsize:
                    high = low
                row = n * x.strides[0] + g * x.strides[1] + d * x.strides[3] + source * x.strides[4]
                copy_planes(
                    deep, at + low * pixel, 0, pixel, x, row + (first + low * step) * x.strides[5], 0,
                    step * x.strides[5], 1, high - low, together * channels,
                )  # fmt: skip
                for w in range(length):
                    for j in range(0 if low <= w < high else together):
                        column, to = resolve(first + j + w * step, geo.size[2], geo.padding_mode), at + w * pixel
                        for c in range(channels):
                            here = source >= 0 and column >= 0
                            deep[to + j * channels + c] = x[n, g, c, d, source, column] if here else 0
    return _special(deep, begin, begin + length * pixel, exponent)


def _space_to_depth(  # type: ignore[no-untyped-def]
    first, last, x, geometry, layout, channels_last, parts, exponent, found, deep, _
):
    """Copy phases of ``x (N, G, C, D, H, W)``, given by their bits.

    A task is one of so many parts of a channel's plane, read and written in runs; channels last, a row of pixels. Tasks
    that meet a number that is not finite say so in `found`.
    """
    geo, axes = geometry[0], layout[0]
    for task in range(first, last):
        if channels_last:
            rest, h = divmod(task, axes.length[0])
            n, d = divmod(rest, geo.size[0])
            found[task] = _split_pixels(x, n, d, h, geo, axes, exponent, deep)
        else:
            rest, part = divmod(task, parts)
            rest, d = divmod(rest, geo.size[0])
            rest, c = divmod(rest, geo.in_channels)
            n, g = divmod(rest, geo.groups)
            begin, end = part * axes.length[0] // parts, (part + 1) * axes.length[0] // parts
            found[task] = _split_rows(x, n, g, c, d, begin, end, geo, axes, exponent, deep)


_kernel = TaskKernel(_space_to_depth)


class _SpaceToDepthPlan(RewritingPlan):
    def __init__(self, algorithm: Rewriting, problem: ConvProblem, workspace_limit: int) -> None:
        super().__init__(algorithm, problem, workspace_limit)
        deep = algorithm.rewritten(problem)
        self._problem, self._pieces, self._axes = problem, lower(problem), _axes(problem)
        self._shape = deep.batch, deep.groups, deep.in_channels // deep.groups, *deep.size
        self._tasks, self._parts = _tasks(problem)
        self._dtype = named_dtype(problem.dtype)
        self._bits = np.dtype(f"i{self._dtype.itemsize}")
        memory = array(self._bits, 1, contiguous=True, readonly=False)
        self._kernel = _kernel.compile(
            array(self._bits, 6), records(GEOMETRY), records(AXES), integer, integer, integer,
            array(np.dtype(np.uint8), 1, contiguous=True, readonly=False), memory, memory,
        )  # fmt: skip

    def pack(self, w: Any) -> Any:
        """The weight of the convolution of stride 1, in the form that the other algorithm wants and as it is."""
        groups, outer, inner, *kernel = w.shape
        (phases_h, phases_w), (taps_h, taps_w) = (self._axes[0][name].tolist() for name in ("phases", "taps"))
        padded = np.zeros((groups, outer, inner, kernel[0], taps_h * phases_h, taps_w * phases_w), w.dtype)
        padded[..., : kernel[1], : kernel[2]] = w
        split = padded.reshape(groups, outer, inner, kernel[0], taps_h, phases_h, taps_w, phases_w)
        channels = inner * phases_h * phases_w
        deep = split.transpose(0, 1, 5, 7, 2, 3, 4, 6).reshape(groups, outer, channels, kernel[0], taps_h, taps_w)
        return self._other.pack(deep), deep

    def run(self, x: Any, packed: Any, y: Any, bias: Any, residual: Any) -> None:
        if not self._pieces:  # there is no result
            return
        n, groups, channels, *size = self._shape
        last = self._problem.channels_last
        copied = recycling.empty((math.prod(self._shape),), self._bits)
        found = np.empty(self._tasks, np.uint8)
        self._kernel(
            self._tasks, copied.size, 0, x.view(self._bits), self._pieces[0].geometry, self._axes, int(last),
            self._parts, _EXPONENTS[self._problem.dtype], found, copied,
        )  # fmt: skip
        for_other, taps = packed
        if found.any():
            plan = DirectPlan(self._problem)
            plan.run(x, plan.pack(self._given(taps)), y, bias, residual)
            return
        deep = copied.view(self._dtype)
        deep = (
            deep.reshape(n, *size, groups, channels).transpose(0, 4, 5, 1, 2, 3) if last else deep.reshape(self._shape)
        )
        self._other.run(deep, for_other, y, bias, residual)

    def _given(self, deep: Any) -> Any:
        """The weight that was packed."""
        phases, (kernel_h, kernel_w) = self._axes[0]["phases"].tolist(), self._problem.kernel[1:]
        groups, outer, channels, depth, taps_h, taps_w = deep.shape
        split = deep.reshape(groups, outer, *phases, channels // math.prod(phases), depth, taps_h, taps_w)
        joined = split.transpose(0, 1, 4, 5, 6, 2, 7, 3)
        joined = joined.reshape(*joined.shape[:4], taps_h * phases[0], taps_w * phases[1])
        return joined[..., :kernel_h, :kernel_w]


def _tasks(problem: ConvProblem) -> tuple[int, int]:
    """Tasks of a copy, and of how many of them a channel's plane is."""
    n, depth, rows = problem.batch, *_deep(problem).size[:2]
    if problem.channels_last:
        return n * depth * rows, 1
    planes = n * problem.in_channels * depth
    parts = min(-(-_TASKS * available_cores() // max(planes, 1)), rows)
    return planes * parts, parts


def _running(problem: ConvProblem) -> Iterable[Work]:
    deep, (tasks, _) = _deep(problem), _tasks(problem)
    copied = math.prod(deep.x_shape)
    if problem.channels_last:
        return [Work(tasks, {"pixels": copied})]
    rows = deep.batch * deep.size[0] * deep.size[1] * int(_axes(problem)[0]["phases"][0]) * problem.in_channels
    return [Work(tasks, {"planes": copied, "row": rows})]


def _packing(problem: ConvProblem) -> Iterable[Work]:
    return [Work(1, {"gathered": math.prod(_deep(problem).w_shape)})]


class SpaceToDepth(Rewriting):
    """The phases of a strided convolution as channels of one of stride 1."""

    name = "space_to_depth"
    running = CostModel(_running, {"planes": 3.5e-10, "row": 4.5e-8, "pixels": 4.5e-10, "call": 1e-5})
    packing = CostModel(_packing, {"gathered": 3e-9, "call": 1e-5})

    def rewritten(self, problem: ConvProblem) -> ConvProblem:
        return _deep(problem)

    def copied_bytes(self, problem: ConvProblem) -> int:
        return math.prod(_deep(problem).x_shape) * named_dtype(problem.dtype).itemsize

    def why_not(self, problem: ConvProblem) -> str | None:
        p = problem
        if p.op != "forward":
            return "gradients fall into phases by themselves"
        if p.dtype not in _EXPONENTS:
            return f"it serves transforms, which are made for real floating-point numbers, not {p.dtype}"
        strided = [i for i in (1, 2) if p.stride[i] > 1]
        if not any(p.kernel[i] > p.stride[i] for i in strided):
            return "no stride along height or width is shorter than the kernel: phases have one tap"
        if any(p.dilation[i] > 1 for i in strided):
            return "it computes dilation 1 where there is a stride"
        return self.too_large(p)

    def plan(self, problem: ConvProblem, workspace_limit: int) -> Plan:
        return _SpaceToDepthPlan(self, problem, workspace_limit)


register(SpaceToDepth())
