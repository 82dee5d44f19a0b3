"""Rows are copied, added, split and woven whatever their length, and nothing beside their places is touched."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.cpu.copying import SPLITS, add_planes, copy_planes, gather_planes, split_planes, weave_planes
from fastconv.cpu.jit import Kernel, array, integer

LONGEST = 70


def _copy(out, a, length, parts):  # type: ignore[no-untyped-def]
    copy_planes(out[0], 1, 0, 0, a, 0, 0, 0, 1, 1, length)


def _add(out, a, length, parts):  # type: ignore[no-untyped-def]
    add_planes(out[0], 1, 0, 0, a, 0, 0, 0, 1, parts, length)


def _gather(out, a, length, parts):  # type: ignore[no-untyped-def]
    gather_planes(out[0], 1, 0, 0, a, 0, 0, 0, parts * a.itemsize, 1, 1, length)


def _split(out, a, length, parts):  # type: ignore[no-untyped-def]
    split_planes(out[0], 1, out.shape[1], 0, 0, a, 0, 0, 0, 1, 1, length, parts, 0)


def _weave(out, a, length, parts):  # type: ignore[no-untyped-def]
    weave_planes(out[0], 1, 0, 0, a, 0, LONGEST * a.itemsize, 0, 0, 1, 1, length, parts)


def _expected(function, a, length: int, parts: int):
    """What is written to each row of the result."""
    if function is _add:  # to rows of -1
        return [a[:length] * parts - 1]
    if function is _copy:
        return [a[:length]]
    if function is _gather:
        return [a[: length * parts : parts]]
    if function is _split:
        return [a[part:length:parts] for part in range(parts)]
    return [a.reshape(-1, LONGEST)[:parts].T.ravel()[:length]]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
@pytest.mark.parametrize("function", [_copy, _add, _gather, _split, _weave])
def test_rows_of_any_length(function, dtype) -> None:
    result = array(np.dtype(dtype), 2, contiguous=True, readonly=False)
    run = Kernel(function).compile(result, array(np.dtype(dtype), 1, contiguous=True), integer, integer)
    a = np.arange(4 * LONGEST).astype(dtype)
    for parts in SPLITS:
        for length in range(LONGEST):
            out = np.full((4, LONGEST + 2), -1, dtype)
            wanted = out.copy()
            for row, values in zip(wanted, _expected(function, a, length, parts), strict=False):
                row[1 : 1 + len(values)] = values
            run(out, a, length, parts)
            np.testing.assert_array_equal(out, wanted, err_msg=f"{length} elements, {parts} parts")
