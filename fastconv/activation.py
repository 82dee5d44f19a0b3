"""What a kernel may apply to each result as it writes it, read from the ``activation`` argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.parsing import several


@dataclass(frozen=True)
class Activation:
    """What is applied to ``conv + bias + residual``: a name and two parameters.

    ``clip`` limits to ``[a, b]`` (relu is ``[0, inf]``, relu6 is ``[0, 6]``); ``leaky_relu`` has slope ``a`` below
    zero; the others take no parameter. ``gelu`` is the exact one, ``v * Phi(v)`` (Hendrycks and Gimpel, 2016).
    """

    kind: str
    a: float = 0.0
    b: float = math.inf

    KINDS = ("none", "clip", "leaky_relu", "sigmoid", "tanh", "silu", "gelu")

    @property
    def code(self) -> int:
        """The number by which kernels know this activation."""
        return self.KINDS.index(self.kind)

    @classmethod
    def parse(cls, activation: Any, dtype: str) -> Activation:
        """Read the ``activation`` argument; the result's `dtype` limits what is possible."""
        named = {"relu": cls("clip"), "relu6": cls("clip", 0.0, 6.0), "leaky_relu": cls("leaky_relu", 0.01)}
        named |= {kind: cls(kind) for kind in ("sigmoid", "tanh", "silu", "gelu")}
        if activation is None:
            return NO_ACTIVATION
        if isinstance(activation, str) and activation in named:
            parsed = named[activation]
        elif _is_clip_range(activation):
            parsed = cls("clip", float(activation[0]), float(activation[1]))
        else:
            raise ValueError(
                f"activation={activation!r}: expected None, one of {', '.join(named)}, or a clip range (low, high)"
            )
        if dtype.startswith("complex"):
            raise TypeError(f"activation={activation!r}: not defined for {dtype} results")
        if "int" in dtype and parsed.kind != "clip":
            raise TypeError(f"activation={activation!r}: integer results take 'relu', 'relu6' or a clip range only")
        if "int" in dtype:
            limits = np.iinfo(dtype)
            finite = [bound for bound in (parsed.a, parsed.b) if math.isfinite(bound)]
            if any(not bound.is_integer() or not limits.min <= bound <= limits.max for bound in finite):
                raise ValueError(f"activation={activation!r}: expected integers that {limits.dtype} holds, or infinity")
        return parsed


NO_ACTIVATION = Activation("none")


def _is_clip_range(value: Any) -> bool:
    try:
        return several(value) and len(value) == 2 and float(value[0]) <= float(value[1])
    except (TypeError, ValueError):
        return False
