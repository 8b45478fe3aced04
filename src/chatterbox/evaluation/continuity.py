"""How well audio that was made in chunks holds together: jumps and clicks at the seams against those inside chunks.

Owns: where the measures are taken, and the report. Speech jumps by itself, so no number means anything alone: each is
taken at the seams and, in the same way, at regular places inside the chunks.
Does not know: what made the chunks, nor how a pitch or a click is measured (`prosody`). One voice at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from chatterbox.evaluation.prosody import click_sizes, levels, loud_level, pitch, syllable_nuclei

MIN_RATE = 8_000
F0_LIMITS = (60.0, 500.0)  # Hz
_MARGIN = 0.06  # seconds: no window at a place inside holds a seam
_QUIET_DB, _QUIETEST_DB = -40.0, -70.0  # a pause: so far below the loud parts, or below this in any case
_F0_FRAME, _F0_TRIES = 0.04, (0.0, 0.01, 0.02)  # seconds; how far from a place the frame beside it may be
_RATE_SECONDS, _MIN_RATE_SECONDS, _MIN_NUCLEI = 1.5, 1.0, 3


@dataclass(frozen=True)
class Spread:
    """Of the places where a measure could be taken: how many, the median, the 95th percentile (NaN if none)."""

    count: int
    median: float
    p95: float


@dataclass(frozen=True)
class Measure:
    """One measure at the seams and inside the chunks, and how many seams exceed the 95th percentile inside.

    By chance, one seam in twenty does. ``above`` is None if there are seams and nothing inside to compare them with.
    """

    seams: Spread
    inside: Spread
    above: int | None


@dataclass(frozen=True)
class ContinuityReport:
    """What `verify_prosody_continuity` found; printed, a table.

    ``silent_seams`` lie in pauses: they have no F0 and no energy jump. ``unvoiced_seams`` have no F0 on a side.
    """

    seconds: float
    num_chunks: int
    num_seams: int
    silent_seams: int
    unvoiced_seams: int
    f0: Measure
    energy: Measure
    rate: Measure
    click: Measure

    @property
    def clicks(self) -> int | None:
        """Seams whose click measure is above the 95th percentile inside; None without a place inside to compare."""
        return self.click.above

    def table(self) -> str:
        """A line of counts, a head, a line for each measure."""
        head = ("", "seams", "median", "95%", "inside", "median", "95%", "above")
        rows = [head, *((label, *_cells(getattr(self, name))) for name, label in _LABELS.items())]
        counts = f"{self.num_chunks} chunks, {self.seconds:.1f} s, {self.num_seams} seams"
        lines = [f"{counts}: {self.silent_seams} silent, {self.unvoiced_seams} unvoiced"]
        lines += [f"{row[0]:20}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
        return "\n".join(lines)

    __str__ = table


_LABELS = {"f0": "F0 jump, semitones", "energy": "energy jump, dB", "rate": "rate jump, 1/s", "click": "click"}


def verify_prosody_continuity(
    chunks: Sequence[Tensor | np.ndarray],
    sr: int,
    *,
    max_places: int = 2_000,
    f0_limits: tuple[float, float] = F0_LIMITS,
) -> ContinuityReport:
    """Measure how ``chunks``, played one after the other, jump at their seams and inside.

    The measures, all without a sign; `chatterbox.evaluation.prosody` has the methods and their sources:

    - F0, in semitones, of the nearest voiced 40 ms before and after, at most 20 ms away.
    - Energy, in dB, of the 20 ms before and after. What is below the level of pauses counts as that level.
    - Speaking rate, in syllable nuclei a second, of up to 1.5 s of the same chunk before and after, at least 1 s with 3
      nuclei: one over the median time between nuclei, so that a pause is not slow speech. Chunks below 2 s have none
      inside.
    - Click: the largest linear-prediction residual within 1 ms, over the root mean square of the 20 ms around.

    Args:
        chunks: each (N,) or (1, N), floats; empty ones are left out.
        sr: their rate in Hz, at least 8,000.
        max_places: how many places inside chunks at most, evenly spaced.
        f0_limits: lowest and highest F0 in Hz of the voice.

    Raises:
        ValueError: no samples, a chunk that is not mono floats or is not finite, or a setting out of range.
    """
    _check_settings(sr, max_places, f0_limits)
    parts = [part for index, chunk in enumerate(chunks) if len(part := _samples(chunk, index))]
    if not parts:
        raise ValueError(f"the {len(chunks)} chunks hold no samples; give at least one that does")
    wav = np.concatenate(parts)
    edges = np.cumsum([0, *map(len, parts)])
    seams, inside = edges[1:-1], _places_inside(edges, sr, max_places)
    quiet = max(loud_level(wav, sr) + _QUIET_DB, _QUIETEST_DB)
    nuclei = syllable_nuclei(wav, sr, f0_limits, quiet)
    at_seams, at_places = (_jumps(wav, places, sr, f0_limits, quiet) for places in (seams, inside))
    for found, places in ((at_seams, seams), (at_places, inside)):
        found["rate"] = _rate_jumps(nuclei, places, edges, sr)
    silent = np.isnan(at_seams["energy"])
    return ContinuityReport(
        seconds=len(wav) / sr,
        num_chunks=len(parts),
        num_seams=len(seams),
        silent_seams=int(silent.sum()),
        unvoiced_seams=int((np.isnan(at_seams["f0"]) & ~silent).sum()),
        **{name: _compare(at_seams[name], at_places[name]) for name in _LABELS},
    )


def _check_settings(sr: int, max_places: int, f0_limits: tuple[float, float]) -> None:
    if not sr >= MIN_RATE:
        raise ValueError(f"sr must be at least {MIN_RATE} Hz, got {sr!r}; give the rate of the chunks")
    if max_places < 1:
        raise ValueError(f"max_places must be at least 1, got {max_places!r}")
    low, high = f0_limits
    if not 1.5 / _F0_FRAME < low < high < sr / 4:
        raise ValueError(
            f"f0_limits must rise from above {1.5 / _F0_FRAME:g} to below {sr / 4:g} Hz, got {f0_limits!r}"
        )


def _samples(chunk: Tensor | np.ndarray, index: int) -> np.ndarray:
    """(N,) float32 of (N,) or (1, N)."""
    wav = chunk.detach().cpu() if isinstance(chunk, Tensor) else torch.as_tensor(np.asarray(chunk))
    if not wav.is_floating_point():
        raise ValueError(f"chunk {index} holds {wav.dtype}; give floats on -1..1")
    if wav.ndim not in (1, 2) or (wav.ndim == 2 and wav.shape[0] != 1):
        raise ValueError(f"chunk {index} has the shape {tuple(wav.shape)}; give one channel, (N,) or (1, N)")
    if not bool(wav.isfinite().all()):
        raise ValueError(f"chunk {index} has {int((~wav.isfinite()).sum())} NaN or infinite samples; make it again")
    return wav.reshape(-1).float().numpy()


def _places_inside(edges: np.ndarray, sr: int, max_places: int) -> np.ndarray:
    """Samples (P,) as far apart as the margin is wide, or wider, and no nearer to an edge than it."""
    margin = math.ceil(_MARGIN * sr)
    spans = [np.arange(start + margin, end - margin + 1, margin) for start, end in pairwise(edges)]
    places = np.concatenate(spans)
    return places[np.linspace(0, len(places) - 1, min(max_places, len(places))).round().astype(np.int64)]


def _jumps(
    wav: np.ndarray, places: np.ndarray, sr: int, f0_limits: tuple[float, float], quiet: float
) -> dict[str, np.ndarray]:
    """F0, energy and click measure (P,) at ``places``; NaN where there is none."""
    before, after = (np.maximum(levels(wav, places, sr, side), quiet) for side in (-1, 1))
    heard = (before > quiet) | (after > quiet)
    return {
        "f0": np.where(heard, _f0_jumps(wav, places, sr, f0_limits), np.nan),
        "energy": np.where(heard, np.abs(after - before), np.nan),
        "click": click_sizes(wav, places, sr),
    }


def _f0_jumps(wav: np.ndarray, places: np.ndarray, sr: int, f0_limits: tuple[float, float]) -> np.ndarray:
    """Semitones (P,) between the voiced frames nearest to each place."""
    frame = round(_F0_FRAME * sr)
    sides = []
    for first, way in ((-frame, -1), (0, 1)):
        nearest = np.full(len(places), np.nan)
        for away in _F0_TRIES:
            hertz = pitch(wav, places + first + way * round(away * sr), sr, f0_limits)
            nearest = np.where(np.isnan(nearest), hertz, nearest)
        sides.append(nearest)
    return np.abs(12 * np.log2(sides[1] / sides[0]))


def _rate_jumps(nuclei: np.ndarray, places: np.ndarray, edges: np.ndarray, sr: int) -> np.ndarray:
    """Nuclei a second (P,) by which the rate changes at each place, heard in its own chunk or the two that meet."""
    reach, least = _RATE_SECONDS * sr, _MIN_RATE_SECONDS * sr
    starts = edges[np.searchsorted(edges, places) - 1]  # of the chunk that ends at the place or holds it
    ends = edges[np.minimum(np.searchsorted(edges, places, side="right"), len(edges) - 1)]
    jumps = np.full(len(places), np.nan)
    for index, (start, place, end) in enumerate(zip(starts, places, ends, strict=True)):
        if min(place - start, end - place) >= least:
            sides = (max(start, place - reach), place), (place, min(end, place + reach))
            before, after = (nuclei[(nuclei >= low) & (nuclei < high)] for low, high in sides)
            if min(len(before), len(after)) >= _MIN_NUCLEI:
                jumps[index] = abs(sr / np.median(np.diff(after)) - sr / np.median(np.diff(before)))
    return jumps


def _compare(at_seams: np.ndarray, at_places: np.ndarray) -> Measure:
    """Of what was measured, NaN where it could not be."""
    seams, inside = (values[~np.isnan(values)] for values in (at_seams, at_places))
    within = _spread(inside)
    above = int((seams > within.p95).sum()) if len(inside) or not len(at_seams) else None
    return Measure(_spread(seams), within, above)


def _spread(values: np.ndarray) -> Spread:
    if not len(values):
        return Spread(0, math.nan, math.nan)
    return Spread(len(values), float(np.median(values)), float(np.percentile(values, 95)))


def _cells(measure: Measure) -> list[str]:
    above = "-" if measure.above is None else str(measure.above)
    return [*_shown(measure.seams), *_shown(measure.inside), above]


def _shown(spread: Spread) -> list[str]:
    sizes = (spread.median, spread.p95)
    return [str(spread.count), *("-" if math.isnan(size) else f"{size:.2f}" for size in sizes)]
