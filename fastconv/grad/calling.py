"""What gradients with respect to an input or a weight share: the layer is described, then asked for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv.arrays import at_home
from fastconv.calling import remembered
from fastconv.dispatch import Execution, adopt_all, prepare
from fastconv.parsing import lengths
from fastconv.problem import ConvProblem, compute_dtype

#: Describes a layer: ``ConvProblem.forward`` or ``ConvProblem.transposed``.
Describe = Callable[..., ConvProblem]


@at_home
def gradient(
    of: str, describe: Describe, ndim: int, input: Any, weight: Any, grad_output: Any, out: Any, algorithm: str,
    device: str, **options: Any,
) -> Any:  # fmt: skip
    """The gradient with respect to the ``"input"`` or the ``"weight"`` of the layer that `describe` makes of options.

    That one is given by its shape. The input's gradient is a transposed convolution of `grad_output`, and a convolution
    of it for a transposed one. The weight's is, for a transposed convolution, that of the convolution it is the adjoint
    of, whose input and result have traded places.
    """
    of_input = of == "input"
    size, first, second = (input, grad_output, weight) if of_input else (weight, input, grad_output)
    names = ("grad_output", "weight") if of_input else ("input", "grad_output")
    (first, second, *others), kind = adopt_all(first, second, None, None, out, names)

    def make(algorithm: str, device: str, size: Any, *values: Any) -> Execution:
        axes = lengths(f"{of}_size", size)
        shapes = (axes, second.shape) if of_input else (first.shape, axes)
        given = dict(zip(options, values, strict=True))
        layer = describe(ndim, *shapes, dtype=compute_dtype(first.dtype, second.dtype, names), **given)
        _check_gradient(layer, first if of_input else second)
        adjoint = "input_grad" if layer.op == "forward" else "forward"
        return prepare(replace(layer, op=adjoint if of_input else "weight_grad"), kind.device, device, algorithm)

    key = of, describe, ndim, first.shape, first.dtype, second.shape, second.dtype, kind.device
    execution = remembered(key, (algorithm, device, size, *options.values()), make)
    operands = (first, second) if of_input or describe == ConvProblem.forward else (second, first)
    result = execution(*operands, *others)
    return kind.give(result) if out is None else out


def _check_gradient(layer: ConvProblem, gradient: Any) -> None:
    if gradient.shape != layer.result_shape:
        raise ValueError(
            f"grad_output has shape {gradient.shape}: expected {layer.result_shape}, that of the result of {layer}"
        )
