"""Runs of the command line, as frozen dataclasses.

Owns: what one run of a command may be told. Does not know: Hydra, torch, what a setting does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chatterbox.config import (
    EngineConfig,
    KVCacheConfig,
    PrecisionConfig,
    S3GenOptions,
    SamplingConfig,
    SpeechOptions,
    StreamingConfig,
    option,
)
from chatterbox.serve.config import ServerConfig
from chatterbox.values import Fields


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, and where they run."""

    source: str = option("tiny", '"tiny", "chatterbox", "multilingual", "turbo", "nano" or a folder')
    device: str = option("auto", '"cpu", "cuda", "cuda:1", "mps"; "auto" is CUDA where there is one')
    local_files_only: bool = option(False, "never reach for the network")
    t3_model: str | None = option(None, "T3 file of the folder, or v2, v3; null finds it")
    s3gen_model: str | None = option(None, "S3Gen file of the folder, or v1, v3; null finds it")
    tokenizer: str | None = option(None, "tokenizer file of the folder; null finds it")


@dataclass(frozen=True, kw_only=True)
class SayCommandConfig(SpeechOptions):
    """One run of ``chatterbox say``, beside its text and output file."""

    model: ModelChoice = field(default_factory=ModelChoice)
    kvcache: KVCacheConfig = field(default_factory=KVCacheConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    s3gen: S3GenOptions = field(default_factory=S3GenOptions)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    # Fields that replace the checkpoint's own.
    sampling: dict[str, Any] = field(default_factory=dict, metadata={"of": SamplingConfig})
    language: str | None = option(None, "of the text, for a multilingual model alone")
    voice: str | None = option(None, "recording, or a name of `chatterbox voices`; null is the built-in voice")


@dataclass(frozen=True, kw_only=True)
class StreamCommandConfig(SayCommandConfig):
    """One run of ``chatterbox stream``."""

    streaming: StreamingConfig = field(default_factory=StreamingConfig)


TEXTS = ("Every machine in this room can talk.", "The little one here speaks without a network.")


@dataclass(frozen=True)
class MeasurementConfig:
    """What a job of ``chatterbox bench`` says, and how often."""

    texts: tuple[str, ...] = option(TEXTS, "texts, one after the other")
    warmup: int = option(1, "turns that are not counted")
    repeats: int = option(3, "turns whose median counts; a turn is all texts once")

    def __post_init__(self) -> None:
        own = Fields(self)
        for name, low in (("warmup", 0), ("repeats", 1)):
            own.whole(name, low, unit="turns")
        if not self.texts or not all(isinstance(text, str) for text in self.texts):
            raise ValueError(f"texts must be a list of at least one text, got {list(self.texts)!r}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkCommandConfig(StreamCommandConfig):
    """One job of ``chatterbox bench``."""

    benchmark: MeasurementConfig = field(default_factory=MeasurementConfig)
    seed: int | None = option(0, "the same for all jobs, so that their tokens can be compared")


@dataclass(frozen=True, kw_only=True)
class ServeCommandConfig(StreamCommandConfig):
    """``chatterbox serve``: how its models speak where a request says nothing, and the server's own settings."""

    server: ServerConfig = field(default_factory=ServerConfig)
