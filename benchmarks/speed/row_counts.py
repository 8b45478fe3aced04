"""How seldom does a token differ from the one that a request decodes alone? The embedded voice, in company.

``python -m benchmarks.speed.row_counts -o build/results/row_counts.json``: requests of other texts and seeds, each
alone and then 8 and 32 at once, where the next joins when one ends. Products and attention add up in another order at
another number of rows, so that last bits of the logits differ, and now and then another token is the likeliest under
the same noise. ``tokens``: compared, up to the first that differs, as all behind it are others. ``at_most``: what the
rate lies below at 95% (Poisson). A run adds ``--requests`` more to those that the file has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import chi2

from benchmarks.lib.harness import write
from benchmarks.speed.baselines import TEXTS
from chatterbox.config import KVCacheConfig
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import Request
from chatterbox.engine.row_pool import PooledDecoder, RowBudget
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.tts import ChatterboxTTS

IN_COMPANY = (8, 32)
AT_ONCE = 64  # requests between two writes of the file


def decoded(tts: ChatterboxTTS, requests: list[Request], most: int) -> list[list[int]]:
    """Tokens of each request, ``most`` of them decoding at once."""
    engine = DecodeEngine(tts.t3, PooledDecoder(tts.t3, KVCacheConfig(), RowBudget(None)))
    tokens: list[list[int]] = [[] for _ in requests]
    places: dict[int, int] = {}
    waiting = iter(enumerate(requests))
    while True:
        while engine.num_requests < most and (one := next(waiting, None)) is not None:
            places[engine.join(one[1])] = one[0]
        if not engine.num_requests:
            return tokens
        result = engine.step()
        if result.failed:
            raise next(iter(result.failed.values()))
        for handle, token in result.tokens:
            tokens[places[handle]].append(token)


def compared(alone: list[int], other: list[int]) -> tuple[int, int]:
    """How many tokens were compared, and how many of them, none or one, differ."""
    for number, (a, b) in enumerate(zip(alone, other, strict=False), start=1):
        if a != b:
            return number, 1
    return min(len(alone), len(other)), int(len(alone) != len(other))


def most_per_million(differing: int, tokens: int) -> float:
    """The rate above which so few would be seen with 5% at most."""
    return float(1e6 / tokens * chi2.ppf(0.95, 2 * (differing + 1)) / 2)


def requests_of(tts: ChatterboxTTS, first: int, count: int) -> Iterator[Request]:
    """Numbers ``first`` and on: two sentences each, a seed for each."""
    assert tts.conds is not None
    for number in range(first, first + count):
        text = f"{TEXTS[number % len(TEXTS)]} {TEXTS[number // len(TEXTS) % len(TEXTS)]}"
        yield tts.synthesizer.decode_requests(SynthesisRequest(text, tts.conds, tts.sampling, seed=number))[0]


def row(rows: int, counts: dict[str, int]) -> dict[str, Any]:
    tokens, differing = counts["tokens"], counts["differing"]
    rate = {"per_million": round(1e6 * differing / tokens, 2), "at_most": round(most_per_million(differing, tokens), 2)}
    return {"rows": rows, **counts, **rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--requests", type=int, default=1024)
    arguments = parser.parse_args()
    known: dict[str, Any] = {}
    if arguments.output is not None and arguments.output.is_file():
        known = json.loads(arguments.output.read_text())
    first = known.get("requests", 0)
    counts = {rows: {"tokens": 0, "differing": 0} for rows in IN_COMPANY}
    for old in known.get("rows", ()):
        counts[old["rows"]] = {"tokens": old["tokens"], "differing": old["differing"]}
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    for start in range(first, first + arguments.requests, AT_ONCE):
        requests = list(requests_of(tts, start, min(AT_ONCE, first + arguments.requests - start)))
        alone = decoded(tts, requests, 1)
        for most, count in counts.items():
            for one, other in zip(alone, decoded(tts, requests, most), strict=True):
                tokens, differing = compared(one, other)
                count["tokens"] += tokens
                count["differing"] += differing
        done = [row(rows, count) for rows, count in counts.items()]
        write("row_counts", done, arguments.output, requests=start + len(requests))
        print(start + len(requests), done, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
