"""Fit the rates of the CPU cost models: ``python bench/fit_costs.py``.

Runs every CPU algorithm on one thread over the layers of `fastconv.networks` and smaller ones, counts each algorithm's
work with its own counting function, and solves for the non-negative rates that make the relative errors least. Prints
the rates to put into the algorithm's file, and how far the predictions and the choices are off.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from scipy.optimize import nnls

import fastconv
from fastconv import machine
from fastconv.networks import LAYERS
from fastconv.registry import algorithms
from fastconv.sampling import random_operands

ROUNDS = 3
MOST_MACS = 1.5e9


def one_thread_seconds(problem, algorithm, operands):
    """Least CPU time of this thread over a few calls; CPU time because other processes must not count."""
    best = np.inf
    with fastconv.threads(1):
        fastconv.execute(problem, *operands, algorithm=algorithm.name, device="cpu")
        for _ in range(ROUNDS):
            start = time.thread_time()
            fastconv.execute(problem, *operands, algorithm=algorithm.name, device="cpu")
            best = min(best, time.thread_time() - start)
    return best


def problems():
    """Layers of networks, whole and cut down to where the cost of a call shows."""
    cut = [
        dataclasses.replace(
            layer,
            size=tuple(max(n // 4, k * d) for n, k, d in zip(layer.size, layer.kernel, layer.dilation, strict=True)),
            in_channels=layer.in_channels // (8 if layer.groups == 1 else 1) or 1,
            out_channels=layer.out_channels // (8 if layer.groups == 1 else 1) or 1,
        )
        for layer in LAYERS
    ]
    seen = dict.fromkeys(layer.problem() for layer in (*LAYERS, *cut))
    return [problem for problem in seen if problem.macs < MOST_MACS]


def counts(algorithm, problem):
    """The vector of work that the algorithm's rates multiply: its cost with each rate in turn set to one."""
    module = __import__(type(algorithm).__module__, fromlist=["_RATES"])
    rates, call, n = module._RATES, module._CALL, len(module._RATES)
    one_core = dataclasses.replace(machine.cpu(), cores=1, flops=machine.cpu().flops / machine.cpu().cores)
    vector = []
    try:
        module._CALL = 0.0
        for i in range(n):
            module._RATES = tuple(float(i == j) for j in range(n))
            vector.append(algorithm.cost(problem, one_core))
    finally:
        module._RATES, module._CALL = rates, call
    return [*vector, 1.0]


def main():
    """Measure, fit, print."""
    rng = np.random.default_rng(0)
    measured: dict = {}
    for problem in problems():
        operands = random_operands(problem, rng)
        for algorithm in algorithms("cpu"):
            if algorithm.why_not(problem) is None:
                measured[algorithm, problem] = one_thread_seconds(problem, algorithm, operands)
    predicted = {}
    for algorithm in algorithms("cpu"):
        mine = [p for a, p in measured if a is algorithm]
        seconds = np.array([measured[algorithm, p] for p in mine])
        work = np.array([counts(algorithm, p) for p in mine])
        rates, _ = nnls(work / seconds[:, None], np.ones(len(mine)))
        error = work @ rates / seconds
        predicted |= {(algorithm, p): t for p, t in zip(mine, work @ rates, strict=True)}
        print(f"{algorithm.name}: rates {', '.join(f'{r:.2g}' for r in rates[:-1])}; call {rates[-1]:.2g}")
        print(f"  predicted / measured over {len(mine)} layers: {np.percentile(error, [0, 10, 50, 90, 100]).round(2)}")
    within = []
    for problem in problems():
        able = [a for a, p in measured if p == problem]
        chosen = min(able, key=lambda a: predicted[a, problem])
        within.append(measured[chosen, problem] / min(measured[a, problem] for a in able))
    print(f"chosen / fastest: worst {max(within):.2f}, within 10 % in {np.mean(np.array(within) <= 1.1):.0%} of layers")


if __name__ == "__main__":
    main()
