"""What forgetting and packing cost in speech: every decode policy at several budgets, on the embedded voice.

``python -m benchmarks.quality.quality --work FOLDER -o quality.json`` needs flite (Debian package), `make quality-env`
and some hours of one core. It goes on where it stopped: FOLDER/VOICE.jsonl has one line for each text and
configuration. ``--voices`` measures some of them, so that two processes can share the work; ``--summarize`` makes JSON
of the lines that are there.

Texts: the 20 longest evaluation sentences as they are, and 20 pairs of the 40 shortest, by turns, so that there is a
pause to forget and every budget bites. Each is spoken in four voices, cloned from flite's recordings that training
never saw.

A budget is the number of speech positions that a row may hold: ``max_cache_size`` is the prefix of the text and the
budget, ``window_size`` half of the budget. The first run of a case, with `static`, is the exact one that the others
are compared with; then all configurations are decoded in turn, `static` among them, from another one on for each
text. Times are of decode steps alone. Nobody may decode more than `LIMIT` times as many tokens as the exact run: who
does has run on.

Where tokens are the exact ones, and so for any that were drawn before in the case, audio and its figures are copied,
not made again. Confidence intervals are over texts, of which the four voices are no independent measurements.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from benchmarks.lib.harness import environment, save
from benchmarks.lib.measures import (
    RATE,
    Utterance,
    cosine,
    f0_rmse,
    leading_agreement,
    log_mel_distance,
    position_agreement,
    warp,
)
from benchmarks.quality.summary import ERRORS, summarize, table
from chatterbox.config import KVCacheConfig
from chatterbox.engine.decode import decoder_on
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.guards import guard_of
from chatterbox.engine.request import Request, allocate_cache, prefix_len, required_capacity
from chatterbox.evaluation.meters import Spoken, scores_of
from chatterbox.kvcache import KVCache
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.synthesis.synthesizer import render_speech_tokens
from chatterbox.synthesis.token_filter import valid_speech_tokens
from chatterbox.tts import ChatterboxTTS
from chatterbox.voice.conditionals import Conditionals
from tools.arguments import whole_number
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.evaluate import REFERENCE_TEXT, named_phones, phones_of, spectral_profile
from tools.tiny_voice.flite import RATE as TEACHER_RATE
from tools.tiny_voice.flite import VOICES
from tools.tiny_voice.teacher import speak as speak_flite

SEED, OTHER_SEED = 1, 2
LIMIT = 1.5
NUM_TEXTS = 40
MIN_TOKENS = 4  # S3Gen's least


@dataclass(frozen=True)
class Configuration:
    """``budget``: speech positions a row may hold, where the policy has a bound."""

    name: str
    settings: KVCacheConfig = field(default_factory=KVCacheConfig)
    budget: int | None = None
    seed: int = SEED

    def fitted(self, num_prefix: int) -> KVCacheConfig:
        """The settings for a text whose prefix has ``num_prefix`` positions."""
        if self.budget is None:
            return self.settings
        return replace(self.settings, max_cache_size=num_prefix + self.budget, window_size=self.budget // 2)


def configurations() -> Iterator[Configuration]:
    yield Configuration("static")
    yield Configuration("static, another seed", seed=OTHER_SEED)
    yield Configuration("dynamic", KVCacheConfig("dynamic"))
    for budget in (16, 32, 48, 64):
        yield Configuration("sliding", KVCacheConfig("sliding"), budget)
    budgets = {"recency": (48,), "silence*2+attention": (48,)}
    for scorer in ("recency", "silence", "attention", "prosody", "silence*2+attention"):
        for budget in budgets.get(scorer, (32, 48, 64)):
            yield Configuration(f"evicting {scorer}", KVCacheConfig("evicting", eviction=scorer), budget)
    for share, some in ((0.125, (16,)), (0.25, (16, 32)), (0.5, (8, 16, 32)), (0.75, (16,))):
        for budget in some:
            yield Configuration(f"headwindow {share:g}", KVCacheConfig("headwindow", full_heads=share), budget)
    for codec, groups in (("int8", (32, 8)), ("int4", (32, 16, 8))):
        for size in groups:
            settings = KVCacheConfig("compressed", decode_codec=codec, group_size=size, residual_size=size)
            yield Configuration(f"compressed {codec}, groups of {size}", settings)


def key(configuration: Configuration) -> str:
    return configuration.name + (f" {configuration.budget}" if configuration.budget else "")


def texts() -> list[str]:
    """`NUM_TEXTS` texts, single sentences and pairs by turns."""
    ascending = sorted([*evaluation_set("known"), *evaluation_set("unseen")], key=len)
    half = NUM_TEXTS // 2
    singles, short = ascending[-half:], ascending[: 2 * half]
    pairs = [f"{one} {other}" for one, other in zip(short[:half], reversed(short[half:]), strict=True)]
    return [text for both in zip(singles, pairs, strict=True) for text in both]


@dataclass(frozen=True)
class Decoded:
    tokens: list[int]
    seconds: float  # of all steps
    cache: KVCache
    nbytes: int  # at its peak
    num_trims: int


@torch.inference_mode()
def decode(tts: ChatterboxTTS, request: Request, settings: KVCacheConfig, capacity: int) -> Decoded:
    cache = allocate_cache(tts.t3, request.num_rows, capacity, settings)
    engine = DecodeEngine(tts.t3, decoder_on(tts.t3, cache))
    engine.join(request)
    tokens, seconds, nbytes, num_trims, num_held = [], 0.0, cache.nbytes, 0, 0
    while engine.num_requests:
        started = time.perf_counter()
        result = engine.step()
        seconds += time.perf_counter() - started
        for error in result.failed.values():
            raise error
        tokens += [token for _, token in result.tokens]
        nbytes, before = max(nbytes, cache.nbytes), num_held
        num_held = len(cache.held(0))
        num_trims += num_held < before and engine.num_requests > 0
    return Decoded(tokens, seconds, cache, nbytes, num_trims)


class Voice:
    """One of flite's, as the embedded voice clones it."""

    def __init__(self, tts: ChatterboxTTS, name: str) -> None:
        recording, _, _ = speak_flite(REFERENCE_TEXT, name)
        tts.prepare_conditionals(librosa.resample(recording, orig_sr=TEACHER_RATE, target_sr=tts.sr))
        self.name, self.conditionals = name, tts.conds
        self.profile = spectral_profile(recording, TEACHER_RATE)
        self.embedding = tts.ve.embeds_from_wavs([recording], TEACHER_RATE)[0]


class Quality:
    """The model, its voices, and the figures of one case: a text in a voice, with every configuration."""

    def __init__(self) -> None:
        self.tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
        self.voices = [Voice(self.tts, name) for name in VOICES]
        self.configurations = list(configurations())

    def case(self, index: int, text: str, voice: Voice) -> list[dict[str, Any]]:
        tts, conditionals = self.tts, voice.conditionals
        spoken = SynthesisRequest(text, conditionals, tts.sampling, seed=SEED)
        [request] = tts.synthesizer.decode_requests(spoken)
        capacity, num_prefix = required_capacity(tts.t3, request), prefix_len(tts.t3, request)
        exact = decode(tts, request, KVCacheConfig(), capacity).tokens
        request = replace(request, max_new_tokens=math.ceil(LIMIT * len(exact)))
        first = index % len(self.configurations)
        wanted = phones_of(speak_flite(text, voice.name)[1])
        rows, known = [], {}
        reference = self._utterance(exact, conditionals)
        for one in [*self.configurations[first:], *self.configurations[:first]]:
            settings = one.fitted(num_prefix)
            drawn = decode(tts, replace(request, seed=one.seed), settings, capacity)
            if one.name == "static" and drawn.tokens != exact:
                raise RuntimeError(f"static drew other tokens the second time for {text!r}")
            fits = allocate_cache(tts.t3, request.num_rows, num_prefix + len(exact), settings)
            rows.append(self._decoded(key(one), drawn, exact) | {"fitted_bytes": fits.nbytes or drawn.nbytes})
        for row in rows:
            tokens = tuple(row["drawn"])
            if tokens not in known:
                heard = self._utterance(row["drawn"], conditionals)
                spoken = Spoken(text, heard.wav, phones=(wanted, named_phones(row["drawn"])))
                known[tokens] = self._heard(heard, reference, spoken, voice)
            row |= {"text": text, "voice": voice.name, "sentences": 1 + index % 2, **known[tokens]}
        return rows

    def _decoded(self, name: str, drawn: Decoded, exact: list[int]) -> dict[str, Any]:
        length, held = drawn.cache.length, len(drawn.cache.held(0))
        return {
            "config": name,
            "drawn": drawn.tokens,
            "num_exact": len(exact),
            "leading": leading_agreement(exact, drawn.tokens),
            "positions": position_agreement(exact, drawn.tokens),
            "ran_on": len(drawn.tokens) >= math.ceil(LIMIT * len(exact)),
            "step_seconds": drawn.seconds,
            "bytes": drawn.nbytes,
            "trims": drawn.num_trims,
            "forgotten": length - held,
        }

    def _utterance(self, tokens: list[int], conditionals: Conditionals) -> Utterance:
        tts, kept = self.tts, torch.tensor(tokens)
        if guard := guard_of("light"):
            kept = guard.trim(kept)
        speech_tokens = valid_speech_tokens(kept, tts.t3.hp)
        if len(speech_tokens) < MIN_TOKENS:
            speech_tokens = torch.full((MIN_TOKENS,), tts.t3.hp.silent_speech_tokens[0])
        wav = render_speech_tokens(tts.s3gen, speech_tokens, conditionals.gen, seed=SEED, watermarker=None)
        return Utterance.of(wav[0].numpy(), tts.sr)

    def _heard(self, utterance: Utterance, exact: Utterance, spoken: Spoken, voice: Voice) -> dict[str, Any]:
        path, profile = warp(utterance, exact), spectral_profile(utterance.wav, RATE)
        distances = {v.name: float(np.linalg.norm(v.profile - profile)) for v in self.voices}
        return {
            "seconds": utterance.seconds,
            "exact_seconds": exact.seconds,
            "errors": {meter: scores[0] for meter, scores in scores_of([spoken], ERRORS).items()},
            "log_mel_db": log_mel_distance(utterance, exact, path),
            "f0_semitones": f0_rmse(utterance, exact, path),
            "speaker_similarity": cosine(self.tts.ve.embeds_from_wavs([utterance.wav], RATE)[0], voice.embedding),
            "profile_distance": distances[voice.name],
            "right_speaker": min(distances, key=distances.__getitem__) == voice.name,
        }


def measure(work: Path, rows: list[dict[str, Any]], num_texts: int, voices: Sequence[str]) -> None:
    """Add the lines of all cases of ``voices`` that ``rows``, those of ``work``, lack; a case is written whole."""
    if not (begun := work / "environment.json").exists():
        begun.write_text(json.dumps(environment()))
    done = {(row["text"], row["voice"]) for row in rows}
    quality = Quality()
    chosen = [voice for voice in quality.voices if voice.name in voices]
    for (index, text), voice in itertools.product(enumerate(texts()[:num_texts]), chosen):
        if (text, voice.name) in done:
            continue
        started = time.monotonic()
        rows = quality.case(index, text, voice)
        with (work / f"{voice.name}.jsonl").open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        print(f"text {index + 1} of {num_texts}, {voice.name}: {time.monotonic() - started:.1f} s", flush=True)


def lines(work: Path) -> list[dict[str, Any]]:
    """Of all cases that were measured. Raises ValueError: a line is none, as where a disk was full."""
    found = []
    for path in sorted(work.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"{path} is broken at line {number}; remove the lines from there on") from None
    return found


def about(work: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the figures were measured on, and where they were begun."""
    measured = list(dict.fromkeys(row["text"] for row in rows))
    return {
        "benchmark": "quality",
        "texts": len(measured),
        "voices": list(dict.fromkeys(row["voice"] for row in rows)),
        "text_characters": [min(map(len, measured)), max(map(len, measured))],
        "exact_tokens": [min(row["num_exact"] for row in rows), max(row["num_exact"] for row in rows)],
        "seed": SEED,
        "other_seed": OTHER_SEED,
        "limit": LIMIT,
        "command": f"make quality ARGS='--texts {len(measured)}'",
        "environment": json.loads((work / "environment.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the lines, outside of the repository")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--texts", type=whole_number(1, NUM_TEXTS), default=NUM_TEXTS, help="fewer, for a quick look")
    parser.add_argument("--voices", nargs="+", choices=VOICES, default=VOICES, help="measure these")
    parser.add_argument("--summarize", action="store_true", help="measure nothing more")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        rows = lines(arguments.work)
    except ValueError as error:
        parser.error(str(error))
    if not arguments.summarize:
        measure(arguments.work, rows, arguments.texts, arguments.voices)
        rows = lines(arguments.work)
    elif not rows:
        parser.error(f"{arguments.work} has no lines; measure some first, without --summarize")
    result = {**about(arguments.work, rows), "rows": summarize(rows)}
    save(result, arguments.output)
    print(table(result["rows"]))


if __name__ == "__main__":
    main()
