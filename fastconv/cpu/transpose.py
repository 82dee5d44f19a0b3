"""Square blocks transposed in registers, written in LLVM IR: from channels in a vector to pixels, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from fastconv.cpu.jit import intrinsic
from fastconv.machine import vector_bytes

_INDEX = ir.IntType(64)


@intrinsic
def transpose_block(typing_context, source, source_at, source_pitch, target, target_at, target_pitch):  # type: ignore[no-untyped-def]
    """``target[j, i] = source[i, j]`` for i and j below the number of elements in a vector.

    Rows lie a pitch apart from an element of a flat array on. In step s of log2 of that number, each pair of rows that
    lie s apart swaps its off-diagonal blocks of s by s (Eklundh, IEEE Trans. Comput. C-21, 1972).
    """
    from numba import types

    signature = types.void(source, source_at, source_pitch, target, target_at, target_pitch)
    lanes = vector_bytes() // np.dtype(str(source.dtype)).itemsize

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = context.get_value_type(signature.args[0].dtype)
        vector, align = ir.VectorType(number, lanes), np.dtype(str(source.dtype)).itemsize

        def rows(k: int) -> list[Any]:
            data = context.make_array(signature.args[k])(context, builder, arguments[k]).data
            steps = [builder.mul(arguments[k + 2], _INDEX(i)) for i in range(lanes)]
            places = (builder.gep(data, [builder.add(arguments[k + 1], step)]) for step in steps)
            return [builder.bitcast(place, vector.as_pointer()) for place in places]

        values = [builder.load(row, align=align) for row in rows(0)]
        step = 1
        while step < lanes:
            low = [j if j & step == 0 else lanes + j - step for j in range(lanes)]
            high = [j + step if j & step == 0 else lanes + j for j in range(lanes)]
            for i in range(lanes):
                if i & step == 0:
                    pair = values[i], values[i + step]
                    values[i], values[i + step] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), lanes), order))
                        for order in (low, high)
                    )
            step *= 2
        for row, value in zip(rows(3), values, strict=True):
            builder.store(value, row, align=align)
        return context.get_dummy_value()

    return signature, generate
