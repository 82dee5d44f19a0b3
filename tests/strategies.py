"""Hypothesis strategies for whole problems, their operands and the memory layouts an operand may come in.

Everything shrinks towards one image, one channel, one tap, contiguous memory filled with ones.
"""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from fastconv.problem import DATA_FORMATS, DTYPES, OPS, PADDING_MODES, WEIGHT_FORMATS, Activation, ConvProblem

REAL_ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", (-1.5, 2))
INTEGER_ACTIVATIONS = (None, "relu", "relu6", (-100, 50))


def activations(dtype):
    """The `activation` arguments that a result of `dtype` takes."""
    if dtype.startswith("complex"):
        return (None,)
    return INTEGER_ACTIVATIONS if "int" in dtype else REAL_ACTIVATIONS


@st.composite
def problems(draw, ops=OPS, ndims=(1, 2, 3), dtypes=tuple(DTYPES), padding_modes=PADDING_MODES):
    """Any problem that a user can ask for, small enough for the reference to be quick."""
    op, ndim, dtype = (draw(st.sampled_from(choice)) for choice in (ops, ndims, dtypes))
    mode = "zeros" if op == "input_grad" else draw(st.sampled_from(padding_modes))
    channels = st.integers(1, 5) | st.sampled_from((8, 16, 17))
    groups, inner, outer = draw(st.tuples(st.integers(1, 4), channels, channels))
    # Half of them have the 3 x 3 taps at stride 1 that some algorithms are made for.
    common = draw(st.booleans())
    axes = [draw(axis_geometries(mode, common and ndim - axis <= 2)) for axis in range(ndim)]
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    problem = ConvProblem.forward(
        ndim,
        (*batch, groups * inner, *(axis["size"] for axis in axes)),
        (groups * outer, inner, *(axis["kernel"] for axis in axes)),
        groups=groups,
        dtype=dtype,
        padding_mode=mode,
        flip_kernel=draw(st.booleans()),
        precision=draw(st.sampled_from(("high", "fast"))),
        **{name: [axis[name] for axis in axes] for name in ("stride", "dilation", "padding")},
    )
    problem = dataclasses.replace(
        problem,
        op=op,
        channels_last=draw(st.booleans()),
        weight_order=draw(st.sampled_from(("OI*", "O*I", "*IO"))),
    )
    if op == "weight_grad":
        return problem
    if op == "input_grad":
        problem = dataclasses.replace(problem, size=draw(st.tuples(*map(larger_output_padding(problem), range(3)))))
    return dataclasses.replace(
        problem,
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=Activation.parse(draw(st.sampled_from(activations(dtype))), dtype),
    )


@st.composite
def axis_geometries(draw, mode, common=False):
    """Size, kernel, stride, dilation and padding of one axis on which at least one output fits."""
    kernel, stride = (3, 1) if common else draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    fits = dilation * (kernel - 1) + 1 - sum(padding)
    least = {"zeros": 1, "replicate": 1, "reflect": max(padding) + 1, "circular": max(padding)}[mode]
    size = max(fits, least, 1) + draw(st.integers(0, 8))
    return {"size": size, "kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}


def larger_output_padding(problem):
    """A strategy, per axis, for the sizes of the same input gradient with no less output padding."""

    def sizes(axis):
        reach = problem.dilation[axis] * (problem.kernel[axis] - 1) + 1
        covered = (problem.out_size[axis] - 1) * problem.stride[axis] + reach - sum(problem.padding[axis])
        largest = covered + max(problem.stride[axis], problem.dilation[axis]) - 1
        return st.integers(problem.size[axis], max(largest, problem.size[axis]))

    return sizes


def operands(problem):
    """A strategy for ``(a, b, bias, residual)``, contiguous; the absent ones are None."""
    return st.integers(0, 2**16).map(lambda seed: make_operands(problem, seed))


def make_operands(problem, seed=1):
    """Operands as every algorithm wants them: all ones for seed 0, else normal (integers: of any magnitude)."""
    rng = np.random.default_rng(seed)
    first, second = problem.operand_shapes
    return (
        filled(rng if seed else None, first, problem.dtype),
        filled(rng if seed else None, second, problem.dtype),
        filled(rng if seed else None, problem.result_channels, problem.accumulator_dtype) if problem.bias else None,
        filled(rng if seed else None, problem.result_shape, problem.result_dtype) if problem.residual else None,
    )


def numpy_dtype(name):
    """The dtype of that name, bfloat16 among them."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def filled(rng, shape, dtype):
    """An array of ones, or of random numbers where there is an `rng`."""
    dtype = numpy_dtype(dtype)
    if rng is None:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


LAYOUTS = ("contiguous", "reversed", "sliced", "fortran", "broadcast", "unaligned", "read-only")


def laid_out(array, layout):
    """An array equal to `array` in another place in memory; "broadcast" keeps only its first row along each axis."""
    if layout == "broadcast":
        return np.broadcast_to(array[(slice(0, 1),) * array.ndim], array.shape)
    copy = empty(array.shape, array.dtype, layout)
    copy[...] = array
    copy.flags.writeable = layout != "read-only"
    return copy


def empty(shape, dtype, layout):
    """An uninitialised array of that layout."""
    if layout == "reversed":
        return np.empty(shape, dtype)[(slice(None, None, -1),) * len(shape)]
    if layout == "sliced":
        return np.empty([2 * n + 1 for n in shape], dtype)[(slice(1, None, 2),) * len(shape)]
    if layout == "fortran":
        return np.empty(shape, dtype, order="F")
    if layout == "unaligned":
        size = np.prod(shape, dtype=int) * dtype.itemsize
        return np.empty(size + 1, np.uint8)[1:].view(dtype).reshape(shape)
    return np.empty(shape, dtype)


def public_call(problem):
    """The public function that computes `problem`, by name, and its keyword arguments but for the arrays."""
    p = problem
    at = 3 - p.ndim
    arguments = {
        "stride": p.stride[at:],
        "padding": p.padding[at:],
        "dilation": p.dilation[at:],
        "groups": p.groups,
        "data_format": DATA_FORMATS[p.ndim][p.channels_last],
        "weight_format": WEIGHT_FORMATS[p.ndim][("OI*", "O*I", "*IO").index(p.weight_order)],
        "activation": {"none": None, "clip": (p.activation.a, p.activation.b)}.get(
            p.activation.kind, p.activation.kind
        ),
        "flip_kernel": p.flip_kernel,
        "precision": p.precision,
    }
    if p.op == "forward":
        return f"conv{p.ndim}d", arguments | {"padding_mode": p.padding_mode}
    least = [
        (p.out_size[i] - 1) * p.stride[i] - sum(p.padding[i]) + p.dilation[i] * (p.kernel[i] - 1) + 1 for i in range(3)
    ]
    return f"conv_transpose{p.ndim}d", arguments | {"output_padding": [p.size[i] - least[i] for i in range(at, 3)]}
