"""Runs of the command line, as frozen dataclasses.

Owns: what one run of a command may be told. Does not know: Hydra, torch, what a setting does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chatterbox.config import EngineConfig, KVCacheConfig, SamplingConfig, StreamingConfig


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, and where they run."""

    source: str = "tiny"  # "tiny", "chatterbox", "multilingual", "turbo", "nano" or a folder
    device: str = "auto"  # "cpu", "cuda", "cuda:1", "mps"; "auto" is CUDA where there is one
    local_files_only: bool = False  # never reach for the network


@dataclass(frozen=True)
class SayCommandConfig:
    """One run of ``chatterbox say``, beside its text and output file."""

    model: ModelChoice = field(default_factory=ModelChoice)
    kvcache: KVCacheConfig = field(default_factory=KVCacheConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    # Fields that replace the checkpoint's own.
    sampling: dict[str, Any] = field(default_factory=dict, metadata={"of": SamplingConfig})
    language: str | None = None  # of the text, for a multilingual model alone
    voice: str | None = None  # recording, or a name of `chatterbox voices`; None is the checkpoint's built-in voice
    exaggeration: float = 0.5  # emotion; 0.5 is neutral
    seed: int | None = None  # the same seed says it the same way; None is another way each time
    use_cache: bool = True  # False computes the whole sequence anew at every step: slow, for checking
    watermark: bool = True  # inaudible, says that the speech is synthetic
    guard: str = "light"  # against loops and runaways: "light", "alignment" (multilingual models), "none"


@dataclass(frozen=True)
class StreamCommandConfig(SayCommandConfig):
    """One run of ``chatterbox stream``."""

    streaming: StreamingConfig = field(default_factory=StreamingConfig)


@dataclass(frozen=True)
class MeasurementConfig:
    """What a job of ``chatterbox bench`` says, and how often."""

    texts: tuple[str, ...] = (  # what is said, one after the other
        "Every machine in this room can talk.",
        "The little one here speaks without a network.",
    )
    warmup: int = 1  # turns that are not counted
    repeats: int = 3  # turns whose median counts; a turn is all texts once

    def __post_init__(self) -> None:
        for name, low in (("warmup", 0), ("repeats", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of turns from {low}, got {value!r}")
        if not self.texts or not all(isinstance(text, str) for text in self.texts):
            raise ValueError(f"texts must be a list of at least one text, got {list(self.texts)!r}")


@dataclass(frozen=True)
class BenchmarkCommandConfig(StreamCommandConfig):
    """One job of ``chatterbox bench``."""

    benchmark: MeasurementConfig = field(default_factory=MeasurementConfig)
    seed: int | None = 0  # the same for all jobs, so that their tokens can be compared
