"""Numbers added up where indices say: the gradient of a maximum.

A task is an image of one channel, or of a block of channels where they come last: it is filled with zeros, and while it
is in cache each number is added to its element. Each element belongs to one task, which adds in the order of results.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv import recycling
from fastconv.cpu.jit import TaskKernel, array, integer

_BLOCK = 256  # channels: a cache line or two, so that the image of a task is small


def _scatter(first, last, gradient, indices, result, positions, bad, scratch):  # type: ignore[no-untyped-def]
    """Compute tasks `first` to `last` of `result`, images of so many `positions`, from arrays ``(images, results, C)``.

    The result has one axis, so that an element's address is computed once.
    """
    # Unsigned, lest Numba look for negative indices: one comparison shows an index that is none.
    results, channels, positions = np.uintp(gradient.shape[1]), np.uintp(gradient.shape[2]), np.uintp(positions)
    blocks = (channels + np.uintp(_BLOCK - 1)) // np.uintp(_BLOCK)
    for task in range(np.uintp(first), np.uintp(last)):
        n: Any = task // blocks
        begin: Any = task % blocks * np.uintp(_BLOCK)
        image: Any = n * positions * channels
        if channels == 1:
            for i in range(positions):
                result[image + i] = 0
            for t in range(results):
                at = np.uintp(indices[n, t, 0])
                if at < positions:
                    result[image + at] += gradient[n, t, 0]
                else:
                    bad[0] = 1
            continue
        end = min(begin + np.uintp(_BLOCK), channels)
        for i in range(positions):
            for c in range(begin, end):
                result[image + i * channels + c] = 0
        for t in range(results):
            for c in range(begin, end):
                at = np.uintp(indices[n, t, c])
                if at < positions:
                    result[image + at * channels + c] += gradient[n, t, c]
                else:
                    bad[0] = 1


_kernel = TaskKernel(_scatter)


def scatter(numbers: Any, indices: Any, positions: int, accumulator: np.dtype[Any]) -> tuple[Any, bool]:
    """Add numbers of shape (images, results, C) to the positions of their images that the indices name.

    Returns
    -------
    result : array
        ``(images, positions, C)`` of the accumulator's dtype.
    inside : bool
        Whether all indices name positions; what others name is nowhere.
    """
    images, _, channels = numbers.shape
    numbers, indices = np.ascontiguousarray(numbers, accumulator), np.ascontiguousarray(indices)
    result, bad = recycling.empty((images, positions, channels), accumulator), np.zeros(1, np.int64)
    tasks = images * -(-channels // _BLOCK)
    macs = numbers.size + result.size
    _compiled(accumulator)(tasks, macs, 0, numbers, indices, result.reshape(-1), positions, bad)
    return result, not bad[0]


@cache
def _compiled(dtype: np.dtype[Any]) -> Any:
    numbers, indices = (array(each, 3, contiguous=True) for each in (dtype, np.dtype(np.int64)))
    result, bad = (array(each, 1, contiguous=True, readonly=False) for each in (dtype, np.dtype(np.int64)))
    return _kernel.compile(numbers, indices, result, integer, bad, result)
