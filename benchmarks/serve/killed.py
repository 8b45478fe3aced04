"""A server that is killed in its work, again and again: is what it acknowledged there, and whole, when it is back?

``python -m benchmarks.serve.killed -o build/results/serve_killed.json``, or ``make serve-killed``; ``--turns`` is how
often, 50 by default. Each turn starts ``chatterbox serve`` on the folders of the turn before, looks for all that was
acknowledged and for what is there and should not be, then has clients add and remove voices and jobs, and kills it
(SIGKILL) at a random moment. The embedded voice; a request that had no answer may be done or not, but not by half.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import report, write
from benchmarks.lib.heard import goal
from benchmarks.serve.client import LONG, SPEECH, VOICES, CutError, Told, add_voice, ask, spoken
from benchmarks.serve.process import Process, served

WITHIN = 3.0  # seconds of work before a kill, at most
KEPT = 4  # voices, and jobs, above which clients remove some
FIRST = "The cups are on the table, and the tea is in the kitchen, where it was left a while ago by the old man."
TEXTS = (FIRST, f"{FIRST}\n\nNobody saw him again. He was gone by noon.")
RATE = 48_000  # bytes a second
SAME_LENGTH = 0.2  # of a job's seconds: the seed is the same, the company that it is decoded in is not
GONE = (OSError, CutError, asyncio.IncompleteReadError)


@dataclass
class Ledger:
    """What the server has said that it did, of one kind of thing, by name.

    ``there``: acknowledged, and not removed. ``gone``: its removal was acknowledged. ``open``: in doubt, for a request
    about it had no answer.
    """

    there: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)

    def added(self, name: str) -> None:
        self.open.discard(name)
        self.there.add(name)

    def removed(self, name: str) -> None:
        self.open.discard(name)
        self.gone.add(name)

    def asked(self, name: str) -> None:
        """A request about it is on its way."""
        self.there.discard(name)
        self.open.add(name)

    def check(self, found: set[str]) -> dict[str, set[str]]:
        """What is ``lost`` and what has ``returned`` of what is ``found`` now; what was open is settled by it."""
        wrong = {"lost": self.there - found, "returned": self.gone & found}
        self.there = set(found)
        self.open.clear()
        return wrong


class Turns:
    """One pair of folders through many lives of a server."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder, self._rng = folder, rng
        self.voices, self.jobs = Ledger(), Ledger()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._recording = b""
        self._number = 0
        self._texts: dict[str, str] = {}  # of jobs that are known
        self._seconds: dict[str, float] = {}  # of texts

    async def turn(self) -> None:
        """A life: what the last one left is looked at, then work until the kill."""
        server = await asyncio.to_thread(served, self._folder)
        try:
            await self._look(server)
            work = [asyncio.create_task(self._worked(server.url, one)) for one in (self._a_voice, self._a_job) * 2]
            await asyncio.sleep(self._rng.uniform(0.0, WITHIN))
        finally:
            await asyncio.to_thread(server.kill)
        for fault in await asyncio.gather(*work, return_exceptions=True):
            if fault is not None:
                self.wrong.append(f"a request failed: {fault!r}")
        self.counts["kills"] += 1

    async def last(self) -> None:
        """A life without a kill: what the last one left, and every job to its end."""
        with await asyncio.to_thread(served, self._folder) as server:
            await self._look(server)
            for name in sorted(self.jobs.there):
                await self._spoken_job(server.url, name)

    async def _look(self, server: Process) -> None:
        """Compare what is there with what was acknowledged."""
        if not self._recording:
            self._recording = (await spoken(server.url, {"input": FIRST, "response_format": "wav", "seed": 1})).body
        names = (await ask(server.url, "GET", f"{VOICES}?legacy=true")).json["voices"]
        jobs = {one["job_id"]: one for one in (await ask(server.url, "GET", LONG)).json["jobs"]}
        for kind, ledger, found in (("voice", self.voices, {*names} - {"built-in"}), ("job", self.jobs, {*jobs})):
            self.counts[f"{kind}s_looked_for"] += len(ledger.there)
            self.counts[f"{kind}s_in_doubt"] += len(ledger.open)
            for what, which in ledger.check(found).items():
                self.wrong += [f"{kind} {name} is {what}" for name in sorted(which)]
        for name in sorted(self.voices.there):
            said = await ask(server.url, "POST", SPEECH, {"input": "Hi.", "voice": name, "response_format": "pcm"})
            self._expect(said.status == 200 and len(said.body) > 4800, f"voice {name} does not speak: {said.status}")
        for name, job in sorted(jobs.items()):
            self._expect(job["status"] != "failed", f"job {name} failed: {job['error']}")
            if job["status"] == "completed":
                await self._whole(server.url, name, job)
        left = [path.name for path in self._folder.rglob("*.part")]
        self.counts["files_under_way_left"] = max(self.counts["files_under_way_left"], len(left))
        folders = {path.name for path in (self._folder / "jobs").glob("job_*")}
        self._expect(folders == {*jobs}, f"folders of no job: {sorted(folders ^ {*jobs})}")

    async def _whole(self, url: str, name: str, job: dict[str, Any]) -> None:
        audio = await ask(url, "GET", f"{LONG}/{name}/download")
        seconds = len(audio.body) / RATE
        is_whole = audio.status == 200 and abs(seconds - job["duration_seconds"]) < 0.01 and seconds > 1
        self._expect(is_whole, f"job {name} has {seconds:.2f} s of {job['duration_seconds']} ({audio.status})")
        if (text := self._texts.get(name)) is not None:
            usual = self._seconds.setdefault(text, seconds)
            self._expect(abs(seconds - usual) < SAME_LENGTH * usual, f"job {name} has {seconds:.2f} s, not {usual:.2f}")
        self.counts["whole_jobs_read"] += 1

    async def _spoken_job(self, url: str, name: str) -> None:
        async def state() -> dict[str, Any]:
            return dict((await ask(url, "GET", f"{LONG}/{name}")).json)

        for _ in range(600):
            if (job := await state())["status"] in ("completed", "failed"):
                break
            await asyncio.sleep(0.5)
        self._expect(job["status"] == "completed", f"job {name} is {job['status']} at the end: {job['error']}")
        if job["status"] == "completed":
            await self._whole(url, name, job)

    async def _worked(self, url: str, what: Callable[[str], Awaitable[None]]) -> None:
        with suppress(*GONE):
            while True:
                await what(url)

    async def _a_voice(self, url: str) -> None:
        """Add one, or remove one if there are many."""
        if len(self.voices.there) > KEPT:
            name = self._rng.choice(sorted(self.voices.there))
            self.voices.asked(name)
            self._settle(await ask(url, "DELETE", f"{VOICES}/{name}"), self.voices.removed, name, "voices_removed")
            return
        name = self._name("voice")
        self.voices.asked(name)
        self._settle(await add_voice(url, name, self._recording), self.voices.added, name, "voices_added")

    async def _a_job(self, url: str) -> None:
        """Add one, or remove one if there are many; its name is the server's, so one without an answer is in doubt."""
        if len(self.jobs.there) > KEPT:
            name = self._rng.choice(sorted(self.jobs.there))
            self.jobs.asked(name)
            self._settle(await ask(url, "DELETE", f"{LONG}/{name}"), self.jobs.removed, name, "jobs_removed")
            return
        text = self._rng.choice(TEXTS)
        told = await ask(url, "POST", LONG, {"input": text, "response_format": "pcm", "seed": 1})
        name = told.json.get("job_id", "")
        self._settle(told, self.jobs.added, name, "jobs_added")
        self._texts[name] = text
        await asyncio.sleep(self._rng.uniform(0.0, 0.3))

    def _settle(self, told: Told, done: Callable[[str], None], name: str, what: str) -> None:
        self._expect(told.status < 300, f"{what}: {told.status} {told.body[:200]!r}")
        if told.status < 300:
            done(name)
            self.counts[what] += 1

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"

    def _expect(self, is_so: bool, fault: str) -> None:
        if not is_so:
            self.wrong.append(fault)


def row_of(turns: Turns) -> dict[str, Any]:
    row = {"table": "killed", "model": "tiny", "killed_within_s": WITHIN, **turns.counts, "wrong": len(turns.wrong)}
    return row | goal(len(turns.wrong), at_most=0)


async def measure(number: int, seed: int, output: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(Path(folder), random.Random(seed))
        for _ in range(number):
            await turns.turn()
            write("serve_killed", [row_of(turns)], output, wrong=turns.wrong)
        await turns.last()
        report("serve_killed", [row_of(turns)], output, wrong=turns.wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asyncio.run(measure(asked.turns, asked.seed, asked.output))


if __name__ == "__main__":
    main()
