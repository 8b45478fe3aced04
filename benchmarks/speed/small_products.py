"""What does the way in which small matrices are multiplied save in a step of T3? The embedded voice.

``python -m benchmarks.speed.small_products -o build/results/small_products.json``, a minute: steps of 1 to 8
requests with the rule of `chatterbox.models.linear` for small matrices and without it, in turn. Alone, products do not
show it: how fast 18 MB of weights are read differs more from process to process than the ways do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.lib.harness import report
from benchmarks.lib.heard import Row, paired
from benchmarks.speed.row_counts import requests_of
from chatterbox.config import KVCacheConfig
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.row_pool import PooledDecoder, RowBudget
from chatterbox.models import linear
from chatterbox.tts import ChatterboxTTS

STEPS = 30


def step_seconds(tts: ChatterboxTTS, rows: int) -> float:
    """Median of the steps of a batch that has just begun."""
    engine = DecodeEngine(tts.t3, PooledDecoder(tts.t3, KVCacheConfig(), RowBudget(None)))
    for request in requests_of(tts, 0, rows):
        engine.join(request)
    engine.step()
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(tts: ChatterboxTTS, rows: int, turns: int) -> Row:
    small, seen = linear.SMALL, {True: [], False: []}
    try:
        for turn in range(turns + 1):  # the first does not count
            for is_on in (True, False):
                linear.SMALL = small if is_on else 0
                seconds = step_seconds(tts, rows)
                if turn:
                    seen[is_on].append(seconds)
    finally:
        linear.SMALL = small
    medians = {
        name: round(1000 * statistics.median(seen[is_on]), 2) for name, is_on in (("ms", True), ("ms_without", False))
    }
    return {"rows": rows, **medians, "times_faster": paired(seen[False], seen[True]), "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    report("small_products", [measure(tts, rows, arguments.turns) for rows in range(1, 9)], arguments.output)


if __name__ == "__main__":
    main()
