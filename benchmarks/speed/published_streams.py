"""T3 and S3Gen of the published size, streams at once, beside the packages this one replaces. A part of `streams.py`.

Owns: which systems take turns, what each is asked, which calls count. Does not know: what is heard of them (`heard`).

Tokens are decoded greedily (`TEMPERATURE`), so that a call says the same alone and at once: the peers draw from torch's
global generator, which all threads share. A call counts if it says what it says alone. Of ours, which has its own seed,
the audio is compared; of the others, whose vocoder's noise differs from call to call, what S3Gen is given.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines.client import OURS, UPSTREAM, Baseline
from benchmarks.baselines.folder import full_size_folder, voices
from benchmarks.lib.harness import ROOT
from benchmarks.lib.heard import Heard, Row, figures, is_given_the_same, says_the_same
from benchmarks.speed.baselines import TEXTS

TEMPERATURE = 1e-4
ALONE, AT_ONCE = "one after another", "at once"
Turns = dict[tuple[str, str, int], list[tuple[list[Heard], float, float]]]  # by system, way, streams


class Asked:
    """One system of ``folder``, the questions put to it, and its audio of each call alone."""

    def __init__(
        self, process: Baseline, references: Sequence[Path], tokens: int, chunk_size: int, *, whole: bool = False
    ) -> None:
        """``whole``: by `generate`, as UPSTREAM is asked anyway."""
        self.process, self.references, self.tokens, self.whole = process, references, tokens, whole
        self.name = f"{process.name}, generate" if whole else process.name
        streamed = {} if whole or process.name == UPSTREAM else {"chunk_size": chunk_size}
        unguarded = {"guard": "none"} if process.name == OURS else {}
        self.options = {"temperature": TEMPERATURE, **streamed, **unguarded}
        self.alone: list[np.ndarray] = []
        self.given: list[dict[str, list[float]]] = []  # to S3Gen, of each call alone

    def calls(self, count: int, *, concurrently: bool) -> tuple[list[Row], float, float]:
        """The first so many calls as told; those that say something else than alone have an error. Seconds, MiB."""
        with tempfile.TemporaryDirectory() as folder:
            wavs = Path(folder) / "wavs.pt"
            answer = self.process.ask(
                "calls",
                texts=TEXTS[:count],
                references=[str(path) for path in self.references[:count]],
                tokens=self.tokens,
                options=self.options,
                concurrently=concurrently,
                whole=self.whole,
                wavs=str(wavs),
            )
            audio = [wav.numpy() for wav in torch.load(wavs)]
        if not self.alone:
            self.alone, self.given = audio, [call["given"] for call in answer["calls"]]
        for place, (call, wav) in enumerate(zip(answer["calls"], audio, strict=True)):
            if self.process.name == OURS:
                is_same = says_the_same(wav, place, self.alone)
            else:
                is_same = is_given_the_same(self.given[place], call["given"])
            if not call["error"] and not is_same:
                call["error"] = "it says something else than the same call alone"
        return answer["calls"], answer["seconds"], answer["peak_mib"] - answer["before_mib"]


def published(
    folder: Path, pythons: Mapping[str, str], streams: Sequence[int], turns: int, tokens: int, chunk_size: int
) -> Iterator[list[Row]]:
    """Rows of all systems, ways and numbers of streams, after each question anew. ``pythons``: of UPSTREAM, FORKED."""
    folder, found = full_size_folder(folder), {}
    references = voices(folder, max(streams))
    with ExitStack() as stack:
        ours = Baseline(OURS, sys.executable, folder, module="benchmarks.baselines.public", source=ROOT / "src")
        processes = [ours, *(Baseline(name, python, folder) for name, python in pythons.items())]
        systems = [Asked(stack.enter_context(one), references, tokens, chunk_size) for one in processes]
        systems.insert(1, Asked(ours, references, tokens, chunk_size, whole=True))
        for asked in systems:  # what a process does once is no part of a turn
            asked.process.ask("calls", texts=TEXTS[:1], tokens=tokens, options=asked.options, whole=asked.whole)
        for _ in range(turns):
            for count in sorted(streams, reverse=True):
                for asked in systems:
                    for case in _turn(asked, count, streams):
                        found.setdefault(case[0], []).append(case[1])
                    yield _rows(found)


def _turn(asked: Asked, count: int, streams: Sequence[int]) -> Iterator[tuple[tuple[str, str, int], tuple]]:
    """Calls at once; before the most of them, all alone, the first of which are also fewer alone."""
    name = asked.name
    if count == max(streams):
        told, _, peak = asked.calls(count, concurrently=False)
        for fewer in streams:
            yield (name, ALONE, fewer), (told[:fewer], told[fewer - 1]["ended"], peak)
    if count > 1:
        yield (name, AT_ONCE, count), asked.calls(count, concurrently=True)


def _rows(found: Mapping[tuple[str, str, int], Sequence[tuple[list[Row], float, float]]]) -> list[Row]:
    rows = []
    for (system, way, count), turns in sorted(found.items(), key=lambda item: (item[0][2], item[0][1])):
        errors = [call["error"] for calls, _, _ in turns for call in calls if call["error"]]
        heard = [([Heard.of(call) for call in calls if not call["error"]], *rest) for calls, *rest in turns]
        row: Row = {"table": "published", "streams": count, "way": way, "system": system}
        row |= {"calls": count * len(turns), "calls_that_count": count * len(turns) - len(errors)}
        rows.append(row | figures(heard) | {"failed": errors[0] if errors else ""})
    return rows
