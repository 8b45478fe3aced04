"""What one job of a sweep is measured by.

Owns: turns and their medians, when a clock is read, the peak of memory. Does not know: sweeps, tables, how speech is
made (`speaker`).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox.cli.config import MeasurementConfig
from chatterbox.cli.speaker import Speaker

if TYPE_CHECKING:
    import torch

MIB = 2**20

SpeechTokens = list[list[int]]  # by text


@dataclass(frozen=True)
class Measured:
    """A job's figures by name, None where there is none, and its speech tokens."""

    figures: dict[str, float | None]
    speech_tokens: SpeechTokens


@dataclass(frozen=True)
class _Said:
    """One text, once: decoded by T3 alone, then streamed. Times in seconds."""

    speech_tokens: list[int]
    token_times: list[float]  # from the start, when each token was there
    first_audio: float
    waited: float
    duration: float


def measure(speaker: Speaker, config: MeasurementConfig, on_turn: Callable[[int], None]) -> Measured:
    """Say ``config.texts`` so often as it says; medians of the turns that count. ``on_turn`` is told which begins.

    Of T3 alone: tokens_per_s, with prefill; ms_per_token, of the steps after the first; first_token_ms. Of the stream:
    first_audio_ms; rtf, what the listener waits for by what there is to hear. cache_bytes: of the rows' cache when the
    longest utterance ends. prefix_bytes, prefix_hits: of the prefixes that are shared, warm-up included. peak_mib: of
    the process, weights included; on CUDA of what torch allocated there.
    """
    memory = PeakMemory(speaker.models.device)
    turns: list[list[_Said]] = []
    for number in range(config.warmup + config.repeats):
        on_turn(number)
        turn = [_said(speaker, text) for text in config.texts]
        turns += [turn] * (number >= config.warmup)
    peak, stats = memory.mib(), speaker.synthesizer.prefixes.manager.snapshot()
    by_turn = [_figures(turn) for turn in turns]
    figures: dict[str, float | None] = {
        name: statistics.median(figures[name] for figures in by_turn) for name in by_turn[0]
    }
    figures |= {
        "cache_bytes": cache_bytes(speaker, config.texts),
        "prefix_bytes": stats.bytes,
        "prefix_hits": stats.hit_rate,
        "peak_mib": peak,
    }
    return Measured(figures, [run.speech_tokens for run in turns[-1]])


def _said(speaker: Speaker, text: str) -> _Said:
    speech_tokens, times = [], []
    started = time.perf_counter()
    for decoded in speaker.decode(text):
        speech_tokens += decoded.tokens
        if not decoded.ends:
            times.append(time.perf_counter() - started)
    if not times:
        raise RuntimeError(f"nothing was spoken of {text!r}")
    metrics = [chunk.metrics for chunk in speaker.stream(text)]
    if not metrics:
        raise RuntimeError(f"nothing is heard of {text!r}")
    last = metrics[-1]
    return _Said(
        speech_tokens,
        times,
        last.latency_to_first_chunk or 0.0,
        last.total_generation_time or 0.0,
        last.total_audio_duration or 0.0,
    )


def _figures(turn: Sequence[_Said]) -> dict[str, float]:
    """Of all texts of a turn together."""
    num_tokens = sum(len(run.token_times) for run in turn)
    steps = sum(len(run.token_times) - 1 for run in turn)
    stepping = sum(run.token_times[-1] - run.token_times[0] for run in turn)
    decoding = sum(run.token_times[-1] for run in turn)
    return {
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / decoding,
        "ms_per_token": 1000 * (stepping / steps if steps else decoding / num_tokens),
        "first_token_ms": 1000 * statistics.median(run.token_times[0] for run in turn),
        "first_audio_ms": 1000 * statistics.median(run.first_audio for run in turn),
        "rtf": sum(run.waited for run in turn) / sum(run.duration for run in turn),
    }


def cache_bytes(speaker: Speaker, texts: Sequence[str]) -> int:
    """Bytes of the decode cache when the longest utterance ends, which is decoded once more for that; 0 without one."""
    from chatterbox.engine.decode import decode

    config, requests = speaker.config, [request for text in texts for request in speaker.decode_requests(text)]
    longest = max(requests, key=lambda request: request.text_tokens.shape[-1])
    _, cache = decode(speaker.models.t3, longest, use_cache=config.use_cache, cache_policy=config.kvcache)
    return 0 if cache is None else cache.nbytes


def agreement(speech_tokens: SpeechTokens, reference: SpeechTokens) -> float:
    """Share of speech tokens that are the same at the same place of the same text, of the longer of the two."""
    pairs = list(zip(speech_tokens, reference, strict=True))
    same = sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
    return same / max(1, sum(max(len(mine), len(theirs)) for mine, theirs in pairs))


def environment() -> dict[str, str | int]:
    """Hardware and versions that figures belong to."""
    import torch

    import chatterbox

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "chatterbox": chatterbox.__version__,
    }


class PeakMemory:
    """The most memory since it was made, in MiB; None where the system does not tell."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory starts anew
        except OSError:
            self._known = False

    def mib(self) -> float | None:
        import torch

        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / MIB
        if not self._known:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return None if peak is None else int(peak.split()[1]) / 1024
