"""Compiling ahead: the kernels that common layers choose, brought into the disk cache before they are needed."""

from __future__ import annotations

from fastconv import settings
from fastconv.dispatch import choose
from fastconv.problem import DTYPES, ConvProblem
from fastconv.registry import Algorithm


def warmup(*dtypes: str) -> None:
    """Compile the CPU kernels that the layers of common networks choose, unless they are on the disk already.

    A first call then need not wait for the compiler, in this process or in a later one: call this while an image or an
    environment is built. The kernels are kept in the folder ``FASTCONV_CACHE_DIR``, or else in the user's cache
    directory.

    Parameters
    ----------
    *dtypes : str
        Names of the data types to compile for; float32 if none is given.

    Raises
    ------
    ValueError
        If a data type is not supported.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.warmup("float32")
    """
    for dtype in dtypes or ("float32",):
        for algorithm, problem in chosen(dtype):
            algorithm.plan(problem, settings.workspace_limit())


def chosen(dtype: str) -> list[tuple[Algorithm, ConvProblem]]:
    """The layers of common networks, with the algorithms that their two forms choose on the CPU; by algorithm.

    Raises
    ------
    ValueError
        If the data type is not supported.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    from fastconv.networks import LAYERS  # a table, read when it is imported

    problems = [layer.problem(dtype) for layer in LAYERS]
    pairs = {(choose(p, "cpu", prepared=prepared), p): None for p in problems for prepared in (False, True)}
    return sorted(pairs, key=lambda pair: pair[0].name)
