"""Is a cache still worth it? Ratios of times in one run, on the embedded voice; the exit code is 1 where one is missed.

``python -m benchmarks.kvcache.gate``, or ``make gate``: about half a minute on two cores. Each gate compares two ways
of doing the same work, in turn, and asks for a median ratio that every machine of the last year has reached with room
to spare: a gate that closes means that a policy has lost its purpose, not that a machine is slow. No absolute time
counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib.harness import in_turns, ratio, report
from chatterbox import ChatterboxTTS
from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.synthesis.request import SynthesisRequest

TEXT = "The old man walked slowly down to the river, and nobody saw him again that day."
NUM_TOKENS = 100


class Gate(NamedTuple):
    """``slow`` must take at least ``least`` times what ``fast`` takes."""

    name: str
    slow: Callable[[], object]
    fast: Callable[[], object]
    least: float


def gates(tts: ChatterboxTTS) -> list[Gate]:
    def request(max_new_tokens: int, cfg_weight: float = 0.0) -> Request:
        sampling = replace(tts.sampling, max_new_tokens=max_new_tokens, cfg_weight=cfg_weight)
        [asked] = tts.synthesizer.decode_requests(SynthesisRequest(TEXT, tts.conds, sampling, seed=1))
        return replace(asked, stop_on_eos=False, guard=None)

    def decoded(policy: str) -> Callable[[], object]:
        return lambda: generate(tts.t3, request(NUM_TOKENS), use_cache=policy != "none", cache_policy=policy)

    warm, cold = (Scheduler(Prefiller(tts.t3, KVCacheConfig())) for _ in range(2))

    def first_token(scheduler: Scheduler, is_cold: bool) -> Callable[[], object]:
        def draw() -> int:
            if is_cold:
                scheduler.prefixes.manager.clear()
            [token] = scheduler.stream(request(1, 0.5), policy=KVCacheConfig())
            return token

        return draw

    reference = tts.generate(TEXT, seed=1, watermark=False)[0].numpy()

    def voice(is_cold: bool) -> Callable[[], object]:
        def prepare() -> object:
            if is_cold:
                tts.synthesizer.voices.clear()
            return tts.synthesizer.conditionals(reference)

        return prepare

    return [
        Gate(f"{NUM_TOKENS} tokens: no cache over static", decoded("none"), decoded("static"), 2.0),
        Gate(f"{NUM_TOKENS} tokens: static over compressed", decoded("static"), decoded("compressed"), 0.25),
        Gate(f"{NUM_TOKENS} tokens: no cache over sliding", decoded("none"), decoded("sliding"), 2.0),
        Gate("first token: cold text over known text", first_token(cold, True), first_token(warm, False), 1.3),
        Gate("voice: new recording over known recording", voice(True), voice(False), 5.0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for gate in gates(ChatterboxTTS.from_pretrained("cpu", model="tiny")):
        times = in_turns({"slow": gate.slow, "fast": gate.fast}, arguments.repeats)
        found = ratio(times["slow"], times["fast"])
        rows.append({"gate": gate.name, **found, "least": gate.least, "open": found["ratio"] >= gate.least})
    report("gate", rows, arguments.output)
    closed = [row["gate"] for row in rows if not row["open"]]
    for name in closed:
        print(f"closed: {name}", file=sys.stderr)
    return 1 if closed else 0


if __name__ == "__main__":
    sys.exit(main())
