"""The promise that every algorithm is held to."""

from fastconv.accuracy import error


def assert_kept(algorithm, problem, result, *operands, exact=None):
    """Each element is as near to the reference, or to `exact`, as the algorithm promises."""
    measured = error(problem, result, *operands, spread=algorithm.spread(problem), exact=exact)
    promised = algorithm.tolerance(problem)
    assert measured <= promised, f"{algorithm.name}: error {measured:.3g}, promised {promised:.3g}: {problem}"
