"""The package as a whole: what importing it costs, what the wheel holds, the rules of the house."""

import ast
import inspect
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fastconv").rglob("*.py"))


def python(code, **options):
    """Run code in a fresh interpreter and return what it prints."""
    command = [options.pop("interpreter", sys.executable), "-c", code]
    process = subprocess.run(command, text=True, capture_output=True, check=False, **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


# -- imports ----------------------------------------------------------------------------------------------------------

HEAVY = {"numba", "llvmlite", "cupy", "torch", "scipy", "ml_dtypes", "onnxruntime", "matplotlib", "rich", "cuda"}


def imported_after(code):
    names = python(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; print(*sys.modules)").split()
    return {name.partition(".")[0] for name in names}


def test_importing_costs_numpy_and_nothing_more():
    assert imported_after("import fastconv") & HEAVY == set()


def test_a_call_on_numpy_arrays_brings_in_numba_at_first_and_then_llvmlite_alone():
    """Numba, which compiles, looks for SciPy's BLAS; llvmlite links what was compiled before."""
    call = "import numpy as np, fastconv; fastconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 2)))"
    assert imported_after(call) & HEAVY <= {"numba", "llvmlite", "scipy"}
    assert imported_after(call) & HEAVY == {"llvmlite"}


def test_numpy_and_numba_are_enough():
    blocked = (HEAVY | {"onnx", "sigpy"}) - {"numba", "llvmlite"}
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules |= dict.fromkeys({blocked!r})  # importing these raises ImportError
import numpy as np, fastconv
x, w = np.ones((1, 2, 9, 9), np.float16), np.ones((3, 2, 3, 3), np.float16)
assert fastconv.conv2d(x, w, activation="relu").shape == (1, 3, 7, 7)
assert fastconv.Conv2d(w)(x).max() == 18
rows = fastconv.explain(x.shape, w.shape, dtype=x.dtype).rows
assert {{row.device for row in rows}} == {{"cpu", "gpu"}}
assert all(row.why_not for row in rows if row.device == "gpu")
"""
    python(code)


# -- the wheel --------------------------------------------------------------------------------------------------------

USE_OF_AN_INSTALLED_WHEEL = """
import importlib.metadata, importlib.resources, pathlib, sys
import numpy as np, fastconv
from fastconv.gpu import source

home = pathlib.Path(fastconv.__file__).parent
assert home.is_relative_to(sys.prefix), home
assert (home / "py.typed").is_file()
assert importlib.metadata.version("fastconv") == fastconv.__version__
assert pathlib.Path(str(source.directory())).is_relative_to(home)
kernels = [file.name for file in source.directory().iterdir() if file.name.endswith(".cu")]
assert kernels
for name in kernels:
    assert source.entries(name), name
    assert '#include "' not in source.program(name), name
x, w = np.arange(12.0).reshape(1, 1, 3, 4), np.ones((1, 1, 2, 2))
assert fastconv.conv2d(x, w).tolist() == [[[[10, 14, 18], [26, 30, 34]]]]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    process = subprocess.run(command, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_an_installed_wheel_works_outside_the_checkout(wheel, tmp_path):
    """NumPy and Numba come from this environment: nothing is downloaded."""
    venv.create(tmp_path / "fresh", with_pip=True)
    scripts = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin")
    interpreter = scripts / Path(sys.executable).name
    install = [interpreter, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, capture_output=True)
    where = python("import sysconfig; print(sysconfig.get_path('purelib'))", interpreter=interpreter).strip()
    # Paths named in a .pth file come last, so the wheel stands before a fastconv that is installed here.
    (Path(where) / "dependencies.pth").write_text("\n".join(map(sysconfig.get_path, ("purelib", "platlib"))))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python(USE_OF_AN_INSTALLED_WHEEL, interpreter=interpreter, cwd=tmp_path, env=environment)
    info = subprocess.run([scripts / "fastconv", "--help"], text=True, capture_output=True, check=True, env=environment)
    assert "demo" in info.stdout


def test_the_wheel_leaves_nvidias_cuda_namespace_alone(wheel):
    """A regular package named `cuda` would shadow cuda.bindings and cuda.core, which CuPy needs."""
    from zipfile import ZipFile

    assert not (ROOT / "cuda" / "__init__.py").exists()
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"fastconv", f"fastconv-{fastconv.__version__}.dist-info"}
    packed = {name.removeprefix("fastconv/_cuda/") for name in names if name.startswith("fastconv/_cuda/")}
    assert packed == {file.name for file in (ROOT / "cuda").iterdir() if file.suffix in (".cu", ".cuh")}
    assert any(name.endswith("licenses/LICENSE") for name in names)


# -- the rules of the house -------------------------------------------------------------------------------------------


def imports(path, *, deep=True):
    """Every module that a file imports; not `deep`: at its top only, where importing it pays for them."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if deep else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports here are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path):
    return {name for name in imports(path) if name.startswith("fastconv.")}


def within(names, *modules):
    return {name for name in names if any(name == m or name.startswith(f"{m}.") for m in modules)}


def test_problem_imports_the_reading_of_arguments_alone():
    assert ours(ROOT / "fastconv" / "parsing.py") == set()
    names = ours(ROOT / "fastconv" / "problem.py")
    assert names == within(names, "fastconv.parsing")


def test_reference_imports_only_problem():
    names = ours(ROOT / "fastconv" / "reference.py")
    assert names == within(names, "fastconv.problem")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_kernels_know_neither_dispatch_nor_each_other(device):
    other = {"cpu": "gpu", "gpu": "cpu"}[device]
    for path in (ROOT / "fastconv" / device).glob("*.py"):
        assert within(ours(path), "fastconv.functional", "fastconv.dispatch", f"fastconv.{other}") == set(), path


@pytest.mark.parametrize("adapter", ["torch", "onnx", "compat"])
def test_adapters_use_the_public_api_alone(adapter):
    public = {f"fastconv.{name}" for name in fastconv.__all__}
    for path in (ROOT / "fastconv" / adapter).glob("*.py"):
        names = ours(path)
        assert names - within(names, f"fastconv.{adapter}") <= public, path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_module_imports_at_its_top(path):
    """Numba is imported to compile, not to find a kernel on the disk; LLVM with the CPU algorithms, to link it."""
    compiling = {("cpu", "_compiler.py"), ("cpu", "_target.py"), ("cpu", "_lowering.py"), ("commands", "ceilings.py")}
    allowed = (
        {"numba", "llvmlite"} if path.parts[-2:] in compiling else {"llvmlite"} if path.parent.name == "cpu" else set()
    )
    allowed |= {"rich"} if path.parent.name == "commands" else set()
    allowed |= {"torch"} if path.parent == ROOT / "fastconv" / "torch" else set()
    assert {name.partition(".")[0] for name in imports(path, deep=False)} & HEAVY <= allowed


# -- docstrings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fastconv.__all__)
def test_everything_public_is_documented_with_an_example(name):
    thing = getattr(fastconv, name)
    text = inspect.getdoc(thing)
    assert text
    if name != "ConvProblem":  # whose constructors are documented; users meet it through `explain`
        assert re.search(r"^Examples\n-+\n[\s\S]*>>> ", text, re.MULTILINE)
    for line in text.splitlines():
        assert "TODO" not in line


@pytest.mark.parametrize("name", [n for n in fastconv.__all__ if n.startswith("conv")])
def test_every_parameter_is_documented(name):
    function = getattr(fastconv, name)
    parameters = inspect.getdoc(function).partition("Parameters\n")[2].partition("\nReturns\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^[\w, ]*\b{parameter}\b[\w, ]*( :|$)", parameters, re.MULTILINE), parameter


# -- style ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_style(command):
    tool, *options = command.split()
    pytest.importorskip(tool)
    folders = [] if tool == "mypy" else ["fastconv", "tests", "bench"]  # mypy reads them in pyproject.toml
    command = [sys.executable, "-m", tool, *options, *folders]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
