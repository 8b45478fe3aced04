"""Sizes of the networks, as frozen dataclasses; the defaults are those of the published checkpoints.

Owns: what ``config.json`` of a checkpoint folder may say. Does not know: torch, files.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from chatterbox.config import SamplingConfig, to_dict

NUM_SPEECH_TOKENS = 6561  # 3 ** 8 FSQ codes; also the start token's id
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

    # As transformers names them.
    to_dict = to_dict
    num_hidden_layers = property(lambda self: self.num_layers)
    num_attention_heads = num_key_value_heads = property(lambda self: self.num_heads)
    rms_norm_eps = property(lambda self: self.norm_eps)


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

    # As transformers names them.
    to_dict = to_dict
    n_layer = num_hidden_layers = property(lambda self: self.num_layers)
    n_head = num_attention_heads = property(lambda self: self.num_heads)
    n_embd = property(lambda self: self.hidden_size)
    n_positions = n_ctx = max_position_embeddings = property(lambda self: self.max_positions)


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
    use_perceiver_resampler: bool = True  # False: every speech token of the speech prompt is a position of its own
    emotion_adv: bool = True
    input_pos_emb: str | None = "learned"  # added to text and speech embeddings; None: the backbone's own only
    backbone: LlamaConfig | GPT2Config = field(default_factory=LlamaConfig)
    silent_speech_tokens: tuple[int, ...] = (SILENT_SPEECH_TOKEN,)  # what a cache may forget first
    num_trailing_noise: int = 0  # speech tokens before the stop token that are noise, and not rendered
    spells_numbers: bool = False  # it was trained on numbers in words alone: they are written out by default
    names_language: bool = False  # the language stands in front of the text, as [fr]
    alignment_heads: tuple[tuple[int, int], ...] = ()  # (layer, head) of those that follow the text as it is spoken
    mark_text: bool = True  # the text stands between its start and its stop token
    num_start_tokens: int = 2  # so often the start token of speech enters: the published weights are driven this way
    has_guidance: bool = True  # classifier-free, by a row without text; it needs learned positions
    speech_head_bias: bool = False
    penalty_last: bool = False  # the repetition penalty comes after temperature, top-k and top-p, not before
    start_stays_seen: bool = True  # the start token is penalised to the end; False: until a token is decoded
    start_discards: bool = True  # a start token that is decoded discards the speech before it
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
        return cls(text_tokens_dict_size=2454, names_language=True, alignment_heads=((12, 15), (13, 11), (9, 2)))

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
    def llama_config_name(self) -> str:
        """Upstream's name of the backbone."""
        return "GPT2_medium" if isinstance(self.backbone, GPT2Config) else "Llama_520M"

    @property
    def n_channels(self) -> int:
        return self.backbone.hidden_size

    @property
    def is_multilingual(self) -> bool:
        return self.names_language or self.text_tokens_dict_size == 2454

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

    # As upstream names them.
    speaker_embed_size = property(lambda self: self.embed_size)
    ve_hidden_size = property(lambda self: self.hidden_size)
    hop_size = property(lambda self: self.hop_len)
    win_size = property(lambda self: self.n_fft)
    ve_partial_frames = property(lambda self: self.window_frames)


@dataclass(frozen=True)
class S3TokenizerConfig:
    """S3 speech tokenizer v2, 25 speech tokens a second."""

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

    vocab_size: int = NUM_SPEECH_TOKENS
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
    excitation: str = "sines"  # or "pulses", which the answer then filters
    num_harmonics: int = 8  # above the fundamental; with pulses 1, as their noise has two channels
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    source_resblock_kernels: tuple[int, ...] = (7, 7, 11)  # none with pulses, which the decoder does not see
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


@dataclass(frozen=True)
class ModelConfig:
    """Everything ``config.json`` of a checkpoint folder may say. Defaults: the published English model."""

    t3: T3Config = field(default_factory=T3Config)
    s3gen: S3GenConfig = field(default_factory=S3GenConfig)
    voice_encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
