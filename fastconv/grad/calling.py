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

#: What is read for the gradient with respect to either.
_OPERANDS = {"input": ("grad_output", "weight"), "weight": ("input", "grad_output")}


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
    (first, second, *others), kind = adopt_all(first, second, None, None, out, _OPERANDS[of])
    known = of, describe, ndim, first.shape, first.dtype, second.shape, second.dtype, kind.device, tuple(options)
    execution = remembered(_execution, known, (algorithm, device, size, *options.values()))
    operands = (first, second) if of_input or describe == ConvProblem.forward else (second, first)
    result = execution(*operands, *others)
    return kind.give(result) if out is None else out


def _execution(
    of: str, describe: Describe, ndim: int, first_shape: tuple[int, ...], first_dtype: Any,
    second_shape: tuple[int, ...], second_dtype: Any, home: str, names: tuple[str, ...], algorithm: str, device: str,
    size: Any, *options: Any,
) -> Execution:  # fmt: skip
    of_input, axes = of == "input", lengths(f"{of}_size", size)
    shapes = (axes, second_shape) if of_input else (first_shape, axes)
    dtype = compute_dtype(first_dtype, second_dtype, _OPERANDS[of])
    layer = describe(ndim, *shapes, dtype=dtype, **dict(zip(names, options, strict=True)))
    gradient_shape = first_shape if of_input else second_shape
    if gradient_shape != layer.result_shape:
        raise ValueError(
            f"grad_output has shape {gradient_shape}: expected {layer.result_shape}, that of the result of {layer}"
        )
    adjoint = "input_grad" if layer.op == "forward" else "forward"
    return prepare(replace(layer, op=adjoint if of_input else "weight_grad"), home, device, algorithm)
