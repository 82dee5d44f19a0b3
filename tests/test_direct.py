"""What is particular to direct: rows of any length, whole and in parts, finished in registers or in memory."""

import numpy as np
import pytest
from strategies import make_operands

from fastconv.accuracy import error
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms

DIRECT = next(a for a in algorithms("cpu") if a.name == "direct")


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
def test_every_length_of_a_row(stride, channels):
    """Tiles of three, two and one vectors of 4 to 16 lanes, and less than a vector."""
    for length in range(1, 68):
        p = ConvProblem.forward(
            2, (1, 3, 5, length * stride), (channels, 3, 3, 5), stride=stride, padding=2, bias=True, activation="relu6"
        )
        a, b, bias, _ = make_operands(p)
        out = np.full(p.result_shape, np.nan, np.float32)
        DIRECT.apply(p, a, b, out, bias)
        assert error(p, out, a, b, bias, None) <= DIRECT.tolerance(p)


def test_registers_and_memory_give_the_same_bits():
    """Results with gaps pass through scratch memory; the products are summed in the same order."""
    p = ConvProblem.forward(2, (2, 3, 29, 61), (10, 3, 7, 7), stride=2, padding=3)
    a, b, _, _ = make_operands(p)
    whole, gaps = np.empty(p.result_shape, np.float32), np.empty((*p.result_shape, 2), np.float32)[..., 0]
    DIRECT.apply(p, a, b, whole)
    DIRECT.apply(p, a, b, gaps)
    np.testing.assert_array_equal(whole, gaps)
