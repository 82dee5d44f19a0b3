"""Where the dispatcher errs on layers that nobody tuned for: ``python bench/random_layers.py [--layers N] [--seed S]``.

Draws layers and their gradients, in both formats, and times on one thread the algorithms that are predicted to take
less than twice the time of the chosen one. Prints the layers on which another one was faster by a tenth, or on which
the chosen one took half as long again as predictions are off on the whole: the first tells of a cost model that is
wrong, the second of a kernel that a shape disagrees with, as pixels of 512 channels once did with the sets of L1.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np

import fastconv
from fastconv import machine
from fastconv.dispatch import Execution
from fastconv.problem import ConvProblem
from fastconv.registry import Algorithm, algorithms
from fastconv.timing import operands, turn

ROUNDS = 3
TURN_SECONDS = 0.02
LIKELY = 2.0
GOOD = 1.1
ODD = 1.5
MACS = 2e6, 2e9

CHANNELS = (3, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 1024)
SIZES = {1: (64, 250, 500, 1000, 2048, 4000), 2: (7, 10, 14, 16, 20, 28, 32, 40, 56, 64, 80), 3: (4, 7, 8, 14, 16)}
KERNELS = {1: (1, 2, 3, 3, 5, 7, 11), 2: (1, 2, 3, 3, 3, 4, 5, 7), 3: (1, 2, 3, 3)}
FORMATS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
OPS = ("forward", "forward", "input_grad", "weight_grad")


def layers(rng: np.random.Generator) -> Iterator[ConvProblem]:
    """Layers of such sizes as networks have, without end."""
    while True:
        ndim = int(rng.choice([1, 2, 2, 2, 3]))
        inner, outer = (int(n) for n in rng.choice(CHANNELS, 2))
        size, kernel = int(rng.choice(SIZES[ndim])), int(rng.choice(KERNELS[ndim]))
        stride = int(rng.choice([1, 1, 1, 2, 4]))
        dilation = int(rng.choice([1, 1, 1, 2])) if stride == 1 else 1
        padding = dilation * (kernel // 2) if rng.random() < 0.6 else 0
        groups = inner if rng.random() < 0.1 else 1
        outer, batch = inner if groups > 1 else outer, int(rng.choice([1, 1, 4]))
        data_format = str(rng.choice(FORMATS[ndim]))
        if dilation * (kernel - 1) >= size + 2 * padding:
            continue
        spatial = (size,) * ndim
        x = (batch, inner, *spatial) if data_format[1] == "C" else (batch, *spatial, inner)
        problem = ConvProblem.forward(
            ndim, x, (outer, inner // groups, *(kernel,) * ndim), stride=stride, padding=padding, dilation=dilation,
            groups=groups, data_format=data_format,
        )  # fmt: skip
        if MACS[0] < problem.macs < MACS[1]:
            yield dataclasses.replace(problem, op=str(rng.choice(OPS)))


def measure(problem: ConvProblem, here: machine.Machine) -> tuple[dict[Algorithm, float], dict[Algorithm, float]]:
    """Seconds predicted and measured, of the algorithms that may be the fastest."""
    x, w = operands(problem, "cpu")
    predicted = {a: a.cost(problem, here) for a in algorithms("cpu") if a.why_not(problem) is None}
    likely = [a for a in predicted if predicted[a] < LIKELY * min(predicted.values())]
    prepared = [(a, execution := Execution(problem, a), execution.pack(w)) for a in likely]
    measured = dict.fromkeys(likely, math.inf)
    for _ in range(ROUNDS):
        for algorithm, execution, packed in prepared:
            seconds = turn(lambda e=execution, p=packed: e(x, w, packed=p), "cpu", TURN_SECONDS, time.thread_time)
            measured[algorithm] = min(*seconds, measured[algorithm])
    return {a: predicted[a] for a in likely}, measured


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=100, metavar="N", help="how many (default: 100, some 3 minutes)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers (default: 0)")
    args = parser.parse_args()
    whole = machine.cpu()
    here = dataclasses.replace(whole, cores=1, flops=whole.flops / whole.cores)
    lost, late, lines = [], [], []
    with fastconv.threads(1):
        for _, problem in zip(range(args.layers), layers(np.random.default_rng(args.seed)), strict=False):
            predicted, measured = measure(problem, here)
            chosen, fastest = min(predicted, key=predicted.__getitem__), min(measured, key=measured.__getitem__)
            lost.append(measured[chosen] / measured[fastest])
            late.append(measured[chosen] / predicted[chosen])
            times = ", ".join(
                f"{a.name} {measured[a] * 1e3:.3f} ({predicted[a] * 1e3:.3f})"
                for a in sorted(measured, key=measured.__getitem__)
            )
            lines.append(f"{problem}, {'channels last' if problem.channels_last else 'channels first'}: {times}")
    usual = float(np.median(late))
    print(
        f"chosen within {GOOD - 1:.0%} of the fastest: {np.mean(np.array(lost) <= GOOD):.1%} of {len(lost)};", end=" "
    )
    print(f"mean loss {np.exp(np.mean(np.log(lost))) - 1:.1%}; measured over predicted, median {usual:.2f}")
    print("milliseconds measured (predicted):")
    for loss, ratio, line in sorted(zip(lost, late, lines, strict=True), reverse=True):
        if loss > GOOD:
            print(f"  {loss:.2f} of the fastest: {line}")
        elif ratio > ODD * usual:
            print(f"  {ratio:.2f} of the prediction: {line}")


if __name__ == "__main__":
    main()
