"""From a caller's own arguments to a result: the way there is looked up, and made at the first call."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, TypeVar

import numpy as np

from fastconv import dispatch
from fastconv.arrays import Kind, at_home, is_tensor
from fastconv.dispatch import Execution, adopt_all, prepare
from fastconv.problem import ConvProblem, compute_dtype
from fastconv.settings import workspace_limit

_FORWARD_OPTIONS = (
    "stride", "padding", "dilation", "groups", "padding_mode", "data_format", "weight_format", "activation",
    "flip_kernel", "precision",
)  # fmt: skip
_TRANSPOSED_OPTIONS = (
    "stride", "padding", "output_padding", "groups", "dilation", "padding_mode", "data_format", "weight_format",
    "activation", "flip_kernel", "precision",
)  # fmt: skip
_PROBLEMS = {
    "forward": (_FORWARD_OPTIONS, ConvProblem.forward),
    "input_grad": (_TRANSPOSED_OPTIONS, ConvProblem.transposed),
}

Made = TypeVar("Made")

# Executions, and descriptions of poolings, by what is known of the caller's arrays, so that a repeated call skips
# reading its arguments again; each behind the choices it was made from and their types.
_RECENT: dict[Any, tuple[tuple[Any, Any, Any], ...]] = {}
_RECENT_MOST = 4096
_RECENT_ALIKE = 16


def call(
    op: str,
    ndim: int,
    x: Any,
    w: Any,
    bias: Any,
    residual: Any,
    out: Any,
    algorithm: str,
    device: str,
    options: tuple[Any, ...],
) -> Any:
    """The result of a function of some number of axes; `options` are the rest of its arguments, in its order."""
    on_cpu = type(x) is np.ndarray
    if not on_cpu and is_tensor(x):
        import fastconv.torch as torch  # "from fastconv" takes three times as long

        if torch.concerns(x, w, bias, residual):
            named = dict(zip(_PROBLEMS[op][0], options, strict=True))
            return torch.convolve(op, ndim, x, w, bias, residual, out, algorithm, device, **named)
        on_cpu = x.is_cpu
    compute = _compute if on_cpu else _compute_at_home
    return compute(op, ndim, x, w, bias, residual, out, algorithm, device, options)


def _compute(
    op: str, ndim: int, x: Any, w: Any, bias: Any, residual: Any, out: Any, algorithm: str, device: str,
    options: tuple[Any, ...],
) -> Any:  # fmt: skip
    arrays, kind = adopt_all(x, w, bias, residual, out)
    execution = lookup(op, ndim, arrays, kind, algorithm, device, options)
    result = execution(*arrays)
    return kind.give(result) if out is None else out


_compute_at_home = at_home(_compute)


def lookup(
    op: str, ndim: int, arrays: tuple[Any, ...], kind: Kind, algorithm: str, device: str, options: tuple[Any, ...],
    *, prepared: bool = False,
) -> Execution:  # fmt: skip
    """The execution for adopted arrays (x, w, bias, residual, out) and a function's options, in its order; remembered.

    A layer's is `prepared`: called with its weight packed.
    """
    x, w, bias, residual, _ = arrays
    known = (
        op, ndim, x.shape, x.dtype, w.shape, w.dtype, bias is not None, residual is not None, kind.device, prepared,
    )  # fmt: skip
    return remembered(_execution, known, (algorithm, device, *options))


def check(op: str, ndim: int, w: Any, bias: Any, algorithm: Any, device: Any, options: tuple[Any, ...]) -> None:
    """Raise what every call with these would raise, whatever its input."""
    named = dict(zip(_PROBLEMS[op][0], options, strict=True))
    problem = ConvProblem.without_pixels(op, ndim, w.shape, dtype=compute_dtype(w.dtype, w.dtype, ("w", "w")), **named)
    if bias is not None and bias.shape != (problem.result_channels,):
        raise ValueError(f"bias has shape {bias.shape}: expected {(problem.result_channels,)}")
    dispatch.check_names(algorithm, device)


def _execution(
    op: str, ndim: int, x_shape: tuple[int, ...], x_dtype: Any, w_shape: tuple[int, ...], w_dtype: Any, bias: bool,
    residual: bool, home: str, prepared: bool, algorithm: str, device: str, *options: Any,
) -> Execution:  # fmt: skip
    names, describe = _PROBLEMS[op]
    problem = describe(
        ndim, x_shape, w_shape, dtype=compute_dtype(x_dtype, w_dtype), bias=bias, residual=residual,
        **dict(zip(names, options, strict=True)),
    )  # fmt: skip
    return prepare(problem, home, device, algorithm, prepared=prepared)


def remembered(make: Callable[..., Made], known: tuple[Any, ...], choices: tuple[Any, ...]) -> Made:
    """What ``make(*known, *choices)`` gives; what it gave, if it was asked before.

    What is `known` of the arrays can be a key. The `choices` are the caller's own: there may be lists among them, and
    1, 1.0 and True are equal, but not equally good.
    """
    key = make, known, workspace_limit()
    recent = _RECENT.get(key, ())
    for seen, _, made in recent:
        if all(map(is_, choices, seen)):  # nearly always the very same objects come again
            return made  # type: ignore[no-any-return]
    choices = freeze(choices)
    types = _types(choices)
    for seen, kinds, made in recent:
        if types == kinds and choices == seen:
            return made  # type: ignore[no-any-return]
    made = make(*known, *choices)
    if len(_RECENT) >= _RECENT_MOST:
        _RECENT.clear()
    _RECENT[key] = (choices, types, made), *recent[: _RECENT_ALIKE - 1]
    return made


def choose_anew() -> None:
    """Choose algorithms again at the next calls, because what is remembered of their times has changed."""
    dispatch.choose_anew()
    _RECENT.clear()


def _types(option: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([_types(v) if type(v) is tuple else type(v) for v in option])


def freeze(option: Any) -> Any:
    """An option as what can be kept: nothing in it changes."""
    try:
        hash(option)
        return option
    except TypeError:
        if isinstance(option, np.ndarray):
            return freeze(option.tolist())
        if isinstance(option, (list, tuple)):
            return tuple(map(freeze, option))
        return repr(option)  # nothing else is a good argument: its text goes to the error message
