"""Does anything leak? A thousand generations that differ in all a user can vary, resident memory after each.

``python -m benchmarks.speed.soak -o build/results/soak.json``, or ``--hours 8`` for a night. With the embedded
voice: random texts of 50 to 500 characters, every cache policy there is, exaggerations, the built-in voice and
reference recordings made of the model's own speech, guidance on and off, a prefix cache so small that prefixes leave
both of its tiers all the time; three in ten generations are closed at a random token, as by a client that hangs up.

Bounded, so that it ends within the hour on two cores: `MAX_TOKENS` tokens a generation (`MAX_UNCACHED_TOKENS` with
policy "none", which recomputes everything). Speech is rendered to audio in all of the first `--warmup` generations and
in every tenth after them; the others end with their tokens. The watermark is off: it costs time and keeps nothing.
oneDNN keeps kernels for every shape that it meets, and there is a bounded number of those (docs/architecture.md): all
are met before the first generation. Memory is read after glibc was told to return what it holds of freed blocks
(malloc_trim), so that what is read is in use. The figure that counts: the median of the last ten readings over that of
the last ten of the warm-up.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.lib.harness import environment, save
from chatterbox import ChatterboxTTS
from chatterbox.config import EngineConfig, KVCacheConfig, to_dict
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import POLICIES
from chatterbox.kvcache.prefix.memory_pressure import return_free_memory
from chatterbox.models.linear import shared_rows
from chatterbox.synthesis.request import SynthesisRequest, decode_request, text_tokens_of
from chatterbox.synthesis.synthesizer import render_speech_tokens
from chatterbox.synthesis.token_filter import valid_speech_tokens
from chatterbox.voice.conditionals import Conditionals
from tools.tiny_voice.corpus import sentences

MIB = 2**20
MAX_TOKENS = 200
MAX_UNCACHED_TOKENS = 20
TEXT_LENS = (50, 500)  # characters
CANCELLED, RENDERED = 0.3, 0.1  # shares
PITCHES = (0.85, 1.0, 1.15)  # of the reference recordings
WINDOW = 40  # positions, so small that every cache with a bound reaches it
WRITE_EVERY = 25  # calls
SETTINGS = KVCacheConfig(prefix_mib=16, host_mib=8, host_codec="int8")
ENGINE = EngineConfig(idle_seconds=0)  # rows are given back at once, so that what is read is what stays
HELD = ("rows", "cache_bytes")  # of `Scheduler.stats`
FREE_SECONDS = 10  # within which the rows of a generation must be free


class Soak:
    """One model, its voices, and generations that follow from their number."""

    def __init__(self) -> None:
        self.tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
        self.prefixes = Prefiller(self.tts.t3, SETTINGS)
        self.scheduler = Scheduler(self.prefixes, ENGINE)
        self.corpus = sentences(2000, seed=5)
        self.built_in = self.tts.conds
        self.recordings: list[Tensor] = []  # (samples,) at 24 kHz
        for sentence, pitch in zip(self.corpus, PITCHES, strict=False):
            speech = self.tts.generate(sentence, seed=1, watermark=False)  # (1, samples)
            self.recordings.append(interpolate(speech[None], scale_factor=1 / pitch, mode="linear")[0, 0])
        self.counts: Counter[str] = Counter()
        self._meet_shapes()

    @torch.inference_mode()
    def _meet_shapes(self) -> None:
        """Passes of every number of rows that oneDNN takes, and audio of every padded length, in every voice."""
        tts = self.tts
        for rows in sorted({shared_rows(rows) for rows in range(1, 2 * (TEXT_LENS[1] + MAX_TOKENS))}):
            tts.t3.tfmr(torch.zeros(1, rows, tts.t3.hp.n_channels))
        for recording in (None, *self.recordings):
            voice = self.built_in if recording is None else self._of(recording, 0.5)
            for length in range(5, MAX_TOKENS + 1, 5):
                render_speech_tokens(tts.s3gen, torch.arange(length), voice.gen, seed=0, watermarker=None)

    def generate(self, index: int, *, rendered: bool) -> None:
        """Generation number ``index``; it is ``rendered`` to audio unless it is cancelled."""
        rng, tts = random.Random(index), self.tts
        policy, exaggeration = rng.choice(sorted(POLICIES)), rng.choice((0.25, 0.5, 0.75, 1.0))
        voice = self._voice(rng, exaggeration)
        limit = MAX_UNCACHED_TOKENS if policy == "none" else MAX_TOKENS
        sampling = replace(tts.sampling, cfg_weight=rng.choice((0.0, 0.5)), max_new_tokens=limit)
        text = self._text(rng)
        request = SynthesisRequest(text, voice, sampling, exaggeration=exaggeration, seed=index)
        # The whole text in one utterance, however long.
        decoded = decode_request(tts.t3, voice, request, partial(text_tokens_of, tts.tokenizer, request))
        stop_at = rng.randint(1, limit // 2) if rng.random() < CANCELLED else None
        bound = tts.t3.hp.cond_len + len(decoded.text_tokens) + 2 * WINDOW
        kvcache = KVCacheConfig(
            policy,
            max_cache_size=bound,
            window_size=WINDOW,
            eviction=rng.choice(("silence", "attention")),
            decode_codec=rng.choice(("int8", "int4")),
        )
        source = self.scheduler.stream(decoded, policy=kvcache)
        tokens = list(islice(source, stop_at))
        source.close()
        self._wait_for_rows()
        self.counts.update([policy, "finished" if stop_at is None else "cancelled"])
        self.counts["tokens"] += len(tokens)
        speech_tokens = valid_speech_tokens(torch.tensor(tokens), tts.t3.hp)
        if rendered and stop_at is None and len(speech_tokens):
            render_speech_tokens(tts.s3gen, speech_tokens, voice.gen, seed=index, watermarker=None)
            self.counts["rendered"] += 1

    def _wait_for_rows(self) -> None:
        """Until no row is in use, and none is held in memory. Raises RuntimeError if that takes long."""
        ends = time.monotonic() + FREE_SECONDS
        while any((stats := self.scheduler.call(lambda between: self.scheduler.stats()))[name] for name in HELD):
            if time.monotonic() > ends:
                raise RuntimeError(f"rows are still held {FREE_SECONDS} s after the generation: {stats}")
            time.sleep(0.001)

    def _text(self, rng: random.Random) -> str:
        length, text = rng.randint(*TEXT_LENS), rng.choice(self.corpus)
        while len(text) < length:
            text = f"{text} {rng.choice(self.corpus)}"
        return text[:length]

    def _voice(self, rng: random.Random, exaggeration: float) -> Conditionals:
        place = rng.randrange(len(self.recordings) + 1)
        if place == len(self.recordings):
            return self.built_in.with_exaggeration(exaggeration)
        return self._of(self.recordings[place], exaggeration)

    def _of(self, recording: Tensor, exaggeration: float) -> Conditionals:
        self.tts.prepare_conditionals(recording, exaggeration)
        return self.tts.conds


def calls_until(calls: int, hours: float | None) -> Iterator[int]:
    """0, 1, … up to ``calls``, or for as long as ``hours`` last."""
    ends = None if hours is None else time.monotonic() + 3600 * hours
    for index in count():
        if index >= calls if ends is None else time.monotonic() >= ends:
            return
        yield index


def result_of(soak: Soak, resident: list[float], warmup: int, seconds: float) -> dict:
    before = statistics.median(resident[:warmup][-10:])
    after = statistics.median(resident[-10:])
    stats = soak.prefixes.manager.stats()
    shown = ("hit_rate", "demotions", "promotions", "evictions", "bytes", "host_bytes")
    return {
        "benchmark": "soak",
        "calls": len(resident),
        "warmup_calls": warmup,
        "resident_mib_after_warmup": round(before, 1),
        "resident_mib_at_end": round(after, 1),
        "ratio": round(after / before, 4),
        "seconds": round(seconds),
        "counts": dict(sorted(soak.counts.items())),
        "prefix_cache": {name: round(stats[name], 3) for name in shown},
        "settings": to_dict(SETTINGS),
        "resident_mib": [round(r, 1) for r in resident],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--hours", type=float, help="go on for as long as this, in place of --calls")
    parser.add_argument("--warmup", type=int, default=50)
    arguments = parser.parse_args()
    soak, process, about = Soak(), psutil.Process(), environment()
    resident: list[float] = []
    started = time.monotonic()
    for index in calls_until(arguments.calls, arguments.hours):
        soak.generate(index, rendered=index < arguments.warmup or random.Random(f"render {index}").random() < RENDERED)
        gc.collect()
        return_free_memory()
        resident.append(process.memory_info().rss / MIB)
        soak.prefixes.manager.check_integrity()
        if (index + 1) % WRITE_EVERY == 0:
            write(arguments.output, result_of(soak, resident, arguments.warmup, time.monotonic() - started), about)
    result = result_of(soak, resident, arguments.warmup, time.monotonic() - started)
    write(arguments.output, result, about)
    print(json.dumps({name: value for name, value in result.items() if name != "resident_mib"}))


def write(output: Path, result: dict, about: dict) -> None:
    save({**result, "environment": about}, output)


if __name__ == "__main__":
    main()
