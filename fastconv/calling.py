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

# Executions, and descriptions of poolings, by the caller's own arguments, so that a repeated call skips reading them
# again; with the choices they were made from.
_RECENT: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
_RECENT_MOST = 4096


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
    has_bias, has_residual = bias is not None, residual is not None

    def make(algorithm: str, device: str, *options: Any) -> Execution:
        names, describe = _PROBLEMS[op]
        problem = describe(
            ndim, x.shape, w.shape, dtype=compute_dtype(x.dtype, w.dtype), bias=has_bias, residual=has_residual,
            **dict(zip(names, options, strict=True)),
        )  # fmt: skip
        return prepare(problem, kind.device, device, algorithm, prepared=prepared)

    key = op, ndim, x.shape, x.dtype, w.shape, w.dtype, has_bias, has_residual, kind.device, prepared
    return remembered(key, (algorithm, device, *options), make)


def remembered(key: tuple[Any, ...], choices: tuple[Any, ...], make: Callable[..., Made]) -> Made:
    """What ``make(*choices)`` gives; what it gave, if it was asked before with this key and these choices."""
    limited = key, choices, workspace_limit()
    try:
        recent = _RECENT.get(limited)
    except TypeError:  # a list among the choices cannot be a key; as tuples it can
        return remembered(key, _freeze(choices), make)
    # 1, 1.0 and True are equal keys but not equally good arguments; nearly always the very same objects come again.
    if recent is not None and (all(map(is_, choices, recent[1])) or _types(choices) == _types(recent[1])):
        made: Made = recent[0]
        return made
    made = make(*choices)
    if len(_RECENT) >= _RECENT_MOST:
        _RECENT.clear()
    _RECENT[limited] = made, choices
    return made


def choose_anew() -> None:
    """Choose algorithms again at the next calls, because what is remembered of their times has changed."""
    dispatch.choose_anew()
    _RECENT.clear()


def _types(option: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([_types(v) if type(v) is tuple else type(v) for v in option])


def _freeze(option: Any) -> Any:
    if isinstance(option, np.ndarray):
        option = option.tolist()
    if isinstance(option, (list, tuple)):
        return tuple(map(_freeze, option))
    try:
        hash(option)
    except TypeError:
        return repr(option)  # nothing unhashable is a good argument: its text goes to the error message
    return option
