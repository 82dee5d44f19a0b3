"""Lowering: the pieces, evaluated word by word as `fastconv.lowering` defines them, are the reference."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_operands, operands, problems

from fastconv.lowering import GEOMETRY, Views, lower
from fastconv.problem import PADDING_MODES, Activation, ConvProblem
from fastconv.reference import reference


def source_index(position, size, mode):
    """Which sample stands at `position` of an axis that is extended in this mode; None for a zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    return -position if position < 0 else 2 * (size - 1) - position


def evaluate(piece, x, w, y):
    """y[n, g, o, t] = sum over c, k of w[g, o, c, k] * x[n, g, c, t * stride + k * dilation - offset]"""
    assert y.shape == (piece.batch, piece.groups, piece.out_channels, *piece.count)
    assert w.shape == (piece.groups, piece.out_channels, piece.in_channels, *piece.kernel)
    assert x.shape == (piece.batch, piece.groups, piece.in_channels, *piece.size)
    for t in itertools.product(*map(range, piece.count)):
        for k in itertools.product(*map(range, piece.kernel)):
            at = [t[i] * piece.stride[i] + k[i] * piece.dilation[i] - piece.offset[i] for i in range(3)]
            sources = [source_index(at[i], piece.size[i], piece.padding_mode) for i in range(3)]
            if None not in sources:
                y[(..., *t)] += np.einsum("ngc,goc->ngo", x[(..., *sources)], w[(..., *k)])


@settings(max_examples=200)
@given(data=st.data())
def test_pieces_make_the_reference(data):
    p = data.draw(problems(dtypes=("float64", "complex128")))
    p = dataclasses.replace(p, bias=False, residual=False, activation=Activation("none"))
    a, b, _, _ = data.draw(operands(p))
    result, views = np.zeros(p.result_shape, p.dtype), Views(p)
    for piece in lower(p):
        evaluate(
            piece,
            views.source(a),
            piece.weight_view(views.weight(b)),
            piece.target_view(views.result(result)),
        )
    np.testing.assert_allclose(result, reference(p, a, b), atol=1e-11)


@given(p=problems())
def test_pieces_write_every_element_once(p):
    written = np.zeros(p.result_shape, int)
    for piece in lower(p):
        piece.target_view(Views(p).result(written))[...] += 1
    assert (written == 1).all()


@given(p=problems())
def test_no_piece_multiplies_inserted_zeros(p):
    """The work is the definition's; of an input gradient, the products in which target, tap and sample meet."""
    work = sum(piece.macs for piece in lower(p))
    if p.op == "input_grad":
        meetings = [
            sum(
                (t + p.padding[i][0] - k * p.dilation[i]) % p.stride[i] == 0
                for t, k in np.ndindex(p.size[i], p.kernel[i])
            )
            for i in range(3)
        ]
        assert work == p.batch * p.in_channels * p.out_channels // p.groups * math.prod(meetings)
    else:
        assert work == p.macs


@given(p=problems())
def test_geometry_records_the_piece(p):
    for piece in lower(p):
        (record,) = piece.geometry
        for name in GEOMETRY.names:
            value = PADDING_MODES[record[name]] if name == "padding_mode" else record[name]
            assert np.array_equal(value, getattr(piece, name))
        assert piece.macs == piece.batch * piece.groups * piece.out_channels * piece.positions * piece.reduction


@given(p=problems())
def test_views_share_the_callers_memory(p):
    """With one batch axis at most no view may be a copy: a result written to a copy would be lost."""
    p = dataclasses.replace(p, batch_shape=p.batch_shape[:1])
    a, b, _, _ = make_operands(p)
    result, views = np.empty(p.result_shape), Views(p)
    for array, view in ((a, views.source(a)), (b, views.weight(b)), (result, views.result(result))):
        assert np.shares_memory(array, view)
        assert view.size == array.size
    gap = np.empty([2 * n for n in p.result_shape])[(slice(None, None, 2),) * len(p.result_shape)]
    assert np.shares_memory(gap, views.result(gap))


@pytest.mark.parametrize(
    ("arguments", "pieces", "reductions"),
    [
        # stride 1: one correlation with every tap
        ({}, 1, [3]),
        # stride 2, kernel 3: even and odd targets see two taps and one
        ({"stride": 2}, 2, [2, 1]),
        # stride 4 leaves one residue class without a tap
        ({"stride": 4, "output_padding": 3}, 4, [1, 1, 1, 0]),
        # dilation 2 is a multiple of the stride: all taps fall on the even targets
        ({"stride": 2, "dilation": 2}, 2, [3, 0]),
        ({"stride": 2, "dilation": 3}, 2, [2, 1]),
    ],
)
def test_how_an_input_gradient_splits(arguments, pieces, reductions):
    p = ConvProblem.transposed(1, (1, 1, 5), (1, 1, 3), **arguments)
    lowered = lower(p)
    assert len(lowered) == pieces
    assert [piece.reduction for piece in lowered] == reductions


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_an_input_gradient_folds_no_padding_back(mode):
    p = ConvProblem.forward(1, (1, 1, 5), (1, 1, 3), padding=1, padding_mode=mode)
    with pytest.raises(ValueError, match=f"padding_mode='{mode}'.*'zeros' only"):
        lower(dataclasses.replace(p, op="input_grad"))


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((0, 2, 5), (3, 2, 2)),
        ((2, 0, 5), (3, 0, 2)),
        ((2, 2, 5), (0, 2, 2)),
        ((2, 2, 0), (3, 2, 2)),
    ],
)
def test_nothing_in_nothing_out(op, x, w):
    p = dataclasses.replace(ConvProblem.forward(1, x, w, dtype="float64"), op=op)
    a, b, _, _ = make_operands(p)
    result, views = np.zeros(p.result_shape), Views(p)
    for piece in lower(p):
        evaluate(piece, views.source(a), piece.weight_view(views.weight(b)), piece.target_view(views.result(result)))
    np.testing.assert_array_equal(result, reference(p, a, b))


@pytest.mark.parametrize("data_format", ["NCDHW", "NDHWC"])
def test_a_pointwise_image_is_one_row(data_format):
    x_shape = (2, 5, 3, 4, 6) if data_format == "NCDHW" else (2, 3, 4, 6, 5)
    problem = ConvProblem.forward(3, x_shape, (7, 5, 1, 1, 1), data_format=data_format, dtype="float64")
    (piece,), views = lower(problem), Views(problem)
    x, w, _, _ = make_operands(problem)
    y = np.zeros(problem.result_shape)
    source, target = (view.reshape(*view.shape[:3], 1, 1, 3 * 4 * 6) for view in (views.source(x), views.result(y)))
    evaluate(piece.flat, source, views.weight(w), target)
    np.testing.assert_allclose(y, reference(problem, x, w), atol=1e-12)


def test_only_a_pointwise_image_is_one_row():
    build = ConvProblem.forward
    for kernel, arguments in ((3, {"padding": 1}), (1, {"stride": 2}), (1, {"padding": 1}), (1, {"padding": (0, 0)})):
        (piece,) = lower(build(2, (1, 2, 6, 6), (3, 2, kernel, kernel), **arguments))
        assert (piece.flat is not None) == (arguments == {"padding": (0, 0)})


def test_an_empty_result_has_no_pieces_whatever_the_stride():
    """A piece for each of so many residues would take minutes to list."""
    assert lower(ConvProblem.transposed(2, (0, 2, 2, 8), (2, 3, 5, 5), stride=10**5)) == ()
    assert lower(ConvProblem.forward(2, (4, 2, 9, 9), (0, 2, 3, 3))) == ()
