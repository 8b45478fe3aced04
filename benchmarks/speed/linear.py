"""How fast are products with weights? `F.linear` against those that `chatterbox.models.linear` takes on CPUs.

``python -m benchmarks.speed.linear -o build/results/linear.json``: the matrices of one T3 layer of the published
size, all ways in turn, the median of the repeats. Gigabytes of weights a second; the limit is the memory's bandwidth,
shown by a plain sum.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lib.harness import report

SHAPES = ((3072, 1024), (1024, 1024), (8192, 1024), (1024, 4096))  # joined q/k/v, o, joined gate/up, down
COPIES = 6  # layers' worth, so that no cache holds them
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "F.linear(x, W)": F.linear,
    "(W @ x.T).T": lambda x, weight: (weight @ x.T).T,
    "oneDNN(x, W)": lambda x, weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""),
    "W.sum()": lambda _, weight: weight.sum(),
}


@torch.inference_mode()
def measure(rows: int, repeats: int) -> dict[str, float]:
    """GB/s by way."""
    weights = [torch.randn(shape) for shape in SHAPES * COPIES]
    inputs = {shape[1]: torch.randn(rows, shape[1]) for shape in SHAPES}
    nbytes = sum(weight.nbytes for weight in weights)
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats + 1):
        for name, product in WAYS.items():
            started = time.perf_counter()
            for weight in weights:
                product(inputs[weight.shape[1]], weight)
            speeds[name].append(nbytes / (time.perf_counter() - started) / 1e9)
    return {name: round(statistics.median(values[1:]), 2) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    rows = [{"rows": rows, **measure(rows, arguments.repeats)} for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    report("linear", rows, arguments.output, unit="gigabytes per second")


if __name__ == "__main__":
    main()
