"""A whole ONNX model made callable, with the weights of its convolutions prepared and what follows them fused.

The graph is rewritten before onnx's reference evaluator gets it: a convolution with constant weights becomes one node
that runs a prepared layer, and takes along the nodes that follow it, in this order, if nothing else reads what lies
between them:

- BatchNormalization: ``scale * (conv + bias - mean) / sqrt(variance + epsilon) + shift`` is a convolution too, with the
  weights and the bias of each channel scaled. They are computed in float64 and rounded once.
- Add of a constant for each channel (to the bias), or of a tensor of the same shape (as a residual). Shapes come from
  onnx's shape inference; an Add whose operands are not known to be alike stays as it is.
- Relu, Clip to constants, LeakyRelu of slope 0.01, Sigmoid, Tanh and Gelu.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.helper import make_node, make_opsetid
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastconv.onnx.operators import convolution, function, ops, transposed

_DOMAIN = "fastconv"
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}


class Model:
    """A loaded model; call it with its inputs.

    Attributes
    ----------
    input_names, output_names : list of str
    fused : list of str
        For each prepared convolution, the kinds of the nodes that it stands for, as ``"Conv + Relu"``.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = _Graph(model)
        rewritten, layers = graph.rewrite()

        class Layer(OpRun):
            op_domain = _DOMAIN

            def _run(self, x, residual=None, index=None):  # type: ignore[no-untyped-def]
                return (layers[index](x, residual),)

        self._evaluator = ReferenceEvaluator(rewritten, new_ops=[*ops, Layer])
        self.fused = graph.fused
        initialised = {tensor.name for tensor in model.graph.initializer}
        self.input_names = [value.name for value in model.graph.input if value.name not in initialised]
        self.output_names = [value.name for value in model.graph.output]

    def __call__(self, *inputs: Any, **named: Any) -> list[Any]:
        """Run the model.

        Parameters
        ----------
        *inputs : numpy.ndarray
            In the order of ``input_names``.
        **named : numpy.ndarray
            By name; names that are no Python identifiers can be given as ``**{name: array}``.

        Returns
        -------
        list of numpy.ndarray
            In the order of ``output_names``.

        Raises
        ------
        ValueError
            If an input is missing, given twice or not one of the model's.
        """
        if len(inputs) > len(self.input_names):
            raise ValueError(f"{len(inputs)} inputs: expected {', '.join(self.input_names)}")
        given = dict(zip(self.input_names, inputs, strict=False))
        wrong = sorted((set(named) - set(self.input_names)) | (set(named) & set(given)))
        if wrong:
            raise ValueError(f"inputs {', '.join(wrong)} are given twice or unknown: expected {self.input_names}")
        given |= named
        missing = [name for name in self.input_names if name not in given]
        if missing:
            raise ValueError(f"inputs {', '.join(missing)} are missing: expected {', '.join(self.input_names)}")
        return list(self._evaluator.run(None, given))


def load(model: Any) -> Model:
    """Load an ONNX model, prepare the weights of its convolutions and fuse what follows them.

    Parameters
    ----------
    model : str, path or onnx.ModelProto

    Returns
    -------
    Model
        A callable of the model's inputs, NumPy arrays, that gives the list of its outputs.

    Raises
    ------
    TypeError
        If it is neither a path nor a model.
    ValueError
        If a convolution has an attribute that cannot be; the message names it.

    Examples
    --------
    >>> import numpy as np, onnx.parser, fastconv.onnx
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 9, opset_import: ["" : 18]>
    ...     agraph (float[1, 1, 3, 3] x) => (float[1, 1, 2, 2] y)
    ...     <float[1, 1, 2, 2] w = {1, 1, 1, 1}> { c = Conv(x, w)  y = Relu(c) }''')
    >>> loaded = fastconv.onnx.load(model)
    >>> loaded.fused
    ['Conv + Relu']
    >>> loaded(np.ones((1, 1, 3, 3), np.float32))[0].tolist()
    [[[[4.0, 4.0], [4.0, 4.0]]]]
    """
    if isinstance(model, (str, os.PathLike)):
        return Model(onnx.load(model))
    if isinstance(model, onnx.ModelProto):
        return Model(model)
    raise TypeError(f"model is a {type(model).__name__}: expected a path or an onnx.ModelProto")


@dataclass
class _Chain:
    """A convolution and the nodes that are fused with it so far."""

    nodes: list[onnx.NodeProto]
    w: Any
    bias: Any
    residual: str | None = None
    activation: Any = None
    layer: Any = field(default=None)

    @property
    def output(self) -> str:
        """The tensor that the last node makes."""
        return self.nodes[-1].output[0]


class _Graph:
    """What rewriting has to know of a model's graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes = list(model.graph.node)
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        for value in model.graph.input:  # what a caller may replace is no constant
            self._constants.pop(value.name, None)
        self._uses = Counter(_reads(model.graph)) + Counter(value.name for value in model.graph.output)
        self._reader = {name: node for node in self._nodes for name in node.input}
        self._shapes = _shapes(model)
        self.fused: list[str] = []

    def rewrite(self) -> tuple[onnx.ModelProto, list[Any]]:
        """The model with a node for each layer, and the layers."""
        layers: list[Any] = []
        replaced: dict[int, onnx.NodeProto | None] = {}
        for node in self._nodes:
            chain = self._chain(node)
            if chain is None:
                continue
            inputs = [node.input[0]] if chain.residual is None else [node.input[0], chain.residual]
            replaced |= {id(old): None for old in chain.nodes}
            # In the place of the last one, by when a residual is there.
            replaced[id(chain.nodes[-1])] = make_node(
                "Layer", inputs, [chain.output], domain=_DOMAIN, index=len(layers)
            )
            layers.append(chain.layer)
            self.fused.append(" + ".join(old.op_type for old in chain.nodes))
        new = [replaced.get(id(node), node) for node in self._nodes]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.node[:]
        model.graph.node.extend([node for node in new if node is not None])
        model.opset_import.append(make_opsetid(_DOMAIN, 1))
        return model, layers

    def _chain(self, node: onnx.NodeProto) -> _Chain | None:
        """The layer that begins at a node; None if that is no convolution with constant weights of its own."""
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
            return None
        names = list(node.input[1:])
        if any(name and name not in self._constants for name in names):
            return None
        w, bias = (self._constants.get(name) for name in (*names, "")[:2])
        attributes = _attributes(node)
        if w is None or w.dtype.kind != "f" or (node.op_type == "ConvTranspose" and _depends_on_x(attributes)):
            return None
        name, arguments = (
            ("Conv", convolution("Conv", w.shape, **attributes)) if node.op_type == "Conv"
            else ("ConvTranspose", transposed((), w.shape, **attributes))
        )  # fmt: skip
        chain = _Chain([node], w, bias)
        for step in (self._normalise, self._add, self._activate):
            following = self._following(chain)
            if following is not None and step(chain, following, arguments["groups"]):
                chain.nodes.append(following)
        build = function(name, name, w.ndim - 2)
        chain.layer = build(chain.w, chain.bias, activation=chain.activation, **arguments)
        return chain

    def _following(self, chain: _Chain) -> onnx.NodeProto | None:
        """The only node that reads what a chain makes, if there is one."""
        return self._reader.get(chain.output) if self._uses[chain.output] == 1 else None

    def _normalise(self, chain: _Chain, node: onnx.NodeProto, groups: int) -> bool:
        if node.op_type != "BatchNormalization" or _attributes(node).get("training_mode", 0) or len(node.output) > 1:
            return False
        parameters = [self._constants.get(name) for name in node.input[1:]]
        if any(parameter is None for parameter in parameters):
            return False
        scale, shift, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        factor = scale / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
        w, dtype = chain.w.astype(np.float64), chain.w.dtype
        if chain.nodes[0].op_type == "Conv":
            w = w * factor.reshape(-1, *[1] * (w.ndim - 1))
        else:  # (C_in, C_out / groups, ...): the input channels of a group meet its output channels
            split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
            w = (split * factor.reshape(groups, 1, -1, *[1] * (w.ndim - 2))).reshape(w.shape)
        before = np.zeros_like(mean) if chain.bias is None else chain.bias
        chain.w, chain.bias = w.astype(dtype), ((before - mean) * factor + shift).astype(dtype)
        return True

    def _add(self, chain: _Chain, node: onnx.NodeProto, groups: int) -> bool:
        if node.op_type != "Add":
            return False
        other = node.input[1] if node.input[0] == chain.output else node.input[0]
        shape, added = self._shapes.get(chain.output), self._constants.get(other)
        if added is not None and added.dtype == chain.w.dtype and shape is not None:
            each = (1,) * (len(shape) - 2)
            if added.shape in ((shape[1], *each), (1, shape[1], *each)):
                chain.bias = added.reshape(-1) if chain.bias is None else chain.bias + added.reshape(-1)
                return True
        if shape is None or self._shapes.get(other) != shape:
            return False
        chain.residual = other
        return True

    def _activate(self, chain: _Chain, node: onnx.NodeProto, groups: int) -> bool:
        attributes = _attributes(node)
        if node.op_type in _ACTIVATIONS:
            chain.activation = _ACTIVATIONS[node.op_type]
        elif node.op_type == "LeakyRelu" and np.float32(attributes.get("alpha", 0.01)) == np.float32(0.01):
            chain.activation = "leaky_relu"
        elif node.op_type == "Gelu" and attributes.get("approximate", "none") == "none":
            chain.activation = "gelu"
        elif node.op_type == "Clip":
            bounds = self._bounds(node, attributes)
            if bounds is None:
                return False
            chain.activation = bounds
        else:
            return False
        return True

    def _bounds(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> tuple[float, float] | None:
        """The range of a Clip, in attributes before version 11 and in constants since; None if not known or empty."""
        bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
        for i, name in enumerate(node.input[1:]):
            if name:
                if name not in self._constants:
                    return None
                bounds[i] = self._constants[name].item()
        return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _depends_on_x(attributes: dict[str, Any]) -> bool:
    """Whether the padding of a transposed convolution depends on the size of its input."""
    return "output_shape" in attributes or attributes.get("auto_pad", "NOTSET").startswith("SAME")


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor that a node reads, once for each time; those of graphs inside nodes too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _reads(inner)
                yield from (value.name for value in inner.output)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """The shapes that onnx infers: of each axis a length or a name; only where all of them are known."""
    graph, shapes = onnx.shape_inference.infer_shapes(model).graph, {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        axes = [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        if axes and all(axes):
            shapes[value.name] = tuple(axes)
    return shapes
