"""fastconv in its forms, as engines that ``bench`` races."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

import fastconv
from fastconv import dispatch, registry
from fastconv.commands.engine import Array, Declined, Engine
from fastconv.networks import Layer
from fastconv.problem import OPS, WEIGHT_FORMATS, ConvProblem


class Functional(Engine):
    """``fastconv.conv2d`` and its twins."""

    name = "fastconv"
    modules = ("fastconv",)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    ops: ClassVar[tuple[str, ...]] = OPS
    fuses = True
    prepared: ClassVar[bool] = False

    def __init__(self, device: str, threads: int) -> None:
        super().__init__(device, threads)
        fastconv.set_num_threads(threads)

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        function, (x, w, bias) = layer.function(fastconv), self._bring(x, w, bias)
        x, w = self._data(x), self._weight(w)
        if layer.op != "forward":
            problem = self._problem(layer, dtype)
            return lambda: fastconv.execute(problem, x, w, device=self.device)
        options = layer.options | layer.settings(dtype) | self._settings(layer)
        return lambda: function(x, w, bias, device=self.device, **options)

    def fetch(self, result: Any) -> Array:
        array: Array = result if self.device == "cpu" else result.get()
        return array

    def algorithm(self, layer: Layer, dtype: str) -> str:
        return dispatch.choose(self._problem(layer, dtype), self.device, prepared=self.prepared).name

    def version(self) -> str:
        return fastconv.__version__

    def _problem(self, layer: Layer, dtype: str) -> ConvProblem:
        return layer.problem(dtype)

    def _settings(self, layer: Layer) -> dict[str, str]:
        return {}

    def _data(self, array: Any) -> Any:
        """Input or output gradient, in the layout that is raced."""
        return array

    def _weight(self, array: Any) -> Any:
        """The second operand: the weight, or for its gradient that of the output."""
        return array

    def _bring(self, *arrays: Array | None) -> tuple[Any, ...]:
        if self.device == "cpu":
            return arrays
        import cupy

        return tuple(array if array is None else cupy.asarray(array) for array in arrays)


class ChannelsLast(Functional):
    """The function on NHWC data, or what corresponds to it in one or three dimensions."""

    name = "fastconv channels_last"
    devices = ("gpu",)

    def fetch(self, result: Any) -> Array:
        return np.moveaxis(super().fetch(result), -1, 1)

    def _data(self, array: Any) -> Any:
        return np.moveaxis(array, 1, -1).copy()

    def _weight(self, array: Any) -> Any:
        return self._data(array)

    def _settings(self, layer: Layer) -> dict[str, str]:
        return {"data_format": "channels_last", "weight_format": WEIGHT_FORMATS[layer.ndim][1]}

    def _problem(self, layer: Layer, dtype: str) -> ConvProblem:
        return replace(layer.problem(dtype), channels_last=True, weight_order="O*I")


class Prepared(Functional):
    """``fastconv.Conv2d`` and its twins: weights bound beforehand."""

    name = "fastconv prepared"
    ops: ClassVar[tuple[str, ...]] = ("forward",)
    prepared = True

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        kind = getattr(fastconv, f"Conv{'Transpose' * layer.transposed}{layer.ndim}d")
        x, w, bias = self._bring(x, w, bias)
        x = self._data(x)
        bound = kind(w, bias, device=self.device, **layer.options, **layer.settings(dtype), **self._settings(layer))
        return lambda: bound(x)


class PreparedChannelsLast(Prepared):
    """The prepared form on NHWC data, or what corresponds to it in one or three dimensions."""

    name = "fastconv NHWC"
    rival = "fastconv prepared"

    def fetch(self, result: Any) -> Array:
        return np.moveaxis(super().fetch(result), -1, 1)

    def _data(self, array: Any) -> Any:
        return np.moveaxis(array, 1, -1).copy()

    def _settings(self, layer: Layer) -> dict[str, str]:
        return {"data_format": "channels_last"}

    def _problem(self, layer: Layer, dtype: str) -> ConvProblem:
        return replace(layer.problem(dtype), channels_last=True)


class OneAlgorithm(Prepared):
    """The prepared form, computed by one algorithm of the registry; gradients, which have none, as a function."""

    name = "fastconv:ALGORITHM"
    rival = "fastconv prepared"
    ops = OPS

    def __init__(self, device: str, threads: int, algorithm: str) -> None:
        super().__init__(device, threads)
        self._algorithm = next(a for a in registry.algorithms(device) if a.name == algorithm)

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        reason = self._algorithm.why_not(self._problem(layer, dtype))
        if reason is not None:
            raise Declined(reason)
        if layer.op != "forward":
            problem = self._problem(layer, dtype)
            return lambda: fastconv.execute(problem, x, w, algorithm=self._algorithm.name)
        return super().prepare(layer, dtype, x, w, bias)

    def algorithm(self, layer: Layer, dtype: str) -> str:
        return self._algorithm.name

    def _settings(self, layer: Layer) -> dict[str, str]:
        return {"algorithm": self._algorithm.name}
