"""ONNX models on fastconv: operators for onnx's reference evaluator, and whole models with their layers prepared.

Needs the ``onnx`` package: ``pip install fastconv[onnx]``. Everything that fastconv does not compute is left to onnx's
own :class:`onnx.reference.ReferenceEvaluator`.

Examples
--------
>>> import numpy as np, onnx.helper, onnx.reference, fastconv.onnx
>>> node = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], strides=[2])
>>> values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
>>> graph = onnx.helper.make_graph([node], "pooling", values[:1], values[1:])
>>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
>>> evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.ops)
>>> evaluator.run(None, {"x": np.array([[[1, 3, 2, 0]]], np.float32)})
[array([[[3., 2.]]], dtype=float32)]
"""

from fastconv.onnx.loading import Model, load
from fastconv.onnx.operators import ops

__all__ = ["Model", "load", "ops"]
