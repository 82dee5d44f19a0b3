"""What an engine is that ``bench`` races, and what all of them are given to compute.

An engine turns a layer and its arrays into a call that takes no arguments. Each lives in a process of its own (see
:mod:`fastconv.commands.race`), because the spinning thread pools of two libraries in one process disturb each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastconv.arrays import named_dtype
from fastconv.commands.info import versions
from fastconv.networks import Layer

Array = np.ndarray[Any, Any]

_MOST_DRAWN = 4_000_037  # numbers: no multiple of an image's size, so that no two images are alike
_INTEGERS = -128, 128  # from which integers are drawn, up to the second; unsigned bytes wrap to all of their own


class EngineError(Exception):
    """An engine could not do what it was asked; the message says why."""


class Declined(EngineError):
    """An engine does not compute such layers; the message says why."""


class Engine(ABC):
    """A library that computes layers on one device, with a number of threads where that is the CPU."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = "bench"  # of fastconv, that installs the modules
    devices: ClassVar[tuple[str, ...]]
    #: The form of fastconv this engine is comparable with: one that packs weights beforehand with the prepared one.
    rival: ClassVar[str] = "fastconv"
    #: What it computes of a layer: its result, its gradients.
    ops: ClassVar[tuple[str, ...]] = ("forward",)
    #: Whether it is raced with a bias and a ReLU too.
    fuses: ClassVar[bool] = False

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self.threads = threads

    @abstractmethod
    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        """Bring the arrays where they are computed with, and return the call to time.

        The arrays are those that the layer's problem reads: of a gradient, other ones than input and weight. There is a
        bias, and a ReLU to be computed, if the layer is fused.

        Raises
        ------
        Declined
            If the engine cannot compute the layer.
        """

    def fetch(self, result: Any) -> Array:
        """The result of a call as a NumPy array in NCHW order."""
        array: Array = np.asarray(result)
        return array

    def algorithm(self, layer: Layer, dtype: str) -> str:
        """Name of the algorithm the engine runs, where it can be told."""
        return ""

    def version(self) -> str:
        """The library's version."""
        return versions(self.modules)[self.modules[0]]


def layer_operands(layer: Layer, dtype: str) -> tuple[Array, Array, Array | None]:
    """The arrays a layer's problem reads, the same in every process; a weight keeps results near unit size.

    Integers are drawn from the range of int8. Random numbers are repeated after the first few million, which takes a
    tenth of the time of drawing more.
    """
    rng, problem = np.random.default_rng(0), layer.problem(dtype)
    w_scale = np.float32((np.prod(layer.kernel) * layer.in_channels / layer.groups) ** -0.5)

    def draw(shape: tuple[int, ...], as_dtype: str, scale: np.float32) -> Array:
        count = min(math.prod(shape), _MOST_DRAWN)
        if "int" in as_dtype:
            numbers: Array = rng.integers(*_INTEGERS, count)
        else:
            numbers = rng.standard_normal(count, np.float32) * scale
        return np.resize(numbers.astype(named_dtype(as_dtype), copy=False), shape)

    one = np.float32(1)
    x, w = (
        draw(shape, problem.dtype, scale) for shape, scale in zip(problem.operand_shapes, (one, w_scale), strict=True)
    )
    return x, w, draw((layer.out_channels,), problem.result_dtype, one) if layer.fused else None
