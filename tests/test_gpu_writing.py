"""How tensor-core kernels write: in vectors where these lie together and aligned, else one by one; the same bits."""

import math

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler
from promise import assert_kept
from test_cuda_emulated import finite_operands, forward, weight_grad
from test_implicit_gemm_hopper import aligned

from fastconv.gpu import implicit_gemm, implicit_gemm_hopper, runtime, tiling, writing

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")

RECORDS = {
    "implicit_gemm": implicit_gemm.IMPLICIT_GEMM,
    "implicit_gemm_hopper": implicit_gemm_hopper.IMPLICIT_GEMM_HOPPER,
    "add_splits": implicit_gemm.IMPLICIT_GEMM,
}


class Recording(EmulatedRuntime):
    """Knows of each launch which kernel it was, and whether it wrote vectors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def launch(self, spec, grid, block, params):
        if spec.entry in RECORDS:
            self.seen.append((spec.entry, bool(params.view(RECORDS[spec.entry])["vectors"][0])))
        super().launch(spec, grid, block, params)


@pytest.fixture(scope="module", autouse=True)
def emulated():
    with runtime.use(Recording()) as emulated, np.errstate(all="ignore"):
        yield emulated


# -- where vectors lie ------------------------------------------------------------------------------------------------


def addresses(view, along):
    """Of all elements, in lines as the kernel counts along the axes `along`, the first fastest."""
    rest = [axis for axis in range(6) if axis not in along]
    offsets = np.tensordot(view.strides, np.indices(view.shape), 1)
    return offsets.transpose(*rest, *along[::-1]).reshape(-1, math.prod(view.shape[axis] for axis in along))


@pytest.mark.parametrize("itemsize", [2, 4])
def test_vectors_are_found_where_they_are_and_nowhere_else(itemsize):
    """Views cut out of arrays in any order of axes, against the addresses of their elements."""
    rng, found = np.random.default_rng(1), set()
    for _ in range(3000):
        shape = rng.choice([1, 2, 3, 4, 6, 8, 16], 6, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])
        order = rng.permutation(6)
        whole = aligned(np.zeros(shape[order] + rng.choice([0, 0, 0, 8, 3], 6), f"i{itemsize}"))
        view = whole[tuple(slice(n) for n in shape[order])].transpose(np.argsort(order))
        by_images = bool(rng.random() < 0.3)
        strides = tuple(stride // itemsize for stride in view.strides)
        by_channels, vectors = writing.direction(view.shape, strides, None, itemsize, by_images, False)
        if by_channels:
            assert vectors == writing.along_channels(view.shape, strides, None, itemsize)
        assert by_channels == (abs(view.strides[2]) < abs(view.strides[5]))
        along = (2,) if by_channels else (0,) if by_images else (5, 4, 3, 0)
        count = 16 // itemsize
        lines = addresses(view, along)
        there = lines.shape[1] % count == 0
        if there:
            first, *others = np.moveaxis(lines.reshape(-1, count), 1, 0)
            there = not (first % 16).any() and all((o - first == i * itemsize).all() for i, o in enumerate(others, 1))
        assert vectors == there, (view.shape, view.strides, by_images)
        found.add((by_channels, by_images, vectors))
    assert len(found) == 8


def test_what_is_added_must_lie_in_vectors_too():
    shape, strides = (2, 1, 16, 1, 4, 4), (256, 256, 16, 16, 4, 1)

    def direction(residual, shared=False):
        return writing.direction(shape, strides, residual, 2, False, shared)

    assert direction(None) == direction(strides) == direction(strides, shared=True) == (False, True)
    assert direction((0, *strides[1:])) == (False, True)  # the same image for all
    for residual in ((256, 256, 16, 16, 1, 4), (256, 256, 16, 16, 4, 0), (256, 256, 16, 16, 4, -1), (0,) * 6):
        assert direction(residual) == direction(residual, shared=True) == (False, False)
    assert writing.aligned(0, 16, 64) and not writing.aligned(16, 8)


# -- what is written there --------------------------------------------------------------------------------------------

# Which of a longer last axis is the result's.
SLICES = {
    "a vector on": lambda n: slice(8, 8 + n),
    "one element on": lambda n: slice(1, 1 + n),
    "every second": lambda n: slice(0, 2 * n, 2),
    "backwards": lambda n: slice(n + 7, 7, -1),
}

PROBLEMS = {
    "channels": (((2, 9, 16, 16), (24, 16, 3, 3), {"data_format": "NHWC"}), True),
    "odd channels": (((2, 9, 16, 16), (27, 16, 3, 3), {"data_format": "NHWC"}), False),
    "rows": (((2, 16, 9, 16), (27, 16, 3, 3), {}), True),
    "odd rows": (((2, 16, 9, 15), (24, 16, 3, 3), {}), False),
    "groups": (((2, 9, 16, 32), (48, 4, 3, 3), {"data_format": "NHWC", "groups": 8}), True),
}


def written(algorithm, problem, operands, emulated, where=None):
    """The result, in a longer last axis if `where` says in which part of it; and whether each launch wrote vectors."""
    *shape, n = problem.result_shape
    whole = aligned(np.full((*shape, n if where is None else 4 * n + 16), 77, problem.result_dtype))
    y = whole if where is None else whole[..., where(n)]
    a, b, bias, residual = (v if v is None else aligned(v) for v in operands)
    algorithm.apply(problem, a, b, y, bias, residual)  # what is new is checked first
    emulated.seen = []
    algorithm.apply(problem, a, b, y, bias, residual)
    result = y.copy()
    y[...] = 77
    assert (whole == 77).all(), "wrote outside of the result"
    return result, dict(emulated.seen)


def written_everywhere(algorithm, name, dtype, emulated):
    """The problem, its operands and its result, which is the same in every slice of a longer axis."""
    (x, w, options), fit = PROBLEMS[name]
    problem = forward(x, w, dtype=dtype, padding=1, bias=True, residual=True, activation="relu6", **options)
    operands = finite_operands(problem)
    plain, launches = written(algorithm, problem, operands, emulated)
    assert launches == {algorithm.name: fit}
    assert_kept(algorithm, problem, plain, *operands)
    for where, cut in SLICES.items():
        result, launches = written(algorithm, problem, operands, emulated, cut)
        assert launches == {algorithm.name: fit and where == "a vector on"}
        np.testing.assert_array_equal(result, plain)
    return problem, operands, plain


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_results_are_the_same_however_they_are_written(name, dtype, emulated):
    algorithm = implicit_gemm._ALGORITHM
    problem, operands, plain = written_everywhere(algorithm, name, dtype, emulated)
    # A bias, or a residual, that begins elsewhere.
    for index, layout in ((2, lambda v: np.concatenate([v[:1], v])[1:]), (3, lambda v: v.repeat(2, -1)[..., ::2])):
        moved = [layout(v) if i == index else v for i, v in enumerate(operands)]
        y, emulated.seen = np.empty(problem.result_shape, problem.result_dtype), []
        algorithm.apply(problem, moved[0], moved[1], y, *moved[2:])
        assert emulated.seen == [("implicit_gemm", False)]
        np.testing.assert_array_equal(y, plain)


@pytest.mark.parametrize("name", ["channels", "odd channels"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_results_on_hopper_are_the_same_however_they_are_written(monkeypatch, name, dtype, emulated):
    monkeypatch.setattr(implicit_gemm_hopper, "_TILES", implicit_gemm_hopper._TILES[-1:])
    written_everywhere(implicit_gemm_hopper._ALGORITHM, name, dtype, emulated)


LAST, ADDED = {"data_format": "NHWC"}, {"bias": True, "residual": True}
SHARED = {
    "channels": (forward, ((2, 9, 8, 16), (24, 16, 3, 3), LAST | ADDED), True),
    "rows": (forward, ((2, 16, 9, 8), (23, 16, 3, 3), ADDED), True),
    "odd rows": (forward, ((2, 16, 9, 7), (24, 16, 3, 3), ADDED), False),
    "taps": (weight_grad, ((2, 8, 9, 8), (24, 8, 3, 3), {}), True),
    "odd taps": (weight_grad, ((2, 3, 9, 8), (24, 3, 3, 3), {}), False),
    "taps, counted by channels": (weight_grad, ((2, 9, 8, 16), (24, 16, 3, 3), LAST), False),
    "channels of a weight": (weight_grad, ((2, 9, 8, 16), (24, 3, 3, 16), LAST | {"weight_format": "OHWI"}), True),
    "groups": (weight_grad, ((2, 32, 9, 8), (32, 4, 3, 3), {"groups": 8}), True),
    "groups of channels": (
        weight_grad, ((2, 9, 8, 32), (32, 3, 3, 4), LAST | {"groups": 8, "weight_format": "OHWI"}), True
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", SHARED)
def test_shared_sums_are_the_same_however_they_are_written(monkeypatch, name, dtype, emulated):
    monkeypatch.setattr(tiling, "_LEAST_STEPS", 1)
    make, (x, w, options), fit = SHARED[name]
    problem = make(x, w, dtype=dtype, padding=1, **options)
    operands, algorithm = finite_operands(problem), implicit_gemm.ImplicitGemm(tiling.Wish("64x64", 2))
    plain, launches = written(algorithm, problem, operands, emulated)
    assert launches == {"implicit_gemm": fit, "add_splits": fit}
    assert_kept(algorithm, problem, plain, *operands)
    result, launches = written(algorithm, problem, operands, emulated, SLICES["every second"])
    assert launches == {"implicit_gemm": False, "add_splits": False}
    np.testing.assert_array_equal(result, plain)
