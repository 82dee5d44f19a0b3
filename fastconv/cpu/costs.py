"""Seconds predicted from counted work.

An algorithm counts what it does (products, elements staged, calls made, …) and multiplies by rates measured on one core
and fitted by ``bench/fit_costs.py``. Only products can scale with the vector width; the tasks are shared by the cores.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastconv.lowering import lower
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

#: The rates were measured on one core of an AMD EPYC 7003 (Zen 3, AVX2: 8 float32 lanes), whose nominal peak is this.
REFERENCE_FLOPS = 8 * 2 * 2 * 3.5e9

# A complex product is four real ones; other widths fill a vector with fewer elements.
_PRODUCTS = {"complex64": 4.0, "complex128": 8.0, "float64": 2.0, "int64": 2.0}


def seconds(
    products: float,
    others: Sequence[float],
    rates: Sequence[float],
    machine: Machine,
    tasks: int,
    dtype: str,
    core_flops: float,
) -> float:
    """Predicted time of work that falls into `tasks` equal tasks.

    Parameters
    ----------
    products : float
        Multiply-adds, idle ones included.
    others : sequence of float
        Counts of the other kinds of work.
    rates : sequence of float
        Seconds for one product and for one of each of the others, on one core.
    machine : Machine
    tasks : int
        Tasks that can run at once.
    dtype : str
        Of the accumulator.
    core_flops : float
        Peak, on one core, of the code that computes the products.
    """
    width = core_flops / REFERENCE_FLOPS
    one_core = products * _PRODUCTS.get(dtype, 1.0) * rates[0] / width
    one_core += sum(count * rate for count, rate in zip(others, rates[1:], strict=True))
    rounds = -(-tasks // machine.cores) * machine.cores  # a last round that is not full keeps some cores waiting
    return one_core / machine.cores * (rounds / max(tasks, 1)) if tasks > 1 else one_core


def packed_elements(problem: ConvProblem) -> tuple[int, int]:
    """Elements of the weight that all pieces use, and how many of them must be gathered: all, or none if in order.

    Kernels want taps in the order (group, out, in, kernel), which is the user's own for a forward convolution alone.
    """
    elements = sum(piece.groups * piece.out_channels * piece.reduction for piece in lower(problem))
    in_order = problem.op == "forward" and problem.weight_order == "OI*" and not problem.flip_kernel
    return elements, 0 if in_order else elements
