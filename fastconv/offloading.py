"""NumPy arrays computed on a GPU, in chunks of the batch whose copies overlap computing.

A chunk goes through five stages: the host copies its input into pinned memory, the GPU fetches it from there, computes,
writes the result back to pinned memory, and the host copies that to where it belongs. Three lanes take turns, so that
one chunk can be on its way there, one be computed and one be on its way back. With ``c`` chunks of stages ``s`` each,

    seconds = sum(s) + (c - 1) * max(max(s), sum(s) / lanes) + c * overhead

which the number of chunks makes least: more of them fill the lanes sooner, and each has its overhead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv import recycling
from fastconv.arrays import named_dtype
from fastconv.dispatch import Execution
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm

if TYPE_CHECKING:
    from fastconv.gpu.transfers import Lane, Transfers

_LANES = 3
_MOST_CHUNKS = 64


class Schedule(NamedTuple):
    """How many images a chunk has, and the predicted seconds of the whole call."""

    images: int
    seconds: float


def schedule(problem: ConvProblem, computing: float, transfers: Transfers, *, prepared: bool) -> Schedule:
    """The chunks of least predicted time for a problem that the GPU computes in so many seconds."""
    p, itemsize = problem, named_dtype(problem.dtype).itemsize
    x, w = (math.prod(shape) * itemsize for shape in p.operand_shapes)
    y = math.prod(p.result_shape) * named_dtype(p.result_dtype).itemsize
    x += y * p.residual
    once = 0.0 if prepared else w / transfers.to_device
    stages = (x / transfers.staging, x / transfers.to_device, computing, y / transfers.to_host, y / transfers.staging)
    most = 1 if p.op == "weight_grad" else max(min(p.batch, _MOST_CHUNKS), 1)

    def time(images: int) -> float:
        chunks = -(-p.batch // images)
        of_one = [stage * images / p.batch for stage in stages]
        # The host does the first stage and the last.
        slowest = max(of_one[0] + of_one[-1], *of_one[1:-1], sum(of_one) / _LANES)
        return once + sum(of_one) + (chunks - 1) * slowest + chunks * transfers.chunk

    if not p.batch:
        return Schedule(1, once)
    return min((Schedule(n, time(n)) for n in {-(-p.batch // chunks) for chunks in range(1, most + 1)}), key=_seconds)


def _seconds(found: Schedule) -> tuple[float, int]:
    return found.seconds, found.images


class Offloaded(Execution):
    """An execution on a GPU of arrays in host memory, the batch in chunks; a weight gradient, a sum over it, at once.

    The last chunk may be a part of one: what is computed for the rest of it stays where it is.

    Parameters
    ----------
    problem : ConvProblem
    algorithm : Algorithm
    images : int
        Of a chunk.
    """

    def __init__(self, problem: ConvProblem, algorithm: Algorithm, images: int) -> None:
        whole = problem.op == "weight_grad"
        chunk = problem if whole else replace(problem, batch_shape=(images,))
        super().__init__(chunk, algorithm)
        #: Rows of all arrays together and of a chunk, and what a row of the input and of the result is.
        self._rows, self._of_chunk = (1, 1) if whole else (problem.batch, images)
        self._source = chunk.operand_shapes[0][not whole :]
        self._row = chunk.result_shape[not whole :]
        self._chunk, self.problem = chunk, problem
        self.operand_shapes = problem.operand_shapes
        self._shape = problem.result_shape

    def _run(self, x: Any, packed: Any, bias: Any, residual: Any, out: Any) -> Any:
        from fastconv.gpu.runtime import runtime

        given = [(x.reshape(self._rows, *self._source), self._dtype)]
        if residual is not None:
            given.append((residual.reshape(self._rows, *self._row), self._result_dtype))
        result = recycling.empty(self._shape, self._result_dtype)
        rows, chunks = result.reshape(self._rows, *self._row), -(-self._rows // self._of_chunk)
        if bias is not None:
            bias = self._bring(bias, self._bias_dtype)

        def compute(y: Any, x: Any, residual: Any = None) -> None:
            y, x = y.reshape(self._chunk.result_shape), x.reshape(self._chunk.operand_shapes[0])
            super(Offloaded, self)._run(x, packed, bias, residual, y)

        lanes = runtime().lanes(min(_LANES, chunks))
        memory = [(array.shape[1:], dtype) for array, dtype in ((rows, self._result_dtype), *given)]
        slots = [_Slot(lane, [((self._of_chunk, *shape), dtype) for shape, dtype in memory]) for lane in lanes]
        try:
            for turn in range(chunks + len(slots)):
                slot = slots[turn % len(slots)]
                slot.finish()
                if turn < chunks:
                    part = slice(turn * self._of_chunk, (turn + 1) * self._of_chunk)
                    slot.begin(compute, rows[part], *(array[part] for array, _ in given))
        finally:
            for lane in lanes:
                lane.wait()  # no copy may be under way when the buffers are given back
        if out is None:
            return result
        out[...] = result
        return out


class _Slot:
    """A lane with the memory of one chunk on both sides: of its result, and of its operands."""

    def __init__(self, lane: Lane, memory: list[tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        from fastconv.gpu.runtime import runtime

        self._lane = lane
        self._host = [lane.buffer(*each) for each in memory]
        with lane:
            self._device = [runtime().xp.empty(*each) for each in memory]
        self._target: Any = None

    def begin(self, compute: Callable[..., None], target: Any, *operands: Any) -> None:
        """Have a chunk computed, whose result :meth:`finish` brings into `target`."""
        for array, host, device in zip(operands, self._host[1:], self._device[1:], strict=True):
            host[: len(array)] = array
            self._lane.send(host[: len(array)], device)
        with self._lane:
            compute(*self._device)
        self._target = target
        self._lane.fetch(self._device[0], self._host[0][: len(target)])

    def finish(self) -> None:
        """Wait for the chunk that was begun, if any."""
        if self._target is not None:
            self._lane.wait()
            self._target[...] = self._host[0][: len(self._target)]
            self._target = None
