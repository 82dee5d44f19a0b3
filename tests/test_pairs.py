"""Small integers in pairs: how they are laid down, that sums wrap round, and what LLVM makes of a pair's product."""

import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from strategies import make_operands

from fastconv.cpu.microkernel import multiply_add_pairs
from fastconv.cpu.pairs import SMALL, Words, images_at_once, paired, word_bytes
from fastconv.lowering import lower
from fastconv.problem import ConvProblem
from fastconv.reference import reference
from fastconv.registry import algorithms

IMPLICIT_GEMM = next(a for a in algorithms("cpu") if a.name == "implicit_gemm")


def computed(problem, a, b, **limits):
    out = np.empty(problem.result_shape, np.int32)
    IMPLICIT_GEMM.apply(problem, a, b, out, **limits)
    return out


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: np.ascontiguousarray(a.transpose(0, 3, 4, 5, 1, 2)).transpose(0, 4, 5, 1, 2, 3),
        lambda a: np.repeat(a, 2, axis=5)[..., ::2],
        lambda a: np.repeat(a, 2, axis=4)[..., ::2, :],
        lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    ],
    ids=["channels first", "channels last", "gaps", "rows apart", "reversed"],
)
def test_a_word_holds_two_channels(dtype, channels, view):
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max + 1, (2, 3, channels, 2, 5, 19)).astype(dtype)
    halves = np.zeros((2, 3, channels + channels % 2, 2, 5, 19), np.int64)
    halves[:, :, :channels] = x
    words = Words(dtype)(view(x))
    np.testing.assert_array_equal(words, (halves[:, :, ::2] & 0xFFFF) | (halves[:, :, 1::2] & 0xFFFF) << 16)


@pytest.mark.parametrize("channels", [1, 2, 3, 300])
@pytest.mark.parametrize("dtype", SMALL)
def test_the_largest_products_wrap_round(dtype, channels):
    p = ConvProblem.forward(2, (1, channels, 6, 7), (9, channels, 3, 3), dtype=dtype)
    x, w = (np.full(shape, max(np.iinfo(dtype).max, -np.iinfo(dtype).min)).astype(dtype) for shape in p.operand_shapes)
    np.testing.assert_array_equal(computed(p, x, w), reference(p, x, w))


@pytest.mark.parametrize(
    "p",
    [
        ConvProblem.forward(2, (5, 6, 9, 8), (8, 3, 3, 3), groups=2, padding=1, dtype="int8"),
        ConvProblem.transposed(1, (5, 6, 30), (6, 9, 4), stride=2, padding=1, dtype="uint8"),
    ],
    ids=str,
)
def test_words_of_some_images_at_a_time(p):
    a, b, *_ = make_operands(p)
    limit = 2 * word_bytes(lower(paired(p))[0])
    assert images_at_once(lower(paired(p))[0], limit) == 2
    assert IMPLICIT_GEMM.workspace_bytes(p, limit) < IMPLICIT_GEMM.workspace_bytes(p, 1 << 20)
    np.testing.assert_array_equal(computed(p, a, b, workspace_limit=limit), reference(p, a, b))


@pytest.mark.parametrize(("x_shape", "w_shape"), [((2, 0, 5, 5), (3, 0, 3, 3)), ((2, 4, 5, 5), (0, 4, 3, 3))])
def test_no_channels(x_shape, w_shape):
    p = ConvProblem.forward(2, x_shape, w_shape, dtype="int8")
    assert not computed(p, np.ones(x_shape, np.int8), np.ones(w_shape, np.int8)).any()


def test_declines_images_too_large_to_widen():
    assert "MiB" in IMPLICIT_GEMM.why_not(ConvProblem.forward(2, (1, 2, 8192, 8192), (1, 2, 1, 1), dtype="int8"))


@pytest.mark.parametrize(
    ("triple", "cpu", "lanes", "instruction"),
    [
        ("x86_64-linux-gnu", "x86-64", 4, "pmaddwd"),
        ("x86_64-linux-gnu", "znver3", 8, "vpmaddwd"),
        ("x86_64-linux-gnu", "alderlake", 8, "vpdpwssd"),
        ("x86_64-linux-gnu", "skylake-avx512", 16, "vpmaddwd"),
        ("x86_64-linux-gnu", "znver4", 16, "vpdpwssd"),
        ("aarch64-linux-gnu", "neoverse-n1", 4, "smull"),
    ],
)
def test_llvm_finds_the_instruction(triple, cpu, lanes, instruction):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module, vector = ir.Module(), ir.VectorType(ir.IntType(32), lanes)
    function = ir.Function(module, ir.FunctionType(vector, [vector] * 3), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(multiply_add_pairs(builder, *function.args))
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=2)
    parsed = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    products = re.findall(r"\w*(?:mul|madd|vpdp)\w*", machine.emit_assembly(parsed))
    halves = {product.removesuffix("2") for product in products}  # smull2 is that of a register's upper half
    assert halves == {instruction}
