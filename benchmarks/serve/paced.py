"""Many readers at the pace of playing, of audio that is already made: how evenly it comes.

Owns: the job whose audio is read, readers with little room of their own, the row. Does not know: HTTP, processes.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.lib.heard import RATE, goal
from benchmarks.serve.client import LONG, ask, asked
from benchmarks.serve.figures import WIDTH, Row, gaps, ms, percentile
from benchmarks.serve.process import Process
from benchmarks.speed.baselines import TEXTS

FRAME = 0.02  # seconds of a player's buffer
FRAME_LEN = int(FRAME * RATE) * WIDTH  # bytes
ROOM = 4096  # bytes that a reader's side takes ahead: what the server has sent is soon waited for
SHORTEST = 1.5  # seconds that a sentence lasts at least
AIM_MS = 60.0
MADE_SECONDS = 600.0


async def paced(server: Process, readers: int, seconds: float) -> list[Row]:
    """``readers`` download one job's PCM at once, a frame each 20 ms, for so long at most."""
    path = await _made(server.url, 2 + int(seconds / SHORTEST))
    before = server.resident_mib
    reading = [
        asyncio.create_task(_read(server.url, path, seconds, index / readers * FRAME)) for index in range(readers)
    ]
    await asyncio.sleep(seconds / 2)
    midst = server.resident_mib
    seen = await asyncio.gather(*reading)
    await ask(server.url, "DELETE", path)
    between = [gap for times in seen for gap in gaps(times)]
    row = {"table": "paced", "readers": readers, "format": "pcm", "frame_ms": ms(FRAME), "room_bytes": ROOM}
    row |= {"seconds": round(min(times[-1] - times[0] for times in seen), 1), "frames": len(between)}
    row |= {f"gap_p{percent}_ms": ms(percentile(between, percent)) for percent in (50, 99)}
    row |= {"gap_worst_ms": ms(max(between)), "mib_more_meanwhile": round(midst - before, 1)}
    return [row | goal(ms(percentile(between, 99)), at_most=AIM_MS)]


async def _made(url: str, sentences: int) -> str:
    """The path of a job of so many sentences that is completed. Raises RuntimeError: it is not."""
    text = " ".join(TEXTS[place % len(TEXTS)] for place in range(sentences))
    job = (await ask(url, "POST", LONG, {"input": text, "response_format": "pcm"})).json
    until = time.monotonic() + MADE_SECONDS
    while (told := (await ask(url, "GET", job["status_url"])).json)["status"] != "completed":
        if told["status"] == "failed" or time.monotonic() > until:
            raise RuntimeError(f"the job is {told['status']}: {told['error']}")
        await asyncio.sleep(0.5)
    return str(job["status_url"])


async def _read(url: str, path: str, seconds: float, delay: float) -> list[float]:
    """When each frame was there; a frame is taken when the one before has been played."""
    await asyncio.sleep(delay)
    times: list[float] = []
    async with asked(url, "GET", f"{path}/download", room=ROOM) as reply:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            missing = FRAME_LEN
            while missing and (data := await reply.read(missing)):
                missing -= len(data)
            if missing:
                break
            times.append(time.perf_counter())
            await asyncio.sleep(max(0.0, started + FRAME * len(times) - time.perf_counter()))
    return times
