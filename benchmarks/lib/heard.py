"""What listeners of many streams hear, of the times at which chunks arrive: figures and their spread.

Owns: the simulated player, gaps, rows of figures, ratios of paired turns, which call's audio counts. Does not know:
models, threads, processes.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.lib.measures import Utterance, interval

RATE = 24_000  # Hz
BUFFER = 0.1  # seconds of audio that a player has before it starts
RAMP = 2  # chunks of a stream that are shorter than the others
SAME_SPEECH = 0.5  # of the distance to the nearest other call's audio
SAME_VOICE = 1e-3  # of an embedding's length
Row = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """One call: when each chunk arrived and how long it is, in seconds; error: what the call raised, if it did."""

    arrived: tuple[float, ...]
    lasts: tuple[float, ...]
    began: float = 0.0
    error: str = ""

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> Heard:
        """Of a call as `baselines/calls.py` tells it."""
        lasts = tuple(samples / RATE for samples in call["samples"])
        return cls(tuple(call["arrived"]), lasts, call["began"], call["error"])

    @property
    def audio(self) -> float:
        """Seconds of it."""
        return sum(self.lasts)

    @property
    def first(self) -> float:
        """Seconds until the first chunk: since the first call where one follows another."""
        return self.arrived[0]

    def waited(self, buffer: float = BUFFER) -> float:
        """Seconds that a player stands still after it has started.

        It starts when it has ``buffer`` seconds of audio, or all there is, and plays in real time. When it has played
        all that it has it stands still until the next chunk arrives, and goes on at once.
        """
        received = list(itertools.accumulate(self.lasts))
        start = next((place for place, had in enumerate(received) if had >= buffer), len(received) - 1)
        if start < 0:
            return 0.0
        waited, played_until = 0.0, self.arrived[start] + received[start]
        for arrived, lasts in zip(self.arrived[start + 1 :], self.lasts[start + 1 :], strict=True):
            waited += max(0.0, arrived - played_until)
            played_until = max(arrived, played_until) + lasts
        return waited

    def gaps(self, since: float, until: float) -> list[float]:
        """Seconds between chunks that follow each other, both within the time named."""
        within = [time for time in self.arrived if since <= time <= until]
        return [after - before for before, after in itertools.pairwise(within)]


def figures(turns: Sequence[tuple[Sequence[Heard], float, float]]) -> Row:
    """A row of several turns: the calls that count, the seconds of all, MiB at the peak above those before.

    A turn in which no call counts is silent: 0 seconds of audio a second.
    """
    calls = [call for heard, _, _ in turns for call in heard]
    firsts = [1000 * call.first for call in calls]
    waited = statistics.mean(sum(call.waited() for call in heard) for heard, _, _ in turns)
    return {
        "first_audio_p50_ms": _percentile(firsts, 50),
        "first_audio_p95_ms": _percentile(firsts, 95),
        "waited_seconds": round(waited, 3) if calls else None,
        "audio_per_second": round(
            statistics.median(sum(call.audio for call in heard) / took for heard, took, _ in turns), 3
        ),
        "peak_mib_above_before": round(max(peak for _, _, peak in turns), 1),
        "turns": len(turns),
    }


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if values else None


def paired(a: Sequence[float], b: Sequence[float]) -> Row:
    """How many times ``b`` is ``a``: the median of the turns' ratios, with its 95% interval by bootstrap over turns.

    Raises:
        ValueError: the two were not measured in the same turns, or there are fewer than two.
    """
    if len(a) != len(b):
        raise ValueError(f"a ratio needs both cases in every turn, got {len(a)} and {len(b)} of them")
    ratios = [np.array([one / other]) for one, other in zip(a, b, strict=True)]
    low, high = interval(ratios, lambda drawn: float(np.median(drawn)))
    middle = statistics.median(float(ratio[0]) for ratio in ratios)
    return {"value": round(middle, 3), "interval": [round(low, 3), round(high, 3)]}


def change_of_gaps(heard: Sequence[Heard]) -> float:
    """The last call joins the others: how many times as long the median gap between their chunks is while it speaks.

    Raises:
        ValueError: the others have no two chunks behind their first `RAMP` before it joins, or none while it speaks.
    """
    *others, late = heard
    before = [gap for call in others for gap in call.gaps(call.arrived[RAMP], late.began)]
    after = [gap for call in others for gap in call.gaps(late.began, late.arrived[-1])]
    if not before or not after:
        raise ValueError(
            f"{len(before)} gaps between chunks before the last stream joined and {len(after)} after; say longer texts"
        )
    return statistics.median(after) / statistics.median(before)


def says_the_same(wav: np.ndarray, place: int, alone: Sequence[np.ndarray]) -> bool:
    """Whether the audio (N,) of call number ``place`` is that of the same call ``alone``, with the same seed.

    It must be as long, and its log-mel frames less than `SAME_SPEECH` as far from that one's as the nearest other
    call's are: another voice or other words are about as far as another call.
    """
    own = alone[place]
    if len(wav) != len(own) or not len(own):
        return False
    others = [one for index, one in enumerate(alone) if index != place and len(one)]
    if not others:
        return True
    nearest = min(log_mel_difference(own, other) for other in others)
    return log_mel_difference(own, wav) < SAME_SPEECH * nearest


def is_given_the_same(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> bool:
    """Whether S3Gen got the same tokens in the same voice in two calls, as `baselines/system.py` tells it.

    Voices are embeddings; computed at once with others the last bits may differ.
    """
    if not one["tokens"] or one["tokens"] != other["tokens"] or len(one["voice"]) != len(other["voice"]):
        return False
    voice, difference = np.array(one["voice"]), np.subtract(one["voice"], other["voice"])
    return bool(np.linalg.norm(difference) < SAME_VOICE * np.linalg.norm(voice))


def log_mel_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference in dB of the frames that both have, frame by frame."""
    one_mel, other_mel = (Utterance.of(wav, RATE).log_mel for wav in (one, other))
    both = min(len(one_mel), len(other_mel))
    return float(np.sqrt(np.square(one_mel[:both] - other_mel[:both]).mean()))


def goal(value: float, *, at_least: float | None = None, at_most: float | None = None) -> Row:
    """What was set beside what was measured, of one bound."""
    if at_least is not None:
        return {"goal": f"at least {at_least:g}", "reached": "yes" if value >= at_least else "no"}
    assert at_most is not None
    return {"goal": f"at most {at_most:g}", "reached": "yes" if value <= at_most else "no"}
