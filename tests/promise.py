"""The promise that every algorithm is held to."""

import numpy as np

from fastconv.accuracy import error
from fastconv.folding import folds, unfolded
from fastconv.registry import UNIT_ROUNDOFF


def assert_kept(algorithm, problem, result, *operands, exact=None):
    """Each element is as near to the reference, or to `exact`, as the algorithm promises."""
    promised = algorithm.tolerance(unfolded(problem)) + _folding(problem)
    spread = algorithm.spread(unfolded(problem))
    with np.errstate(divide="ignore"):
        measured = error(problem, result, *operands, exact=exact)
    if measured > promised:  # the full correlation takes long, and what is measured against it can only be less
        measured = error(problem, result, *operands, spread=spread, exact=exact)
    assert measured <= promised, f"{algorithm.name}: error {measured:.3g}, promised {promised:.3g}: {problem}"


def _folding(problem):
    """What folding adds to the error: a rounding for each copy of an input, and one of the result."""
    if not folds(problem) or problem.result_dtype not in UNIT_ROUNDOFF:
        return 0
    copies = sum(map(sum, problem.padding))
    return copies * UNIT_ROUNDOFF[problem.accumulator_dtype] + UNIT_ROUNDOFF[problem.result_dtype]
