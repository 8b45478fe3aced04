"""Every size and default of the package, as frozen dataclasses.

Owns: model sizes (defaults = the published checkpoints), sampling and generation defaults, their validation and the
conversion to and from plain dictionaries (``config.json`` of a checkpoint folder).
Does not know: torch, files, Hydra. The YAML under ``configs/`` mirrors these classes and holds no number of its own.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

SPEECH_CODES = 6561  # 3 ** 8 FSQ codes; also the start token's id
SILENT_SPEECH_TOKEN = 4299  # silence in the published codebook
START_SPEECH_TOKEN = 6561
STOP_SPEECH_TOKEN = 6562


@dataclass(frozen=True)
class LlamaConfig:
    """Llama backbone of T3 (English and multilingual)."""

    kind: str = "llama"
    num_layers: int = 30
    hidden_size: int = 1024
    num_heads: int = 16
    head_dim: int = 64
    intermediate_size: int = 4096
    vocab_size: int = 8  # unused at inference, present in the checkpoints
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_len: int = 8192


@dataclass(frozen=True)
class GPT2Config:
    """GPT-2 backbone of T3 (Turbo; Nano is smaller)."""

    kind: str = "gpt2"
    num_layers: int = 24
    hidden_size: int = 1024
    num_heads: int = 16
    head_dim: int = 64
    intermediate_size: int = 4096
    max_positions: int = 8196
    norm_eps: float = 1e-5


# How Turbo and Nano are driven, by field of `T3Config`.
TURBO_DRIVING: dict[str, Any] = {
    "mark_text": False,
    "num_start_tokens": 1,
    "has_guidance": False,
    "speech_head_bias": True,
    "penalty_last": True,
    "start_stays_seen": False,
    "start_discards": False,
    "num_trailing_silence": 3,
    "max_speech_per_text_token": 40,  # whole words, and numbers of three digits, of up to 1.6 s
    "prompt_seconds": 15,
    "min_recording_seconds": 5,  # the voice is its prompt: a shorter one carries too little
    "norm_loudness": True,
}


@dataclass(frozen=True)
class T3Config:
    """Text tokens to speech tokens. Upstream's names where upstream has one.

    The fields from ``mark_text`` on say how the model is driven; their defaults are the Llama models'.
    """

    text_tokens_dict_size: int = 704
    start_text_token: int = 255
    stop_text_token: int = 0
    max_text_tokens: int = 2048
    utterance_text_len: int = 200  # text tokens that one utterance says well; a longer text is split
    speech_tokens_dict_size: int = 8194
    start_speech_token: int = START_SPEECH_TOKEN
    stop_speech_token: int = STOP_SPEECH_TOKEN
    max_speech_tokens: int = 4096
    speech_cond_prompt_len: int = 150
    speaker_embed_size: int = 256
    perceiver_queries: int = 32
    perceiver_heads: int = 4
    use_perceiver_resampler: bool = True  # False: every code of the speech prompt is a position of its own
    emotion_adv: bool = True
    input_pos_emb: str | None = "learned"  # added to text and speech embeddings; None: the backbone's own only
    backbone: LlamaConfig | GPT2Config = field(default_factory=LlamaConfig)
    silent_speech_tokens: tuple[int, ...] = (SILENT_SPEECH_TOKEN,)  # what a cache may forget first
    num_trailing_noise: int = 0  # speech tokens before the stop token that are noise, and not rendered
    alignment_heads: tuple[tuple[int, int], ...] = ()  # (layer, head) of those that follow the text as it is spoken
    mark_text: bool = True  # the text stands between its start and its stop token
    num_start_tokens: int = 2  # so often the start token of speech enters: the published weights are driven this way
    has_guidance: bool = True  # classifier-free, by a row without text; it needs learned positions
    speech_head_bias: bool = False
    penalty_last: bool = False  # the repetition penalty comes after temperature, top-k and top-p, not before
    start_stays_seen: bool = True  # the start token is penalised to the end; False: until a token is drawn
    start_discards: bool = True  # a start token that is drawn discards the speech before it
    num_trailing_silence: int = 0  # silent speech tokens rendered behind an utterance
    # What the light guard allows. The Llama models' text tokens are parts of words of about 5 speech tokens (0.2 s) in
    # slow speech; CosyVoice, of the same speech tokens, bounds them at 20.
    max_speech_per_text_token: int = 20
    prompt_seconds: int = 6  # of a recording, that the speech prompt is made of
    min_recording_seconds: int = 0  # a recording must be longer
    norm_loudness: bool = False  # a recording is brought to -27 LUFS before it is read

    def __post_init__(self) -> None:
        if self.has_guidance and self.input_pos_emb is None:
            raise ValueError("has_guidance must be False where input_pos_emb is None: a row without text is positions")
        if self.num_start_tokens < 1:
            raise ValueError(f"num_start_tokens must be a whole number from 1, got {self.num_start_tokens}")

    @classmethod
    def english_only(cls) -> T3Config:
        return cls()

    @classmethod
    def multilingual(cls) -> T3Config:
        return cls(text_tokens_dict_size=2454, alignment_heads=((12, 15), (13, 11), (9, 2)))

    @classmethod
    def turbo(cls) -> T3Config:
        return cls(
            **TURBO_DRIVING,
            text_tokens_dict_size=50276,
            utterance_text_len=80,  # these are words, and beyond 30 s Turbo falters
            speech_tokens_dict_size=6563,
            speech_cond_prompt_len=375,
            use_perceiver_resampler=False,
            emotion_adv=False,
            input_pos_emb=None,
            backbone=GPT2Config(),
        )

    @classmethod
    def nano(cls) -> T3Config:
        small = GPT2Config(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
        return dataclasses.replace(cls.turbo(), backbone=small)

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` with what a file that has a GPT-2 backbone means by driving fields that it leaves out."""
        backbone = values.get("backbone")
        is_gpt2 = isinstance(backbone, dict) and backbone.get("kind") == GPT2Config.kind
        return {**TURBO_DRIVING, **values} if is_gpt2 else values

    @property
    def n_channels(self) -> int:
        return self.backbone.hidden_size

    @property
    def is_multilingual(self) -> bool:
        return self.text_tokens_dict_size == 2454

    @property
    def cond_len(self) -> int:
        """Positions of the conditioning prefix, speaker, prompt, emotion, where the prompt is as long as it may be."""
        prompt_len = self.perceiver_queries if self.use_perceiver_resampler else self.speech_cond_prompt_len
        return 1 + prompt_len + self.emotion_adv


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """LSTM speaker embedding. Window, hop and mel layout are those of the published model."""

    num_mels: int = 40
    sample_rate: int = 16_000
    hidden_size: int = 256
    num_layers: int = 3
    embed_size: int = 256
    n_fft: int = 400
    hop_len: int = 160
    window_frames: int = 160
    windows_per_second: float = 1.3
    min_coverage: float = 0.8


@dataclass(frozen=True)
class S3TokenizerConfig:
    """S3 speech tokenizer v2, 25 codes a second."""

    num_mels: int = 128
    hidden_size: int = 1280
    num_heads: int = 20
    num_layers: int = 6
    fsmn_kernel: int = 31


@dataclass(frozen=True)
class CAMPPlusConfig:
    """CAM++ speaker embedding (x-vector)."""

    num_mels: int = 80
    head_channels: int = 32
    tdnn_channels: int = 128
    growth_rate: int = 32
    bottleneck_factor: int = 4  # bottleneck channels = factor * growth_rate
    block_layers: tuple[int, ...] = (12, 24, 16)
    block_dilations: tuple[int, ...] = (1, 2, 2)
    embed_size: int = 192
    segment_len: int = 100


@dataclass(frozen=True)
class FlowEncoderConfig:
    """Upsampling conformer encoder with lookahead (tokens at 25 Hz to frames at 50 Hz)."""

    hidden_size: int = 512
    num_heads: int = 8
    feed_forward_size: int = 2048
    num_layers: int = 6
    num_up_layers: int = 4
    lookahead_len: int = 3


@dataclass(frozen=True)
class EstimatorConfig:
    """Velocity network of the conditional flow matching decoder."""

    channels: int = 256
    num_mid_blocks: int = 12
    num_transformers: int = 4  # per block
    num_heads: int = 8
    head_dim: int = 64
    feed_forward_factor: int = 4


@dataclass(frozen=True)
class FlowConfig:
    """Speech tokens to mel spectrogram."""

    vocab_size: int = SPEECH_CODES
    num_mels: int = 80
    speaker_embed_size: int = 192
    num_steps: int = 10
    num_meanflow_steps: int = 2
    guidance_rate: float = 0.7
    noise_temperature: float = 1.0
    encoder: FlowEncoderConfig = field(default_factory=FlowEncoderConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass(frozen=True)
class HiFTConfig:
    """HiFT vocoder: mel spectrogram to 24 kHz waveform."""

    num_mels: int = 80
    sample_rate: int = 24_000
    base_channels: int = 512
    f0_channels: int = 512
    num_harmonics: int = 8  # above the fundamental
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    source_resblock_kernels: tuple[int, ...] = (7, 7, 11)
    istft_n_fft: int = 16
    istft_hop: int = 4
    sine_amplitude: float = 0.1
    noise_std: float = 0.003
    voiced_threshold: float = 10.0  # Hz, strict
    audio_limit: float = 0.99

    @property
    def hop_len(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates) * self.istft_hop


@dataclass(frozen=True)
class S3GenConfig:
    """Speech tokens to waveform, with everything that reads a reference recording."""

    tokenizer: S3TokenizerConfig = field(default_factory=S3TokenizerConfig)
    speaker_encoder: CAMPPlusConfig = field(default_factory=CAMPPlusConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    vocoder: HiFTConfig = field(default_factory=HiFTConfig)


def check_range(name: str, value: float, low: float, high: float, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}; {remedy}")


@dataclass(frozen=True)
class SamplingConfig:
    """How the next speech token is drawn, and how many at most. ``temperature`` 0 is greedy."""

    temperature: float = 0.8  # how much is left to chance; 0 takes the likeliest token
    cfg_weight: float = 0.5  # guidance by the text; 0 turns it off and halves the work
    repetition_penalty: float = 1.2  # divides the logits of tokens that were drawn before; 1 turns it off
    min_p: float = 0.05  # tokens below this share of the likeliest one's probability are out; 0 turns it off
    top_p: float = 1.0  # the likeliest tokens that make up this probability stay; 1 turns it off
    top_k: int = 0  # so many of the likeliest tokens stay; 0 turns it off
    max_new_tokens: int = 1000  # speech tokens at most, 25 a second

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, 10.0, "0 is greedy, 0.8 is usual")
        check_range("cfg_weight", self.cfg_weight, 0.0, 10.0, "0 turns guidance off, 0.5 is usual")
        check_range("repetition_penalty", self.repetition_penalty, 0.1, 10.0, "1 turns it off, 1.2 is usual")
        check_range("min_p", self.min_p, 0.0, 1.0, "0 turns it off, 0.05 is usual")
        check_range("top_p", self.top_p, 0.0, 1.0, "1 turns it off")
        if self.top_p == 0.0:
            raise ValueError("top_p must be above 0, got 0.0; 1 turns it off")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be a whole number from 0 to 2**31 - 1, got {self.top_k!r}; 0 turns it off")
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a whole number from 1, got {self.max_new_tokens!r}; 1000 is 40 s")


@dataclass(frozen=True)
class ModelConfig:
    """Everything ``config.json`` of a checkpoint folder may say. Defaults: the published English model."""

    t3: T3Config = field(default_factory=T3Config)
    s3gen: S3GenConfig = field(default_factory=S3GenConfig)
    voice_encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def check_window(name: str, window: int | None, max_cache_size: int) -> None:
    """Raise ValueError if a row of ``max_cache_size`` cannot keep ``window`` positions (None: any) and take a step."""
    for value in (max_cache_size, 1 if window is None else window):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"max_cache_size and {name} must be whole numbers, got {max_cache_size!r} and {window!r}")
    if window is not None and not 1 <= window < max_cache_size:
        raise ValueError(
            f"{name} must be from 1 to {max_cache_size - 1}, one step less than max_cache_size {max_cache_size}, "
            f"got {window}; raise max_cache_size or lower {name}"
        )


@dataclass(frozen=True)
class PressureConfig:
    """Free memory, in MiB, below which the prefix cache gives way. docs/kvcache.md, Pressure, has the order."""

    soft_mib: int = 512  # beginnings leave, until so much is free again; 0 never looks
    hard_mib: int = 256  # nothing new is kept, and requests wait for others to end
    process_mib: int | None = None  # what this process may take; None is what the machine or its container has
    interval_ms: int = 100  # between two looks at least

    def __post_init__(self) -> None:
        for name in ("soft_mib", "hard_mib", "interval_ms"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0, got {value!r}; soft_mib 0 never looks")
        if self.hard_mib > self.soft_mib > 0:
            raise ValueError(f"hard_mib must be at most soft_mib, {self.soft_mib}, got {self.hard_mib}")
        limit = self.process_mib
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"process_mib must be a whole number from 1, got {limit!r}; null sets no limit")


@dataclass(frozen=True)
class KVCacheConfig:
    """What T3 keeps of what it has computed; sizes in MiB (2**20 bytes). docs/kvcache.md explains each."""

    policy: str = "static"  # of the rows being decoded; "none" recomputes everything at every step
    max_cache_size: int = 1024  # positions a row holds at most, where the policy has a ceiling
    window_size: int = 512  # positions beside prefix that a row keeps when it is trimmed
    uncond_window: int | None = None  # the same for the row that guidance adds; None is window_size
    eviction: str = "silence"  # who leaves first: "attention", "prosody", "recency", "silence"; "+" adds, "*2" weighs
    silent_tokens: tuple[int, ...] | None = None  # speech tokens that are silence; None is as the checkpoint says
    decode_codec: str = "int8"  # of the rows being decoded, where the policy packs them
    group_size: int = 32  # positions whose keys share a scale, packed at once
    residual_size: int = 32  # newest positions that stay in full precision
    full_heads: float = 0.5  # share of all layers' heads that keep every position, where the policy tells them apart
    prefix_mib: int | None = None  # beginnings that requests share, on the device; None is an eighth of T3's own size
    host_mib: int = 0  # beginnings that left the device, in host memory
    host_codec: str = "none"  # how they are packed there: "none", "int8", "int4"
    disk_folder: str | None = None  # beginnings that outlive the process; None is nowhere
    disk_mib: int = 1024  # beginnings on disk
    total_mib: int | None = None  # beginnings on the device and in host memory together; None is the sum of the two
    replacement: str = "cost"  # which beginning leaves first: "cost", "lfu", "lru"
    pressure: PressureConfig = field(default_factory=PressureConfig)

    def __post_init__(self) -> None:
        for name in ("window_size", "uncond_window"):
            check_window(name, getattr(self, name), self.max_cache_size)
        for name in ("group_size", "residual_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}; 32 is usual")
        check_range("full_heads", self.full_heads, 0.0, 1.0, "1 keeps every position of every head")
        for name in ("prefix_mib", "host_mib", "total_mib", "disk_mib"):
            value = getattr(self, name)
            if value is None and name in ("prefix_mib", "total_mib"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0, got {value!r}; 0 keeps nothing there")


@dataclass(frozen=True)
class EngineConfig:
    """How requests share a model's decode steps, and what rows may take. docs/architecture.md, The engine."""

    max_rows: int = 32  # rows that decode at once at most; guidance takes two a request
    cache_mib: int | None = None  # of all rows, MiB; None is half of what is free when the first request comes
    idle_seconds: float = 60.0  # until rows that nobody uses are given back
    park_seconds: float = 10.0  # until a stream that nobody reads, or whose text is late, gives its rows back
    max_waiting: int = 256  # requests that wait for rows at most; one more is refused
    prefill_len: int = 256  # positions of a prefix that are run between two steps
    stop_stride: int | None = None  # steps between two looks at the tokens; None is 1 on CPUs, 4 elsewhere
    batch_invariant: bool = False  # bits do not depend on other requests; T3 takes 1.1 to 2.6 times as long

    def __post_init__(self) -> None:
        for name, low in (("max_rows", 2), ("max_waiting", 1), ("prefill_len", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number from {low}, got {value!r}")
        for name in ("cache_mib", "stop_stride"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1, or null, got {value!r}")
        for name in ("idle_seconds", "park_seconds"):
            check_range(name, getattr(self, name), 0.0, 1e9, "in seconds")
        if not isinstance(self.batch_invariant, bool):
            raise ValueError(f"batch_invariant must be true or false, got {self.batch_invariant!r}")


CONTINUITIES = ("isolated", "history", "append")


@dataclass(frozen=True)
class StreamingConfig:
    """How speech is handed out while it is made. Speech tokens are 25 a second. docs/streaming.md explains each."""

    chunk_size: int = 25  # speech tokens of a chunk of audio
    first_chunk: int = 10  # of the first one; those between double until they reach chunk_size
    context_window: int = 50  # speech tokens before a chunk that the flow sees again
    fade_duration: float = 0.02  # seconds over which a chunk takes over from the one before
    continuity: str = "isolated"  # what a sentence knows of those before: "isolated", "history", "append"
    history_len: int = 250  # speech tokens of the sentence before, at most, that "history" gives to the next
    decode_ahead: int = 250  # speech tokens that may wait for S3Gen; 0 draws and renders in turn

    def __post_init__(self) -> None:
        for name, low in (
            ("chunk_size", 1),
            ("first_chunk", 1),
            ("context_window", 0),
            ("history_len", 0),
            ("decode_ahead", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of speech tokens from {low}, got {value!r}")
        check_range("fade_duration", self.fade_duration, 0.0, 0.1, "in seconds; 0.02 is usual, 0 turns it off")
        if self.continuity not in CONTINUITIES:
            raise ValueError(f"continuity must be one of {', '.join(CONTINUITIES)}, got {self.continuity!r}")


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, and where they run."""

    source: str = "tiny"  # "tiny", "chatterbox", "multilingual", "turbo", "nano" or a folder
    device: str = "auto"  # "cpu", "cuda", "cuda:1", "mps"; "auto" is CUDA where there is one
    local_files_only: bool = False  # never reach for the network


@dataclass(frozen=True)
class SayConfig:
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
class StreamConfig(SayConfig):
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
class BenchmarkConfig(StreamConfig):
    """One job of ``chatterbox bench``."""

    benchmark: MeasurementConfig = field(default_factory=MeasurementConfig)
    seed: int | None = 0  # the same for all jobs, so that their tokens can be compared


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionary of a configuration (tuples become lists), ready for JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """Build ``cls`` from a plain dictionary; missing keys keep their defaults, or become what ``cls.completed`` says.

    Raises:
        ValueError: an unknown key, or a value of the wrong kind; the message names key, value and choices.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table of settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    arguments = {}
    complete = getattr(cls, "completed", dict)
    for key, value in complete(values).items():
        if key not in known:
            raise ValueError(f"{where} has no setting {key!r}; it has {', '.join(sorted(known))}")
        arguments[key] = _convert(known[key], value, f"{where}.{key}")
    return cls(**arguments)


def _kind_of(value: Any, kinds: list[Any], where: str) -> Any:
    """Which of several dataclasses a table is of: its ``kind`` says so, the first where it says nothing."""
    by_name = {k.kind: k for k in kinds}
    name = value.get("kind", kinds[0].kind) if isinstance(value, dict) else kinds[0].kind
    if name not in by_name:
        raise ValueError(f"{where}.kind must be one of {', '.join(by_name)}, got {name!r}")
    return by_name[name]


def _convert(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        if value is None and len(kinds) < len(typing.get_args(kind)):
            return None
        kind = kinds[0] if len(kinds) == 1 else _kind_of(value, kinds, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        num = "" if items[-1] is Ellipsis else f" of {len(items)}"
        if not isinstance(value, (list, tuple)) or (num and len(value) != len(items)):
            raise ValueError(f"{where} must be a list{num}, got {value!r}")
        return tuple(_convert(items[0], v, where) for v in value)
    kind = typing.get_origin(kind) or kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {kind.__name__}, got {value!r}")
    return value
