"""What does `engine.batch_invariant` cost? Steps and prefills of T3 with it and without, in turn.

``python -m benchmarks.speed.batch_invariant -o build/results/batch_invariant.json``: milliseconds, medians of
the turns, and the median ratio of a turn. The layers of the published size (4 of its 30, and the head), random weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch

from benchmarks.lib.harness import report
from chatterbox.engine.request import allocate_cache
from chatterbox.models.config import T3Config
from chatterbox.models.t3 import T3

NUM_LAYERS, CAPACITY, POSITION = 4, 512, 200
STEPS = 12  # of a turn
ROWS, PREFILLS = (1, 2, 4, 8, 16, 32), ((2, 64), (2, 256))  # (rows, positions)


@torch.inference_mode()
def passes(t3: T3, rows: int, num_new: int, count: int, batch_invariant: bool) -> float:
    """Median milliseconds of passes over ``num_new`` positions; steps (1) come behind POSITION others."""
    times = []
    cache = allocate_cache(t3, rows, CAPACITY)
    assert cache is not None
    if num_new == 1:
        t3.tfmr(torch.randn(1, POSITION, t3.dim), cache, positions=cache.reserve(POSITION, slice(0, 1)))
        for row in range(1, rows):
            cache.take_row(row, cache, 0)
    embeds = torch.randn(rows, num_new, t3.dim)
    for _ in range(count + 1):
        if num_new > 1:
            cache.reset()
        started = time.perf_counter()
        hidden = t3.tfmr(embeds, cache, batch_invariant=batch_invariant)
        t3.predict_speech(hidden[:, -1], batch_invariant=batch_invariant)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def measure(t3: T3, rows: int, num_new: int, turns: int) -> dict[str, object]:
    count = STEPS if num_new == 1 else 1
    pairs = [[passes(t3, rows, num_new, count, kind) for kind in (False, True)] for _ in range(turns)]
    plain, invariant = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(after / before for before, after in pairs)
    what = "step" if num_new == 1 else f"prefill of {num_new}"
    return {
        "what": what,
        "rows": rows,
        "plain_ms": round(plain, 1),
        "invariant_ms": round(invariant, 1),
        "ratio": round(ratio, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    hp = T3Config()
    t3 = T3(dataclasses.replace(hp, backbone=dataclasses.replace(hp.backbone, num_layers=NUM_LAYERS))).eval()
    cases = [*((rows, 1) for rows in ROWS), *PREFILLS]
    report("batch_invariant", [measure(t3, *case, arguments.turns) for case in cases], arguments.output)


if __name__ == "__main__":
    main()
