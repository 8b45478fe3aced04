"""How soon streamed speech begins, how steadily it goes on, what it holds meanwhile. Sections of `streaming.py`.

Owns: the schedule's settings compared, the simulated player, long texts with caches off and on. Does not know: what is
heard.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil

from benchmarks.lib.harness import ratio
from benchmarks.streaming.texts import Recordings, parts_of, text_of
from chatterbox import ChatterboxTTS
from chatterbox.config import KVCacheConfig, StreamingConfig
from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache.prefix.memory_pressure import return_free_memory
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.synthesis.request import SynthesisRequest, utterance_seed
from chatterbox.voice.cache import VoiceCache

Row = dict[str, Any]
SEED = 2
MIB, KIB = 2**20, 2**10
DEFAULTS = StreamingConfig()
# What differs from the defaults; `voice` is "known", a recording that was used before, or "new".
CASES: tuple[dict[str, Any], ...] = (
    {},
    {"chunk_size": 10},
    {"chunk_size": 50},
    {"first_chunk": 5},
    {"first_chunk": 25},
    {"context_window": 25},
    {"context_window": 100},
    {"decode_ahead": 0},
    {"watermark": False},
    {"voice": "new"},
)
ON, NO_PREFIX, NOTHING = "caches on", "no prefix cache", "nothing kept"
SAMPLE_SECONDS = 0.01


@dataclass
class Heard:
    """Metrics of streams with one setting."""

    streams: list[list[StreamingMetrics]] = field(default_factory=list)

    def row(self) -> Row:
        later = [chunk for stream in self.streams for chunk in stream[1:]]
        gaps, t3 = [1000 * chunk.gap for chunk in later], [1000 * chunk.tokens_time for chunk in later]
        underruns, silence = zip(*map(played, self.streams), strict=True)
        first = [1000 * stream[0].gap for stream in self.streams]
        audio = sum(stream[-1].total_audio_duration for stream in self.streams)
        return {
            "streams": len(self.streams),
            "first_audio_ms": round(statistics.median(first), 1),
            "first_audio_ms_most": round(max(first), 1),
            "gap_ms": round(statistics.median(gaps), 1),
            "gap_p95_ms": round(float(np.percentile(gaps, 95)), 1),
            "t3_gap_ms": round(statistics.median(t3), 2),
            "t3_gap_mean_ms": round(statistics.mean(t3), 1),
            "t3_gap_p95_ms": round(float(np.percentile(t3, 95)), 1),
            "underruns": sum(underruns),
            "silence_ms": round(1000 * sum(silence), 1),
            "rtf": round(sum(stream[-1].total_generation_time for stream in self.streams) / audio, 4),
        }


def played(stream: Sequence[StreamingMetrics]) -> tuple[int, float]:
    """How often, and for how many seconds in all, a player that starts with the first chunk has nothing to play."""
    arrived = heard_until = before = silence = 0.0
    underruns = 0
    for chunk in stream:
        arrived += chunk.gap
        if before and arrived > heard_until:
            underruns += 1
            silence += arrived - heard_until
        heard_until = max(heard_until, arrived) + chunk.total_audio_duration - before
        before = chunk.total_audio_duration
    return underruns, silence


def schedules(tts: ChatterboxTTS, num_texts: int, turns: int) -> list[Row]:
    """All settings in turn, text by text: what slows a turn slows all of it."""
    recordings = Recordings(tts)
    text = parts_of(tts, text_of(tts, 2 * num_texts))
    texts = [" ".join(text[i : i + 2]) for i in range(0, 2 * num_texts, 2)]
    heard = [Heard() for _ in CASES]
    for turn in range(turns + 1):  # the first does not count
        for index, said in enumerate(texts[:1] if turn == 0 else texts):
            for case, result in zip(CASES, heard, strict=True):
                options = {name: value for name, value in case.items() if name != "voice"}
                recording = recordings.new() if case.get("voice") == "new" else recordings.known
                chunks = tts.generate_stream(said, recording, seed=SEED + index, print_metrics=False, **options)
                stream = [metrics for _, metrics in chunks]
                if turn:
                    result.streams.append(stream)
    shown = ("chunk_size", "first_chunk", "context_window", "decode_ahead")
    rows = []
    for case, result in zip(CASES, heard, strict=True):
        settings = {name: case.get(name, getattr(DEFAULTS, name)) for name in shown}
        about = {"watermark": "on" if case.get("watermark", True) else "off", "voice": case.get("voice", "known")}
        rows.append({"table": "schedule", **settings, **about, **result.row()})
    return rows


@dataclass
class Memory:
    """Resident MiB while something runs. at_marks: readings that it took itself."""

    before: float
    most: float
    at_marks: list[float] = field(default_factory=list)

    def mark(self) -> None:
        self.at_marks.append(resident())


def resident() -> float:
    return psutil.Process().memory_info().rss / MIB


@contextmanager
def watched() -> Iterator[Memory]:
    """Read the resident memory all the time."""
    return_free_memory()
    memory, ended = Memory(resident(), resident()), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            memory.most = max(memory.most, resident())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def growth(readings: Sequence[float]) -> float:
    """KiB a reading, by a straight line through the last four fifths."""
    later = readings[len(readings) // 5 :]
    return float(np.polyfit(range(len(later)), later, 1)[0]) * MIB / KIB if len(later) > 1 else 0.0


class LongText:
    """One text in whole utterances, with more or less kept. The speech tokens are the same every time."""

    def __init__(self, num_utterances: int) -> None:
        load = ChatterboxTTS.from_pretrained
        on, off, none = (load("cpu", model="tiny", kvcache=KVCacheConfig(prefix_mib=mib)) for mib in (None, 0, 0))
        none.synthesizer.voices = VoiceCache(budget_bytes=0)  # prepares the voice at every call, as upstream
        self.models = {ON: on, NO_PREFIX: off, NOTHING: none}
        self.recording = Recordings(on).known
        self.text = text_of(on, num_utterances)
        self.parts = parts_of(on, self.text)

    def streamed(self, name: str, memory: Memory, continuity: str = "isolated") -> tuple[float, StreamingMetrics]:
        """The text in one stream: seconds and the last metrics."""
        started, last, metrics = time.perf_counter(), 0, StreamingMetrics()
        tts, options = self.models[name], {"seed": SEED, "print_metrics": False, "continuity": continuity}
        for _, metrics in tts.generate_stream(self.text, self.recording, **options):
            if metrics.utterance != last:
                last = metrics.utterance
                memory.mark()
        return time.perf_counter() - started, metrics

    def called(self, name: str, memory: Memory) -> tuple[float, StreamingMetrics]:
        """A call for each utterance, each naming the recording, as users of the reference package do."""
        started, tts = time.perf_counter(), self.models[name]
        samples = 0
        for index, part in enumerate(self.parts):
            wav = tts.generate(part, audio_prompt_path=self.recording, seed=utterance_seed(SEED, index))
            samples += wav.shape[1]
            memory.mark()
        seconds = time.perf_counter() - started
        return seconds, StreamingMetrics(total_audio_duration=samples / tts.sr)

    def voices_found(self) -> float:
        """Share of utterances, in turn and from nothing, whose voice is there; no speech is needed to know."""
        tts = self.models[ON]
        source, found = Prefiller(tts.t3, KVCacheConfig()), 0
        for part in self.parts:
            [request] = tts.synthesizer.decode_requests(SynthesisRequest(part, tts.conds, tts.sampling))
            with source.acquire(request) as prefix:
                found += prefix.num_cached_tokens > 0
        return found / len(self.parts)


def long_texts(plan: Sequence[tuple[int, int]]) -> list[Row]:
    """``plan``: numbers of utterances, and turns of each. One of a single turn does without one of the ways."""
    rows = []
    for num_utterances, turns in plan:
        text = LongText(num_utterances)
        ways: dict[tuple[str, str], Callable[[str, Memory], tuple[float, StreamingMetrics]]] = {
            ("one stream", ON): text.streamed,
            ("one stream", NO_PREFIX): text.streamed,
            ("one stream, append", ON): partial(text.streamed, continuity="append"),
            ("a call an utterance", ON): text.called,
            ("a call an utterance", NO_PREFIX): text.called,
            ("a call an utterance", NOTHING): text.called,
        }
        if turns == 1:
            del ways["a call an utterance", NO_PREFIX]
        times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        last: dict[tuple[str, str], tuple[StreamingMetrics, Memory]] = {}
        for tts in text.models.values():
            tts.generate("One two three.", audio_prompt_path=text.recording, seed=SEED)
        for _ in range(turns):
            for way, run in ways.items():
                with watched() as memory:
                    seconds, metrics = run(way[1], memory)
                times[way].append(seconds)
                last[way] = metrics, memory
        rows += [_long_row(text, way, times, *last[way]) for way in ways]
    return rows


def _long_row(
    text: LongText,
    way: tuple[str, str],
    times: dict[tuple[str, str], list[float]],
    metrics: StreamingMetrics,
    memory: Memory,
) -> Row:
    own = times[way]
    against = ratio(times[way[0], ON], own)
    return {
        "table": "long texts",
        "utterances": len(text.parts),
        "way": way[0],
        "kept": way[1],
        "turns": len(own),
        "audio_s": round(metrics.total_audio_duration, 1),
        "seconds": round(statistics.median(own), 2),
        "rtf": round(statistics.median(own) / metrics.total_audio_duration, 4),
        "less_time_with_caches": round(1 - against["ratio"], 4),
        "less_time_range": [round(1 - bound, 4) for bound in reversed(against["range"])],
        **(_hits(text, metrics, way[0]) if way[0].startswith("one stream") else {}),
        "transient_mib": round(memory.most - memory.before, 1),
        "growth_kib_per_utterance": round(growth(memory.at_marks), 2),
    }


def _hits(text: LongText, metrics: StreamingMetrics, way: str) -> Row:
    """Of positions before drawn tokens, and of utterances whose voice was there."""
    hits = {"hit_rate": round(metrics.cache_hit_rate, 4)}
    return hits | ({"voices_found": text.voices_found()} if way == "one stream" and metrics.cache_hit_rate else {})
