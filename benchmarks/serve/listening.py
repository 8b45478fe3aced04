"""How soon speech comes over HTTP, and how it comes to many at once; how soon rows are free behind who leaves.

Owns: what is asked and how often, the rows of it. Does not know: HTTP, processes, other tables.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

from benchmarks.baselines.client import Baseline
from benchmarks.lib.heard import BUFFER, Heard, goal
from benchmarks.serve.client import SPEECH, asked, metrics, spoken
from benchmarks.serve.figures import Row, difference_ms, first_audible, heard, ms, percentile, real_time_factor
from benchmarks.speed.baselines import TEXTS
from benchmarks.speed.tiny_streams import calls_of

FORMATS = ("pcm", "wav", "mp3", "opus", "aac", "flac")
AIMS_MS = {"pcm": 15.0, "mp3": 90.0, "opus": 40.0}
SENTENCES = 3  # of a stream of many
REAL_TIME_STREAMS = 8
LONG = " ".join(TEXTS)
FREE_AIM, FREE_SECONDS = 0.2, 30.0
ROWS = "chatterbox_engine_rows"


async def first_audio(url: str, library: Baseline, turns: int) -> list[Row]:
    """Each format's first audio over the library's own: one text, known to both, in turn A B C A B C."""
    text, seen = TEXTS[0], {name: [] for name in ("library", *FORMATS)}
    for turn in range(2 + turns):  # the first two do not count
        for name, series in seen.items():
            if name == "library":
                first = calls_of(await asyncio.to_thread(library.ask, "calls", texts=[text]))[0].first
            else:
                body = await spoken(url, {"input": text, "voice": "built-in", "seed": 0, "response_format": name})
                first = first_audible(body.times, body.pieces, name)
            if turn >= 2:
                series.append(first)
    own = seen.pop("library")
    case = {"table": "first audio", "model": "tiny", "library_ms": ms(statistics.median(own))}
    return [case | _first_audio(name, series, own) for name, series in seen.items()]


def _first_audio(name: str, series: Sequence[float], library: Sequence[float]) -> Row:
    more = difference_ms(series, library)
    row = {"format": name, "http_ms": ms(statistics.median(series)), "ms_more": more, "turns": len(series)}
    return row | (goal(more["value"], at_most=AIMS_MS[name]) if name in AIMS_MS else {})


async def at_once(url: str, streams: Sequence[int], turns: int) -> list[Row]:
    """Streams of PCM that are asked for at the same moment, each read as fast as it comes."""
    seen: dict[int, list[Heard]] = {count: [] for count in streams}
    for turn in range(1 + turns):  # the first does not count
        for count, calls in seen.items():
            own = [spoken(url, {"input": _text(index), "response_format": "pcm"}) for index in range(count)]
            bodies = await asyncio.gather(*own)
            if turn:
                calls += [heard(body.times, body.pieces) for body in bodies]
    return [_at_once(count, calls, turns) for count, calls in seen.items()]


def _text(index: int) -> str:
    start = index * SENTENCES
    return " ".join(TEXTS[place % len(TEXTS)] for place in range(start, start + SENTENCES))


def _at_once(count: int, calls: Sequence[Heard], turns: int) -> Row:
    firsts, factors = [call.first for call in calls], [real_time_factor(call) for call in calls]
    waited = [call.waited() for call in calls]
    row = {"table": "at once", "model": "tiny", "streams": count, "buffer_s": BUFFER}
    row |= {"first_audio_p50_ms": ms(percentile(firsts, 50)), "first_audio_p99_ms": ms(percentile(firsts, 99))}
    row |= {"rtf_p50": round(percentile(factors, 50), 3), "rtf_worst": round(max(factors), 3)}
    row |= {"waited_s_mean": round(statistics.mean(waited), 3), "waited_s_worst": round(max(waited), 3), "turns": turns}
    if count == REAL_TIME_STREAMS:
        is_reached = max(factors) < 1 and max(waited) == 0
        row |= {"goal": "all in real time, 0 s waited", "reached": "yes" if is_reached else "no"}
    return row


async def leaving(url: str, times: int) -> list[Row]:
    """A listener hangs up in the midst of a long text: seconds until the server holds no row for it."""
    seconds = [await _left(url) for _ in range(times)]
    row = {"table": "leaving", "model": "tiny", "times": times, "format": "pcm"}
    row |= {"free_p50_s": round(statistics.median(seconds), 3), "free_worst_s": round(max(seconds), 3)}
    return [row | goal(max(seconds), at_most=FREE_AIM)]


async def _left(url: str) -> float:
    """Raises RuntimeError: nothing was spoken, or rows are not free within `FREE_SECONDS`."""
    async with asked(url, "POST", SPEECH, {"input": LONG, "response_format": "pcm"}) as reply:
        await reply.read()
        if not (await metrics(url))[ROWS]:
            raise RuntimeError("the text was over before its listener left; say a longer one")
    started = time.perf_counter()
    while (await metrics(url))[ROWS]:
        if time.perf_counter() - started > FREE_SECONDS:
            raise RuntimeError(f"rows are still held {FREE_SECONDS:g} s after the listener left")
    return time.perf_counter() - started
