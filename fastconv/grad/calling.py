"""What gradients with respect to an input or a weight share: the layer is described, then asked for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv.arrays import at_home
from fastconv.calling import remembered
from fastconv.dispatch import Execution, adopt_all, prepare
from fastconv.problem import ConvProblem, compute_dtype

#: Describes a layer: ``ConvProblem.forward`` or ``ConvProblem.transposed``.
Describe = Callable[..., ConvProblem]


@at_home
def input_gradient(
    describe: Describe, ndim: int, input_size: Any, weight: Any, grad_output: Any, out: Any, algorithm: str,
    device: str, **options: Any,
) -> Any:  # fmt: skip
    """The gradient with respect to the input of the layer that `describe` makes of the options.

    That of a convolution is a transposed one of the gradient of its result, and that of a transposed one a convolution.
    """
    names = "grad_output", "weight"
    arrays, kind = adopt_all(grad_output, weight, None, None, out, names)
    gradient, taps = arrays[:2]

    def make(algorithm: str, device: str, size: Any, *values: Any) -> Execution:
        dtype = compute_dtype(gradient.dtype, taps.dtype, names)
        given = dict(zip(options, values, strict=True))
        layer = describe(ndim, _axes("input_size", size), taps.shape, dtype=dtype, **given)
        _check_gradient(layer, gradient)
        problem = replace(layer, op="input_grad" if layer.op == "forward" else "forward")
        return prepare(problem, kind.device, device, algorithm)

    key = describe, names, ndim, gradient.shape, gradient.dtype, taps.shape, taps.dtype, kind.device
    execution = remembered(key, (algorithm, device, input_size, *options.values()), make)
    result = execution(*arrays)
    return kind.give(result) if out is None else out


@at_home
def weight_gradient(
    describe: Describe, ndim: int, input: Any, weight_size: Any, grad_output: Any, out: Any, algorithm: str,
    device: str, **options: Any,
) -> Any:  # fmt: skip
    """The gradient with respect to the weight of the layer that `describe` makes of the options.

    A transposed convolution's is that of the convolution it is the adjoint of, whose input and result have traded
    places.
    """
    names = "input", "grad_output"
    (data, gradient, *others), kind = adopt_all(input, grad_output, None, None, out, names)

    def make(algorithm: str, device: str, size: Any, *values: Any) -> Execution:
        dtype = compute_dtype(data.dtype, gradient.dtype, names)
        given = dict(zip(options, values, strict=True))
        layer = describe(ndim, data.shape, _axes("weight_size", size), dtype=dtype, **given)
        _check_gradient(layer, gradient)
        return prepare(replace(layer, op="weight_grad"), kind.device, device, algorithm)

    key = describe, names, ndim, data.shape, data.dtype, gradient.shape, gradient.dtype, kind.device
    execution = remembered(key, (algorithm, device, weight_size, *options.values()), make)
    operands = (data, gradient) if describe == ConvProblem.forward else (gradient, data)
    result = execution(*operands, *others)
    return kind.give(result) if out is None else out


def _axes(name: str, shape: Any) -> tuple[Any, ...]:
    try:
        return tuple(shape)
    except TypeError:
        raise TypeError(f"{name}={shape!r}: expected a sequence of integers, the shape of an array") from None


def _check_gradient(layer: ConvProblem, gradient: Any) -> None:
    if gradient.shape != layer.result_shape:
        raise ValueError(
            f"grad_output has shape {gradient.shape}: expected {layer.result_shape}, that of the result of {layer}"
        )
