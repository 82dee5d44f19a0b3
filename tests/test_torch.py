"""fastconv on torch tensors: torch's own cases, derivatives, tracers and transforms; models converted and back."""

import copy
import doctest
import pickle
from pathlib import Path

import numpy as np
import pytest
from promise import assert_kept
from strategies import numpy_dtype

import fastconv
from fastconv.dispatch import choose
from fastconv.registry import UNIT_ROUNDOFF

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastconv.torch import convert, replaced, revert  # noqa: E402

# The problems are small, and others compute beside this process.
torch.set_num_threads(1)

NAMES = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "int64")

# One call of each function that exercises all its arguments.
GEOMETRIES = {
    "conv": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    "conv_transpose": {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2},
}


def operands(name, dtype=torch.float64, requires_grad=False):
    """Input, weight and bias for the call in GEOMETRIES."""
    ndim = int(name[-2])
    rng = torch.Generator().manual_seed(ndim)
    shapes = (
        (2, 4, *range(7, 7 + ndim)),
        (4 if "transpose" in name else 6, 2, *[3] * ndim),
        (4 if "transpose" in name else 6,),
    )
    return [torch.randn(shape, generator=rng, dtype=dtype).requires_grad_(requires_grad) for shape in shapes]


def both(name):
    """The call in GEOMETRIES, as fastconv's function of its operands and as torch's."""
    options = GEOMETRIES[name[:-2]]
    ours, torchs = getattr(fastconv, name), getattr(F, name)
    return lambda *arrays: ours(*arrays, **options), lambda *arrays: torchs(*arrays, **options)


def as_numpy(tensor):
    if tensor is None or tensor.dtype != torch.bfloat16:
        return None if tensor is None else tensor.detach().resolve_conj().numpy()
    return tensor.detach().float().numpy().astype(numpy_dtype("bfloat16"))


def samples(name, dtype, requires_grad=False):
    """The cases that torch itself tests the function with."""
    pytest.importorskip("expecttest", reason="torch's own test cases need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    (op,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    return op.sample_inputs("cpu", getattr(torch, dtype), requires_grad=requires_grad)


def test_the_examples_in_the_manual():
    page = Path(__file__).parents[1] / "docs" / "pytorch.md"
    assert doctest.testfile(str(page), module_relative=False).attempted > 10


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_cases(in_torch, name, dtype):
    for sample in samples(name, dtype):
        w, bias = (*sample.args, None)[:2]
        bias = sample.kwargs.pop("bias", bias)
        result = getattr(fastconv, name)(sample.input, w, bias, **sample.kwargs)
        build = fastconv.ConvProblem.transposed if "transpose" in name else fastconv.ConvProblem.forward
        problem = build(int(name[-2]), sample.input.shape, w.shape, dtype=dtype, bias=bias is not None, **sample.kwargs)
        arrays = [as_numpy(v) for v in (sample.input, w, bias)]
        exact = in_torch.compute(problem, *map(in_torch.tensor, arrays)).numpy()
        assert isinstance(result, torch.Tensor)
        assert result.dtype == sample.input.dtype
        assert result.shape == exact.shape
        if dtype in UNIT_ROUNDOFF:
            assert_kept(choose(problem), problem, as_numpy(result), *arrays, exact=exact)
        else:
            np.testing.assert_array_equal(result.numpy(), exact)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_torchs_own(name):
    pytest.importorskip("expecttest", reason="torch's own test cases need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    (op,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    x, w, _ = operands(name)
    wrong = [((x, w.float()), {}), ((x, w[:, :, :0]), {}), ((x[:, :3], w), {}), ((x, w), {"stride": 1.5})]
    wrong += [((x[None, None], w), {}), ((x, w), {"padding": "same", "stride": 2}), ((x, w, w[0, 0, 0]), {"groups": 2})]
    if op.error_inputs_func is not None:
        wrong += [
            ((case.sample_input.input, *case.sample_input.args), case.sample_input.kwargs)
            for case in op.error_inputs("cpu")
        ]
    for args, options in wrong:
        with pytest.raises(Exception) as expected:
            op(*args, **options)
        with replaced(), pytest.raises(expected.type) as ours:
            op(*args, **options)
        assert str(ours.value) == str(expected.value)


# -- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_by_finite_differences(name):
    ours, _ = both(name)
    arrays = operands(name, requires_grad=True)
    assert torch.autograd.gradcheck(
        ours, arrays, fast_mode=True, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(ours, arrays, fast_mode=True)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torchs_own_cases(name, dtype):
    for sample in samples(name, dtype, requires_grad=True):
        arguments = [v for v in (sample.input, *sample.args) if v is not None]
        function = getattr(fastconv, name)
        actual, expected = (
            torch.autograd.grad(f(*arguments, **sample.kwargs).abs().square().sum(), arguments)
            for f in (function, getattr(F, name))
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same", ((2, 1), (0, 3))])
def test_derivatives_through_padding_modes(mode, padding):
    x, w, bias = operands("conv2d", requires_grad=True)

    def call(x, w, bias):
        return fastconv.conv2d(x, w, bias, 2, padding, groups=2, padding_mode=mode)

    assert torch.autograd.gradcheck(call, (x, w, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, w, bias), fast_mode=True)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", (-0.5, 0.5)])
def test_formats_residual_and_activation_around_a_recorded_call(activation):
    """What is fused where nothing is recorded gives the same where torch records it, derivatives included."""
    x, w, bias = operands("conv2d")
    arguments = {
        "x": x.permute(0, 2, 3, 1)[None].contiguous(),
        "w": w.permute(2, 3, 1, 0).contiguous(),
        "bias": bias,
        "residual": torch.randn(1, 2, 7, 8, 6, dtype=torch.float64),
    }
    options = {"padding": "same", "groups": 2, "data_format": "NHWC", "weight_format": "HWIO", "flip_kernel": True}

    def call(*tensors):
        named = dict(zip(arguments, tensors, strict=True))
        return fastconv.conv2d(**named, **options, activation=activation)

    tensors = [v.requires_grad_() for v in arguments.values()]
    recorded = call(*tensors)
    with torch.no_grad():
        torch.testing.assert_close(recorded, call(*tensors))
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


def test_no_graph_is_recorded_where_torch_records_none():
    x, w, _ = operands("conv1d", requires_grad=True)
    with torch.no_grad():
        assert not fastconv.conv1d(x, w, groups=2).requires_grad
    with torch.inference_mode():
        assert fastconv.conv1d(x, w, groups=2).is_inference()
    assert not fastconv.conv1d(x.detach(), w.detach(), groups=2).requires_grad


# -- tracers and transforms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
def test_the_operator_is_registered_soundly(op, memory_format, bias):
    """By torch's own check of schema, fake tensors, autograd and tracing with symbols for sizes."""
    x, w, y = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 4, 9, 8), (6, 2, 3, 3), (2, 6, 5, 4)))
    a, b, size = {"forward": (x, w, (5, 4)), "input_grad": (y, w, (9, 8)), "weight_grad": (x, y, (3, 3))}[op]
    a, b = (v.to(memory_format=memory_format).requires_grad_() for v in (a, b))
    if bias and op == "weight_grad":
        pytest.skip("a weight gradient has no bias")
    channels = {"forward": 6, "input_grad": 4}.get(op)
    added = torch.randn(channels, dtype=torch.float64).requires_grad_() if bias else None
    options = ([2, 2], [1, 1, 1, 1], [1, 1], "zeros", "high", "auto", "auto")
    torch.library.opcheck(torch.ops.fastconv.convolution.default, (a, b, added, op, list(size), 2, *options))


@pytest.mark.parametrize("size", [(6, 4), (5, 5)])
def test_the_operator_refuses_a_size_that_does_not_follow(size):
    x, w = torch.randn(2, 4, 9, 8), torch.randn(6, 2, 3, 3)
    with pytest.raises(ValueError, match="size="):
        torch.ops.fastconv.convolution(
            x, w, None, "forward", size, 2, [2, 2], [1, 1, 1, 1], [1, 1], "zeros", "high", "auto", "auto"
        )


# Torch's algebra of sizes left open takes 20 s for three axes, which take the same way as two.
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [(name, dynamic) for name in NAMES for dynamic in (False, True) if not (dynamic and "3d" in name)],
)
def test_compiled_without_a_graph_break(name, dynamic):
    torch.compiler.reset()
    ours, torchs = both(name)
    x, w, bias = operands(name, requires_grad=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 1):
        result, expected = compiled(x[:batch], w, bias), torchs(x[:batch], w, bias)
        torch.testing.assert_close(result, expected)
        gradients = (torch.autograd.grad(y.square().sum(), (x, w, bias)) for y in (result, expected))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("padding", ["same", "same_lower", "full", "valid", ((2, 0), (1, 3))])
@pytest.mark.parametrize("transposed", [False, True])
def test_tracers_know_the_padding_rules(padding, transposed):
    torch.compiler.reset()
    function = fastconv.conv_transpose2d if transposed else fastconv.conv2d
    x, w = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(4, 4, 3, 5, dtype=torch.float64)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
    for stride in (1, 3, 5):
        for size in (9, 7):
            expected = function(x[:, :, :size], w, stride=stride, padding=padding)
            torch.testing.assert_close(compiled(x[:, :, :size], w, stride=stride, padding=padding), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_sizes_left_open(strict):
    model = convert(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), nn.ConvTranspose2d(4, 2, 2, 2))
    )
    sizes = {"input": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4, max=64)}}
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=sizes, strict=strict)
    assert {str(n.target) for n in program.graph.nodes if "conv" in str(n.target)} == {"fastconv.convolution.default"}
    x = torch.randn(5, 3, 13, 8)
    torch.testing.assert_close(program.module()(x), revert(model)(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (1, 1, 0)])
def test_mapped(name, in_dims):
    ours, torchs = both(name)
    arrays = [
        v if axis is None else torch.stack([v, 2 * v, v - 1], axis)
        for v, axis in zip(operands(name), in_dims, strict=True)
    ]
    torch.testing.assert_close(torch.vmap(ours, in_dims)(*arrays), torch.vmap(torchs, in_dims)(*arrays))


def test_function_transforms():
    ours, torchs = both("conv2d")
    x, w, bias = operands("conv2d")
    x = torch.stack([x, 2 * x])

    def loss_of(function):
        return lambda w, x: function(x, w, bias).square().sum()

    for transform in (
        lambda f: torch.vmap(torch.func.grad(loss_of(f)), (None, 0)),  # a gradient for each sample
        lambda f: torch.func.jacrev(lambda w, x: f(x[0], w, bias).sum((0, 2))),
        lambda f: torch.func.jacfwd(lambda w, x: f(x[0], w, bias).sum((0, 2))),
        lambda f: torch.func.hessian(lambda w, x: loss_of(f)(w, x[0, :, :, :3, :3])),
    ):
        torch.testing.assert_close(transform(ours)(w, x), transform(torchs)(w, x))


def test_traced_to_a_graph_that_computes_anew():
    from torch.fx.experimental.proxy_tensor import make_fx

    ours, torchs = both("conv2d")
    arrays = operands("conv2d")
    twice = [2 * v for v in arrays]
    torch.testing.assert_close(make_fx(ours)(*arrays)(*twice), torchs(*twice))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace"):
        torch.jit.trace(ours, arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(dtype):
    ours, torchs = both("conv2d")
    arrays = operands("conv2d", torch.float32, requires_grad=True)
    with torch.autocast("cpu", getattr(torch, dtype)):
        result = ours(*arrays)
        expected = torchs(*arrays)
    assert result.dtype == expected.dtype == getattr(torch, dtype)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert {v.grad.dtype for v in arrays} == {torch.float32}


# -- memory and bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("which", ["x", "w", "both"])
@pytest.mark.parametrize("name", ["conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"])
def test_channels_last_stays_channels_last(name, which, requires_grad):
    x, w, bias = operands(name, torch.float32)
    memory_format = torch.channels_last if "2d" in name else torch.channels_last_3d
    x = x.to(memory_format=memory_format) if which != "w" else x
    w = w.to(memory_format=memory_format) if which != "x" else w
    w.requires_grad_(requires_grad)
    ours, torchs = both(name)
    result, expected = ours(x, w, bias), torchs(x, w, bias)
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result, expected)
    residual = torch.randn_like(expected)
    result = getattr(fastconv, name)(x, w, bias, residual=residual, activation="relu", **GEOMETRIES[name[:-2]])
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result, torch.relu(expected + residual))


def test_memory_is_shared_both_ways():
    x, w = torch.randn(1, 1, 5), torch.ones(1, 1, 1)
    out = torch.empty(1, 1, 5)
    assert fastconv.conv1d(x, w, out=out) is out
    assert torch.equal(out, x)
    x_t = torch.randn(5, 6).t()[None, None]
    assert torch.equal(fastconv.conv2d(x_t, torch.ones(1, 1, 1, 1)), x_t)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": lambda w: w.double()}, "x has dtype torch.float32 and w torch.float64"),
        ({"x": lambda x: x.to(torch.int8), "w": lambda w: w.requires_grad_()}, "x has dtype torch.int8 and w"),
        ({"w": lambda w: w.to("meta")}, "w is a torch.strided tensor on meta"),
        ({"w": lambda w: w.requires_grad_(), "out": lambda _: torch.empty(1, 1, 4)}, "out= cannot be recorded"),
        ({"x": lambda x: x.to_sparse()}, "x is a torch.sparse_coo tensor"),
    ],
)
def test_bad_tensors_are_named(change, message):
    arguments = {"x": torch.ones(1, 1, 5), "w": torch.ones(1, 1, 2), "out": None}
    arguments |= {name: f(arguments[name]) for name, f in change.items()}
    with pytest.raises(TypeError, match=message):
        fastconv.conv1d(**arguments)


@pytest.mark.parametrize("bad", [(1.0, 1), (1, True), [1, 1.0], ((1, 1), (1.0, 1))])
def test_equal_options_of_other_types_are_refused_after_good_ones(bad):
    x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3, requires_grad=True)
    good = ((1, 1), (1, 1)) if isinstance(bad[0], tuple) else (1, 1)
    fastconv.conv2d(x, w, padding=good)
    with pytest.raises(TypeError, match="padding="):
        fastconv.conv2d(x, w, padding=bad)


UNRECORDED = {
    "a layer with a bound weight": (lambda x: fastconv.Conv1d(torch.ones(1, 1, 2))(x), "x"),
    "max_pool1d": (lambda x: fastconv.max_pool1d(x, 2), "x"),
    "lp_pool1d": (lambda x: fastconv.lp_pool1d(x, 2, 2), "x"),
    "adaptive_avg_pool1d": (lambda x: fastconv.adaptive_avg_pool1d(x, 2), "x"),
    "unfold": (lambda x: fastconv.unfold(x, (2,)), "x"),
    "fold": (lambda x: fastconv.fold(x, (5,), (1,)), "x"),
    "conv1d_weight": (lambda x: fastconv.grad.conv1d_weight(x, (1, 1, 1), torch.ones(1, 1, 5)), "input"),
    "avg_pool1d_input": (lambda x: fastconv.grad.avg_pool1d_input((1, 1, 5), x, 1), "grad_output"),
}


@pytest.mark.parametrize(("function", "name"), UNRECORDED.values(), ids=UNRECORDED.keys())
def test_what_records_no_gradient_says_so(function, name):
    x = torch.ones(1, 1, 5, requires_grad=True)
    with pytest.raises(TypeError, match=f"{name} is a torch tensor that requires grad"):
        function(x)
    with torch.no_grad():
        function(x)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_residual_of_another_shape_is_named(requires_grad):
    x = torch.ones(1, 2, 5, 4).to(memory_format=torch.channels_last).requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 3, 5, 5\): expected \(1, 3, 5, 4\)"):
        fastconv.conv2d(x, torch.ones(3, 2, 1, 1), residual=torch.ones(1, 3, 5, 5))


# -- models -----------------------------------------------------------------------------------------------------------


def a_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="reflect"),
        nn.Unflatten(1, (4, 1)),
        nn.Conv2d(4, 4, (1, 3), stride=(1, 2), groups=4, bias=False),
        nn.Unflatten(2, (1, 1)),
        nn.Sequential(nn.Conv3d(4, 2, 1), nn.ConvTranspose3d(2, 2, 2, stride=2, output_padding=1)),
        nn.Flatten(2, 3),
        nn.ConvTranspose2d(2, 3, 3, dilation=2),
        nn.Flatten(2, 3),
        nn.ConvTranspose1d(3, 2, 2, stride=2),
    )


def test_a_converted_model_is_the_same_model():
    model = a_model().double()
    x = torch.randn(2, 2, 20, dtype=torch.float64, requires_grad=True)
    reference = copy.deepcopy(model)
    parameters = list(model.parameters())
    seen = []
    model[0].register_forward_hook(lambda module, *_: seen.append(module))
    assert convert(model) is model
    assert all(type(m).__module__ == "fastconv.torch.models" for m in model.modules() if "Conv" in type(m).__name__)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == reference.state_dict().keys()
    results = model(x), reference(x)
    assert seen == [model[0]]
    torch.testing.assert_close(*results)
    gradients = [
        torch.autograd.grad(y.square().sum(), (x, *m.parameters()))
        for y, m in zip(results, (model, reference), strict=True)
    ]
    torch.testing.assert_close(*gradients)
    assert [type(m) for m in revert(model).modules()] == [type(m) for m in reference.modules()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_converted_model_are_converted(copied):
    model = convert(a_model())
    x = torch.randn(2, 2, 20)
    twin = copied(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].weight.zero_()
    assert not torch.equal(twin(x), model(x))


def test_a_converted_model_trains_in_ddp(tmp_path):
    """With torch's own backend for CPUs, of one process: hooks on parameters, buckets of gradients."""
    distributed = pytest.importorskip("torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        x, model = torch.randn(2, 2, 20, dtype=torch.float64), a_model().double()
        expected = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
        parallel = nn.parallel.DistributedDataParallel(convert(model))
        assert {name.removeprefix("module.") for name in parallel.state_dict()} == set(model.state_dict())
        parallel(x).square().sum().backward()
        torch.testing.assert_close([v.grad for v in model.parameters()], [*expected])
    finally:
        distributed.destroy_process_group()


def test_changed_weights_show_at_once():
    """However they are changed: a version counter does not see all of these, so no packed weight is kept."""
    layer, other = convert(nn.Conv2d(1, 1, 1, bias=False)).eval(), torch.ones(1, 1, 2, 2)
    with torch.no_grad():
        for value, change in enumerate((
            lambda v: layer.weight.fill_(v),
            lambda v: layer.weight.data.fill_(v),
            lambda v: layer.weight.numpy().fill(v),
            lambda v: setattr(layer.weight, "data", torch.full((1, 1, 1, 1), float(v))),
            lambda v: layer.load_state_dict({"weight": torch.full((1, 1, 1, 1), float(v))}),
        )):  # fmt: skip
            change(value)
            assert layer(other).eq(value).all()


def test_dtype_moves_and_compilation_of_a_converted_model():
    torch.compiler.reset()
    model = convert(a_model()).double()
    x = torch.randn(2, 2, 20, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), revert(copy.deepcopy(model))(x))


def test_subclasses_are_left_alone():
    class Doubled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    assert type(convert(Doubled(1, 1, 1))) is Doubled


def test_output_size_of_a_transposed_layer():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    x = torch.randn(2, 2, 5, 6)
    expected = layer(x, output_size=(10, 12))
    torch.testing.assert_close(convert(layer)(x, output_size=(10, 12)), expected)


def test_replaced_calls_run_on_fastconv_alone(monkeypatch):
    """By keyword and by position; everything else is torch's."""
    x, w, bias = operands("conv2d")
    expected = F.conv2d(input=x, weight=w, bias=bias, stride=[2], groups=2), F.conv2d(x, w, None, 1, "same", 1, 2)
    computed = []
    for name in ("execute", "conv2d"):
        original = getattr(fastconv, name)
        monkeypatch.setattr(fastconv, name, lambda *a, f=original, **k: computed.append(f.__name__) or f(*a, **k))
    with replaced():
        results = F.conv2d(input=x, weight=w, bias=bias, stride=[2], groups=2), F.conv2d(x, w, None, 1, "same", 1, 2)
    assert computed == ["conv2d", "conv2d"]
    torch.testing.assert_close(results, expected)


# -- training ---------------------------------------------------------------------------------------------------------


def test_training_follows_torchs_loss_curve():
    """A small network on scikit-learn's digits, 200 steps."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)

    def losses(prepare):
        torch.manual_seed(0)
        model = prepare(
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
                nn.Flatten(), nn.Linear(256, 10),
            )
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(200):
            batch = slice(step * 64 % 1728, step * 64 % 1728 + 64)
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    curves = list(losses(convert)), list(losses(lambda model: model))
    np.testing.assert_allclose(*curves, atol=1e-4)
    assert curves[0][-1] < 0.5 < 2 < curves[0][0]
