"""What does a piece of a stream cost S3Gen, by what it remembers, its steps and precision? Published size, synthetic
weights.

``python -m benchmarks.speed.s3gen -o build/results/s3gen.json``: a voice of 10 s, 2 s of context, 1 s new, ten steps
with guidance (`--turbo`: two, without). All cases in turn; ratios are of the first in float32 in the same run. A piece
is one that has all its context: the third. Mels of random weights say nothing of quality: benchmarks/quality does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.harness import report
from chatterbox.config import PRECISIONS
from chatterbox.models.packed import MATRICES
from chatterbox.models.precision import BFLOAT16, ESTIMATOR, S3GEN_LAYERS, Packing, has_bfloat16, pack
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.cfm import Steps
from chatterbox.models.s3gen.stream import S3GenStream, remember_prompt
from tools.synthetic import fill_module

PIECE, CONTEXT, PROMPT_SECONDS = 25, 50, 10.0  # speech tokens, 25 a second
# What is remembered, steps, those of them without guidance; None is the model's own number.
Case = tuple[str, int | None, int]
EXACT: Case = ("none", None, 0)
CASES: tuple[Case, ...] = (EXACT, ("prompt", None, 0), ("past", None, 0))
FEWER_STEPS: tuple[Case, ...] = (("past", 7, 2), ("past", 5, 0), ("past", 5, 2), ("past", 4, 1))


def network(precision: str, *, meanflow: bool) -> S3Gen:
    s3gen = S3Gen(meanflow).eval().requires_grad_(False)
    fill_module(s3gen, seed=0)
    if precision == BFLOAT16:
        s3gen.get_submodule(ESTIMATOR).to(torch.bfloat16)
    elif precision in MATRICES:
        pack(s3gen, Packing(S3GEN_LAYERS, MATRICES[precision]))
    return s3gen


def voice_of(s3gen: S3Gen) -> dict[str, Any]:
    num_tokens = round(25 * PROMPT_SECONDS)
    generator = torch.Generator().manual_seed(0)
    return {
        "prompt_token": torch.randint(0, 6561, (1, num_tokens), generator=generator),
        "prompt_token_len": torch.tensor([num_tokens]),
        "prompt_feat": torch.randn(1, 2 * num_tokens, 80, generator=generator) - 4,
        "embedding": torch.randn(1, s3gen.config.flow.speaker_embed_size, generator=generator),
    }


@torch.inference_mode()
def measure(kinds: list[str], turns: int, *, meanflow: bool) -> list[dict[str, Any]]:
    cases = CASES if meanflow else (*CASES, *FEWER_STEPS)
    tokens = torch.randint(0, 6561, (3 * PIECE + 3,), generator=torch.Generator().manual_seed(1))
    networks = {kind: network(kind, meanflow=meanflow) for kind in kinds}
    reference = voice_of(networks[kinds[0]])
    seconds: dict[tuple[str, Case], list[float]] = {}
    remembered: dict[tuple[str, Case], float] = {}
    for _ in range(turns):
        for kind, s3gen in networks.items():
            for case in cases:
                memory, steps = case[0], Steps(*case[1:])
                started = time.perf_counter()
                options: dict[str, Any] = {}
                if memory != "none":
                    known = remember_prompt(s3gen, reference, steps)
                    remembered[kind, case] = time.perf_counter() - started
                    options["voice"] = partial(nullcontext, known)
                stream = S3GenStream(
                    s3gen, reference, seed=1, context_len=CONTEXT, steps=steps, memory=memory, **options
                )
                if memory == "past":
                    stream.push(tokens[: PIECE + 3])
                    stream.push(tokens[PIECE + 3 : 2 * PIECE + 3])
                else:  # what was before changes nothing but its length: it need not be computed
                    stream._take(tokens[: 2 * PIECE + 3])
                    stream._num_rendered = 2 * PIECE
                    stream._num_spoken = stream._mel_start = 4 * PIECE - stream._held
                    stream._mel = torch.zeros(1, 80, stream._held)
                started = time.perf_counter()
                stream.push(tokens[2 * PIECE + 3 :])
                seconds.setdefault((kind, case), []).append(time.perf_counter() - started)
                print(kind, case, round(seconds[kind, case][-1], 2), flush=True)
    exact = seconds[kinds[0], EXACT]
    return [
        {
            "model": "turbo" if meanflow else "english",
            "precision": kind,
            "memory": case[0],
            "steps": networks[kind].flow.decoder.num_steps(case[1]),
            "without guidance": case[2],
            "seconds a piece of 1 s": round(statistics.median(spent), 3),
            "times as fast": round(statistics.median(a / b for a, b in zip(exact, spent, strict=True)), 2),
            "seconds to remember the voice": round(remembered[kind, case], 2) if case[0] != "none" else None,
        }
        for (kind, case), spent in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turbo", action="store_true")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS[1:])
    arguments = parser.parse_args()
    usual = ["float32", *([BFLOAT16] if has_bfloat16() else []), "int8"]
    kinds = arguments.precisions or usual
    rows = measure(kinds, arguments.turns, meanflow=arguments.turbo)
    report("s3gen", rows, arguments.output, unit="seconds")


if __name__ == "__main__":
    main()
