"""The same load on this server and on one that calls `generate` behind a lock (`locked`): audio made a second.

Owns: the load, in the fields of travisvn/chatterbox-tts-api, whole WAVs that nobody hears before their end; which two
take turns; the rows. Does not know: how either server answers.

The embedded voice is none that chatterbox-tts 0.1.7 can load: it knows one size. So there are two tables: with the
embedded voice the lock is around this package's own `generate`; with synthetic weights of the published size, whose
texts are bounded, it is around that of chatterbox-tts 0.1.7. There, as in travisvn's server, each call brings the
voice's recording; this server was sent it once, and has a name for it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.baselines.client import UPSTREAM, own_packages
from benchmarks.baselines.folder import full_size_folder, voices
from benchmarks.lib.harness import ROOT
from benchmarks.lib.heard import RATE, goal, paired
from benchmarks.serve.client import SPEECH, add_voice, ask
from benchmarks.serve.figures import WIDTH, Row
from benchmarks.serve.process import Process, served
from benchmarks.speed.baselines import TEXTS

AIM = 3.0
HEADER_LEN = 44  # bytes of a WAV
SERVER, REALTIME, LOCKED = "this server", "this server, streaming=realtime", "a lock around generate"


async def tiny(folder: Path, url: str, clients: int, requests: int, turns: int) -> list[Row]:
    """The embedded voice. ``url``: of this server."""
    with _locked("tiny", sys.executable, folder) as other:
        asked = {SERVER: (url, "built-in"), f"{LOCKED} of this package": (other.url, "built-in")}
        case = {"table": "load, embedded voice", "weights": "tiny", "clients": clients, "requests_of_each": requests}
        return await _compared(case, asked, {}, clients, requests, turns)


async def published(weights: Path, python: str, clients: int, turns: int, tokens: int) -> list[Row]:
    """Synthetic weights of the published size. ``python``: of chatterbox-tts 0.1.7 (`make peer-env`)."""
    weights = await asyncio.to_thread(full_size_folder, weights)
    recording = voices(weights, 1)[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder, fast_folder = Path(temporary), Path(temporary) / "realtime"
        fast_folder.mkdir()
        with (
            served(folder, "guard=none", model=str(weights)) as server,
            served(fast_folder, "guard=none", "streaming=realtime", model=str(weights)) as fast,
            _locked(str(weights), python, folder, tokens) as other,
        ):
            for one in (server, fast):
                await add_voice(one.url, "known", recording.read_bytes())
            asked = {
                SERVER: (server.url, "known"),
                REALTIME: (fast.url, "known"),
                f"{LOCKED} of {UPSTREAM}": (other.url, str(recording)),
            }
            case = {"table": "load, published size", "weights": "synthetic", "clients": clients, "requests_of_each": 1}
            return await _compared(case, asked, {"max_new_tokens": tokens}, clients, 1, turns)


def _locked(source: str, python: str, folder: Path, tokens: int | None = None) -> Process:
    command = [python, "-m", "benchmarks.serve.locked", source, *([] if tokens is None else [str(tokens)])]
    path = [str(ROOT), *([str(ROOT / "src")] if python == sys.executable else [])]
    return Process(command, folder / "locked.log", own_packages() | {"PYTHONPATH": os.pathsep.join(path)})


async def _compared(
    case: Row, asked: dict[str, tuple[str, str]], more: Row, clients: int, requests: int, turns: int
) -> list[Row]:
    """Rows of all, which take turns A B A B; the first turn does not count. The last is what the others are held to."""
    seen: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(1 + turns):
        for name, (url, voice) in asked.items():
            rate = await audio_rate(url, {"voice": voice, "exaggeration": 0.5, **more}, clients, requests)
            if turn:
                seen[name].append(rate)
    rows, locked = [], list(asked)[-1]
    for name, rates in seen.items():
        row = {**case, "server": name, "audio_per_second": round(statistics.median(rates), 3), "turns": turns}
        if name != locked:
            times = paired(rates, seen[locked])
            row |= {"times_the_lock": times} | goal(times["value"], at_least=AIM)
        rows.append(row)
    return rows


async def audio_rate(url: str, fields: Row, clients: int, requests: int) -> float:
    """Seconds of audio a second of so many clients, each of which asks again when it has its answer."""

    async def client(number: int) -> float:
        texts = (TEXTS[(number + turn * clients) % len(TEXTS)] for turn in range(requests))
        return sum(
            [await _whole(url, {**fields, "input": text, "response_format": "wav", "stream": False}) for text in texts]
        )

    started = time.perf_counter()
    seconds = sum(await asyncio.gather(*(client(number) for number in range(clients))))
    return seconds / (time.perf_counter() - started)


async def _whole(url: str, fields: Row) -> float:
    """Seconds of a whole answer. Raises RuntimeError: there is none."""
    told = await ask(url, "POST", SPEECH, fields)
    if told.status != 200:
        raise RuntimeError(f"a server answered {told.status}: {told.body[:500]!r}")
    return (len(told.body) - HEADER_LEN) / WIDTH / RATE
