"""The commands, run as a user runs them: in a process of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastconv.cli import COMMANDS
from fastconv.commands import info
from fastconv.registry import algorithms

ROOT = Path(__file__).parents[1]


def fastconv(*arguments, before="", expect=0):
    """Run ``fastconv`` with these arguments, after some Python code if need be; what it wrote, by stream."""
    code = f"{before}\nimport sys; from fastconv.cli import main; sys.exit(main())"
    command = [sys.executable, "-m", "fastconv"] if not before else [sys.executable, "-c", code]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_names_every_command_and_imports_nothing_heavy():
    heavy = ("numba", "cupy", "torch", "rich", "matplotlib", "PIL", "scipy")
    check = f"import atexit, sys; atexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))"
    done = fastconv("--help", before=check)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("[]\n")


def test_info_tells_what_a_bug_report_needs():
    text = fastconv("info").stdout
    found = json.loads(fastconv("info", "--json").stdout)
    assert {"direct", "im2col"} <= set(found["algorithms"]["cpu"])
    assert found["versions"]["numpy"] == np.__version__
    assert found["vector_bits"] in (128, 256, 512)
    assert Path(found["cuda_sources"], "direct.cu").is_file()
    assert (found["gpu"] is None) == (found["no_gpu_because"] is not None)
    assert found["cpu"] in text


def test_explain_marks_the_choice():
    done = fastconv("explain", "--x", 1, 64, 56, 56, "--w", 64, 64, 3, 3, "--padding", "same", "--stride", 2)
    assert "(1, 64, 28, 28)" in done.stdout
    assert done.stdout.count("->") == 3  # one in the problem, one before the time of the choice for each form
    done = fastconv(
        "explain", "--x", 1, 8, 9, "--w", 8, 4, 3, "--transposed", "--dtype", "float64", "--algorithm", "direct"
    )
    assert "conv_transpose1d" in done.stdout
    done = fastconv("explain", "--x", 1, 8, 9, 9, "--w", 8, 8, 3, 3, "--padding", 0, 1, 2, 3)
    assert "padding=((0, 1), (2, 3))" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "COMMAND"),
        (("paint",), "paint"),
        (("explain", "--x", 1, 3, 8, 8, "--w", 4, 2, 3, 3), "x must have 2 * 1 = 2 channels"),
        (("explain", "--x", 1, 3, 8, 8, "--w", 4, 3, 3, 3, "--padding", "wide"), "padding='wide'"),
        (("explain", "--x", 1, 3, 8, 8, "--w", 4, 3, 3, 3, "--dtype", "float8"), "float8"),
        (("bench", "--network", "lenet"), "lenet"),
        (("bench", "--peers", "abacus"), "abacus"),
        (("bench", "--threads", "0"), "at least 1"),
        (("bench", "--seconds", "none"), "'none'"),
        (("bench", "--roofline", "no/such/folder"), "folder"),
        (("bench", "--algorithms", "abacus"), "abacus"),
        (("bench", "--read", __file__), "test_cli.py"),
        (("bench", "--json", "no/such/folder/file.json"), "folder"),
        (("demo", "no-such-photograph.jpg"), "no-such-photograph.jpg"),
        (("demo", __file__), "not an image"),
        (("verify", "--seed", "-1"), "--seed"),
        (("warmup", "--dtype", "float8"), "float8"),
        (("compile", "--arch", "sm_1"), "sm_1"),
        (("compile", "--arch", "sm_90", "--kernels", "abacus"), "--kernels abacus: expected beginnings of names"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    assert message in fastconv(*arguments, expect=2).stderr


@pytest.mark.parametrize("module, package", [("rich", "rich"), ("matplotlib", "matplotlib"), ("PIL", "Pillow")])
def test_a_missing_package_is_named_with_its_extra(module, package):
    hide = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find(name, *rest)
"""
    message = fastconv("demo", before=hide, expect=2).stderr
    assert message.count("\n") == 1
    assert package in message
    assert 'pip install "fastconv[demo]"' in message


def test_demo_writes_a_checked_sheet(tmp_path):
    image, sheet = tmp_path / "waves.png", tmp_path / "sheet.png"
    photo = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[:48, :64]
    colours = np.stack([x * 4, y * 5, 127 + 120 * np.sin(x * y / 90)], axis=-1)
    photo.fromarray(colours.astype(np.uint8)).save(image)
    done = fastconv("demo", image, "--output", sheet)
    assert "conv_transpose2d" in done.stdout
    with photo.open(sheet) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 500


def test_verify_runs_every_algorithm_and_can_repeat_a_problem():
    done = fastconv("verify", "--seconds", 3)
    assert "direct" in done.stdout
    assert "im2col" in done.stdout
    again = fastconv("verify", "--seconds", 0, "--seed", 3).stdout
    assert "1 random problems, seed 3" in again
    ran, idle = again.split("not run, as none of these problems is for them: ")
    names = {a.name for a in algorithms("cpu")}
    assert {name for name in names if name in ran.split()} | set(idle.strip().split(", ")) == names


def test_verify_reports_a_wrong_algorithm_with_its_seed():
    wrong = """
from fastconv import registry
direct = next(a for a in registry.algorithms("cpu") if a.name == "direct")
kind = type(direct)
class Wrong(kind):
    name = "wrong"
    def apply(self, problem, a, b, out, bias=None, residual=None, workspace_limit=64 << 20):
        super().apply(problem, a, b, out, bias, residual, workspace_limit)
        out[...] = out + 1
registry.register(Wrong())
"""
    done = fastconv("verify", "--seconds", 0, "--seed", 5, before=wrong, expect=1)
    assert "FAILED wrong" in done.stdout
    assert "--seed 5 --seconds 0" in done.stdout


def test_bench_measures_prints_and_writes(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    data, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ("--network", "googlenet", "--device", "cpu", "--threads", 1, 2, "--seconds", 0.05, "--peers", "scipy")
    algorithms = ("--algorithms", "direct,im2col")
    done = fastconv("bench", *arguments, *algorithms, "--json", data, "--plot", picture, "--roofline", tmp_path)
    assert "googlenet 3a_5x5" in done.stdout
    assert "NHWC against NCHW" in done.stdout
    found = json.loads(data.read_text())
    assert [run["threads"] for run in found["runs"]] == [1, 2]
    assert set(found["tuned"]) == {"cpu"}
    for run in found["runs"]:
        assert run["ceilings"]["flops"] > 1e9
        (row,) = run["rows"]
        assert row["layer"]["network"] == "googlenet"
        assert all(entry["why_not"] or (entry["seconds"] > 0 and not entry["wrong"]) for entry in row["entries"])
        assert {contest["rows"] for contest in run["contests"]} == {1}
    for file in (picture, tmp_path / "direct-roofline.png", tmp_path / "im2col-roofline.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again"
    again.mkdir()
    assert "NHWC against NCHW" in fastconv("bench", "--read", data, "--roofline", again).stdout
    for file in tmp_path.glob("*-roofline.png"):
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_ctrl_c_ends_a_command_without_a_traceback():
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-m", "fastconv", "verify", "--seconds", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as running:
        running.stderr.readline()  # the first problem is done
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert stderr == "fastconv verify: interrupted\n"


def test_the_commit_of_a_checkout_that_does_not_hold_the_package_is_not_told(tmp_path):
    package = tmp_path / "site-packages" / "fastconv"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "theirs.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    assert info.git_commit(tmp_path)
    assert info.git_commit(package) is None
