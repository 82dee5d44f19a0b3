"""The tables that ``bench`` prints."""

from __future__ import annotations

from collections import Counter

from fastconv.commands.bench_results import Contest, Row, Run, contests, geometric_mean, quotient
from fastconv.commands.console import table
from fastconv.commands.own_engines import Functional, Prepared, PreparedChannelsLast
from fastconv.commands.race import Entry

_WORST = 4  # rows named in a summary


def print_run(run: Run) -> None:
    """Every row of a run, and the contests it decides."""
    peers = [entry.engine for entry in run.rows[0].peers]
    columns = ["layer", "GFLOP", "floor ms", "algorithm", "function ms", "prepared ms", "NHWC ms", "GFLOP/s", "of peak"]
    lines = [_line(row, run) for row in run.rows]
    if peers:
        means = [geometric_mean(row.ratio(row.peers[i]) for row in run.rows) for i in range(len(peers))]
        lines.append(["geometric mean", *[""] * 8, *(f"({mean:.2f})" if mean else "" for mean in means)])
    title = f"{run}{'; ratios above 1: fastconv is faster' if peers else ''}"
    table(title, [*columns, *(f"{peer} ms (ratio)" for peer in peers)], lines)
    if any(e.wrong for row in run.rows for e in row.entries):
        print("! agrees with fastconv's result in fewer than half of the digits of the dtype")
    _print_algorithms(run)
    declined = Counter((e.engine, e.why_not) for row in run.rows for e in row.peers if e.why_not)
    for (engine, reason), layers in declined.items():
        print(f"- {engine}, {layers} layer{'s' * (layers > 1)}: {reason}")
    for row in run.rows:
        for entry in row.failures:
            print(f"! {entry.engine} failed on {row.layer}: {entry.why_not}")
    if run.ceilings:
        flops, memory, copy = (rate / 1e9 for rate in (run.ceilings.flops, run.ceilings.memory, run.ceilings.copy))
        how = "multiply-adds" if run.device == "cpu" else f"a matrix product in {run.dtype}"
        print(f"measured: {flops:.1f} GFLOP/s of {how}, memory {memory:.1f} GB/s read, {copy:.1f} GB/s copied")
    if run.device == "cpu" and run.disturbance:
        print(f"the median call took {run.disturbance:.2f} times as long as the shortest (1.0: nothing else ran)")
    columns = ["contest", "rows", "geometric mean", "bar", "below", "worst rows"]
    table(f"{run}: contests", columns, [_summary(contest) for contest in contests(run)])


def _print_algorithms(run: Run) -> None:
    """Each algorithm by itself, if they were raced."""
    names = [entry.engine for entry in run.rows[0].entries if ":" in entry.engine]
    if not names:
        return
    lines = []
    for row in run.rows:
        entries = [row.entry(name) for name in names]
        lines.append([str(row.layer), *(_ms(e) + (" <" if e.algorithm == row.choice else "") for e in entries)])
    columns = ["layer", *(f"{name.partition(':')[2]} ms" for name in names)]
    table(f"{run}: each algorithm; < marks the choice, - what it declines", columns, lines)


def print_cpu_against_gpu(on_cpu: Run, on_gpu: Run) -> None:
    """One line for each layer, both devices side by side."""
    lines, ratios = [], []
    for slow, fast in zip(on_cpu.rows, on_gpu.rows, strict=True):
        entries = slow.entry(Functional.name), fast.entry(Functional.name)
        ratios.append(quotient(*(entry.seconds for entry in entries)))
        lines.append([str(slow.layer), *map(_ms, entries), f"{ratios[-1]:.1f}" if ratios[-1] else ""])
    mean = geometric_mean(ratios)
    lines.append(["geometric mean", "", "", f"{mean:.1f}" if mean else ""])
    table("fastconv on CPU and GPU, each on arrays of its own memory", ("layer", "CPU ms", "GPU ms", "CPU/GPU"), lines)


def _line(row: Row, run: Run) -> list[str]:
    own, prepared = row.entry(Functional.name), row.entry(Prepared.name)
    algorithm = ", ".join(dict.fromkeys(e.algorithm for e in (own, prepared) if e.algorithm))
    seconds = prepared.seconds or own.seconds  # gradients have no prepared form
    rate = row.gflop / seconds if seconds else None
    floor = f"{row.floor(run.ceilings) * 1e3:.3f}" if run.ceilings else ""
    cells = [str(row.layer), f"{row.gflop:.3g}", floor, algorithm]
    cells += [_ms(entry) for entry in (own, prepared, row.entry(PreparedChannelsLast.name))]
    cells += [f"{rate:.1f}" if rate else "", f"{rate * 1e9 / run.ceilings.flops:.0%}" if rate and run.ceilings else ""]
    for peer in row.peers:
        ratio = row.ratio(peer)
        cells.append(_ms(peer) + (f" ({ratio:.2f})" if ratio else ""))
    return cells


def _summary(contest: Contest) -> list[str]:
    worst = ", ".join(f"{layer} {ratio:.2f}" for ratio, layer in sorted(contest.ratios, key=lambda p: p[0])[:_WORST])
    numbers = (str(len(contest.ratios)), f"{contest.mean:.2f}", f"{contest.bar:g}", str(len(contest.below)))
    return [contest.title, *numbers, worst]


def _ms(entry: Entry) -> str:
    return "-" if entry.seconds is None else f"{entry.seconds * 1e3:.3f}{'!' * entry.wrong}"
