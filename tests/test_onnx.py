"""The ONNX adapter: onnx's own cases for each operator, fused graphs, and a real model against ONNX Runtime."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fastconv

onnx = pytest.importorskip("onnx", reason="onnx is not installed (fastconv[onnx])")
from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import fastconv.onnx  # noqa: E402

OPERATORS = sorted(operator.__name__ for operator in fastconv.onnx.ops)


@pytest.fixture(scope="module")
def node_cases():
    """Onnx's backend cases. It computes their results as it collects them, slowly, and makes some numbers overflow."""
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        return collect_testcases(None)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("loaded", [False, True], ids=["operators", "loaded"])
def test_backend_cases(operator, loaded, node_cases):
    cases = [case for case in node_cases if operator in {node.op_type for node in case.model.graph.node}]
    assert cases
    for case in cases:
        for inputs, outputs in case.data_sets:
            if loaded:
                results = fastconv.onnx.load(case.model)(*inputs)
            else:
                names = [value.name for value in case.model.graph.input]
                evaluator = ReferenceEvaluator(case.model, new_ops=fastconv.onnx.ops)
                results = evaluator.run(None, dict(zip(names, inputs, strict=True)))
            for result, expected in zip(results, outputs, strict=True):
                assert result.dtype == expected.dtype, case.name
                tolerances = {"rtol": case.rtol, "atol": max(case.atol, 1e-6)}
                np.testing.assert_allclose(result, expected, **tolerances, err_msg=case.name)


def model_of(nodes, inputs, constants=(), outputs=("y",), opset=18, elem=onnx.TensorProto.FLOAT):
    values = [helper.make_tensor_value_info(name, elem, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(
        nodes, "graph", values, [helper.make_tensor_value_info(name, elem, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


RNG = np.random.default_rng(5)


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


NORM = {"scale": random(4), "shift": random(4), "mean": random(4), "variance": np.abs(random(4)) + 0.5}
CONSTANTS = {"w": random(4, 3, 3, 3), "b": random(4), "low": np.float32(-0.5), "high": np.float32(0.5),
             "each": random(4, 1, 1), "tw": random(3, 2, 3, 3), **NORM}  # fmt: skip
CONV = helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])
NORMALISE = helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"])
ADD = helper.make_node("Add", ["n", "r"], ["a"])


def activation(kind, source, *more, **attributes):
    return helper.make_node(kind, [source, *more], ["y"], **attributes)


def identity(source):
    return helper.make_node("Identity", [source], ["y"])


FUSED = {
    "Conv + BatchNormalization + Add + Relu": [CONV, NORMALISE, ADD, activation("Relu", "a")],
    "Conv + BatchNormalization + Clip": [CONV, NORMALISE, activation("Clip", "n", "low", "high")],
    "Conv + Clip": [CONV, activation("Clip", "c", "", "high")],
    "Conv + LeakyRelu": [CONV, activation("LeakyRelu", "c")],
    "Conv + Sigmoid": [CONV, activation("Sigmoid", "c")],
    "Conv + Tanh": [CONV, activation("Tanh", "c")],
    "Conv + Gelu": [CONV, activation("Gelu", "c")],
    "Conv + Add": [CONV, helper.make_node("Add", ["each", "c"], ["y"])],
    "Conv": [CONV, activation("LeakyRelu", "c", alpha=0.3)],
    "ConvTranspose + BatchNormalization + Relu": [
        helper.make_node("ConvTranspose", ["x", "tw"], ["c"], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", *(f"{name}2" for name in NORM)], ["n"]), activation("Relu", "n"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("fused", "nodes"), FUSED.items(), ids=FUSED.keys())
def test_what_follows_a_convolution_is_fused(fused, nodes):
    constants = CONSTANTS | {f"{name}2": array[:2] for name, array in NORM.items()}
    inputs = {"x": [2, 3, 7, 8]} | ({"r": [2, 4, 7, 8]} if ADD in nodes else {})
    model = model_of(nodes, inputs, constants, opset=20)
    arrays = [random(*shape) for shape in inputs.values()]
    loaded = fastconv.onnx.load(model)
    assert loaded.fused == [fused]
    expected = ReferenceEvaluator(model).run(None, dict(zip(inputs, arrays, strict=True)))
    np.testing.assert_allclose(loaded(*arrays)[0], expected[0], rtol=1e-5, atol=1e-5)


TRAIN = helper.make_node("BatchNormalization", ["c", *NORM], ["y", "m", "v"], training_mode=1)
NOT_FUSED = {
    "read twice": ([CONV, activation("Relu", "c"), helper.make_node("Neg", ["c"], ["z"])], ("y", "z")),
    "an output": ([CONV, activation("Relu", "c")], ("c", "y")),
    "added to itself": ([CONV, helper.make_node("Add", ["c", "c"], ["y"])], ("y",)),
    "a residual that is spread": ([CONV, helper.make_node("Add", ["c", "r"], ["y"])], ("y",)),
    "training": (
        [CONV, helper.make_node("BatchNormalization", ["c", *NORM], ["y", "m", "v"], training_mode=1)],
        ("y",),
    ),
    "bounds from outside": ([CONV, activation("Clip", "c", "s")], ("y",)),
}


@pytest.mark.parametrize(("nodes", "outputs"), NOT_FUSED.values(), ids=NOT_FUSED.keys())
def test_what_cannot_be_fused_exactly_is_not(nodes, outputs):
    read = {name for node in nodes for name in node.input}
    inputs = {"x": [2, 3, 7, 8], "r": [1, 4, 1, 8], "s": []}
    inputs = {name: shape for name, shape in inputs.items() if name in read}
    model = model_of(nodes, inputs, CONSTANTS, outputs)
    arrays = [random(*shape) for shape in inputs.values()]
    loaded = fastconv.onnx.load(model)
    assert loaded.fused == ["Conv"]
    expected = ReferenceEvaluator(model).run(None, dict(zip(inputs, arrays, strict=True)))
    for result, wanted in zip(loaded(*arrays), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


def test_weights_that_are_inputs_are_not_prepared():
    model = model_of([helper.make_node("Conv", ["x", "v"], ["y"])], {"x": [1, 3, 5, 5], "v": [4, 3, 3, 3]})
    loaded = fastconv.onnx.load(model)
    assert (loaded.fused, loaded.input_names) == ([], ["x", "v"])
    x, w = random(1, 3, 5, 5), random(4, 3, 3, 3)
    np.testing.assert_allclose(loaded(x, v=w)[0], fastconv.conv2d(x, w), rtol=1e-6)


def test_a_batch_of_unknown_size_takes_a_residual():
    nodes = [CONV, helper.make_node("Add", ["c", "r"], ["y"])]
    model = model_of(nodes, {"x": ["N", 3, 6, 6], "r": ["N", 4, 6, 6]}, CONSTANTS)
    loaded = fastconv.onnx.load(model)
    assert loaded.fused == ["Conv + Add"]
    for n in (1, 3):
        x, r = random(n, 3, 6, 6), random(n, 4, 6, 6)
        expected = ReferenceEvaluator(model).run(None, {"x": x, "r": r})[0]
        np.testing.assert_allclose(loaded(x, r)[0], expected, rtol=1e-5, atol=1e-5)


ATTRIBUTES = {
    "auto_pad": "SAME_LOWER", "ceil_mode": 1, "dilations": [2, 1], "group": 2, "kernel_shape": [3, 2],
    "pads": [1, 0, 2, 1], "strides": [2, 3],
}  # fmt: skip
LEFT_OUT = {
    "Conv": ["dilations"],
    "ConvInteger": ["auto_pad", "dilations", "group", "kernel_shape", "strides"],
    "LpPool": ["ceil_mode"],
    "QLinearConv": ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
}


def test_every_attribute_is_in_a_backend_case_or_among_those_left_out(node_cases):
    nodes = [node for case in node_cases for node in case.model.graph.node]
    for operator in OPERATORS:
        given = {attribute.name for node in nodes if node.op_type == operator for attribute in node.attribute}
        assert set(onnx.defs.get_schema(operator).attributes) <= given | set(LEFT_OUT.get(operator, [])), operator


@pytest.mark.parametrize(("operator", "attribute"), [(name, each) for name in LEFT_OUT for each in LEFT_OUT[name]])
def test_attributes_that_no_backend_case_has(operator, attribute):
    """Beside onnx's own evaluator, so that every attribute of every operator is held to something of onnx."""
    attributes = {attribute: ATTRIBUTES[attribute]}
    w_shape = (6, 2 if attribute == "group" else 4, 3, 2)
    integers = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((2, 4, 9, 8), w_shape)]
    zero, scale = np.uint8(120), np.float32(0.5)
    if operator == "LpPool":
        arrays, attributes = [random(2, 4, 9, 8)], {"kernel_shape": [3, 2], "strides": [2, 3]} | attributes
    elif operator == "ConvInteger":
        arrays = [*integers, zero, zero]
    elif operator == "QLinearConv":
        arrays = [integers[0], scale, zero, integers[1], scale, zero, np.float32(250), zero]
    else:
        arrays = [random(2, 4, 9, 8), random(*w_shape)]
    inputs = {f"i{k}": array for k, array in enumerate(arrays)}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    node = helper.make_node(operator, list(inputs), ["y"], **attributes)
    result = helper.make_tensor_value_info("y", onnx.TensorProto.UNDEFINED, None)
    model = helper.make_model(
        helper.make_graph([node], "graph", values, [result]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    ours, theirs = (
        ReferenceEvaluator(model, new_ops=new_ops).run(None, inputs)[0] for new_ops in (fastconv.onnx.ops, None)
    )
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_storage_order_and_indices_of_the_whole_tensor():
    for order, attributes in ((0, {}), (1, {"storage_order": 1})):
        node = helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 3], strides=[2, 3], **attributes)
        model = model_of([node], {"x": [2, 2, 4, 6]}, outputs=("y",))
        model.graph.output.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, None))
        x = random(2, 2, 4, 6)
        y, indices = ReferenceEvaluator(model, new_ops=fastconv.onnx.ops).run(None, {"x": x})
        flat = (np.swapaxes(x, 2, 3) if order else x).ravel()
        np.testing.assert_array_equal(flat[indices], y)


def test_quantised_results_round_half_to_even_and_saturate():
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "t", "o"], ["y"])
    constants = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "t": np.float32(2),
        "o": np.uint8(3),
        "w": np.full((1, 1, 1, 1), 1, np.uint8),
    }
    model = model_of([node], {"x": [1, 1, 1, 4]}, constants, elem=onnx.TensorProto.UINT8)
    x = np.array([[[[1, 3, 5, 255]]]], np.uint8)  # halves: 0.5, 1.5, 2.5, 127.5
    result = ReferenceEvaluator(model, new_ops=fastconv.onnx.ops).run(None, {"x": x})[0]
    np.testing.assert_array_equal(result.ravel(), [3, 5, 5, 131])


def run_node(kind, x, *others, **attributes):
    inputs = {"x": None} | {f"i{k}": None for k in range(len(others))}
    elem = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = model_of([helper.make_node(kind, list(inputs), ["y"], **attributes)], inputs, elem=elem)
    return ReferenceEvaluator(model, new_ops=fastconv.onnx.ops).run(None, dict(zip(inputs, (x, *others), strict=True)))


X, W = random(1, 3, 8, 8), random(4, 3, 3, 3)
WRONG = {
    "auto_pad": (("Conv", X, W), {"auto_pad": "SAME"}, "Conv: auto_pad='SAME'"),
    "pads": (("Conv", X, W), {"pads": [1, 1]}, r"Conv: pads=\[1, 1\]"),
    "kernel shape": (("Conv", X, W), {"kernel_shape": [2, 2]}, r"Conv: kernel_shape=\[2, 2\], but W has shape"),
    "unknown": (("Conv", X, W), {"colour": 1}, "Conv: unknown attributes colour"),
    "unknown of a pooling": (("MaxPool", X), {"kernel_shape": [2, 2], "colour": 1}, "MaxPool: unknown .* colour"),
    "four axes": (("GlobalMaxPool", random(1, 1, 2, 2, 2, 2)), {}, "GlobalMaxPool: the input has 4 spatial axes"),
    "output shape": (
        ("ConvTranspose", X, random(3, 4, 3, 3)), {"output_shape": [30, 30]}, r"ConvTranspose: output_shape=\[30, 30\]"
    ),
    "negative pads": (("AveragePool", X), {"kernel_shape": [2, 2], "pads": [-1, 0, 0, 0]}, "padding=-1"),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "attributes", "message"), WRONG.values(), ids=WRONG.keys())
def test_attributes_that_cannot_be_are_named(inputs, attributes, message):
    with pytest.raises(ValueError, match=message):
        run_node(*inputs, **attributes)


def test_inputs_of_a_loaded_model_are_checked():
    loaded = fastconv.onnx.load(model_of([CONV, identity("c")], {"x": [1, 3, 8, 8]}, CONSTANTS))
    with pytest.raises(ValueError, match="inputs x are missing"):
        loaded()
    with pytest.raises(ValueError, match="inputs z are given twice or unknown"):
        loaded(X, z=X)
    with pytest.raises(ValueError, match="2 inputs: expected x"):
        loaded(X, X)
    with pytest.raises(TypeError, match="model is a int"):
        fastconv.onnx.load(3)


def test_the_examples_of_the_page_run():
    page = Path(__file__).parents[1] / "docs" / "onnx.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    exec("\n".join(examples), {})


def test_basic_pitch_agrees_with_onnx_runtime():
    """Spotify's model that transcribes music, from the wheel of `basic-pitch`: 32 convolutions, 43844 samples in."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (fastconv[bench])")
    if importlib.util.find_spec("basic_pitch") is None:
        pytest.skip("basic-pitch is not installed (pip install --no-deps basic-pitch)")
    # Its package imports much that is not needed to read a file beside it.
    package = importlib.util.find_spec("basic_pitch").submodule_search_locations[0]
    path = f"{package}/saved_models/icassp_2022/nmp.onnx"
    seconds = np.arange(2 * 43844).reshape(2, 43844, 1) / 22050
    audio = (0.4 * np.sin(2 * np.pi * 440 * seconds) + 0.1 * np.sin(2 * np.pi * 1100 * seconds)).astype(np.float32)
    model = fastconv.onnx.load(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {model.input_names[0]: audio})
    assert len(model.fused) == 32
    assert sum("+" in kinds for kinds in model.fused) == 6
    for result, wanted in zip(model(audio), expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, atol=1e-4, rtol=0)
