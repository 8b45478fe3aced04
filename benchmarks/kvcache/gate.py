"""Is a cache still worth it? Ratios of times in one run; the exit code is 1 where one is missed.

``python -m benchmarks.kvcache.gate``, or ``make gate``: about a minute on two cores. T3's are of the embedded voice,
what S3Gen remembers and what int8 saves of layers of published width. Each gate compares two ways of doing the same
work, in turn, and asks for a median ratio that every machine of the last year has reached with room to spare: a gate
that closes means that a policy, a memory or a precision has lost its purpose, not that a machine is slow. No absolute
time counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.lib.harness import in_turns, ratio, report
from benchmarks.lib.mel_stream import MelStream
from chatterbox import ChatterboxTTS
from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import generate
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.models.config import EstimatorConfig, FlowConfig, FlowEncoderConfig, S3GenConfig
from chatterbox.models.packed import MATRICES
from chatterbox.models.precision import Packing, pack
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.cfm import Steps
from chatterbox.synthesis.request import SynthesisRequest
from tools.synthetic import fill_module

TEXT = "The old man walked slowly down to the river, and nobody saw him again that day."
NUM_TOKENS = 100
VOICE_LEN, PIECE_LEN = 250, 25  # speech tokens
NUM_MATRICES = 40


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
        Gate("S3Gen, a piece of a stream: nothing remembered over the past", piece("none"), piece("past"), 2.5),
        Gate("matrices of a step: float32 over int8", step("float32"), step("int8"), 1.5),
    ]


@torch.inference_mode()
def piece(memory: str) -> Callable[[], object]:
    """A second of a stream in a voice of ten, by a flow of the published width with few blocks and steps."""
    small = FlowConfig(
        encoder=FlowEncoderConfig(num_layers=1, num_up_layers=1), estimator=EstimatorConfig(num_mid_blocks=1)
    )
    s3gen = S3Gen(config=S3GenConfig(flow=small)).eval().requires_grad_(False)
    fill_module(s3gen, seed=0)
    generator = torch.Generator().manual_seed(0)
    voice = {
        "prompt_token": torch.randint(0, small.vocab_size, (1, VOICE_LEN), generator=generator),
        "prompt_feat": torch.randn(1, 2 * VOICE_LEN, small.num_mels, generator=generator) - 4,
        "embedding": torch.randn(1, small.speaker_embed_size, generator=generator),
    }
    stream = MelStream(s3gen, voice, seed=1, steps=Steps(2), memory=memory)
    speech_tokens = torch.randint(0, small.vocab_size, (PIECE_LEN,), generator=generator)
    for _ in range(3):  # until all of the context is there
        stream.push(speech_tokens)
    return lambda: stream.push(speech_tokens)


@torch.inference_mode()
def step(precision: str) -> Callable[[], object]:
    """A row with guidance through some matrices of the published T3's size."""
    layers = nn.ModuleDict({str(i): nn.Linear(1024, 4096) for i in range(NUM_MATRICES)}).requires_grad_(False)
    if precision in MATRICES:
        pack(layers, Packing(("",), MATRICES[precision]))
    rows = torch.randn(2, 1024)

    @torch.inference_mode()
    def run() -> None:
        for layer in layers.values():
            layer(rows)

    return run


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
