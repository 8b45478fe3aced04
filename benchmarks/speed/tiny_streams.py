"""The embedded voice, many streams at once, by public calls alone. Sections of `streams.py`.

Owns: texts, which cases take turns, the two packages that are compared. Does not know: how the package serves calls,
and what is heard of them (`heard`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.baselines.client import OURS, Baseline
from benchmarks.lib.harness import ROOT
from benchmarks.lib.heard import Heard, Row, change_of_gaps, figures, goal, paired
from benchmarks.speed.baselines import TEXTS

LONG_TEXT, LATE_TEXT = 8, 3  # sentences of a stream that another joins, and of that one
UNDER_WAY = 7  # chunks that a stream has had when another joins
REAL_TIME_STREAMS = 8


def speaker(source: Path = ROOT / "src") -> Baseline:
    """The package of ``source`` with the embedded voice, in a process of its own; it has spoken."""
    process = Baseline(OURS, sys.executable, "tiny", module="benchmarks.baselines.public", source=source)
    process.ask("calls", texts=TEXTS[:2])
    process.ask("calls", texts=TEXTS[:2], whole=True)
    return process


def texts_of(count: int) -> list[str]:
    return [TEXTS[index % len(TEXTS)] for index in range(count)]


def tiny(streams: Sequence[int], turns: int, num_threads: int, paired_turns: int) -> Iterator[list[Row]]:
    """Rows of all numbers of streams, then those and the rows of threads that call `generate`."""
    with speaker() as process:
        heard: dict[int, list[tuple[list[Heard], float, float]]] = {count: [] for count in streams}
        for _ in range(turns):
            for count in streams:
                answer = process.ask("calls", texts=texts_of(count), concurrently=True)
                calls = calls_of(answer)
                heard[count].append((calls, answer["seconds"], answer["peak_mib"] - answer["before_mib"]))
        rows: list[Row] = [{"table": "tiny", "streams": count, **figures(heard[count])} for count in streams]
        for row in rows:
            if row["streams"] == REAL_TIME_STREAMS:
                row |= goal(row["waited_seconds"], at_most=0.0)
        yield rows
        yield rows + _threads(process, num_threads, paired_turns)


def calls_of(answer: Row) -> list[Heard]:
    """Raises RuntimeError if one of them failed."""
    calls = [Heard.of(call) for call in answer["calls"]]
    if failed := [call.error for call in calls if call.error]:
        raise RuntimeError(f"{len(failed)} of {len(calls)} calls failed: {failed[0]}")
    return calls


def _threads(process: Baseline, count: int, turns: int) -> list[Row]:
    """`generate` in threads at once, one after another, and the same texts in a batch, A B C A B C."""
    texts, rates = texts_of(count), {name: [] for name in ("one after another", "threads at once", "batch")}
    for turn in range(turns + 1):  # the first does not count
        for name, seen in rates.items():
            if name == "batch":
                answer = process.ask("batch", texts=texts)
                audio = Heard.of({"arrived": [], "samples": answer["samples"], "began": 0.0, "error": ""}).audio
            else:
                answer = process.ask("calls", texts=texts, whole=True, concurrently=name == "threads at once")
                audio = sum(call.audio for call in calls_of(answer))
            if turn:
                seen.append(audio / answer["seconds"])
    rows = []
    for name, seen in rates.items():
        row: Row = {"table": "threads of generate", "calls": count, "way": name}
        row |= {"audio_per_second": round(sorted(seen)[len(seen) // 2], 3), "turns": len(seen)}
        if name != "one after another":
            row["times_one_after_another"] = paired(seen, rates["one after another"])
        if name == "threads at once":
            row["times_batch"] = paired(seen, rates["batch"])
            row |= goal(row["times_one_after_another"]["value"], at_least=1.9)
        rows.append(row)
    return rows


def fifth(turns: int, under_way: int = 4) -> Iterator[list[Row]]:
    """A stream joins others: their median gap between chunks while it speaks over that before.

    Of readers that take what is there, where four streams have all of the machine and five share it; and of players.
    """
    texts = [" ".join(texts_of(LONG_TEXT * under_way)[LONG_TEXT * index :][:LONG_TEXT]) for index in range(under_way)]
    late = " ".join(TEXTS[:LATE_TEXT])
    changes: dict[str, list[float]] = {"as soon as it is there": [], "as it is played": []}
    with speaker() as process:
        for _ in range(turns):
            for read, seen in changes.items():
                plays = read == "as it is played"
                asked = {"concurrently": True, "late_after": UNDER_WAY, "plays": plays}
                seen.append(change_of_gaps(calls_of(process.ask("calls", texts=[*texts, late], **asked))))
            yield [_fifth(under_way, read, seen) for read, seen in changes.items()]


def _fifth(under_way: int, read: str, changes: Sequence[float]) -> Row:
    times = paired(changes, [1.0] * len(changes)) if len(changes) > 1 else {"value": round(changes[0], 3)}
    row = {"table": "fifth", "under_way": under_way, "read": read, "times_gap_before": times, "turns": len(changes)}
    return row | goal(times["value"], at_most=1.25)


def one(against: Path, turns: int) -> Iterator[list[Row]]:
    """One call alone, by this package and that of the folder ``against``, in turn: theirs over ours in time."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=against, check=False).stdout.strip()
    figures_of = ("first audio of a stream", "a whole stream", "generate")
    seen: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in figures_of}
    with speaker() as ours, speaker(against.absolute()) as theirs:
        for turn in range(turns):  # each text twice or so: what a package keeps of texts is no part of a ratio
            for side, process in enumerate((ours, theirs)):
                for name, seconds in zip(figures_of, _alone(process, TEXTS[turn % len(TEXTS)]), strict=True):
                    seen[name][side].append(seconds)
    rows = []
    for name, (here, there) in seen.items():
        medians = {"ms": _median_ms(here), "ms_against": _median_ms(there)}
        row = {"table": "one", "call": name, **medians, "times_ours": paired(there, here), "turns": turns}
        rows.append({**row, "against": commit or "unknown"})
    yield rows


def _alone(process: Baseline, text: str) -> tuple[float, float, float]:
    """Seconds until a stream's first audio and its end, and of the same text by `generate`."""
    streamed, whole = process.ask("calls", texts=[text]), process.ask("calls", texts=[text], whole=True)
    return calls_of(streamed)[0].first, streamed["seconds"], whole["seconds"]


def _median_ms(seconds: Sequence[float]) -> float:
    return round(1000 * sorted(seconds)[len(seconds) // 2], 1)
