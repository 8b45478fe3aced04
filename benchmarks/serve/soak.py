"""Many clients of one server for a while, of every kind: errors that none had earned, memory, what is held at the end.

``python -m benchmarks.serve.soak -o build/results/serve_soak.json``, or ``make serve-soak``: ten minutes;
``--minutes`` is how long. 32 clients at once ask for speech in all formats, in events, over WebSockets; a third of
those who listen leave half-way, some read at half the pace of playing; others add and remove voices and jobs, or ask
what has to be refused. The embedded voice in a server of its own, with its defaults. Memory is that of the server's
process, read every ten seconds: the median of three readings behind the first minute against that of the last three,
and once more when all are gone. T3's rows are set aside once, and count from when speech of their length first fills
them; they are given back when nobody speaks.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import report
from benchmarks.lib.heard import goal
from benchmarks.serve.actions import CLIENTS, GONE, Action, Client
from benchmarks.serve.client import add_voice, metrics, spoken
from benchmarks.serve.outcomes import WARM, Outcome, counted, grown, held
from benchmarks.serve.process import Process, served
from benchmarks.speed.baselines import TEXTS

READ_EVERY = 10.0  # seconds
HANGS = 300.0  # seconds within which an action must end
SETTLES = 30.0  # seconds within which all must be free
MOST_GROWTH = 2.0  # per cent
SHOWN_FAULTS = 20


class Soak:
    """One server, its clients, and what was seen of both."""

    def __init__(self, server: Process, minutes: float, seed: int) -> None:
        self._server, self._minutes, self._seed = server, minutes, seed
        self.outcomes: list[Outcome] = []
        self.resident: list[tuple[float, float]] = []  # seconds, MiB
        self.held: dict[str, float] = {}
        self.free_mib = 0.0  # resident, once nothing is held
        self._started = 0.0

    async def run(self) -> None:
        recording = (await spoken(self._server.url, {"input": " ".join(TEXTS[:2]), "response_format": "wav"})).body
        await add_voice(self._server.url, "stays", recording)
        self._started = time.monotonic()
        clients = [
            asyncio.create_task(self._client(action, f"client-{number}", recording))
            for number, action in enumerate(_actions())
        ]
        reading = asyncio.create_task(self._read_memory())
        await asyncio.gather(*clients)
        reading.cancel()
        self.held = await self._settled()
        self.free_mib = self._server.resident_mib

    @property
    def _is_over(self) -> bool:
        return time.monotonic() - self._started > 60 * self._minutes

    async def _client(self, action: Action, name: str, recording: bytes) -> None:
        rng = random.Random(f"{self._seed} {name}")
        client = Client(self._server.url, name, rng, recording, ("alloy", "stays"))
        while not self._is_over:
            try:
                await asyncio.wait_for(self._done(action, client), HANGS)
            except asyncio.TimeoutError:
                self.outcomes.append(Outcome(action.__name__, 0, fault=f"no end within {HANGS:g} s"))
            except GONE as error:
                self.outcomes.append(Outcome(action.__name__, 0, fault=repr(error)))
                await asyncio.sleep(1.0)

    async def _done(self, action: Action, client: Client) -> None:
        async for outcome in action(client):
            self.outcomes.append(outcome)

    async def _read_memory(self) -> None:
        while True:
            await asyncio.sleep(READ_EVERY)
            self.resident.append((time.monotonic() - self._started, self._server.resident_mib))

    async def _settled(self) -> dict[str, float]:
        """What is held once all is free, or after `SETTLES` seconds."""
        until = time.monotonic() + SETTLES
        while any((found := held(await metrics(self._server.url))).values()) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        return found


def _actions() -> Iterator[Action]:
    for action, count in CLIENTS:
        yield from [action] * count


def rows_of(soak: Soak, minutes: float) -> list[dict[str, Any]]:
    wrong = [one for one in soak.outcomes if not one.is_earned]
    own = {"model": "tiny", "clients": sum(count for _, count in CLIENTS), "minutes": minutes}
    total = {"table": "soak", **own, "answers": len(soak.outcomes), "not_earned": len(wrong)}
    rows = [total | goal(len(wrong), at_most=0), {"table": "held at the end", **soak.held}]
    rows[1] |= goal(sum(soak.held.values()), at_most=0)
    if any(seconds >= WARM for seconds, _ in soak.resident):
        memory = {**grown(soak.resident), "mib_when_free": round(soak.free_mib, 1)}
        rows.append({"table": "memory", **own, **memory} | goal(memory["growth_percent"], at_most=MOST_GROWTH))
    return rows + counted(soak.outcomes)


async def measure(minutes: float, seed: int, output: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
        soak = Soak(server, minutes, seed)
        await soak.run()
    wrong = [str(one) for one in soak.outcomes if not one.is_earned][:SHOWN_FAULTS]
    readings = [[round(value, 1) for value in reading] for reading in soak.resident]
    report("serve_soak", rows_of(soak, minutes), output, not_earned=wrong, resident=readings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asyncio.run(measure(asked.minutes, asked.seed, asked.output))


if __name__ == "__main__":
    main()
