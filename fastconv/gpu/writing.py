"""How tensor-core kernels write results: along channels or along positions, in vectors or one by one.

A thread writes 16 bytes at once where neighbouring results lie together at multiples of 16 bytes. Kernels count vectors
from a tile's first channel and position, which are multiples of any vector, so that this depends on the arrays alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from fastconv.gpu.arguments import Words, channels_fastest

_VECTOR_BYTES = 16

#: Parts of shared sums, of 4 bytes each, in a vector.
PARTIAL_VECTOR = _VECTOR_BYTES // 4

# Axes of an (N, G, O, D, H, W) view, and the order in which positions are counted.
_CHANNELS, _POSITIONS, _POSITIONS_BY_IMAGES = (2,), (5, 4, 3, 0), (0,)


@lru_cache(maxsize=4096)
def along_channels(shape: Words, strides: Words, residual: Words | None, itemsize: int) -> bool:
    """Whether the channels of an ``(N, G, O, D, H, W)`` view, and of what is added to it, lie together in vectors.

    Parameters
    ----------
    shape, strides : tuple of int
        Of the view; strides count elements.
    residual : tuple of int or None
        The strides of what is added.
    itemsize : int
        Bytes of an element of either.
    """
    return _in_vectors(shape, (strides, residual), _CHANNELS, _VECTOR_BYTES // itemsize)


@lru_cache(maxsize=4096)
def direction(
    shape: Words, strides: Words, residual: Words | None, itemsize: int, images_fastest: bool, shared: bool
) -> tuple[bool, bool]:
    """Whether results are written along channels, not positions; and whether they lie together in vectors.

    Parameters
    ----------
    shape, strides, residual, itemsize
        As in :func:`along_channels`.
    images_fastest : bool
        Whether neighbouring positions are those of neighbouring images.
    shared : bool
        Whether blocks share sums: then a vector is one of their parts, which have no gaps between them.
    """
    by_channels = channels_fastest(strides)
    along = _CHANNELS if by_channels else _POSITIONS_BY_IMAGES if images_fastest else _POSITIONS
    count = PARTIAL_VECTOR if shared else _VECTOR_BYTES // itemsize
    whole = math.prod(shape[axis] for axis in along) % count == 0
    return by_channels, whole and _in_vectors(shape, (strides, residual), along, count)


def aligned(*addresses: int) -> bool:
    """Whether all are multiples of a vector; so is a null pointer."""
    return not any(address % _VECTOR_BYTES for address in addresses)


def _in_vectors(shape: Words, views: Iterable[Words | None], along: Words, count: int) -> bool:
    """Whether every `count` elements, cut from the axes `along`, the first fastest, lie together and aligned."""
    return all(view is None or _together(shape, view, along, count) for view in views)


def _together(shape: Words, strides: Words, along: Words, count: int) -> bool:
    run, apart = 1, [axis for axis in range(len(shape)) if shape[axis] > 1]
    for axis in along:
        if axis in apart and strides[axis] == run:
            run *= shape[axis]
            apart.remove(axis)
        elif axis in apart:
            break
    return run % count == 0 and not any(strides[axis] % count for axis in apart)
