"""What is particular to depthwise: memory that is not there, tails, runs of taps, other vector widths."""

import ctypes
import dataclasses
import itertools
import mmap
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from strategies import filled, make_operands, numpy_dtype

from fastconv.accuracy import error
from fastconv.problem import OPS, ConvProblem
from fastconv.registry import algorithms

DEPTHWISE = next(a for a in algorithms("cpu") if a.name == "depthwise")


def check(p, a, b, out, bias=None, residual=None):
    """Hold the result in `out` to the promise."""
    DEPTHWISE.apply(p, a, b, out, bias, residual)
    assert error(p, out, a, b, bias, residual) <= DEPTHWISE.tolerance(p)


# -- memory that is not there -----------------------------------------------------------------------------------------


class Guarded:
    """Arrays that begin where a page begins or end where one ends, between two pages that must not be touched."""

    def __init__(self):
        self.maps = []

    def place(self, array, at_end):
        page = mmap.PAGESIZE
        inner = -(-max(array.nbytes, 1) // page) * page
        area = mmap.mmap(-1, inner + 2 * page)
        self.maps.append(area)
        start = np.frombuffer(area, np.uint8).ctypes.data
        for guard in (start, start + page + inner):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
        first = page + (inner - array.nbytes if at_end else 0)
        copy = np.frombuffer(area, array.dtype, array.size, first).reshape(array.shape)
        copy[...] = array
        return copy


GUARDED = {
    "rows shorter than a vector": ((1, 3, 7, 7), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    "one vector and a tail": ((2, 3, 14, 14), (3, 1, 5, 5), {"padding": 2, "groups": 3}),
    "whole vectors": ((1, 5, 16, 32), (5, 1, 3, 3), {"padding": 1, "groups": 5}),
    "nothing padded": ((1, 2, 17, 19), (2, 1, 7, 7), {"groups": 2}),
    "stride 2": ((1, 3, 15, 29), (3, 1, 3, 3), {"padding": 1, "groups": 3, "stride": 2}),
    "stride 4": ((1, 3, 15, 29), (3, 1, 3, 5), {"padding": 1, "groups": 3, "stride": 4}),
    "stride 3": ((1, 3, 15, 29), (3, 1, 3, 3), {"padding": 1, "groups": 3, "stride": 3}),
    "stride 2, read in place": ((1, 32, 35, 9), (32, 1, 3, 3), {"groups": 32, "stride": 2}),
    "stride 2, a frame staged": ((1, 32, 47, 9), (32, 1, 3, 3), {"padding": 1, "groups": 32, "stride": 2}),
    "dilated": ((1, 3, 15, 13), (3, 1, 3, 3), {"padding": 2, "groups": 3, "dilation": 2}),
    "one row": ((1, 3, 61), (3, 1, 31), {"padding": 15, "groups": 3}),
    "longer than a task": ((1, 2, 2503), (2, 1, 4), {"padding": 3, "groups": 2}),
    "a volume": ((1, 3, 4, 9, 11), (3, 1, 3, 3, 3), {"padding": 1, "groups": 3}),
    "a multiplier": ((1, 3, 9, 11), (6, 1, 3, 3), {"padding": 1, "groups": 3}),
    "grouped": ((1, 8, 9, 11), (8, 4, 3, 3), {"padding": 1, "groups": 2}),
    "pairs": ((2, 26, 9, 11), (26, 2, 3, 3), {"padding": 1, "groups": 13, "stride": 2}),
    "fours in a volume": ((1, 12, 4, 9, 11), (12, 4, 2, 3, 3), {"padding": 1, "groups": 3}),
    "one pixel": ((1, 3, 1, 1), (3, 1, 1, 1), {"groups": 3}),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def test_nothing_is_touched_beyond_an_array(name, channels_last, at_end):
    x, w, arguments = GUARDED[name]
    forward = ConvProblem.forward(len(x) - 2, x, w, **arguments)
    for op, residual in itertools.product(OPS, (False, True)):
        guarded = Guarded()
        p = dataclasses.replace(
            forward, op=op, channels_last=channels_last, bias=op != "weight_grad", residual=residual
        )
        arrays = [None if a is None else guarded.place(a, at_end) for a in make_operands(p)]
        out = guarded.place(filled(None, p.result_shape, p.result_dtype), at_end)
        check(p, *arrays[:2], out, *arrays[2:])


# -- tails and runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("length", range(1, 36))
def test_every_length_of_a_row_and_number_of_channels(length, channels_last):
    """With 4 to 16 lanes, these are all the tails there are."""
    shape = (1, 6, 9, length) if not channels_last else (1, length, 9, 6)
    p = ConvProblem.forward(2, shape, (shape[1], 1, 3, 3), padding=1, groups=shape[1], stride=(1, 2), activation="relu")
    p = dataclasses.replace(p, channels_last=channels_last)
    a, b, _, _ = make_operands(p)
    check(p, a, b, np.empty(p.result_shape, np.float32))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rows", [3, 4, 7, 8, 9, 14, 15, 16, 33])
def test_every_height_of_a_tile(rows, channels_last):
    p = ConvProblem.forward(2, (1, 5, rows, 12), (5, 1, 3, 5), padding=(1, 2), groups=5, bias=True)
    p = dataclasses.replace(p, channels_last=channels_last)
    a, b, bias, _ = make_operands(p)
    check(p, a, b, np.empty(p.result_shape, np.float32), bias)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (4, 2), (2, 4), (3, 2), (5, 1)]
)
@pytest.mark.parametrize("kernel", range(1, 9))
def test_every_way_in_which_taps_form_runs(kernel, stride, dilation, channels_last):
    size = 12 * stride + dilation * kernel
    for kernels, sizes in (((kernel, 2), (size, 9)), ((2, kernel), (2 * dilation, size))):
        p = ConvProblem.forward(
            2, (1, 3, *sizes), (3, 1, *kernels), padding=2, groups=3, stride=stride, dilation=dilation
        )
        p = dataclasses.replace(p, channels_last=channels_last)
        a, b, _, _ = make_operands(p)
        check(p, a, b, np.empty(p.result_shape, np.float32))


@pytest.mark.parametrize("together", [1, 2, 4, 8, 16])
def test_layouts_give_the_same_bits(together):
    """Planes and pixels sum the products in one order, in groups of any size; so do rows of any length."""
    channels = 13 * together
    p = ConvProblem.forward(2, (2, channels, 23, 29), (channels, together, 5, 3), padding=1, groups=13, stride=2)
    a, b, _, _ = make_operands(p)
    planes = np.empty(p.result_shape, np.float32)
    DEPTHWISE.apply(p, a, b, planes)
    p = dataclasses.replace(p, channels_last=True)
    pixels = np.empty(p.result_shape, np.float32)
    DEPTHWISE.apply(p, np.ascontiguousarray(np.moveaxis(a, 1, -1)), b, pixels)
    np.testing.assert_array_equal(np.moveaxis(pixels, -1, 1), planes)


@pytest.mark.parametrize("padding", [0, ((1, 0), (0, 2)), 2])
@pytest.mark.parametrize("size", [(49, 21), (19, 60), (3, 90)])
def test_pixels_give_the_same_bits_wherever_they_lie(size, padding):
    """A strided convolution reads whole pixels in place, those with gaps between channels from scratch memory."""
    p = ConvProblem.forward(
        2, (2, *size, 32), (32, 1, 3, 3), padding=padding, groups=32, stride=2, data_format="NHWC", bias=True
    )
    a, b, bias, _ = make_operands(p)
    in_place, apart, in_a_larger_one = (np.empty(p.result_shape, np.float32) for _ in range(3))
    check(p, a, b, in_place, bias)
    check(p, np.repeat(a, 2, axis=-1)[..., ::2], b, apart, bias)
    check(p, np.pad(a, 1)[1:-1, 1:-1, 1:-1, 1:-1], b, in_a_larger_one, bias)
    np.testing.assert_array_equal(in_place, apart)
    np.testing.assert_array_equal(in_place, in_a_larger_one)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "int64"])
def test_results_that_overlap_nothing_but_their_residual(dtype, channels_last):
    """A residual may be the result itself: each of its elements is read before it is written."""
    p = ConvProblem.forward(2, (2, 11, 9, 13), (11, 1, 3, 3), dtype=dtype, padding=1, groups=11, residual=True)
    p = dataclasses.replace(p, channels_last=channels_last)
    a, b, _, residual = make_operands(p)
    apart = np.empty(p.result_shape, numpy_dtype(p.result_dtype))
    check(p, a, b, apart, None, residual)
    DEPTHWISE.apply(p, a, b, residual, None, residual)
    assert residual.tobytes() == apart.tobytes()


def test_what_does_not_fit_the_cache_is_declined():
    p = ConvProblem.forward(2, (1, 3000, 56, 56), (8, 3000, 3, 3), padding=1)
    assert "cache" in DEPTHWISE.why_not(p)
    p = ConvProblem.forward(2, (1, 8, 56, 56), (8, 1, 3, 3), padding=1, groups=8, dtype="complex64")
    assert "complex64" in DEPTHWISE.why_not(p)


@pytest.mark.parametrize("rows", [1, 7, 8])
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 7, 15])
def test_vectors_past_short_rows_touch_nothing_else(rows, columns):
    """Of a result within a larger array, and of one that ends where a page does, whatever is written past its rows."""
    p = ConvProblem.forward(2, (2, 40, rows, columns), (40, 1, 3, 3), padding=1, groups=40, bias=True)
    a, b, bias, _ = make_operands(p)
    guarded = Guarded().place(np.full((4, *p.result_shape[1:]), 7, np.float32), True)
    check(p, a, b, guarded[1:3], bias)
    assert (guarded[::3] == 7).all()
    check(p, a, b, guarded[2:], bias)
    wide = np.full((2, 40, rows + 1, columns), 7, np.float32)
    check(p, a, b, wide[:, :, :rows], bias)
    assert (wide[:, :, rows] == 7).all()


# -- other widths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 64])
def test_other_vector_widths(width, tmp_path):
    """The kernels take the width from `vector_bytes`; LLVM splits vectors that the host does not have."""
    script = f"""
        from fastconv import machine
        machine.vector_bytes = lambda: {width}
        import dataclasses
        import test_depthwise as test
        import numpy as np
        from strategies import make_operands
        for x, w, arguments in test.GUARDED.values():
            for channels_last in (False, True):
                p = test.ConvProblem.forward(len(x) - 2, x, w, bias=True, **arguments)
                p = dataclasses.replace(p, channels_last=channels_last)
                a, b, bias, _ = make_operands(p)
                test.check(p, a, b, np.empty(p.result_shape, np.float32), bias)
    """
    here = Path(__file__).parent
    paths = [str(here), str(here.parent)]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n" + textwrap.dedent(script)],
        check=True,
        env={"FASTCONV_CACHE_DIR": str(tmp_path)},
    )
