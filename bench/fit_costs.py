"""Fit the rates of the CPU cost models: ``python bench/fit_costs.py``.

Times every CPU algorithm on one thread over the layers of `fastconv.networks` and smaller ones, packing and running
apart, and solves for the rates of its two cost models that make the relative errors least. Prints the rates to put into
the algorithm's file, how far predictions are off, and how often the dispatcher's choice is the fastest or within 10 %
of it, on one thread and on all.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import least_squares

import fastconv
from fastconv import machine
from fastconv.cpu.costs import CostModel
from fastconv.dispatch import Execution
from fastconv.networks import LAYERS
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm, algorithms
from fastconv.timing import operands, turn

ROUNDS = 3
TURN_SECONDS = 0.02
GOOD = 1.1
MOST_MACS = 10**10  # of a large kernel: sums of more take seconds, and are no choice there
LEAST_RATE = 1e-12  # seconds: less is nothing

PARTS = ("packing", "running")
Seconds = dict[tuple[ConvProblem, Algorithm, str], float]


def cut_down() -> Iterator[ConvProblem]:
    """The layers of networks at a quarter of their size and an eighth of their channels, where calls cost most."""
    for layer in LAYERS:
        least = (k * d for k, d in zip(layer.kernel, layer.dilation, strict=True))
        channels = {} if layer.groups > 1 else {
            "in_channels": max(layer.in_channels // 8, 1), "out_channels": max(layer.out_channels // 8, 1)
        }  # fmt: skip
        size = tuple(max(n // 4, reach) for n, reach in zip(layer.size, least, strict=True))
        yield dataclasses.replace(layer, size=size, **channels).problem()


def large_kernels() -> Iterator[ConvProblem]:
    """Kernels from where sums are fastest to where transforms are: one channel, depthwise and dense."""
    sides = {1: (16000, (33, 65, 129, 257, 1025)), 2: (64, (5, 9, 13, 19, 31)), 3: (32, (3, 5, 7, 11))}
    for ndim, (side, lengths) in sides.items():
        for length, (inner, outer, groups) in itertools.product(lengths, ((1, 1, 1), (32, 32, 32), (16, 16, 1))):
            x, w = (1, inner, *(side,) * ndim), (outer, inner // groups, *(length,) * ndim)
            problem = ConvProblem.forward(ndim, x, w, groups=groups, padding=length // 2)
            if problem.macs <= MOST_MACS:
                yield problem


def calls(problem: ConvProblem) -> dict[tuple[Algorithm, str], Callable[[], object]]:
    """For each algorithm that takes the problem, its two parts as calls; each has been called once."""
    x, w = operands(problem, "cpu")
    found = {}
    for algorithm in algorithms("cpu"):
        if algorithm.why_not(problem) is None:
            execution = Execution(problem, algorithm)
            packed = execution.pack(w)
            execution(x, w, packed=packed)
            found[algorithm, "packing"] = lambda execution=execution: execution.pack(w)
            found[algorithm, "running"] = lambda execution=execution, packed=packed: execution(x, w, packed=packed)
    return found


def measure(problems: list[ConvProblem], threads: int) -> Seconds:
    """Least time of each part of each algorithm, in rounds that are minutes apart: disturbances last seconds.

    On one thread it is the CPU time of that thread, which other processes add to only by way of caches and clocks.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    measured: Seconds = {}
    with fastconv.threads(threads):
        for _, problem in itertools.product(range(ROUNDS), problems):
            for (algorithm, part), call in calls(problem).items():
                key = problem, algorithm, part
                measured[key] = min(*turn(call, "cpu", TURN_SECONDS, clock), measured.get(key, math.inf))
    return measured


def one_core() -> machine.Machine:
    """This machine as measured: one thread of it."""
    here = machine.cpu()
    return dataclasses.replace(here, cores=1, flops=here.flops / here.cores)


def fit(model: CostModel, seconds: dict[ConvProblem, float], least: dict[ConvProblem, float]) -> CostModel:
    """The model with the rates that predict `seconds` best; `least` are those of the fastest algorithm."""
    counts = np.array([list(model.counts(problem, one_core()).values()) for problem in seconds])
    times = np.array(list(seconds.values()))
    # Where an algorithm is far behind, no choice hangs on how well its time is predicted.
    weights = np.array([least[problem] for problem in seconds]) / times

    def errors(logarithms: np.ndarray) -> np.ndarray:
        # Logarithms of the rates keep them positive, and those of the times make half and twice equally wrong.
        return weights * np.log(counts @ np.exp(logarithms) / times)

    start = np.log(np.maximum(list(model.rates.values()), LEAST_RATE))
    found = least_squares(errors, start, bounds=(math.log(LEAST_RATE) - 1, 0), loss="soft_l1", f_scale=0.1)
    return dataclasses.replace(model, rates=dict(zip(model.rates, np.exp(found.x).tolist(), strict=True)))


def report_choices(name: str, measured: Seconds, cost: Callable[[ConvProblem, Algorithm, str], float]) -> None:
    """How the algorithms of least predicted cost compare with the fastest ones, for each form of a call."""
    for form, parts in {"functions": PARTS, "prepared layers": ("running",)}.items():
        lost = {}
        for problem in {problem: None for problem, _, _ in measured}:
            able = [a for a in algorithms("cpu") if (problem, a, "running") in measured]
            took = {a: sum(measured[problem, a, part] for part in parts) for a in able}
            chosen = min(able, key=lambda a: sum(cost(problem, a, part) for part in parts))
            fastest = min(able, key=took.__getitem__)
            lost[problem] = took[chosen] / took[fastest], chosen, fastest
        good = np.mean([ratio <= GOOD for ratio, _, _ in lost.values()])
        print(f"{name}, {form}: within {GOOD - 1:.0%} of the fastest in {good:.1%} of {len(lost)} problems")
        for problem, (ratio, chosen, fastest) in sorted(lost.items(), key=lambda item: -item[1][0]):
            if ratio > GOOD:
                print(f"  {ratio:5.2f}  {chosen.name} instead of {fastest.name}: {problem}")


def main() -> None:
    """Measure, fit, print."""
    layers = list(dict.fromkeys([*(layer.problem() for layer in LAYERS), *large_kernels()]))
    measured = measure(list(dict.fromkeys([*layers, *cut_down()])), threads=1)
    fastest: dict[ConvProblem, float] = {}
    for (problem, _, part), seconds in measured.items():
        if part == "running":
            fastest[problem] = min(seconds, fastest.get(problem, seconds))
    fitted: dict[tuple[Algorithm, str], CostModel] = {}
    for algorithm, part in itertools.product(algorithms("cpu"), PARTS):
        times = {p: seconds for (p, a, which), seconds in measured.items() if (a, which) == (algorithm, part)}
        model = fitted[algorithm, part] = fit(getattr(algorithm, part), times, fastest if part == "running" else times)
        rates = {kind: float(f"{rate:.2g}") for kind, rate in model.rates.items()}
        print(f"{algorithm.name} {part}: {rates}")
        ratios = [model.seconds(p, one_core()) / seconds for p, seconds in times.items()]
        print(f"  predicted / measured: least, median, most {np.percentile(ratios, [0, 50, 100]).round(2)}")
    table = {key: seconds for key, seconds in measured.items() if key[0] in layers}
    both = {"one thread": table, "all threads": measure(layers, machine.cpu().cores)}
    for threads, times in both.items():
        report_choices(f"fitted, {threads}", times, lambda p, a, part: fitted[a, part].seconds(p, machine.cpu()))
        report_choices(f"as it was, {threads}", times, lambda p, a, part: getattr(a, part).seconds(p, machine.cpu()))


if __name__ == "__main__":
    main()
