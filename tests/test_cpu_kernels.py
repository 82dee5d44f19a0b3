"""Every CPU algorithm of the registry, on every problem it takes, against the reference and its own promise."""

import dataclasses
import math

import numpy as np
import pytest
from guarded import guarded_scratch, scratch_is_kept_to  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from promise import assert_kept
from strategies import LAYOUTS, activations, empty, laid_out, make_operands, numpy_dtype, operands, problems

from fastconv.cpu.costs import REFERENCE_FLOPS
from fastconv.machine import Machine, cpu
from fastconv.problem import DTYPES, OPS, PADDING_MODES, Activation, ConvProblem
from fastconv.reference import reference
from fastconv.registry import UNIT_ROUNDOFF, algorithms

each_algorithm = pytest.mark.parametrize("algorithm", algorithms("cpu"), ids=lambda a: a.name)
# The public functions mend what is not aligned; kernels do not see it.
KERNEL_LAYOUTS = [layout for layout in LAYOUTS if layout != "unaligned"]


def run(algorithm, problem, a, b, bias=None, residual=None, **options):
    skip_if_declined(algorithm, problem)
    out = np.empty(problem.result_shape, numpy_dtype(problem.result_dtype))
    algorithm.apply(problem, a, b, out, bias, residual, **options)
    return out


def check(algorithm, problem, a, b, bias=None, residual=None, **options):
    """Hold the algorithm's result to its promise."""
    result = run(algorithm, problem, a, b, bias, residual, **options)
    assert_kept(algorithm, problem, result, a, b, bias, residual)


def skip_if_declined(algorithm, problem):
    reason = algorithm.why_not(problem)
    if reason is not None:
        pytest.skip(reason)


# -- the whole argument space -----------------------------------------------------------------------------------------


@each_algorithm
@settings(max_examples=300)
@given(data=st.data())
def test_any_problem(algorithm, data):
    p = data.draw(problems())
    if algorithm.why_not(p) is not None:
        return
    a, b, bias, residual = data.draw(operands(p))
    a, b = (laid_out(array, data.draw(st.sampled_from(KERNEL_LAYOUTS))) for array in (a, b))
    if residual is not None:
        residual = laid_out(residual, data.draw(st.sampled_from(KERNEL_LAYOUTS)))
    check(algorithm, p, a, b, bias, residual)


@each_algorithm
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_dtype_and_op(algorithm, dtype, op):
    p = ConvProblem.forward(
        2, (2, 6, 13, 11), (4, 3, 3, 2), dtype=dtype, stride=2, padding=((1, 2), (0, 1)), groups=2, dilation=(1, 2)
    )
    p = dataclasses.replace(p, op=op)
    check(algorithm, p, *make_operands(p))


@each_algorithm
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("op", ["forward", "weight_grad"])
def test_every_padding_mode_as_far_as_it_reaches(algorithm, mode, op):
    p = ConvProblem.forward(
        3, (2, 2, 4, 5, 6), (3, 2, 2, 3, 3), padding=((3, 2), (4, 4), (0, 5)), padding_mode=mode, stride=(1, 2, 3)
    )
    p = dataclasses.replace(p, op=op)
    check(algorithm, p, *make_operands(p))


@each_algorithm
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(dtype, a) for dtype in ("float32", "float64", "float16", "bfloat16", "int16") for a in activations(dtype)],
)
def test_every_activation(algorithm, dtype, activation):
    for transposed in (False, True):
        build = ConvProblem.transposed if transposed else ConvProblem.forward
        p = build(2, (2, 4, 9, 8), (4, 4, 3, 3), dtype=dtype, stride=2, bias=True, residual=True, activation=activation)
        skip_if_declined(algorithm, p)
        check(algorithm, p, *make_operands(p))


@each_algorithm
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "silu", "gelu", "leaky_relu", (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_activations_of_large_values(algorithm, activation, dtype):
    """Where exp overflows and erf is 1, the limits are exact, not NaN."""
    p = ConvProblem.forward(1, (1, 1, 4), (1, 1, 1), dtype=dtype, activation=activation)
    check(algorithm, p, np.array([[[-60000, -200, 200, 60000]]], dtype), np.ones((1, 1, 1), dtype))


@each_algorithm
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_results_are_rounded_to_nearest_even(algorithm, dtype):
    """A product of two half numbers is exact in single precision, so the result is its rounding, bit for bit."""
    bits = np.arange(0, 1 << 16, 37, dtype=np.uint16)  # zeros, subnormals, infinities and NaN among them
    x, w = bits.view(numpy_dtype(dtype)).reshape(1, 1, -1), np.array([1.1, -0.3, 1e-4]).astype(numpy_dtype(dtype))
    p = ConvProblem.forward(1, x.shape, (3, 1, 1), dtype=dtype)
    if any(algorithm.spread(p)):
        pytest.skip("the products of a transform are not exact")
    with np.errstate(all="ignore"):
        product = x.astype(np.float32) * w.astype(np.float32)[None, :, None]
        exact = (np.float32(0) + product).astype(x.dtype)  # sums begin with a positive zero
    result = run(algorithm, p, x, w.reshape(3, 1, 1))
    nan = np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(result), nan)
    np.testing.assert_array_equal(result[~nan].view(np.uint16), exact[~nan].view(np.uint16))


# -- geometries at the edge -------------------------------------------------------------------------------------------

GEOMETRIES = {
    "kernel larger than the input": ((1, 2, 3, 2), (3, 2, 7, 5), {"padding": (2, 3)}),
    "kernel larger than the input, reflected": ((1, 2, 5, 5), (3, 2, 9, 9), {"padding": 4, "padding_mode": "reflect"}),
    "stride past the end": ((2, 3, 5, 7), (4, 3, 2, 3), {"stride": (9, 11)}),
    "stride longer than the kernel": ((2, 3, 20, 23), (4, 3, 2, 2), {"stride": (5, 4), "padding": 3}),
    "one pixel in": ((2, 5, 1, 1), (7, 5, 1, 1), {}),
    "one pixel out": ((2, 5, 6, 4), (7, 5, 6, 4), {}),
    "windows that see padding only": ((1, 2, 2, 3), (2, 2, 2, 2), {"padding": 5}),
    "dilated past the input": ((1, 2, 4, 4), (2, 2, 3, 3), {"dilation": 5, "padding": 9}),
    "prime sizes": ((3, 7, 31, 29), (11, 7, 5, 3), {"stride": (3, 2), "padding": (2, 1), "dilation": (2, 3)}),
    "stride and dilation share a factor": ((1, 2, 33, 30), (3, 2, 3, 4), {"stride": (4, 6), "dilation": (6, 4)}),
    "long rows": ((1, 2, 2, 2500), (3, 2, 2, 5), {"padding": 2}),
    "long strided rows": ((1, 2, 2, 5003), (3, 2, 1, 7), {"stride": (1, 3), "padding": (0, 4), "dilation": (1, 2)}),
    "long rows round the circle": ((1, 1, 1, 2100), (2, 1, 1, 9), {"padding": (0, 8), "padding_mode": "circular"}),
    "tall columns": ((1, 2, 3000, 2), (3, 2, 5, 2), {"padding": 2, "stride": (2, 1)}),
    "many input channels": ((1, 700, 9, 9), (5, 700, 3, 3), {"padding": 1}),
    "many output channels": ((1, 5, 9, 9), (300, 5, 3, 3), {"padding": 1}),
    "many channels, long rows": ((1, 80, 3, 1100), (40, 80, 3, 3), {"padding": 1}),
    "many images": ((70, 2, 5, 5), (3, 2, 3, 3), {}),
    "depthwise": ((2, 37, 12, 13), (37, 1, 3, 3), {"groups": 37, "padding": 1}),
    "depthwise with a multiplier": ((2, 9, 12, 13), (27, 1, 3, 5), {"groups": 9, "padding": (1, 2), "stride": 2}),
    "grouped": ((2, 40, 9, 9), (60, 10, 3, 3), {"groups": 4, "padding": 1}),
    "pointwise": ((2, 33, 17, 19), (65, 33, 1, 1), {}),
    "pointwise, strided": ((2, 33, 17, 19), (65, 33, 1, 1), {"stride": 2}),
    "large kernel": ((1, 2, 40, 40), (2, 2, 31, 29), {"padding": "same"}),
    "long signal, long kernel": ((1, 1, 4001), (2, 1, 257), {"padding": "causal"}),
    "dilated causal": ((1, 3, 2000), (4, 3, 2), {"padding": "causal", "dilation": 512}),
    "volume": ((1, 3, 7, 11, 13), (5, 3, 3, 2, 3), {"stride": (1, 2, 2), "padding": 1, "dilation": (2, 1, 1)}),
    "other strides along each axis": ((2, 9, 7, 8, 19), (9, 1, 3, 2, 4), {"stride": (2, 3, 4), "groups": 9}),
    "deep volume": ((1, 2, 40, 3, 3), (3, 2, 7, 1, 1), {"padding": (3, 0, 0)}),
}


@each_algorithm
@pytest.mark.parametrize(
    ("op", "name"),
    # A transposed convolution pads with zeros only.
    [
        (op, name)
        for name in GEOMETRIES
        for op in OPS
        if op != "input_grad" or "padding_mode" not in GEOMETRIES[name][2]
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_geometry(algorithm, op, name, channels_last):
    x, w, arguments = GEOMETRIES[name]
    p = dataclasses.replace(ConvProblem.forward(len(x) - 2, x, w, **arguments), op=op, channels_last=channels_last)
    check(algorithm, p, *make_operands(p))


@each_algorithm
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("weight_order", ["OI*", "O*I", "*IO"])
@pytest.mark.parametrize("op", OPS)
def test_every_format(algorithm, channels_last, weight_order, op):
    p = ConvProblem.forward(2, (3, 8, 10, 9), (6, 4, 3, 3), groups=2, padding=1, stride=2, flip_kernel=True)
    p = dataclasses.replace(p, op=op, channels_last=channels_last, weight_order=weight_order)
    check(algorithm, p, *make_operands(p))


@each_algorithm
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("x", "w", "groups"),
    [
        ((0, 4, 6), (6, 2, 3), 2),
        ((3, 0, 4, 6), (6, 2, 3), 2),
        ((2, 0, 6), (6, 0, 3), 2),
        ((2, 4, 6), (0, 2, 3), 2),
        ((2, 4, 0), (6, 2, 3), 2),
        ((0, 0, 0), (0, 0, 3), 1),
    ],
)
def test_nothing_in_nothing_out(algorithm, op, x, w, groups):
    """No products leave the bias: zeros only where nothing is added."""
    p = dataclasses.replace(ConvProblem.forward(1, x, w, groups=groups), op=op, bias=op != "weight_grad")
    a, b, bias, _ = make_operands(p)
    np.testing.assert_array_equal(run(algorithm, p, a, b, bias), reference(p, a, b, bias))


# -- memory -----------------------------------------------------------------------------------------------------------


@each_algorithm
@settings(max_examples=60)
@given(data=st.data())
def test_only_the_result_is_written(algorithm, data):
    """The result is a view into a larger buffer, whose every other byte must keep its value; so must the inputs'."""
    p = data.draw(problems(dtypes=("float32", "float16", "int8")))
    # With several batch axes such a view cannot be seen as one batch; the public functions see to that.
    p = dataclasses.replace(p, batch_shape=p.batch_shape[:1])
    if algorithm.why_not(p) is not None:
        return
    arrays = data.draw(operands(p))
    before = [None if array is None else array.copy() for array in arrays]
    dtype = numpy_dtype(p.result_dtype)
    buffer = np.frombuffer(b"\xa5" * (math.prod(n + 2 for n in p.result_shape) * dtype.itemsize), np.uint8).copy()
    buffer = buffer.view(dtype).reshape([n + 2 for n in p.result_shape])
    inside = (slice(1, -1),) * buffer.ndim
    algorithm.apply(p, arrays[0], arrays[1], buffer[inside], *arrays[2:])
    assert_kept(algorithm, p, buffer[inside].copy(), *arrays)
    buffer[inside] = np.frombuffer(b"\xa5" * dtype.itemsize, dtype)[0]
    assert (buffer.view(np.uint8) == 0xA5).all()
    for array, copy in zip(arrays, before, strict=True):
        assert array is None or array.tobytes() == copy.tobytes()


@each_algorithm
@pytest.mark.parametrize("layout", ["contiguous", "reversed", "sliced", "fortran"])
@pytest.mark.parametrize("op", OPS)
def test_results_of_any_strides(algorithm, op, layout):
    p = ConvProblem.forward(2, (2, 4, 9, 8), (6, 2, 3, 3), groups=2, stride=2, padding=1)
    p = dataclasses.replace(p, op=op)
    a, b, _, _ = make_operands(p)
    expected, out = run(algorithm, p, a, b), empty(p.result_shape, np.dtype(np.float32), layout)
    algorithm.apply(p, a, b, out)
    np.testing.assert_array_equal(out, expected)


@each_algorithm
@pytest.mark.parametrize("name", ["many channels, long rows", "large kernel", "many input channels"])
@pytest.mark.parametrize("op", OPS)
def test_workspace_stays_within_its_limit(algorithm, name, op):
    x, w, arguments = GEOMETRIES[name]
    p = dataclasses.replace(ConvProblem.forward(2, x, w, **arguments), op=op)
    check(algorithm, p, *make_operands(p), workspace_limit=1 << 20)
    assert algorithm.workspace_bytes(p, 64 << 20) <= 64 << 20


# -- NaN and infinity -------------------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.filterwarnings("error")
@settings(max_examples=150)
@given(data=st.data())
def test_non_finite_values_stay_in_their_receptive_field(algorithm, data):
    p = data.draw(problems(ops=("forward", "input_grad"), dtypes=list(UNIT_ROUNDOFF)))
    p = dataclasses.replace(p, activation=Activation("none"))
    if algorithm.why_not(p) is not None:
        return
    a, b, bias, residual = data.draw(operands(p))
    a.flat[data.draw(st.integers(0, a.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    result = run(algorithm, p, a, b, bias, residual)  # without a warning: NaN and infinity are data
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(reference(p, a, b, bias, residual)))
        if not p.dtype.startswith("complex"):  # where it is not agreed which part of an infinite product is NaN
            assert_kept(algorithm, p, result, a, b, bias, residual)


@each_algorithm
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", (-1, 1)])
def test_activations_pass_nan_on(algorithm, activation):
    p = ConvProblem.forward(1, (1, 1, 3), (1, 1, 1), activation=activation)
    result = run(algorithm, p, np.float32([[[np.nan, 1, np.nan]]]), np.ones((1, 1, 1), np.float32))
    np.testing.assert_array_equal(np.isnan(result), [[[True, False, True]]])


# -- integers ---------------------------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers_wrap_before_they_are_clipped(algorithm, dtype):
    accumulator = np.iinfo(DTYPES[dtype][1])
    p = ConvProblem.forward(1, (1, 1, 2), (1, 1, 1), dtype=dtype, bias=True, activation="relu")
    skip_if_declined(algorithm, p)
    bias = np.array([accumulator.max], accumulator.dtype)
    result = run(algorithm, p, np.array([[[0, 1]]], dtype), np.ones((1, 1, 1), dtype), bias)
    np.testing.assert_array_equal(result, [[[accumulator.max, 0]]])


# -- the registry's promises ------------------------------------------------------------------------------------------


@each_algorithm
@given(p=problems())
def test_reasons_costs_and_tolerances_are_usable(algorithm, p):
    reason = algorithm.why_not(p)
    if reason is not None:
        assert isinstance(reason, str)
        assert reason
        return
    assert algorithm.cost(p, cpu()) > 0
    assert algorithm.pack_cost(p, cpu()) > 0
    assert 0 <= algorithm.workspace_bytes(p, 64 << 20) <= 64 << 20
    tolerance = algorithm.tolerance(p)
    assert tolerance == 0 if "int" in p.dtype else 0 < tolerance < 0.1


@each_algorithm
@pytest.mark.parametrize("part", ["running", "packing"])
def test_cost_models_count_what_can_be_fitted(algorithm, part):
    """Each kind of work has a rate, and cores share it at best evenly."""
    model = getattr(algorithm, part)
    p = ConvProblem.forward(2, (4, 64, 32, 32), (64, 64, 3, 3), padding=1, flip_kernel=True)
    skip_if_declined(algorithm, p)
    one, two = (model.counts(p, Machine(cores, cores * REFERENCE_FLOPS)) for cores in (1, 2))
    assert set(one) == set(model.rates)
    assert all(one[kind] / 2 <= two[kind] <= one[kind] for kind in model.rates)
    assert sum(one.values()) > 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_algorithm_takes_every_problem(op, dtype):
    p = ConvProblem.forward(2, (1, 2, 5, 5), (2, 1, 3, 3), dtype=dtype, groups=2)
    assert any(a.why_not(dataclasses.replace(p, op=op)) is None for a in algorithms("cpu"))
