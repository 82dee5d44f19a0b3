"""The promise that every algorithm is held to."""

import numpy as np

from fastconv.accuracy import error


def assert_kept(algorithm, problem, result, *operands, exact=None):
    """Each element is as near to the reference, or to `exact`, as the algorithm promises."""
    promised = algorithm.tolerance(problem)
    with np.errstate(divide="ignore"):
        measured = error(problem, result, *operands, exact=exact)
    if measured > promised:  # the full correlation takes long, and what is measured against it can only be less
        measured = error(problem, result, *operands, spread=algorithm.spread(problem), exact=exact)
    assert measured <= promised, f"{algorithm.name}: error {measured:.3g}, promised {promised:.3g}: {problem}"
