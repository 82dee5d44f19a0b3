"""Every CUDA kernel compiled by NVRTC, without a GPU, and what it weighs."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import compilation
from fastconv.cli import main
from fastconv.gpu import implicit_gemm_hopper
from fastconv.gpu.runtime import KernelSpec
from fastconv.gpu.source import program

# Some 250 kernels, half a second each on an idle core, all within the first test that asks for them.
pytestmark = pytest.mark.timeout(1800)

TABLE = Path(__file__).with_name("cuda_resources.csv")

# What most data centres have; `python -m fastconv compile --all` does all of them.
ARCHITECTURES = (90,)


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (fastconv[compile])")
    return list(compilation.compile_all(ARCHITECTURES))


@pytest.fixture(scope="module")
def table():
    """What every kernel weighs; ``python -m fastconv compile --all --write tests/cuda_resources.csv`` makes it anew."""
    return compilation.read_table(TABLE)


def test_every_variant_compiles(compiled):
    variants = set(compilation.variants())
    assert {(c.spec, c.architecture) for c in compiled} == {(v, a) for v in variants for a in ARCHITECTURES}
    assert len(compiled) == len(variants) * len(ARCHITECTURES)


def test_nothing_spills(compiled):
    spilled = [c for c in compiled if c.spill_bytes or c.stack_bytes]
    assert not spilled, "\n".join(map(str, spilled))


def test_nothing_is_slower_than_it_is_written(compiled):
    """The assembler remarks on products of warpgroups that it cannot let run on while the warps do other work."""
    remarked = [f"{c.spec}: {c.remarks}" for c in compiled if c.remarks]
    assert not remarked, "\n".join(remarked)


def test_a_slow_kernel_is_remarked_on():
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (fastconv[compile])")
    spec = next(iter(implicit_gemm_hopper.ImplicitGemmHopper().variants()))
    text = program(spec.file).replace("commit_products();", "commit_products(); sums[0][0] += 1;")
    _, log = compilation._compile(text, spec.file, (*spec.options, spec.architecture(90)))
    assert "wgmma.mma_async instructions are serialized" in compilation.remarks(log)


def test_blocks_fit_a_multiprocessor(compiled):
    for c in compiled:
        assert c.registers * 256 <= 65536, c  # registers of a block of 256 threads
        assert c.shared_bytes - c.spec.shared_bytes <= 48 << 10, c  # what a kernel gets without asking
        # And with: on every architecture since Ampere, and on Hopper.
        assert c.shared_bytes <= (227 << 10 if c.spec.specific else 99 << 10), c
        assert c.cubin_bytes > 0, c
    assert all(c.shared_bytes > 0 for c in compiled if c.spec.file in ("tiled.cu", "depthwise.cu"))


def test_no_kernel_takes_more_than_it_did(compiled, table):
    """On the oldest and the newest architecture ``.ci/run`` asks the same of ``compile --against``."""
    heavier = [c.heavier_than(table) for c in compiled]
    assert not any(heavier), "\n".join(filter(None, heavier))


def test_the_table_has_every_kernel_on_every_architecture(table):
    assert table.keys() == set(map(str, compilation.variants()))
    for architecture in compilation.ARCHITECTURES:
        runs = {str(spec) for together in compilation.programs(architecture) for spec in together}
        assert {kernel for kernel, row in table.items() if row[f"sm_{architecture}"] != "-"} == runs


def test_no_kernel_spills_on_any_architecture_but_one(table):
    """That one, float64 without tensor cores, puts four bytes by and takes them back."""
    weights = {(kernel, name): weight for kernel, row in table.items() for name, weight in row.items()}
    spilled = {at for at, weight in weights.items() if weight != "-" and not weight.endswith(" / 0")}
    assert spilled == {("tiled float64 32 128 4 4 1", "sm_100")}


def test_a_kernel_that_takes_more_is_named():
    spec = next(iter(compilation.variants()))
    done = compilation.Compiled(spec, 90, 72, 1024, 0, 0, 1, "")
    table = {str(spec): {"sm_90": "64 / 1024 / 0", "sm_75": "-"}}
    assert done.heavier_than(table) is None
    for more in ({"registers": 73}, {"shared_bytes": 1025}, {"spill_bytes": 4}):
        assert str(spec) in dataclasses.replace(done, **more).heavier_than(table)
    assert "not in the table" in dataclasses.replace(done, architecture=75).heavier_than(table)
    assert "not in the table" in done.heavier_than({})


def test_the_command_fails_where_a_kernel_takes_more(tmp_path, capsys):
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (fastconv[compile])")
    file = tmp_path / "table.csv"
    command = ["compile", "--arch", "sm_90", "--kernels", "add_splits float16", "--processes", "1"]
    assert main([*command, "--write", str(file)]) == 0
    assert main([*command, "--against", str(file)]) == 0
    (kernel, weights), *_ = compilation.read_table(file).items()
    registers, rest = weights["sm_90"].split(" ", 1)
    compilation.write_table(file, ["kernel", "sm_90"], [(kernel, f"{int(registers) - 9} {rest}")])
    capsys.readouterr()
    assert main([*command, "--against", str(file)]) == 1
    assert f"{kernel}, sm_90: takes {weights['sm_90']}, took" in capsys.readouterr().err
    file.write_text("no table")
    assert main([*command, "--against", str(file)]) == 2
    assert "expected a table whose first column is 'kernel'" in capsys.readouterr().err


def test_turing_is_spared_what_it_cannot_run():
    specs = {spec for together in compilation.programs(75) for spec in together}
    assert not any(("STORAGE", "bfloat16") in spec.defines for spec in specs if spec.entry == "implicit_gemm")
    assert all(spec.shared_bytes <= 64 << 10 for spec in specs)
    assert not any(spec.specific for spec in specs)
    assert any(spec.entry == "implicit_gemm" for spec in specs)


def test_a_kernel_that_does_not_compile_says_why():
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed (fastconv[compile])")
    nonsense = tuple((name, "nonsense") for name in ("STORAGE", "RESULT", "ACCUMULATOR"))
    with pytest.raises(compilation.CompilationError, match=r"direct\.cu .*-DSTORAGE=nonsense .*sm_90(.|\n)*nonsense"):
        compilation.compile_program([KernelSpec("direct.cu", "direct_thread", nonsense)], 90)


def test_without_nvrtc_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[compile\]'"):
        next(compilation.compile_all())


def test_kernels_are_listed_without_importing_cupy():
    code = "import sys; from fastconv.compilation import programs; assert programs(); assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
