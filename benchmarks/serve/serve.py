"""What a server costs over the library it serves, and what it stands: times, on a machine where nothing else runs.

``python -m benchmarks.serve.serve -o build/results/serve.json``, or ``make bench-serve``: under half an hour on two
cores, ten minutes without ``published``; ``--quick`` tries it out. The server is ``chatterbox serve`` in a process of
its own, the embedded voice at its defaults; clients are in this process, over loopback, a connection for each request.
Tables can be measured one by one (``--only``) and keep the others' rows; the result is written after each:

- ``first_audio``: of each format over the library's own, in turn.
- ``at_once``: 1 to 8 streams: real-time factors, first audio, how long a player with 100 ms of buffer stands still.
- ``leaving``: seconds from a listener's leaving until no row is held.
- ``paced``: 64 readers of audio that is already made, a frame of 20 ms at a time: the gaps between frames.
- ``load``: audio a second of whole answers, against a server that calls `generate` behind a lock.
- ``published``: the same at the published size, against chatterbox-tts 0.1.7 (``--peer``, of `make peer-env`).

`benchmarks/serve/soak.py` and `killed.py` are about errors and memory, and need no quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import ROOT, environment, report, write
from benchmarks.serve import load
from benchmarks.serve.listening import at_once, first_audio, leaving
from benchmarks.serve.paced import paced
from benchmarks.serve.process import Process, served
from benchmarks.speed.baselines import known_result
from benchmarks.speed.streams import with_rows
from benchmarks.speed.tiny_streams import speaker

Row = dict[str, Any]
NAMES = ("first_audio", "at_once", "leaving", "paced", "load", "published")


@dataclass(frozen=True)
class Size:
    """How much is asked, and how often."""

    turns: int  # of first audio
    streams: tuple[int, ...]  # at once
    stream_turns: int
    leavings: int
    readers: int
    reading: float  # seconds
    clients: int  # of the load
    requests: int  # of each, in a turn
    load_turns: int
    published_clients: int
    published_turns: int
    published_tokens: int  # of a request

    def as_json(self) -> dict[str, object]:
        """As it is read back from a result, so that the two can be compared."""
        return json.loads(json.dumps(asdict(self)))


FULL = Size(20, (1, 2, 4, 8), 12, 20, 64, 30.0, 8, 3, 6, 4, 2, 25)
QUICK = Size(2, (1, 2), 1, 2, 4, 2.0, 2, 1, 2, 2, 2, 10)


class Tables:
    """All of them by name, of one server that is started when it is first asked for."""

    def __init__(self, folder: Path, size: Size, asked: argparse.Namespace) -> None:
        self._folder, self._size, self._asked = folder, size, asked
        self._server: Process | None = None

    @property
    def server(self) -> Process:
        if self._server is None:
            self._server = served(self._folder)
        return self._server

    async def first_audio(self) -> list[Row]:
        with speaker() as library:
            return await first_audio(self.server.url, library, self._size.turns)

    async def at_once(self) -> list[Row]:
        return await at_once(self.server.url, self._size.streams, self._size.stream_turns)

    async def leaving(self) -> list[Row]:
        return await leaving(self.server.url, self._size.leavings)

    async def paced(self) -> list[Row]:
        return await paced(self.server, self._size.readers, self._size.reading)

    async def load(self) -> list[Row]:
        size = self._size
        return await load.tiny(self._folder, self.server.url, size.clients, size.requests, size.load_turns)

    async def published(self) -> list[Row]:
        self.close()  # its memory is needed
        size, asked = self._size, self._asked
        more = size.published_clients, size.published_turns, size.published_tokens
        return await load.published(asked.folder, asked.peer, *more)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()


def measure(asked: argparse.Namespace, chosen: Sequence[str], known: dict[str, Any], size: Size) -> None:
    """Measure tables, and write the result after each."""
    rows, measured = list(known.get("rows", ())), dict(known.get("measured_in", {}))
    failed = dict(known.get("failed", {}))
    with tempfile.TemporaryDirectory() as folder:
        tables = Tables(Path(folder), size, asked)
        try:
            for name in chosen:
                failed.pop(name, None)
                table: Callable[[], Awaitable[list[Row]]] = getattr(tables, name)
                try:
                    rows, measured[name] = with_rows(rows, asyncio.run(_of(table))), environment()
                except (RuntimeError, OSError, ValueError) as error:
                    failed[name] = str(error).strip().splitlines()[-1]
                write("serve", rows, asked.output, size=size.as_json(), measured_in=measured, failed=failed)
                print(f"{name}: {failed.get(name, 'done')}", file=sys.stderr, flush=True)
        finally:
            tables.close()
    report("serve", rows, asked.output, size=size.as_json(), measured_in=measured, failed=failed)


async def _of(table: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    return await table()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--peer", metavar="PYTHON", default=str(ROOT / ".venv-peer/bin/python"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "full-size", help="checkpoint; made if absent")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, whose figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="the other tables' rows stay as they are")
    return parser


def main() -> None:
    parser = arguments()
    asked = parser.parse_args()
    asked.peer = str(Path(asked.peer).absolute())  # not resolved: an environment's interpreter is a link
    size, known = QUICK if asked.quick else FULL, dict[str, Any]()
    chosen = asked.only or [name for name in NAMES if name != "published" or Path(asked.peer).is_file()]
    try:
        if "published" in chosen and not Path(asked.peer).is_file():
            raise ValueError(f"--peer {asked.peer} does not exist; make peer-env installs it")
        if asked.only:
            known = known_result(asked.output, size.as_json())
    except ValueError as error:
        parser.error(str(error))
    measure(asked, chosen, known, size)


if __name__ == "__main__":
    main()
