"""Tensor maps: what Hopper's copy engine (TMA) is told of an array, so that it can copy tiles of it by itself.

The kernels' side is ``cuda/tma.cuh``. The driver encodes a map; CuPy does not wrap that function, so it is called by
ctypes. Sizes, strides and steps are in the engine's order: channels, width, height, depth, images.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np

from fastconv.gpu.driver import driver

#: Bytes of a row of a tile, with the swizzle of that name.
ROW_BYTES = 128

#: Bytes to which addresses and strides must be aligned.
ALIGNMENT = 16

#: The longest step along an axis.
MOST_STEP = 8


@dataclass(frozen=True)
class Boxes:
    """Tiles that are boxes of an array.

    ``strides`` count bytes, of all axes but the first, whose elements are adjacent; ``box`` is the size of a tile.
    """

    dtype: str
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


@dataclass(frozen=True)
class Pixels:
    """Tiles that are ``box[0]`` channels of ``box[1]`` consecutive pixels of images (im2col mode).

    Along each axis of an image, pixels run by ``steps`` from ``lower`` to ``upper``, which count from the axis's first
    and last element. The width comes first, as among the sizes: the driver's manual lists corners as {D, H, W}, but
    CUTLASS (``copy_traits_sm90_im2col.hpp``) and CubeCL pass them in this order. A kernel's self-check would find out:
    no two of its axes have the same corners.
    """

    dtype: str
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, int]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    steps: tuple[int, ...]


def corner_limit(axes: int) -> int:
    """Corners of a map of so many axes are in ``[-limit, limit)``; taps reach less than twice the limit."""
    return 1 << (16 // (axes - 2) - 1)


_DTYPES = {"int8": 0, "float16": 6, "float32": 7, "bfloat16": 9}  # CUtensorMapDataType
_INTERLEAVE_NONE, _SWIZZLE_128B, _PROMOTION_128B, _FILL_ZERO = 0, 3, 2, 0

# NVIDIA's CUTLASS corrects the maps that drivers up to this version make of small arrays.
_LAST_TO_CORRECT, _SMALL_BYTES, _WRONG_BIT = 13010, 1 << 17, 1 << 21


@cache
def _driver_version() -> int:
    version = ctypes.c_int()
    driver().cuDriverGetVersion(ctypes.byref(version))
    return version.value


def encode(tensor: Boxes | Pixels) -> tuple[int, ...]:
    """The 128 bytes that the engine reads, as 64-bit words.

    Raises
    ------
    RuntimeError
        If the driver does not take the map, or is older than CUDA 12 and takes none.
    """
    words = np.empty(24, np.int64)
    words = words[-words.ctypes.data % 64 // 8 :][:16]  # where the driver wants it: at a multiple of 64 bytes
    axes = len(tensor.sizes)
    counts = ctypes.c_uint32 * axes
    common = (
        ctypes.c_void_p(words.ctypes.data), _DTYPES[tensor.dtype], axes, ctypes.c_void_p(tensor.address),
        (ctypes.c_uint64 * axes)(*tensor.sizes), (ctypes.c_uint64 * (axes - 1))(*tensor.strides),
    )  # fmt: skip
    modes = _INTERLEAVE_NONE, _SWIZZLE_128B, _PROMOTION_128B, _FILL_ZERO
    name = "cuTensorMapEncodeIm2col" if isinstance(tensor, Pixels) else "cuTensorMapEncodeTiled"
    function = getattr(driver(), name, None)
    if function is None:
        raise RuntimeError(f"the CUDA driver has no {name}: it is older than CUDA 12")
    if isinstance(tensor, Pixels):
        corner = ctypes.c_int * (axes - 2)
        corners, box = (corner(*tensor.lower), corner(*tensor.upper)), tensor.box
        status = function(*common, *corners, *box, counts(*tensor.steps), *modes)
    else:
        every = counts(*(1,) * axes)
        status = function(*common, counts(*tensor.box), every, *modes)
    if status:
        raise RuntimeError(f"the CUDA driver does not encode {tensor}: error {status}")
    if _span(tensor) < _SMALL_BYTES and _driver_version() <= _LAST_TO_CORRECT:
        words[1] &= ~_WRONG_BIT
    return tuple(words.tolist())


def _span(tensor: Boxes | Pixels) -> int:
    """Bytes from the first element of an array to the end of the last one."""
    itemsize = ROW_BYTES // tensor.box[0]
    return itemsize + sum((n - 1) * step for n, step in zip(tensor.sizes, (itemsize, *tensor.strides), strict=True))
