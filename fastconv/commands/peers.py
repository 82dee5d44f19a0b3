"""What else could compute a layer here, as engines that ``bench`` races against fastconv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastconv.commands.engine import Array, Declined, Engine
from fastconv.commands.own_engines import ChannelsLast
from fastconv.networks import TF32, Layer, stored
from fastconv.problem import OPS

# SciPy correlates one output channel at a time over all input channels; beyond so many elements read that takes
# tens of seconds.
_SCIPY_MOST = 5e7


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
