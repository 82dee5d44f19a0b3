"""What ``bench`` races: the survey is what it says, and every engine computes the layers it takes."""

import itertools
import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulation.runtime import EmulatedRuntime, compiler

from fastconv.commands import bench_results
from fastconv.commands.bench_results import Contest, Row, Run, contests
from fastconv.commands.ceilings import Ceilings
from fastconv.commands.console import installed
from fastconv.commands.engine import layer_operands
from fastconv.commands.engines import ENGINES
from fastconv.commands.gpu_ceilings import GpuCeilings
from fastconv.commands.race import EngineError, Entry, Racer, race
from fastconv.gpu import runtime
from fastconv.networks import LAYERS, SURVEY, read_layer
from fastconv.reference import reference
from fastconv.registry import UNIT_ROUNDOFF, algorithms

BENCH = Path(__file__).parents[1] / "bench"

SMALL = {
    kind: read_layer(f"tests {line}")
    for kind, line in {
        "plain": "plain 6>8 12x12 k3 p1",
        "strided, dilated": "strided 6>8 15x15 k3 s2 p1 d2",
        "grouped": "grouped 8>12 12x12 k3 p1 g4",
        "depthwise": "depthwise 8>8 12x12 k3 p1 g8",
        "transposed": "transposed 6>8 7x7 k4 s2 p1 T",
        "transposed, grouped": "both 8>12 7x7 k4 s2 p1 g4 T",
        "signal": "signal 6>8 50 k3 p1",
        "volume": "volume 4>6 7x7x7 k3 p1",
    }.items()
}


def test_the_survey_has_a_layer_of_every_kind():
    assert len(set(SURVEY)) == len(SURVEY) == 44
    assert len({str(one) for one in LAYERS}) == len(LAYERS)
    assert set(SURVEY) <= set(LAYERS)
    assert {one.ndim for one in SURVEY} == {1, 2, 3}
    for ndim in (1, 2):
        assert any(one.transposed for one in SURVEY if one.ndim == ndim)
    assert any(one.groups == one.in_channels for one in SURVEY)
    assert any(1 < one.groups < one.in_channels for one in SURVEY)
    assert {max(one.kernel) for one in SURVEY} >= {1, 2, 3, 4, 5, 7, 10, 11, 16, 31}
    assert any(max(one.dilation) > 1 for one in SURVEY)
    assert any(one.batch > 1 for one in SURVEY)


@pytest.mark.parametrize("engine", [e for e in ENGINES if "cpu" in ENGINES[e].devices] + ["fastconv:direct"])
def test_engines_compute_what_they_take(engine):
    """Each in a process of its own, as in a race."""
    if engine in ENGINES:
        for module in ENGINES[engine].modules:
            if not installed(module):
                pytest.skip(f"{module} is not installed")
    racer, computed = Racer(engine, "cpu", 1), 0
    try:
        for (kind, layer), op in itertools.product(SMALL.items(), ("forward", "fused", "input_grad", "weight_grad")):
            one = replace(layer, fused=True) if op == "fused" else replace(layer, op=op)
            for dtype in ("float32", "float64", "int8") if op == "forward" else ("float32", "float64"):
                try:
                    _, result = racer.ask("load", one, dtype)
                except EngineError:
                    continue  # declined
                expected = reference(one.problem(dtype), *layer_operands(one, dtype))
                allowed = 50 * UNIT_ROUNDOFF.get(dtype, 0) * np.abs(expected).max()
                np.testing.assert_allclose(result, expected, rtol=0, atol=allowed, err_msg=f"{kind}, {op}, {dtype}")
                assert min(racer.ask("turn")) > 0
                computed += 1
    finally:
        racer.close()
    assert computed >= len(SMALL) // 2


def test_what_fails_is_noted_and_the_race_goes_on():
    racers = [Racer(engine, "cpu", 1) for engine in ("fastconv", "fastconv prepared", "fastconv:col2im")]
    try:
        too_small = replace(SMALL["plain"], size=(1, 0))
        own, prepared, declined = race(racers, too_small, "float32", "cpu", 0.001)
        assert own.failed and "ValueError" in own.why_not
        assert Row(too_small, 1.0, 1, (own, prepared, declined)).failures == [own, prepared, declined]
        racers[0]._process.kill()
        own, prepared, declined = race(racers, SMALL["strided, dilated"], "float32", "cpu", 0.001)
        assert own.failed and "-9" in own.why_not
        assert prepared.seconds and not prepared.wrong
        assert declined.why_not and not declined.failed
        again = race(racers, SMALL["plain"], "float32", "cpu", 0.001)[0]
        assert again.seconds and not again.failed
    finally:
        for racer in racers:
            racer.close()


def measured(**seconds):
    """A row of the smallest layer with these times; two algorithms by themselves."""
    names = {"function": "fastconv", "prepared": "fastconv prepared", "last": "fastconv NHWC"}
    entries = [Entry(names.get(name, name), "direct", time, 2 * time) for name, time in seconds.items()]
    entries += [Entry("fastconv:direct", "direct", 3.0), Entry("fastconv:im2col", "im2col", 2.0)]
    return Row.of(SMALL["plain"], "float32", entries)


def test_contests_ask_each_row_once():
    rows = [
        measured(function=4.0, prepared=2.0, last=1.0, pytorch=8.0, onnxruntime=6.0),
        measured(function=4.0, prepared=2.0, last=4.0, pytorch=2.0, onnxruntime=1.0),
    ]
    found = {contest.title: contest for contest in contests(Run("cpu", "float32", 1, None, rows))}
    means = {title: contest.mean for title, contest in found.items()}
    assert means["function against torch.nn.functional"] == pytest.approx(1.0)
    assert means["prepared against the best of pytorch, onnxruntime"] == pytest.approx(math.sqrt(1.5))
    assert means["NHWC against NCHW"] == pytest.approx(1.0)
    assert means["choice against the fastest algorithm"] == pytest.approx(2 / 3)
    assert [ratio for ratio, _ in found["NHWC against NCHW"].below] == [0.5]


def on_gpu(name, dtype="float16", fused=False):
    """A run of one layer, in which fastconv takes 2 ms, and a matrix product could do it in 1 ms."""
    layer = replace(next(layer for layer in LAYERS if str(layer) == name), batch=32, fused=fused)
    seconds = {"fastconv channels_last": 2e-3, "pytorch channels_last": 5e-3, "pytorch": 8e-3, "cudnn fused": 3e-3}
    row = Row.of(layer, dtype, [Entry(engine, "direct", time, time) for engine, time in seconds.items()])
    row = replace(row, entries=(*row.entries, Entry("fastconv"), Entry("fastconv prepared"), Entry("fastconv NHWC")))
    return Run("gpu", dtype, 1, GpuCeilings("a GPU", dtype, row.gflop * 1e12, row.gflop * 2e12, 3e12), [row])


@pytest.mark.parametrize(
    ("name", "options", "bar", "others"),
    [
        ("vgg16 conv3_2", {}, 1.0, {"3x3": 0.5}),
        ("vgg16 conv3_2", {"fused": True}, 1.3, {"3x3": 0.5}),
        ("resnet50 4_3x3", {"dtype": "float32"}, 1.5, {"3x3": 0.5}),
        ("resnet50 2_expand", {}, 1.0, {}),
        ("mobilenetv2 2_dw", {}, 1.0, {"grouped": 2.5}),
    ],
)
def test_on_a_gpu_contests_have_the_bars_that_are_aimed_at(name, options, bar, others):
    found = {contest.title: contest for contest in contests(on_gpu(name, **options))}
    against = found["fastconv channels_last against pytorch channels_last"]
    assert (against.mean, against.bar) == (pytest.approx(2.5), bar)
    nchw = found["fastconv channels_last against pytorch"]
    assert (nchw.mean, nchw.bar) == (pytest.approx(4.0), 1.5)
    means = {
        title[: len(start)]: c.mean
        for title, c in found.items()
        for start in ("3x3", "grouped")
        if title.startswith(start)
    }
    assert means == pytest.approx(others)


def test_the_ceilings_stand_beside_each_time():
    (row,) = bench_results._plain(on_gpu("vgg16 conv3_2"))["rows"]
    entry = row["entries"][0]
    assert entry["of_ceilings"]["flops"] == pytest.approx(0.5)
    assert entry["of_ceilings"]["bfloat16_flops"] == pytest.approx(0.25)
    assert entry["of_ceilings"]["copy"] == pytest.approx(row["nbytes"] / 2e-3 / 3e12)
    assert row["entries"][-1]["of_ceilings"] is None


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler (c++, g++ or clang++) to emulate CUDA with")
def test_the_hosts_time_for_a_launch_is_measured_for_every_algorithm():
    plans = runpy.run_path(str(BENCH / "gpu_launches.py"))["plans"]
    with runtime.use(EmulatedRuntime()):
        rows = list(plans(np, lambda: None, calls=1, rows=1))
    assert {row["call"].removeprefix("plan of ").removesuffix(", depthwise") for row in rows} == {
        algorithm.name for algorithm in algorithms("gpu")
    }
    assert all(row["microseconds"] > 0 for row in rows)


def test_the_gpu_script_knows_its_stages():
    script = BENCH / "gpu_check.sh"
    done = subprocess.run(["bash", script, "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense: expected tests, sanitizer, large, verify, launches, race or nothing" in done.stderr


def test_disturbance_compares_the_median_with_the_least():
    run = Run("cpu", "float32", 1, None, [measured(function=1.0, prepared=3.0)])
    assert run.disturbance == pytest.approx(2.0)


def test_rows_below_the_bar_are_listed_worst_first():
    contest = Contest("title", 1.0, [(0.9, SURVEY[0]), (1.2, SURVEY[1]), (0.5, SURVEY[2])])
    assert [ratio for ratio, _ in contest.below] == [0.5, 0.9]


@pytest.mark.parametrize("dtype, operand_bytes", [("float32", 4), ("int8", 1)])
def test_a_row_counts_the_bytes_that_must_move(dtype, operand_bytes):
    row = Row.of(SMALL["plain"], dtype, [])
    assert row.nbytes == operand_bytes * (6 * 12 * 12 + 8 * 6 * 3 * 3) + 4 * 8 * 12 * 12
    assert row.gflop == pytest.approx(2e-9 * 8 * 12 * 12 * 6 * 9)


@pytest.mark.parametrize(
    ("device", "ceilings"),
    [
        ("cpu", Ceilings(1, "float32", 1e11, {1 << 14: 2e10, 1 << 27: 1e10}, 2e10)),
        ("gpu", GpuCeilings("a GPU", "float32", 5e13, 8e14, 3e12)),
    ],
)
def test_runs_are_read_as_they_were_written(device, ceilings):
    run = Run(device, "float32", 1, ceilings, [measured(function=1.0, prepared=1.0, last=1.0, pytorch=2.0)])
    assert bench_results._run(json.loads(json.dumps(bench_results._plain(run)))) == run


def test_a_script_goes_on_where_a_race_fails(tmp_path, monkeypatch, capsys):
    turns = runpy.run_path(str(BENCH / "turns.py"))

    def fails():
        raise ValueError("there is no such pooling")

    def works():
        times = turns["raced"](lambda: sum(range(99)), lambda: sum(range(9)), 0.001)
        yield {"name": "sum", "call": "forward", "difference": 0.0, **times}

    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "rows.json")])
    assert turns["main"]("About.", "Python", [("first", fails), ("second", works)]) == 1
    failed, timed = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert failed == {"name": "first", "error": "ValueError: there is no such pooling"}
    assert timed["ratio"] == timed["peer_seconds"] / timed["fastconv_seconds"]
    assert "first failed: ValueError: there is no such pooling" in capsys.readouterr().out
