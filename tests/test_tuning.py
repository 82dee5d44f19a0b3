"""Measured choices: used, shown, kept between processes, and never in the way."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import calling, machine, remembered, settings, tuning
from fastconv.dispatch import choose, estimate
from fastconv.problem import ConvProblem
from fastconv.registry import algorithms
from fastconv.remembered import Record

ROOT = Path(__file__).parents[1]
PROBLEM = ConvProblem.forward(2, (1, 8, 20, 20), (16, 8, 3, 3), padding=1)
NAMES = [a.name for a in algorithms("cpu") if a.why_not(PROBLEM) is None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and no choice left behind."""
    (tmp_path / "kernels").symlink_to(settings.cache_directory() / "kernels")  # compiled once for all
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    calling.choose_anew()
    yield
    calling.choose_anew()


def prefer(name, otherwise=1.0):
    """A record in which `name` is the fastest."""
    return {other: 1e-6 if other == name else otherwise for other in NAMES}


def remember(problem, record):
    remembered.remember(problem, "cpu", record)
    calling.choose_anew()


# -- what tune does ---------------------------------------------------------------------------------------------------


def test_every_algorithm_is_measured_in_both_forms():
    explanation = fastconv.tune(PROBLEM.x_shape, PROBLEM.w_shape, padding=1, device="cpu")
    assert explanation.problem == PROBLEM
    measured = {row.algorithm: row for row in explanation.rows if row.device == "cpu" and row.why_not is None}
    assert set(measured) == set(NAMES)
    record = remembered.recall(PROBLEM, "cpu")
    for form in ("call", "prepared"):
        times = getattr(record, form)
        assert {name: getattr(row, form).seconds for name, row in measured.items()} == times
        assert all(0 < seconds < 1 for seconds in times.values())
        (chosen,) = (name for name, row in measured.items() if getattr(row, form).chosen)
        assert times[chosen] == min(times.values())
        assert choose(PROBLEM, prepared=form == "prepared").name == chosen
    assert str(explanation).count("measured") == 2 * len(NAMES)


def test_gradients_and_other_dtypes_are_tuned_too():
    for op, dtype in (("input_grad", "float32"), ("weight_grad", "int8")):
        problem = dataclasses.replace(PROBLEM, op=op, dtype=dtype)
        tuning.tune_problem(problem, "cpu")
        assert not estimate(choose(problem), problem, prepared=False).predicted


def test_bad_arguments_are_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="channels"):
        fastconv.tune((1, 3, 8, 8), (4, 2, 3, 3))
    with pytest.raises(ValueError, match="device='cloud'"):
        fastconv.tune((1, 3, 8, 8), (4, 3, 3, 3), device="cloud")
    assert not remembered.folder().exists()


# -- what is remembered is used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_choice_is_taken_for_its_form(name):
    other = next(n for n in NAMES if n != name)
    x, w = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in PROBLEM.operand_shapes)
    layer = fastconv.Conv2d(w, padding=1)
    fastconv.conv2d(x, w, padding=1), layer(x)  # whatever was chosen before does not stay
    remember(PROBLEM, Record(call=prefer(name), prepared=prefer(other)))
    assert (choose(PROBLEM).name, choose(PROBLEM, prepared=True).name) == (name, other)
    named = fastconv.conv2d(x, w, padding=1, algorithm=name)
    assert fastconv.conv2d(x, w, padding=1).tobytes() == named.tobytes()
    named = fastconv.Conv2d(w, padding=1, algorithm=other)(x)
    assert layer(x).tobytes() == named.tobytes()


def test_batch_axes_and_epilogue_share_a_record_and_nothing_else_does():
    remember(PROBLEM, Record(prefer("direct"), prefer("direct")))
    x, w = PROBLEM.operand_shapes
    same = [
        ConvProblem.forward(2, x[1:], w, padding=1),
        ConvProblem.forward(2, (1, *x), w, padding=1, bias=True, residual=True, activation="relu"),
    ]
    other = [
        ConvProblem.forward(2, (2, *x[1:]), w, padding=1),
        ConvProblem.forward(2, x, w, padding=1, dtype="float64"),
        ConvProblem.forward(2, x, w, padding=1, flip_kernel=True),
        ConvProblem.forward(2, x, w, padding=1, precision="highest"),
        dataclasses.replace(PROBLEM, op="input_grad"),
    ]
    assert [remembered.recall(p, "cpu") is not None for p in (*same, *other)] == [True] * 2 + [False] * 5


def test_an_algorithm_that_declines_or_is_gone_is_not_chosen():
    remember(PROBLEM, Record(prefer("gone") | {"gone": 1e-9}, prefer("gone") | {"gone": 1e-9}))
    assert choose(PROBLEM).name in NAMES


def test_without_a_record_the_choice_is_predicted():
    times = [estimate(a, PROBLEM, prepared=False) for a in algorithms("cpu") if a.why_not(PROBLEM) is None]
    assert all(time.predicted for time in times)


def test_another_version_or_machine_has_records_of_its_own(monkeypatch):
    remember(PROBLEM, Record(prefer("direct"), prefer("direct")))
    monkeypatch.setattr(machine, "identity", lambda device: "another processor")
    assert remembered.recall(PROBLEM, "cpu") is None
    assert remembered.recall_all("cpu") == {}


def test_changed_sources_make_another_version(tmp_path, monkeypatch):
    """In a copy of the package, one comment is added to an algorithm."""
    import shutil

    shutil.copytree(ROOT / "fastconv", tmp_path / "fastconv", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from fastconv import remembered; print(remembered._version('cpu'))"

    def version():
        return subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)

    before = version()
    assert version() == before
    with (tmp_path / "fastconv" / "cpu" / "direct.py").open("a") as file:
        file.write("# changed\n")
    assert version() != before


# -- whatever happens to the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b"{}", b'{"problem": "p", "call": {}, "prepared": {}}',
        b'{"problem": "p", "call": {"direct": -1}, "prepared": {"direct": 1}}',
        b'{"problem": "p", "call": {"direct": NaN}, "prepared": {"direct": 1}}',
        b'{"problem": "p", "call": {"direct": "fast"}, "prepared": {"direct": 1}}',
        b"[" * 100_000,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_broken_file_is_ignored_with_a_warning_and_rewritten(text):
    record = Record(prefer("direct"), prefer("direct"))
    remember(PROBLEM, record)
    (path,) = remembered.folder().glob("*/*.json")
    path.write_bytes(text)
    calling.choose_anew()
    with pytest.warns(RuntimeWarning, match="ignored until its problem is tuned again"):
        assert estimate(choose(PROBLEM), PROBLEM, prepared=False).predicted
    with pytest.warns(RuntimeWarning):
        assert remembered.recall_all("cpu") == {}
    remember(PROBLEM, record)
    assert remembered.recall(PROBLEM, "cpu") == record
    assert list(remembered.recall_all("cpu").values()) == [record]


def test_an_unreadable_file_is_ignored_with_a_warning():
    remember(PROBLEM, Record(prefer("direct"), prefer("direct")))
    (path,) = remembered.folder().glob("*/*.json")
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="ignored"):
        assert remembered.recall(PROBLEM, "cpu") is None


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "tuning").write_text("not a folder")
    assert remembered.recall(PROBLEM, "cpu") is None
    with pytest.raises(OSError, match="tuning"):
        fastconv.tune(PROBLEM.x_shape, PROBLEM.w_shape, padding=1, device="cpu")


def write_many(seed):
    for i in range(60):
        seconds = {"direct": float(seed + 1), "im2col": float(seed + 1)}
        shared = ConvProblem.forward(1, (1, 1, 9), (1, 1, 1 + i % 3))
        own = ConvProblem.forward(1, (1, 1, 100 * (seed + 1) + i), (1, 1, 3))
        for problem in (shared, own):
            remembered.remember(problem, "cpu", Record(seconds, seconds))
            found = remembered.recall(problem, "cpu")
            assert found.call == found.prepared  # never the half of one writer and the half of another
            assert set(found.call) == {"direct", "im2col"}


def test_processes_may_write_at_once():
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(seed,)) for seed in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 6
    assert len(list(remembered.folder().glob("*/*.json"))) == 3 + 6 * 60
    assert list(remembered.folder().glob("*/*.tmp")) == []
    assert len(remembered.recall_all("cpu")) == 3 + 6 * 60


def test_forget_removes_the_records_of_every_version():
    remember(PROBLEM, Record(prefer("direct"), prefer("direct")))
    other = remembered.folder() / "another-version"
    other.mkdir()
    (other / "record.json").write_text("{}")
    (other / "not-ours.txt").write_text("kept")
    assert remembered.forget() == 2
    assert remembered.recall(PROBLEM, "cpu") is None
    assert (other / "not-ours.txt").exists()
    assert remembered.forget() == 0


def test_records_are_readable_by_people(tmp_path):
    remember(PROBLEM, Record(prefer("direct"), prefer("direct")))
    (path,) = tmp_path.glob("tuning/*/*.json")
    assert json.loads(path.read_text())["problem"] == str(PROBLEM)


# -- the command ------------------------------------------------------------------------------------------------------


def command(*arguments, expect=0):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "fastconv", "tune", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_tunes_shows_and_forgets():
    arguments = ("--x", 1, 4, 9, 9, "--w", 4, 4, 3, 3, "--padding", "same")
    assert "measured" in command(*arguments).stdout
    shown = command("--show").stdout
    assert "conv2d (1, 4, 9, 9) * (4, 4, 3, 3)" in shown
    assert "1 problem remembered" in shown
    assert "1 problem forgotten" in command("--forget").stdout
    assert "0 problems remembered" in command("--show").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--x", 1, 4, 9, 9), "--x and --w"),
        (("--padding", 1), "padding: expected --x and --w too"),
        (("--x", 1, 4, 9, 9, "--w", 4, 3, 3, 3), "channels"),
        (("--show", "--forget"), "not allowed"),
    ],
)
def test_bad_arguments_of_the_command_are_named(arguments, message):
    assert message in command(*arguments, expect=2).stderr


def test_the_command_says_that_there_is_no_gpu():
    from fastconv.dispatch import why_no_gpu

    if why_no_gpu() is None:
        pytest.skip("there is one")
    assert f"--device gpu: {why_no_gpu()}" in command("--device", "gpu", expect=2).stderr
