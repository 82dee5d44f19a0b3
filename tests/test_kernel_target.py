"""What kernels are written in means on their own target what it means in Python."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.cpu.jit import Kernel, array, integer


def _loops(out, i, j):  # type: ignore[no-untyped-def]
    for k in range(j):
        out[0] = 10 * out[0] + k
    for k in range(2, j):
        out[1] = 10 * out[1] + k
    for k in range(i, 9, 3):
        out[2] = 10 * out[2] + k
    for k in range(j, -1, -2):
        out[3] = 10 * out[3] + k
    for k in range(j, i):
        out[4] = k
    for k in range(i, j, -1):
        out[5] = k


def _integers(out, i, j):  # type: ignore[no-untyped-def]
    out[0], out[1] = min(i, j), max(i, j, 4)
    at = 2
    for a in (7, -7, 6, -6, 0):
        for b in (i, -i, j, -j):
            out[at], out[at + 1], (out[at + 2], out[at + 3]) = a // b, a % b, divmod(a, b)
            at += 4


def _bounds(out, i, j):  # type: ignore[no-untyped-def]
    out[0], out[1] = out[-1], out[-j]
    at = 2
    for low in (-200, -i, 0, i, 200):
        out[at], out[at + 1] = out[low:].shape[0], out[:low].shape[0]
        at += 2
        for high in (-200, -j, 0, j, 200):
            part = out[low:high]
            out[at] = part.shape[0]
            out[at + 1] = part.size
            at += 2


@pytest.mark.parametrize("function", [_loops, _integers, _bounds])
def test_integers(function) -> None:
    out, expected = np.arange(100, dtype=np.int64), np.arange(100, dtype=np.int64)
    Kernel(function).compile(array(out.dtype, 1, contiguous=True, readonly=False), integer, integer)(out, 3, 5)
    function(expected, 3, 5)
    np.testing.assert_array_equal(out, expected)


def _views(out, a, i, j):  # type: ignore[no-untyped-def]
    inner, row, columns = a[i, 1:3, :, j], a[i], a[:, i, 2]
    out[0], out[1], out[2] = inner.shape[0], inner.shape[1], inner[1, 2]
    out[3], out[4], out[5] = row[1, 2, 0], columns[1, j], columns.strides[0]
    out[6], out[7], out[8] = a[1, 2, 0, -1], a[0, 0, :, 1:][1, 0], a[0, 0, ::2, 1][1]
    out[9], out[10] = inner.size, a[1:, -1:, j - 2 :].size
    out[11], out[12] = min(out[0], out[2]), max(a[0, 0, 0, 1], a[1, 0, 0, 0])


@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_arrays(order: str) -> None:
    a = np.arange(120, dtype=np.float32).reshape(2, 4, 3, 5)
    a = a[::-1, :, ::-1] if order == "reversed" else np.asarray(a, order=order)  # type: ignore[call-overload]
    out, expected = np.zeros(13, np.float32), np.zeros(13, np.float32)
    target = array(out.dtype, 1, contiguous=True, readonly=False)
    Kernel(_views).compile(target, array(a.dtype, 4, contiguous=order == "C"), integer, integer)(out, a, 1, 3)
    _views(expected, a, 1, 3)
    np.testing.assert_array_equal(out, expected)


def _quotients(out, i, j):  # type: ignore[no-untyped-def]
    out[0], out[1] = i // j, i % j


def test_division_by_zero_does_not_trap() -> None:
    out = np.zeros(2, np.int64)
    Kernel(_quotients).compile(array(out.dtype, 1, contiguous=True, readonly=False), integer, integer)(out, 7, 0)
    assert out.tolist() == [7, 0]
