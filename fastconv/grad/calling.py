"""What gradients with respect to an input or a weight share: the layer is described, then asked for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv.arrays import at_home
from fastconv.dispatch import adopt_all, prepare
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
    dtype = compute_dtype(arrays[0].dtype, arrays[1].dtype, names)
    layer = describe(ndim, _axes("input_size", input_size), arrays[1].shape, dtype=dtype, **options)
    _check_gradient(layer, arrays[0])
    problem = replace(layer, op="input_grad" if layer.op == "forward" else "forward")
    result = prepare(problem, kind.device, device, algorithm)(*arrays)
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
    dtype = compute_dtype(data.dtype, gradient.dtype, names)
    layer = describe(ndim, data.shape, _axes("weight_size", weight_size), dtype=dtype, **options)
    _check_gradient(layer, gradient)
    operands = (data, gradient) if layer.op == "forward" else (gradient, data)
    result = prepare(replace(layer, op="weight_grad"), kind.device, device, algorithm)(*operands, *others)
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
