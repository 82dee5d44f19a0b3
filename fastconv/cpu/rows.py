"""Rows into scratch memory and out of it: what every algorithm does with the caller's arrays.

Reading ends padding, strides and half types; writing applies bias, residual and activation. Rows whose elements lie
side by side take loops of their own, which LLVM vectorises.
"""

from __future__ import annotations

import numpy as np

from fastconv.cpu.elements import CLIP, activate, clip, load, resolve, store
from fastconv.cpu.jit import inline, intrinsic


@intrinsic
def _contiguous(typing_context, row):  # type: ignore[no-untyped-def]
    """The same row, known to the compiler to have no gaps: the caller has looked."""
    from numba.core.imputils import impl_ret_borrowed

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return impl_ret_borrowed(context, builder, signature.return_type, arguments[0])

    return row.copy(layout="C")(row), generate


@inline
def read_row(row, first, step, mode, half, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the elements ``first, first + step, …`` of a row that is padded without end on both sides."""
    # The first element inside the row, and the first past its end; divisions would cost more than a short row.
    before, after = -first, row.shape[0] - first
    if step > 1:
        before, after = (before + step - 1) // step, (after + step - 1) // step
    low = min(max(before, 0), out.shape[0])
    high = max(min(after, out.shape[0]), low)
    _read_padding(row, first, step, mode, half, out, 0, low)
    if step == 1 and row.strides[0] == row.itemsize:
        # Unsigned, lest Numba look for negative indices, which keeps LLVM from vectorising.
        inside, source, target = _contiguous(row), np.uintp(first + low), np.uintp(low)
        for i in range(np.uintp(high - low)):
            out[target + i] = load(inside[source + i], half)
    else:
        for i in range(low, high):
            out[i] = load(row[first + i * step], half)
    _read_padding(row, first, step, mode, half, out, high, out.shape[0])


@inline
def _read_padding(row, first, step, mode, half, out, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        source = resolve(first + i * step, row.shape[0], mode)
        if source >= 0:
            out[i] = load(row[source], half)
        else:
            out[i] = 0


@inline
def add_row(sums, row, half):  # type: ignore[no-untyped-def]
    """Add a row of the result's dtype to sums."""
    for j in range(sums.shape[0]):
        sums[j] += load(row[j], half)


@inline
def write_row(sums, added, activation, parameters, half, row):  # type: ignore[no-untyped-def]
    """Write ``act(sums + added)`` to a row of the result; the sums are used up."""
    if activation == 0:
        _store_row(sums, added, half, row)
        return
    for j in range(sums.shape[0]):
        sums[j] += added
    if activation == CLIP:
        for j in range(sums.shape[0]):
            sums[j] = clip(sums[j], parameters)
    else:
        for j in range(sums.shape[0]):
            sums[j] = activate(sums[j], activation, parameters)
    _store_row(sums, sums.dtype.type(0), half, row)


@inline
def _store_row(sums, added, half, row):  # type: ignore[no-untyped-def]
    if row.strides[0] == row.itemsize:
        target = _contiguous(row)
        for j in range(sums.shape[0]):
            store(target, j, sums[j] + added, half)
    else:
        for j in range(sums.shape[0]):
            store(row, j, sums[j] + added, half)
