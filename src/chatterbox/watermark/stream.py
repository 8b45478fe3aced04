"""The watermark on audio that is heard while it is made.

Owns: which samples each call of a watermarker sees, which are ready, and the cross-fade between two calls.
Does not know: the mark itself (`chatterbox.watermark.perth`), nor who asks for audio.

Perth's encoder reads 15 frames of 10 ms and half a window of 64 ms on both sides of a frame. Each call therefore gets
that much of the past again, and what it marks anew begins as whole marking has it; the future it does without.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

_HOP_SECONDS = 0.01  # a watermarker may cut what it returns to a multiple of this
_LEAST_SECONDS = 0.04  # of new samples for a call before the end; Perth's window needs 32 ms


class Watermarker(Protocol):
    """`chatterbox.watermark.perth.PerthWatermarker`, or what a program puts in its place."""

    def apply_watermark(self, signal: np.ndarray, sample_rate: int) -> np.ndarray:
        """``signal``, float32 (N,), marked; maybe cut to a multiple of 10 ms."""


class WatermarkStream:
    """One stream of samples, marked piece by piece: as many come out as went in, in order, in float32.

    Each call of the watermarker sees ``context`` seconds that were handed out before, and what is new. The last
    ``fade`` seconds are kept back and cross-faded with what the next call makes of the same samples: the mark leaves
    phases alone, so that nothing cancels. Pieces may have any size; small ones wait until the fade and 60 ms are there.
    The last samples, however few, are marked with their context and zeros after them: none is handed out unmarked.
    """

    def __init__(
        self, watermarker: Watermarker, sample_rate: int, *, context: float = 0.25, fade: float = 0.02
    ) -> None:
        """``context`` and ``fade`` are in seconds.

        Raises:
            ValueError: a rate, context or fade out of range.
        """
        if not sample_rate >= 1000:
            raise ValueError(f"sample_rate must be at least 1000 Hz, got {sample_rate!r}; give the rate of the samples")
        if not 0 < fade <= 1:
            raise ValueError(f"fade must be above 0 and at most 1 second, got {fade!r}; 0.02 is usual")
        if not fade <= context <= 10:
            raise ValueError(f"context must be from the fade ({fade:g}) to 10 seconds, got {context!r}; 0.25 is usual")
        self._watermarker, self._rate = watermarker, sample_rate
        self._hop, self._fade = round(_HOP_SECONDS * sample_rate), max(1, round(fade * sample_rate))
        self._context = round(context * sample_rate)
        self._least = self._fade + max(self._fade, round(_LEAST_SECONDS * sample_rate)) + 2 * self._hop
        self._rising = (0.5 - 0.5 * np.cos(np.pi * (np.arange(self._fade) + 0.5) / self._fade)).astype(np.float32)
        self._begin()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take (N,) more samples and return those (M,) that are ready, maybe none.

        Raises:
            ValueError: ``samples`` are not one channel of floats.
        """
        self._raw.append(_one_channel(samples))
        self._pending += len(samples)
        if self._pending < self._least:
            return np.zeros(0, np.float32)
        return self._mark(self._fade)

    def finish(self) -> np.ndarray:
        """The rest of the stream, (M,) samples. The next `push` begins another stream."""
        rest = self._mark(0) if self._pending else np.zeros(0, np.float32)
        self._begin()
        return rest

    def _begin(self) -> None:
        self._raw: list[np.ndarray] = []  # from the context's first sample on
        self._past = 0  # how many of those were handed out
        self._pending = 0  # how many were not
        self._held: np.ndarray | None = None  # first of the pending ones as the last call marked them

    def _mark(self, keep_len: int) -> np.ndarray:
        """Mark all there is; hand out what is not handed out, but for the last ``keep_len`` samples of what came back.

        With ``keep_len`` 0 everything comes back: zeros make up for what the watermarker cuts.
        """
        raw = np.concatenate(self._raw)
        padding = 0 if keep_len else max(2 * self._hop, round(_LEAST_SECONDS * self._rate) - len(raw))
        signal = np.pad(raw, (0, padding))
        marked = np.asarray(self._watermarker.apply_watermark(signal, sample_rate=self._rate), np.float32)
        if marked.ndim != 1 or len(marked) <= len(signal) - 2 * self._hop:
            raise RuntimeError(
                f"the watermarker made {marked.shape} of {signal.shape} samples; it may cut less than 20 ms off the end"
            )
        marked = marked[: len(raw)]
        ready = marked[self._past : len(marked) - keep_len].copy()
        if self._held is not None:
            head = ready[: self._fade]
            head[:] = self._held + self._rising * (head - self._held)
        self._held = marked[len(marked) - keep_len :]
        self._move(raw, len(ready))
        return ready

    def _move(self, raw: np.ndarray, num_ready: int) -> None:
        """Forget the samples before the next call's context, which begins on the same grid of 10 ms as the stream."""
        done = self._past + num_ready
        dropped = max(0, done - self._context) // self._hop * self._hop
        self._raw, self._past, self._pending = [raw[dropped:]], done - dropped, len(raw) - done


def _one_channel(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"samples have the shape {samples.shape}; give one channel, (N,)")
    if samples.dtype.kind != "f":
        raise ValueError(f"samples are {samples.dtype}; give floats on -1..1")
    return samples.astype(np.float32, copy=True)
