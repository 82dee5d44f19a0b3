"""From a problem to a running kernel: candidates, their measured or predicted time, the choice."""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv import machine, recycling, settings
from fastconv.arrays import NUMPY, Kind, adopt, at_home, check_out, is_plain, named_dtype
from fastconv.folding import fold, folds, unfolded
from fastconv.lowering import Views
from fastconv.problem import ConvProblem, compute_dtype
from fastconv.registry import Algorithm, algorithms

if TYPE_CHECKING:
    from fastconv.offloading import Schedule
    from fastconv.remembered import Record

DEVICES = ("auto", "cpu", "gpu")

# A GPU must be this much faster, transfers included, before arrays are sent there unasked; and the CPU's own time must
# be long enough to be worth asking.
_GPU_ADVANTAGE = 1.5
_GPU_WORTH_ASKING = 1e-3


def machine_of(device: str) -> machine.Machine:
    """The machine whose rates the cost models of `device` use."""
    return machine.cpu() if device == "cpu" else machine.gpu()


def why_no_gpu() -> str | None:
    """Why no GPU can be used here, in words; None if one can."""
    from fastconv.gpu import runtime

    return runtime.why_no_gpu()


class Estimate(NamedTuple):
    """Seconds of a call, predicted, or measured on this machine; the latter come first."""

    predicted: bool
    seconds: float


def estimate(algorithm: Algorithm, problem: ConvProblem, *, prepared: bool) -> Estimate:
    """Seconds of a call: of a prepared layer, or of a function, which packs the weight each time."""
    record = _recall(problem, algorithm.device)
    measured = {} if record is None else record.prepared if prepared else record.call
    if algorithm.key in measured:
        return Estimate(False, measured[algorithm.key])
    here = machine_of(algorithm.device)
    seconds = algorithm.cost(problem, here)
    return Estimate(True, seconds if prepared else seconds + algorithm.pack_cost(problem, here))


@lru_cache(maxsize=4096)
def _recall(problem: ConvProblem, device: str) -> Record | None:
    from fastconv.remembered import recall  # what it imports, the first choice has to import anyway

    return recall(problem, device)


def configured(algorithm: Algorithm, problem: ConvProblem, *, prepared: bool) -> Algorithm:
    """An algorithm in the configuration that was measured fastest; as it is where none was measured."""
    if _recall(problem, algorithm.device) is None:
        return algorithm
    return min((algorithm, *algorithm.configurations(problem)), key=lambda a: estimate(a, problem, prepared=prepared))


@lru_cache(maxsize=4096)
def choose(problem: ConvProblem, device: str = "cpu", algorithm: str = "auto", *, prepared: bool = False) -> Algorithm:
    """The algorithm to run `problem` with on ``"cpu"`` or ``"gpu"``: the named one, or the fastest.

    That is the one measured fastest, where ``tune`` has measured `problem`, or else predicted fastest. It may differ
    between a function and a `prepared` layer, whose weight is packed beforehand.

    Raises
    ------
    ValueError
        If `algorithm` is not registered for the device, or declines the problem.
    """
    known = {a.name: a for a in algorithms(device)}
    if algorithm != "auto":
        check_names(algorithm, device)
        reason = known[algorithm].why_not(problem)
        if reason is not None:
            raise ValueError(f"algorithm={algorithm!r} cannot compute {problem}: {reason}")
        return configured(known[algorithm], problem, prepared=prepared)
    willing = [configured(a, problem, prepared=prepared) for a in known.values() if a.why_not(problem) is None]
    return min(willing, key=lambda a: estimate(a, problem, prepared=prepared))


def check_names(algorithm: Any, device: Any) -> None:
    """Raise `ValueError` if `algorithm` or `device` is none that there is."""
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: expected one of {', '.join(map(repr, DEVICES))}")
    known: dict[str, None] = {}
    for at in ("cpu", "gpu") if device == "auto" else (device,):
        known |= {a.name: None for a in algorithms(at)}
        if algorithm == "auto" or algorithm in known:  # before those of a GPU are imported
            return
    where = "" if device == "auto" else f" on the {device}"
    raise ValueError(f"algorithm={algorithm!r}: expected 'auto' or one of {', '.join(known)}{where}")


def place(problem: ConvProblem, device: str, home: str, *, prepared: bool = False) -> str:
    """Where to compute, ``"cpu"`` or ``"gpu"``, for arrays that live on `home`.

    Raises
    ------
    ValueError
        If `device` is unknown, or asks for a GPU where there is none, or for the CPU for arrays on a GPU.
    """
    check_names("auto", device)
    if home == "gpu":
        if device == "cpu":
            raise ValueError("device='cpu': the arrays live on a GPU; bring them to the host first (cupy.asnumpy)")
        return "gpu"
    if device == "gpu":
        reason = why_no_gpu()
        if reason is not None:
            raise ValueError(f"device='gpu': {reason}")
        return "gpu"
    return "gpu" if device == "auto" and _gpu_pays(problem, prepared) else "cpu"


def _gpu_pays(problem: ConvProblem, prepared: bool) -> bool:
    on_cpu = estimate(choose(problem, "cpu", prepared=prepared), problem, prepared=prepared).seconds
    if on_cpu < _GPU_WORTH_ASKING or why_no_gpu() is not None:
        return False
    return on_cpu > _GPU_ADVANTAGE * offloading(problem, prepared=prepared).seconds


def offloading(problem: ConvProblem, algorithm: str = "auto", *, prepared: bool = False) -> Schedule:
    """How to compute a problem whose arrays are in host memory on a GPU, and how long that takes."""
    from fastconv.gpu.runtime import runtime
    from fastconv.offloading import schedule

    there = estimate(choose(problem, "gpu", algorithm, prepared=prepared), problem, prepared=prepared)
    return schedule(problem, there.seconds, runtime().transfers(), prepared=prepared)


class Execution:
    """A problem with its algorithm planned: checks the arrays, views them, runs the kernel.

    All arrays but the weight and the bias must live on the algorithm's device.

    Parameters
    ----------
    problem : ConvProblem
    algorithm : Algorithm
    """

    def __init__(self, problem: ConvProblem, algorithm: Algorithm) -> None:
        self.problem = problem
        self.algorithm = algorithm
        self.device = algorithm.device
        computed = unfolded(problem)
        self.plan = algorithm.plan(computed, settings.workspace_limit())
        self._pack_key = self.device, computed.dtype, self.plan.pack_key
        self._xp = library(self.device)
        self._array = self._xp.ndarray
        views = Views(computed)
        self._view_source, self._view_weight, self._view_result = views.source, views.weight, views.result
        self._folds = folds(problem)
        self._computed_shape, self._computed_dtype = computed.result_shape, named_dtype(computed.result_dtype)
        n_bytes = math.prod(self._computed_shape) * self._computed_dtype.itemsize
        self._empty = recycling.allocator(n_bytes) if self.device == "cpu" else self._xp.empty
        self.operand_shapes = problem.operand_shapes
        self.dtype = named_dtype(problem.dtype)
        self._shape = problem.result_shape
        self._channels = (problem.result_channels,)
        self._dtype = named_dtype(computed.dtype)
        self._result_dtype = named_dtype(problem.result_dtype)
        self._bias_dtype = named_dtype(problem.accumulator_dtype)

    def pack_key(self) -> Hashable:
        """Names the form of a packed weight, and the GPU it is on: executions with equal ones can share it."""
        if self.device == "cpu":
            return self._pack_key
        from fastconv.gpu.runtime import runtime

        return self._pack_key, runtime().device()

    def pack(self, w: Any) -> Any:
        """Bring a weight (a NumPy or CuPy array in the user's format) into the plan's form, on its device."""
        return self.plan.pack(self._view_weight(self._bring(w, self._dtype)))

    def __call__(
        self, x: Any, w: Any, bias: Any = None, residual: Any = None, out: Any = None, *, packed: Any = None
    ) -> Any:
        """Run on arrays of the problem's shapes; `packed` spares packing `w`."""
        if bias is not None:
            self._check("bias", bias, self._channels)
        if residual is not None:
            self._check("residual", residual, self._shape)
        if out is not None:
            operands = {"x": x, "w": w, "bias": bias, "residual": residual}
            check_out(out, self._shape, self._result_dtype, operands)
        return self._run(x, self.pack(w) if packed is None else packed, bias, residual, out)

    def _run(self, x: Any, packed: Any, bias: Any, residual: Any, out: Any) -> Any:
        """Compute from checked arrays, of this execution's device, and a packed weight."""
        x = self._bring(x, self._dtype)
        if bias is not None:
            bias = self._contiguous(self._bring(bias, self._bias_dtype))
        if residual is not None:
            residual = self._view_result(self._bring(residual, self._result_dtype))
        result, target = out, None if out is None or self._folds else self._view_out(out)
        if target is None:
            result = self._empty(self._computed_shape, self._computed_dtype)
            target = self._view_result(result)
        self.plan.run(self._view_source(x), packed, target, bias, residual)
        if self._folds:
            result = self._contiguous(fold(self.problem, result).astype(self._result_dtype, copy=False))
        if out is None:
            return result
        if result is not out:
            out[...] = result
        return out

    def _check(self, name: str, array: Any, shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}: expected {shape}")
        if array.dtype != self._result_dtype and not np.can_cast(array.dtype, self._bias_dtype, "same_kind"):
            raise TypeError(f"{name} has dtype {array.dtype}: cannot be added to a {self._result_dtype} result")

    def _bring(self, array: Any, dtype: np.dtype[Any]) -> Any:
        """The array on this execution's device, with that dtype."""
        if type(array) is self._array and array.dtype is dtype:
            return array
        return self._xp.asarray(array).astype(dtype, copy=False)

    def _contiguous(self, array: Any) -> Any:
        return array if array.flags.c_contiguous else array.copy()

    def _view_out(self, out: Any) -> Any:
        """The kernel's view of `out`; None where its axes cannot merge."""
        view = self._view_result(out)
        return view if out.flags.c_contiguous or self._xp.may_share_memory(view, out) else None


def library(device: str) -> Any:
    """The library of a device's arrays."""
    if device == "cpu":
        return np
    from fastconv.gpu.runtime import runtime

    return runtime().xp


@lru_cache(maxsize=4096)
def _execution(
    problem: ConvProblem, home: str, device: str, algorithm: str, prepared: bool, workspace_limit: int
) -> Execution:
    computed = unfolded(problem)
    at = place(computed, device, home, prepared=prepared)
    chosen = choose(computed, at, algorithm, prepared=prepared)
    if at == home:
        return Execution(problem, chosen)
    from fastconv.offloading import Offloaded

    return Offloaded(problem, chosen, offloading(computed, algorithm, prepared=prepared).images)


_times_chosen = 0


def times_chosen() -> int:
    """How often choices were made anew in this process: executions kept from before are stale."""
    return _times_chosen


def choose_anew() -> None:
    """Forget choices made in this process, because what is remembered has changed."""
    global _times_chosen
    _times_chosen += 1
    for cached in (_recall, choose, _execution):
        cached.cache_clear()


def prepare(
    problem: ConvProblem, home: str, device: str = "auto", algorithm: str = "auto", *, prepared: bool = False
) -> Execution:
    """The execution of `problem` for arrays that live on `home`, with the weight `prepared` or not; cached."""
    return _execution(problem, home, device, algorithm, prepared, settings.workspace_limit())


def adopt_all(
    x: Any, w: Any, bias: Any, residual: Any, out: Any, names: tuple[str, str] = ("x", "w")
) -> tuple[tuple[Any, ...], Kind]:
    """Adopt the two operands and every other array that is not None; all must live on the device of the first.

    Raises
    ------
    TypeError
        If one is no array, or they live on different devices.
    """
    if bias is None and residual is None and out is None and is_plain(x) and is_plain(w):
        return (x, w, None, None, None), NUMPY  # as nearly always; the rest takes as long as a small layer's kernel
    x, kind = adopt(names[0], x)
    home = names[0], kind, x
    w = _adopt_beside(home, names[1], w)
    if bias is not None:
        bias = _adopt_beside(home, "bias", bias)
    if residual is not None:
        residual = _adopt_beside(home, "residual", residual)
    if out is not None:
        given, out = out, _adopt_beside(home, "out", out)
        if out is not given and out.flags.owndata:
            raise TypeError(
                f"out is a {type(given).__name__} that was copied: expected an aligned array of native byte order, on "
                "the device of the operands"
            )
    return (x, w, bias, residual, out), kind


def _adopt_beside(home: tuple[str, Kind, Any], name: str, value: Any) -> Any:
    array, its = adopt(name, value)
    first, kind, x = home
    if its is not kind and its.device != kind.device:
        raise TypeError(
            f"{name} is a {its.library} array on the {its.device}, but {first} is a {kind.library} array on "
            f"the {kind.device}: expected both on one device"
        )
    if kind.device == "gpu" and array.device != x.device:
        return array.copy()  # to the current GPU, which is that of x
    return array


@at_home
def execute(
    problem: ConvProblem,
    a: Any,
    b: Any,
    bias: Any = None,
    residual: Any = None,
    out: Any = None,
    *,
    algorithm: str = "auto",
    device: str = "auto",
) -> Any:
    """Compute any problem, gradients included, from the two arrays that its ``op`` reads.

    Parameters
    ----------
    problem : ConvProblem
    a, b : array
        Of shapes ``problem.operand_shapes``.
    bias, residual, out : array, optional
        As for :func:`fastconv.conv2d`.
    algorithm, device : str
        As for :func:`fastconv.conv2d`.

    Returns
    -------
    array
        Of the kind of `a`, of shape ``problem.result_shape``.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastconv.conv2d` does.

    Examples
    --------
    The weight gradient of a convolution:

    >>> import dataclasses
    >>> forward = ConvProblem.forward(1, (1, 1, 3), (1, 1, 2))
    >>> problem = dataclasses.replace(forward, op="weight_grad")
    >>> x, gy = np.array([[[1, 2, 3]]], np.float32), np.array([[[1, 1]]], np.float32)
    >>> execute(problem, x, gy)
    array([[[3., 5.]]], dtype=float32)
    """
    arrays, kind = adopt_all(a, b, bias, residual, out, ("a", "b"))
    execution = prepare(problem, kind.device, device, algorithm)
    for name, array, shape in zip("ab", arrays, execution.operand_shapes, strict=False):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}: expected {shape} for {problem}")
    first, second = arrays[0].dtype, arrays[1].dtype
    if not (first is second is execution.dtype) and compute_dtype(first, second) != problem.dtype:
        raise TypeError(f"a and b have dtypes {first} and {second}: expected {problem.dtype}")
    result = execution(*arrays)
    return kind.give(result) if out is None else out
