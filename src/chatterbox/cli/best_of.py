"""One text spoken with several seeds, of which the best is kept: ``chatterbox say --best-of N``.

Owns: the check, which is what was warned of while it was spoken (cut off, ended by a guard, silent) and how far its
length is from the others' median; what is said about it. Does not know: how speech is made (`speaker`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatterbox.cli.output import printable, tell
from chatterbox.cli.speaker import Speaker
from chatterbox.values import NUM_SEEDS

if TYPE_CHECKING:
    from chatterbox.synthesis.synthesizer import SpeechResult

MOST = 100
WARN_OF_SPEECH = ("chatterbox.engine.engine", "chatterbox.synthesis.utterances")  # loggers, of what came out wrong
CHECK = "fewest warnings (cut off, ended by a guard, silent), then the length nearest to the N's median"


@dataclass(frozen=True)
class Take:
    """A text spoken with a seed, and what was warned of meanwhile."""

    seed: int
    result: SpeechResult
    faults: tuple[str, ...]


def speak(
    speaker: Speaker, text: str, num_takes: int, seed: int | None, on_token: Callable[[int], None] | None = None
) -> SpeechResult:
    """The best of ``num_takes``, with ``seed`` and those that follow it; None draws the first. One is not checked.

    Raises:
        RuntimeError: all failed; it is the last one's.
    """
    if num_takes == 1:
        return speaker.speak(text, on_token)
    first = random.randrange(2**31) if seed is None else seed
    takes, error = [], None
    for one in ((first + index) % NUM_SEEDS for index in range(num_takes)):
        try:
            with _faults() as faults:
                result = speaker.speak(text, on_token, seed=one)
        except RuntimeError as failed:  # NaN, or nothing was said
            error = failed
            tell(f"seed {one}: {printable(str(failed))}")
            continue
        takes.append(Take(one, result, tuple(faults)))
        tell("; ".join([f"seed {one}: {result.duration:.2f} s", *map(printable, faults)]))
    if error is not None and not takes:
        raise error
    kept, median = best(takes)
    tell(f"kept seed {kept.seed}: {len(kept.faults)} warnings, {kept.result.duration:.2f} s, median {median:.2f} s")
    return kept.result


def best(takes: list[Take]) -> tuple[Take, float]:
    """The one of `CHECK`, the first of equals, and the median length in seconds of those with the fewest warnings."""
    fewest = min(len(take.faults) for take in takes)
    sound = [take for take in takes if len(take.faults) == fewest]
    median = statistics.median(take.result.duration for take in sound)
    return min(sound, key=lambda take: abs(math.log(take.result.duration / median))), median


@contextlib.contextmanager
def _faults() -> Iterator[list[str]]:
    """What the library warns of in speech meanwhile."""
    faults: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: faults.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in WARN_OF_SPEECH]
    for one in loggers:
        one.addHandler(handler)
    try:
        yield faults
    finally:
        for one in loggers:
            one.removeHandler(handler)
