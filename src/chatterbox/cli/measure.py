"""What one job of a sweep is measured by.

Owns: turns and their medians, when a clock is read, the peak of memory. Does not know: sweeps, tables, how speech is
made (`speaker`).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox.cli.speaker import Speaker
from chatterbox.config import MeasurementConfig

if TYPE_CHECKING:
    import torch

    from chatterbox.pipeline import SpeechResult

MIB = 2**20

Codes = list[list[int]]  # speech codes by text


@dataclass(frozen=True)
class Measured:
    """A job's figures by name, None where there is none, and what it said."""

    figures: dict[str, float | None]
    codes: Codes


@dataclass
class _Turn:
    """All texts said once. Times in seconds."""

    results: list[SpeechResult] = field(default_factory=list)
    drawn: list[list[float]] = field(default_factory=list)  # by text, when each token was there

    def figures(self) -> dict[str, float]:
        """Of all texts together."""
        num_tokens = sum(map(len, self.drawn))
        steps = sum(len(times) - 1 for times in self.drawn)
        stepping = sum(times[-1] - times[0] for times in self.drawn)
        tokens_time = sum(result.tokens_time for result in self.results)
        audio_time = sum(result.audio_time for result in self.results)
        return {
            "tokens": num_tokens,
            "tokens_per_s": num_tokens / tokens_time,
            "ms_per_token": 1000 * (stepping / steps if steps else tokens_time / num_tokens),
            "rtf": (tokens_time + audio_time) / sum(result.duration for result in self.results),
        }


def measure(speaker: Speaker, config: MeasurementConfig, on_turn: Callable[[int], None]) -> Measured:
    """Say ``config.texts`` so often as it says; medians of the turns that count. ``on_turn`` is told which begins.

    tokens_per_s: with prefill. ms_per_token: of the steps after the first token. first_token_ms: median of all texts
    and turns. rtf: real-time factor. cache_bytes: of the rows' cache when the longest text ends. prefix_bytes,
    prefix_hits: of the beginnings that are shared, warm-up included. peak_mib: of the process, weights included; on
    CUDA of what torch allocated there.
    """
    memory = PeakMemory(speaker.models.device)
    turns, first_ms = [], []
    for number in range(config.warmup + config.repeats):
        on_turn(number)
        turn, starts = _turn(speaker, config.texts)
        if number >= config.warmup:
            turns.append(turn)
            first_ms += [1000 * (times[0] - start) for times, start in zip(turn.drawn, starts, strict=True)]
    peak = memory.mib()
    stats = speaker.prefixes.manager.stats()
    by_turn = [turn.figures() for turn in turns]
    longest = max(zip(turns[-1].drawn, config.texts, strict=True), key=lambda one: len(one[0]))[1]
    figures: dict[str, float | None] = {
        name: statistics.median(figures[name] for figures in by_turn) for name in by_turn[0]
    }
    figures |= {
        "first_token_ms": statistics.median(first_ms),
        "cache_bytes": cache_bytes(speaker, longest),
        "prefix_bytes": stats["bytes"],
        "prefix_hits": stats["hit_rate"],
        "peak_mib": peak,
    }
    return Measured(figures, [result.speech_codes.tolist() for result in turns[-1].results])


def _turn(speaker: Speaker, texts: Sequence[str]) -> tuple[_Turn, list[float]]:
    """A turn, and when each of its texts began."""
    turn, starts = _Turn(), []
    for text in texts:
        times: list[float] = []
        starts.append(time.perf_counter())
        turn.results.append(speaker.speak(text, lambda _, times=times: times.append(time.perf_counter())))
        turn.drawn.append(times)
    return turn, starts


def cache_bytes(speaker: Speaker, text: str) -> int:
    """Bytes of the decode cache when ``text`` has been said; T3 says it once more for that. 0 without a cache."""
    from chatterbox.generation.decode import decode

    config = speaker.config
    _, cache = decode(
        speaker.models.t3, speaker.decode_request(text), use_cache=config.use_cache, cache_policy=config.kvcache
    )
    return 0 if cache is None else cache.nbytes


def agreement(codes: Codes, reference: Codes) -> float:
    """Share of speech codes that are the same at the same place of the same text, of the longer of the two."""
    pairs = list(zip(codes, reference, strict=True))
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
