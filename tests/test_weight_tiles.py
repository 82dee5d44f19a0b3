"""Weights arranged in tiles, from every layout, against plain indexing."""

import numpy as np
import pytest
from strategies import make_operands, numpy_dtype

from fastconv.cpu.microkernel import TILE_VECTORS
from fastconv.cpu.weight_tiles import WeightTiles
from fastconv.lowering import Views, lower
from fastconv.machine import vector_bytes
from fastconv.problem import ConvProblem

FORWARD, TRANSPOSED = ConvProblem.forward, ConvProblem.transposed
PROBLEMS = {
    "OIHW": FORWARD(2, (1, 22, 9, 9), (38, 11, 3, 5), groups=2),
    "OIHW, 1x1": FORWARD(2, (1, 41, 9, 9), (33, 41, 1, 1)),
    "OHWI": FORWARD(2, (1, 37, 9, 9), (35, 3, 3, 37), weight_format="OHWI"),
    "HWIO": FORWARD(2, (1, 20, 9, 9), (3, 3, 20, 21), weight_format="HWIO"),
    "flipped": FORWARD(2, (1, 9, 9, 9), (17, 9, 3, 3), flip_kernel=True),
    "float64": FORWARD(2, (1, 9, 9, 9), (17, 9, 3, 3), dtype="float64"),
    "float16": FORWARD(1, (1, 9, 9), (17, 9, 3), dtype="float16"),
    "whole and reversed": TRANSPOSED(2, (1, 19, 9, 9), (19, 16, 3, 3)),
    "pieces": TRANSPOSED(2, (1, 19, 9, 9), (19, 40, 4, 5), stride=(2, 3)),
    "pieces of many groups": TRANSPOSED(1, (1, 18, 9), (18, 7, 6), stride=2, groups=3),
    "pieces without taps": TRANSPOSED(1, (1, 3, 9), (3, 5, 2), stride=3),
    "taps that nothing uses": TRANSPOSED(1, (1, 3, 1), (3, 5, 7), stride=5, padding=3),
    "nothing": FORWARD(2, (1, 0, 4, 4), (5, 0, 3, 3), padding=1),
}


def in_tiles(view, dtype):
    """``(G, O, C, KD, KH, KW)`` as the tile of pixels reads it, by its definition."""
    lanes = vector_bytes() // dtype.itemsize
    groups, outputs = view.shape[:2]
    rows = view.reshape(groups, outputs, -1).transpose(0, 2, 1).astype(dtype)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -outputs % lanes)))
    tiles = range(0, rows.shape[2], TILE_VECTORS * lanes)
    parts = [rows[:, :, o : o + TILE_VECTORS * lanes].reshape(groups, -1) for o in tiles]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("gaps", [False, True], ids=["dense", "gaps"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_each_piece_gets_its_taps(problem, gaps):
    w = make_operands(problem)[1]
    if gaps:
        w = np.repeat(w, 2, axis=-1)[..., ::2]
    view, dtype = Views(problem).weight(w), numpy_dtype(problem.accumulator_dtype)
    arranged = WeightTiles(problem)(view)
    for piece, tiles in zip(lower(problem), arranged, strict=True):
        np.testing.assert_array_equal(tiles, in_tiles(piece.weight_view(view), dtype))
