"""Random problems over the whole argument space, with operands to match: what ``verify`` and the tests run.

Every problem is small enough for the reference to take a few milliseconds. The same generator state gives the same
problem and the same operands.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.problem import DATA_FORMATS, DTYPES, PADDING_MODES, PRECISIONS, WEIGHT_FORMATS, ConvProblem

Array = np.ndarray[Any, Any]

_MOST_MACS = 2_000_000
_MOST_TAPS = 200

# By number of spatial axes: kernel lengths, and input lengths beyond the least that gives one output.
_KERNELS = {1: (1, 2, 3, 4, 5, 7, 16, 31), 2: (1, 1, 2, 3, 3, 4, 5, 7, 11), 3: (1, 1, 2, 3, 3, 4)}
_EXTENTS = {1: (0, 1, 6, 13, 31, 97), 2: (0, 1, 4, 7, 12, 18, 30), 3: (0, 1, 2, 5, 8)}
_CHANNELS = (1, 1, 2, 3, 4, 5, 8, 13, 16, 17, 33)
_BATCHES = ((), (1,), (1,), (2,), (3,), (5,), (2, 3))


def random_problem(rng: np.random.Generator) -> ConvProblem:
    """Draw a problem: any op, number of axes, dtype, format, geometry and epilogue, never an empty one.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    ConvProblem

    Examples
    --------
    >>> a, b = (random_problem(np.random.default_rng(7)) for _ in range(2))
    >>> a == b and a.macs > 0
    True
    """
    while True:
        problem = _draw(rng)
        if 0 < problem.macs <= _MOST_MACS and math.prod(problem.kernel) <= _MOST_TAPS:
            return problem


def random_operands(problem: ConvProblem, rng: np.random.Generator) -> tuple[Array, Array, Array | None, Array | None]:
    """Draw the arrays that `problem` reads, in any memory layout; one time in ten the first holds NaN and infinities.

    Parameters
    ----------
    problem : ConvProblem
    rng : numpy.random.Generator

    Returns
    -------
    a, b : numpy.ndarray
        Of shapes ``problem.operand_shapes`` and the problem's dtype.
    bias : numpy.ndarray or None
        Contiguous, of the accumulator's dtype, as kernels take it.
    residual : numpy.ndarray or None
        Of the result's shape and dtype.
    """
    a_shape, b_shape = problem.operand_shapes
    a, b = (random_values(shape, problem.dtype, rng) for shape in (a_shape, b_shape))
    # Zero padding times an infinite weight is NaN by the definition, so only the padded operand may be non-finite; and
    # the products of complex infinities are not something on which implementations agree.
    if a.dtype.kind not in "iuc" and rng.random() < 0.1:
        where = rng.integers(a.size, size=3)
        a.reshape(-1)[where] = rng.choice([np.nan, np.inf, -np.inf], size=3)
    bias = residual = None
    if problem.bias:
        bias = random_values((problem.result_channels,), problem.accumulator_dtype, rng)
    if problem.residual:
        residual = random_layout(random_values(problem.result_shape, problem.result_dtype, rng), rng)
    return random_layout(a, rng), random_layout(b, rng), bias, residual


def random_values(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    """Normal deviates, or integers of a few units, so that no sum overflows."""
    if "int" in dtype:
        return rng.integers(0 if dtype.startswith("u") else -4, 5, size=shape).astype(dtype)
    values: Array = rng.standard_normal(shape)
    if dtype.startswith("complex"):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(named_dtype(dtype))


def random_layout(array: Any, rng: np.random.Generator) -> Any:
    """The same values in some other memory layout; works on NumPy and CuPy arrays."""
    layout = rng.choice(["contiguous", "spaced", "reversed", "transposed"])
    if layout == "spaced":
        return array.repeat(2, axis=-1)[..., ::2]
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * int(rng.integers(1, array.ndim + 1))
        return array[backwards].copy()[backwards]
    return array.T.copy().T if layout == "transposed" else array


def _draw(rng: np.random.Generator) -> ConvProblem:
    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    ndim = int(rng.integers(1, 4))
    op = pick("forward", "forward", "input_grad", "weight_grad")
    dtype = pick("float32", "float32", "float32", *(name for name in DTYPES if _available(name)))
    groups = pick(1, 1, 2, 3, 7)
    inner, outer = pick(*_CHANNELS), pick(*_CHANNELS)
    if rng.random() < 0.2:  # depthwise, with a multiplier
        groups, inner, outer = pick(*_CHANNELS), 1, pick(1, 1, 2, 3)
    common = rng.random() < 0.3  # 3 x 3 taps at stride 1, for which some algorithms are made
    axes = [_draw_axis(rng, ndim, op, common and ndim - axis <= 2) for axis in range(ndim)]
    kernel, size, stride, dilation, pads, extra = (tuple(column) for column in zip(*axes, strict=True))
    mode = pick("zeros", "zeros", *PADDING_MODES) if op != "input_grad" else "zeros"
    padding: Any = pads
    if rng.random() < 0.3:
        padding = pick("valid", "same", "same_lower", "full", *(("causal",) if ndim == 1 else ()))
        # Room for what "full" takes from a transposed convolution, and for reflecting a whole kernel.
        size = tuple(n + d * (k - 1) for n, d, k in zip(size, dilation, kernel, strict=True))
    elif mode in ("reflect", "circular"):
        most = [n - (mode == "reflect") for n in size]
        padding = tuple((min(lo, n), min(hi, n)) for (lo, hi), n in zip(pads, most, strict=True))
        size = tuple(
            max(n, d * (k - 1) + 1 - lo - hi) for n, d, k, (lo, hi) in zip(size, dilation, kernel, padding, strict=True)
        )
    data_format, weight_format = pick(*DATA_FORMATS[ndim]), pick(*WEIGHT_FORMATS[ndim])
    options: dict[str, Any] = {
        "dtype": dtype, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
        "data_format": data_format, "weight_format": weight_format, "flip_kernel": pick(False, False, True),
        "precision": pick("high", "high", *PRECISIONS), "residual": pick(False, False, True),
    }  # fmt: skip
    if op != "weight_grad":
        options |= {"bias": pick(False, True), "activation": pick(None, *_activations(dtype))}
    data = (inner if op != "input_grad" else outer) * groups
    x_shape = pick(*_BATCHES) + ((*size, data) if data_format == DATA_FORMATS[ndim][1] else (data, *size))
    letters = {"O": (outer * groups,), "I": (inner,), "*": kernel}
    w_shape = tuple(n for letter in _letters(weight_format) for n in letters[letter])
    if op == "input_grad":
        return ConvProblem.transposed(ndim, x_shape, w_shape, output_padding=extra, **options)
    return replace(ConvProblem.forward(ndim, x_shape, w_shape, padding_mode=mode, **options), op=op)


def _draw_axis(
    rng: np.random.Generator, ndim: int, op: str, common: bool
) -> tuple[int, int, int, int, tuple[int, int], int]:
    """Kernel, size, stride, dilation, (lo, hi) and output padding of one axis that has at least one output."""
    kernel = int(rng.choice(_KERNELS[ndim]))
    stride, dilation = int(rng.choice([1, 1, 1, 2, 3, 4])), int(rng.choice([1, 1, 1, 2, 3]))
    if common:
        kernel, stride = 3, 1
    reach, beyond = dilation * (kernel - 1) + 1, int(rng.choice(_EXTENTS[ndim]))
    if op == "input_grad":
        size = 1 + beyond
        spare = (size - 1) * stride + reach - 1
        lo = int(rng.integers(min(spare, reach) + 1))
        hi = int(rng.integers(min(spare - lo, reach) + 1))
        return kernel, size, stride, dilation, (lo, hi), int(rng.integers(max(stride, dilation)))
    lo, hi = (int(n) for n in rng.integers(reach + 1, size=2)) if rng.random() < 0.7 else (0, 0)
    return kernel, max(reach - lo - hi, 1) + beyond, stride, dilation, (lo, hi), 0


def _letters(weight_format: str) -> str:
    """``"OIHW"`` as ``"OI*"``: the order of output channels, input channels and the kernel."""
    return "".join(dict.fromkeys(letter if letter in "OI" else "*" for letter in weight_format))


def _activations(dtype: str) -> tuple[Any, ...]:
    if dtype.startswith("complex"):
        return ()
    bounded = ("relu", "relu6", (-1.0, 2.0))
    return bounded if "int" in dtype else (*bounded, "leaky_relu", "sigmoid", "tanh", "silu", "gelu")


def _available(dtype: str) -> bool:
    return dtype != "bfloat16" or importlib.util.find_spec("ml_dtypes") is not None
