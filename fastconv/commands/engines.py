"""The engines that ``bench`` races: fastconv in both its forms, and what else could compute a layer here.

An engine turns a layer and its arrays into a call that takes no arguments. Each lives in a process of its own (see
:mod:`fastconv.commands.race`), because the spinning thread pools of two libraries in one process disturb each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

import fastconv
from fastconv import dispatch, registry
from fastconv.arrays import named_dtype
from fastconv.commands.info import versions
from fastconv.commands.race import Declined
from fastconv.networks import TF32, Layer, stored
from fastconv.problem import OPS, WEIGHT_FORMATS, ConvProblem

Array = np.ndarray[Any, Any]

# SciPy correlates one output channel at a time over all input channels; beyond so many elements read that takes
# tens of seconds.
_SCIPY_MOST = 5e7

_MOST_DRAWN = 4_000_037  # numbers: no multiple of an image's size, so that no two images are alike
_INTEGERS = -128, 128  # from which integers are drawn, up to the second; unsigned bytes wrap to all of their own


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


class PyTorch(Engine):
    """``torch.nn.functional``: oneDNN on the CPU, cuDNN on a GPU."""

    name = "pytorch"
    modules = ("torch",)
    extra = "torch"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "gpu")
    ops: ClassVar[tuple[str, ...]] = OPS
    fuses = True

    def __init__(self, device: str, threads: int) -> None:
        import torch

        super().__init__(device, threads)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        if device == "gpu":
            torch.backends.cudnn.benchmark = True

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        import torch
        import torch.nn.functional as F

        _decline_narrow_sums(layer, dtype)
        function = layer.function(F)
        if self.device == "gpu":
            torch.backends.cudnn.allow_tf32 = dtype == TF32
        place: dict[str, Any] = {
            "device": "cuda" if self.device == "gpu" else "cpu", "dtype": getattr(torch, stored(dtype))
        }  # fmt: skip
        exact = np.float32 if dtype == "bfloat16" else x.dtype  # torch reads no bfloat16 from NumPy
        xs, ws = (torch.from_numpy(v.astype(exact)).to(**place, **self._format(layer)) for v in (x, w))
        if layer.op != "forward":
            return _torch_gradient(layer, xs, ws)
        if bias is None:
            return lambda: function(xs, ws, **layer.options)
        return self._fused(layer, xs, ws, torch.from_numpy(bias.astype(exact)).to(**place))

    def _fused(self, layer: Layer, x: Any, w: Any, bias: Any) -> Callable[[], Any]:
        import torch.nn.functional as F

        function = layer.function(F)
        return lambda: function(x, w, bias, **layer.options).relu_()

    def fetch(self, result: Any) -> Array:
        array: Array = result.double().cpu().contiguous().numpy()
        return array

    def _format(self, layer: Layer) -> dict[str, Any]:
        return {}


def _decline_narrow_sums(layer: Layer, dtype: str) -> None:
    """Decline integers whose sums need a wider dtype, for a library that has results of the operands' dtype."""
    problem = layer.problem(dtype)
    if problem.result_dtype != problem.dtype:
        raise Declined(f"its sums of {dtype} are {dtype}, not {problem.result_dtype}")


def _torch_gradient(layer: Layer, a: Any, b: Any) -> Callable[[], Any]:
    """The call of PyTorch's backward pass for the gradient that is meant, from the arrays that its problem reads."""
    import torch

    to_input = layer.op == "input_grad"
    if to_input:
        gradient, weight, data = a, b, a.new_empty(layer.x_shape)
    else:
        data, gradient = (b, a) if layer.transposed else (a, b)
        weight = a.new_empty(layer.w_shape)
    geometry = layer.stride, layer.padding, layer.dilation, layer.transposed, (0,) * layer.ndim, layer.groups
    wanted = to_input, not to_input, False
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(gradient, data, weight, None, *geometry, wanted)[0 if to_input else 1]


class PyTorchChannelsLast(PyTorch):
    """PyTorch with its arrays in memory as cuDNN's fast kernels want them."""

    name = "pytorch channels_last"
    devices = ("gpu",)
    rival = ChannelsLast.name

    def _format(self, layer: Layer) -> dict[str, Any]:
        import torch

        if layer.ndim == 1:
            raise Declined("1-D has no channels_last")
        return {"memory_format": torch.channels_last if layer.ndim == 2 else torch.channels_last_3d}


class CudnnFused(PyTorchChannelsLast):
    """Convolution, bias and ReLU in one call of cuDNN, which nothing in ``torch.nn`` makes."""

    name = "cudnn fused"
    ops = ("forward",)

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        if bias is None or layer.transposed:
            raise Declined("it is for a convolution with bias and ReLU")
        return super().prepare(layer, dtype, x, w, bias)

    def _fused(self, layer: Layer, x: Any, w: Any, bias: Any) -> Callable[[], Any]:
        import torch

        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        return lambda: torch.cudnn_convolution_relu(x, w, bias, *geometry)


class SciPy(Engine):
    """``scipy.signal.correlate``, one output channel after another."""

    name = "scipy"
    modules = ("scipy",)
    devices = ("cpu",)

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        from scipy import fft, signal

        _decline_narrow_sums(layer, dtype)
        if layer.transposed:
            raise Declined("SciPy has no transposed convolution")
        if x.size * layer.out_channels > _SCIPY_MOST:
            raise Declined("would take SciPy too long")
        reach = (d * (k - 1) + 1 for k, d in zip(layer.kernel, layer.dilation, strict=True))
        dilated = np.zeros((*w.shape[:2], *reach), w.dtype)
        dilated[_every(layer.dilation)] = w
        kept = _every(layer.stride)
        inner, outer = layer.in_channels // layer.groups, layer.out_channels // layer.groups

        def call() -> Array:
            y = np.empty(layer.problem(dtype).y_shape, x.dtype)
            padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in layer.padding)])
            with fft.set_workers(self.threads):
                for n in range(layer.batch):
                    for o in range(layer.out_channels):
                        first = o // outer * inner
                        full = signal.correlate(padded[n, first : first + inner], dilated[o], mode="valid")
                        y[n, o] = full[0][kept]
            return y

        return call


def _every(steps: tuple[int, ...]) -> Any:
    """The index that takes every so many elements along the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


class OnnxRuntime(Engine):
    """ONNX Runtime on a model of one node, its weight a constant, which it packs when the model is loaded."""

    name = "onnxruntime"
    modules = ("onnxruntime", "onnx")
    devices = ("cpu",)
    rival = "fastconv prepared"

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        import onnxruntime as ort

        problem = layer.problem(dtype)
        if dtype == "int8":  # as uint8, 128 more: ConvInteger is fast and exact only where both are unsigned
            x, w = (array.view(np.uint8) ^ np.uint8(128) for array in (x, w))
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = ort.InferenceSession(_onnx_model(layer, dtype, w), options, providers=["CPUExecutionProvider"])
        y = np.empty(problem.result_shape, problem.result_dtype)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        held = x, y  # the binding knows their addresses only

        def call() -> Array:
            session.run_with_iobinding(binding)
            return held[1]

        return call


def _onnx_model(layer: Layer, dtype: str, w: Array) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    problem, constants = layer.problem(dtype), {"w": w}
    kind = "ConvTranspose" if layer.transposed else "Conv"
    if "int" in dtype:
        if layer.transposed or w.dtype != np.uint8:
            raise Declined("its ConvInteger is for integers of 8 bits, and not transposed")
        kind, zero = "ConvInteger", np.uint8(128 if dtype == "int8" else 0)
        constants |= {"x_zero": np.array(zero), "w_zero": np.array(zero)}
    node = helper.make_node(
        kind, ["x", *constants], ["y"], strides=layer.stride, dilations=layer.dilation, group=layer.groups,
        pads=layer.padding * 2,
    )  # fmt: skip
    element = helper.np_dtype_to_tensor_dtype(w.dtype)
    result = TensorProto.INT32 if kind == "ConvInteger" else element
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", element, layer.x_shape)],
        [helper.make_tensor_value_info("y", result, problem.result_shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Versions that ONNX Runtime has read for years, so that a newer onnx package does no harm.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


class OpenVINO(Engine):
    """OpenVINO on a model of one operation, its weight a constant, which it packs when the model is compiled."""

    name = "openvino"
    modules = ("openvino",)
    devices = ("cpu",)
    rival = "fastconv prepared"

    def prepare(self, layer: Layer, dtype: str, x: Array, w: Array, bias: Array | None) -> Callable[[], Any]:
        import openvino as ov

        if dtype != "float32":
            raise Declined(f"on a CPU, OpenVINO computes {dtype} in another type")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = ov.Core().compile_model(_openvino_model(layer, w), "CPU", settings).create_infer_request()
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        held = x, request.get_output_tensor().data  # what every inference reads and writes

        def call() -> Array:
            request.infer(share_inputs=True, share_outputs=True)
            return held[1]

        return call


def _openvino_model(layer: Layer, w: Array) -> Any:
    import openvino as ov
    from openvino import opset13 as op

    x = op.parameter(layer.x_shape, w.dtype)
    geometry = {
        "strides": layer.stride,
        "pads_begin": layer.padding,
        "pads_end": layer.padding,
        "dilations": layer.dilation,
    }
    if layer.groups == 1:
        operation = op.convolution_backprop_data if layer.transposed else op.convolution
    else:
        operation = op.group_convolution_backprop_data if layer.transposed else op.group_convolution
        w = w.reshape(layer.groups, w.shape[0] // layer.groups, *w.shape[1:])
    return ov.Model([operation(x, op.constant(w), **geometry)], [x])


ENGINES = {
    engine.name: engine
    for engine in (
        Functional, ChannelsLast, Prepared, PreparedChannelsLast, PyTorch, PyTorchChannelsLast, CudnnFused, SciPy,
        OnnxRuntime, OpenVINO,
    )
}  # fmt: skip

#: Names that ``--peers`` takes -> the engines they stand for.
PEERS: dict[str, tuple[type[Engine], ...]] = {
    "pytorch": (PyTorch, PyTorchChannelsLast, CudnnFused),
    "scipy": (SciPy,),
    "onnxruntime": (OnnxRuntime,),
    "openvino": (OpenVINO,),
}


def start(name: str, device: str, threads: int) -> Engine:
    """The engine of that name; ``fastconv:direct`` is fastconv with that algorithm alone."""
    _, _, algorithm = name.partition(":")
    return OneAlgorithm(device, threads, algorithm) if algorithm else ENGINES[name](device, threads)


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
