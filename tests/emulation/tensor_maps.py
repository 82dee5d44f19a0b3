"""Tensor maps for the emulated copy engine, held to what the CUDA driver asks of them."""

import numpy as np

from fastconv.gpu.tensor_maps import Pixels

_MAGIC = 0x74656E736F72  # as in hopper_operations.h
_ITEMSIZES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


def parameters(tensor):
    """`struct Map` of hopper_operations.h; ValueError where the driver would refuse (CUDA Driver API, "Tensor Map")."""
    axes, itemsize, im2col = len(tensor.sizes), _ITEMSIZES[tensor.dtype], isinstance(tensor, Pixels)
    spatial = axes - 2
    lower, upper, steps = (tensor.lower, tensor.upper, tensor.steps) if im2col else ((), (), (1,) * axes)
    corner = {1: 1 << 15, 2: 1 << 7, 3: 1 << 4}[spatial]
    edges = [size + high - 1 for size, high in zip(tensor.sizes[1:], upper, strict=False)]
    wrong = {
        "axes": not 3 <= axes <= 5,
        "address": tensor.address % 16,
        "sizes": not all(0 < size <= 1 << 32 for size in tensor.sizes),
        "strides": len(tensor.strides) != axes - 1 or any(s <= 0 or s % 16 or s >= 1 << 40 for s in tensor.strides),
        "corners": not all(-corner <= c < corner for c in (*lower, *upper))
        or (len(lower), len(upper)) not in {(0, 0), (spatial, spatial)},
        "area": any(low > high for low, high in zip(lower, edges, strict=False)),
        "steps": len(steps) != axes or not all(1 <= step <= 8 for step in steps),
        "box": len(tensor.box) != (2 if im2col else axes) or not all(1 <= n <= 256 for n in tensor.box),
        "row": tensor.box[0] * itemsize != 128,  # or less; but here it is all of it
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"the driver refuses the {what} of {tensor}")

    def five(values, length=5):
        return [*values, *(0,) * (length - len(values))]

    return np.array(
        [_MAGIC, im2col, axes, itemsize, tensor.address, *five(tensor.sizes), *five((itemsize, *tensor.strides)),
         *five(steps), *five(tensor.box), *five(lower, 3), *five(upper, 3)], np.int64
    )  # fmt: skip
