"""What sizes and settings of networks can be, beyond their kinds: bounds, and what has to agree with what.

Owns: the checks of a ``config.json`` that no tensor would show. Does not know: torch, files, published models.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable
from typing import Any

from chatterbox.models.config import (
    CAMPPlusConfig,
    FlowEncoderConfig,
    HiFTConfig,
    LlamaConfig,
    S3TokenizerConfig,
    T3Config,
)

# Lowest and highest by name of a field; of a list, of its items.
WHOLE, NUMBER = (1, 2**20), (0.0, 1e12)
TOKEN, KERNEL, STEPS, SECONDS, LENGTH = (0, 2**20), (1, 1024), (1, 1000), (0, 600), (1, 2**14)
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("start_text_token", "stop_text_token", "start_speech_token", "stop_speech_token"), TOKEN),
    **dict.fromkeys(("silent_speech_tokens", "alignment_heads"), TOKEN),
    **dict.fromkeys(("num_trailing_noise", "num_trailing_silence"), (0, 250)),
    **dict.fromkeys(("prompt_seconds", "min_recording_seconds"), SECONDS),
    "num_start_tokens": (1, 16),
    **dict.fromkeys(("num_steps", "num_meanflow_steps"), STEPS),
    **dict.fromkeys(("n_fft", "istft_n_fft", "hop_len", "istft_hop", "window_frames", "segment_len"), LENGTH),
    **dict.fromkeys(("num_mels", "fsmn_kernel", "upsample_rates", "upsample_kernels"), KERNEL),
    **dict.fromkeys(("resblock_kernels", "source_resblock_kernels"), KERNEL),
    **dict.fromkeys(("block_dilations", "resblock_dilations"), KERNEL),
    **dict.fromkeys(("lookahead_len", "num_harmonics"), (0, 1024)),
    "sample_rate": (8000, 96_000),
    "rope_theta": (1.0, 1e12),
    **dict.fromkeys(("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor"), (1e-3, 1e6)),
    **dict.fromkeys(("guidance_rate", "noise_temperature", "sine_amplitude", "noise_std"), (0.0, 100.0)),
    "audio_limit": (0.01, 1.0),
    "windows_per_second": (0.01, 100.0),
    "min_coverage": (0.0, 1.0),
}
MOST_ITEMS = {"silent_speech_tokens": 2**14}
ITEMS = 64
AUDIO_RATE, FRAME_LEN = 24_000, 480  # of every S3Gen: samples a second, samples of a mel frame


def check_config(config: Any, where: str) -> None:
    """Raise ValueError, one line with the field's path, value and what it can be, for what no network can have."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check_config(value, name)
        elif isinstance(value, tuple):
            most = MOST_ITEMS.get(field.name, ITEMS)
            if len(value) > most:
                raise ValueError(f"{name} must be a list of {most} items at most, got {len(value)}")
            for item in value:
                for one in item if isinstance(item, tuple) else (item,):
                    _check_number(name, field.name, one)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, field.name, value)
    for kind, check in AGREEMENTS.items():
        if isinstance(config, kind):
            check(config, where)


def _check_number(name: str, field: str, value: float) -> None:
    low, high = BOUNDS.get(field, WHOLE if isinstance(value, int) else NUMBER)
    if not low <= value <= high:
        kind = f"whole number from {low} to {high}" if isinstance(value, int) else f"number from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a {kind}, got {reprlib.repr(value)}")


def _require(holds: bool, where: str, said: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{where}{said}, got {reprlib.repr(value)}")


def _check_t3(c: T3Config, where: str) -> None:
    texts, speeches = c.text_tokens_dict_size, c.speech_tokens_dict_size
    for name, size in (("start_speech_token", speeches), ("stop_speech_token", speeches), ("stop_text_token", texts)):
        value = getattr(c, name)
        _require(value < size, where, f".{name} must be below the {size} tokens that there are", value)
    for value in c.silent_speech_tokens:
        _require(value < speeches, where, f".silent_speech_tokens must be below {speeches}", value)
    if c.mark_text:
        value = c.start_text_token
        _require(value < texts, where, f".start_text_token must be below the {texts} tokens that there are", value)
    if c.use_perceiver_resampler:
        _check_heads(where, "perceiver_heads", c.perceiver_heads, c.n_channels)
    _require(c.input_pos_emb in (None, "learned"), where, '.input_pos_emb must be "learned" or null', c.input_pos_emb)


def _check_heads(where: str, name: str, num_heads: int, width: int) -> None:
    _require(width % num_heads == 0, where, f".{name} must divide the {width} channels", num_heads)


def _check_llama(c: LlamaConfig, where: str) -> None:
    low, high = c.rope_low_freq_factor, c.rope_high_freq_factor
    _require(low < high, where, f".rope_low_freq_factor must be below rope_high_freq_factor, {high:g}", low)
    _require(c.head_dim % 2 == 0, where, ".head_dim must be even", c.head_dim)


def _check_s3_tokenizer(c: S3TokenizerConfig, where: str) -> None:
    _check_heads(where, "num_heads", c.num_heads, c.hidden_size)
    _require(c.hidden_size // c.num_heads % 2 == 0, where, ".hidden_size must be even for each head", c.hidden_size)


def _check_flow_encoder(c: FlowEncoderConfig, where: str) -> None:
    _check_heads(where, "num_heads", c.num_heads, c.hidden_size)


def _check_camp_plus(c: CAMPPlusConfig, where: str) -> None:
    num = len(c.block_layers)
    _require(
        len(c.block_dilations) == num, where, f".block_dilations must be {num}, one for each block", c.block_dilations
    )


def _check_vocoder(c: HiFTConfig, where: str) -> None:
    _require(c.excitation in ("sines", "pulses"), where, '.excitation must be "sines" or "pulses"', c.excitation)
    if c.excitation == "pulses":
        _require(c.num_harmonics == 1, where, ".num_harmonics must be 1 with excitation pulses", c.num_harmonics)
    num = len(c.upsample_rates)
    for name in ("upsample_kernels", "source_resblock_kernels")[: 1 if c.excitation == "pulses" else 2]:
        value = getattr(c, name)
        _require(len(value) == num, where, f".{name} must be {num}, one for each of upsample_rates", value)
    _require(c.sample_rate == AUDIO_RATE, where, f".sample_rate must be {AUDIO_RATE}", c.sample_rate)
    _require(
        math.prod(c.upsample_rates) * c.istft_hop == FRAME_LEN,
        where,
        f".upsample_rates and istft_hop, {c.istft_hop}, must multiply to {FRAME_LEN}",
        c.upsample_rates,
    )
    _require(
        c.istft_hop <= c.istft_n_fft, where, f".istft_hop must be at most istft_n_fft, {c.istft_n_fft}", c.istft_hop
    )
    _require(c.istft_n_fft % 2 == 0, where, ".istft_n_fft must be even", c.istft_n_fft)
    for rate, kernel in zip(c.upsample_rates, c.upsample_kernels, strict=True):
        fits = kernel >= rate and (kernel - rate) % 2 == 0
        _require(fits, where, f".upsample_kernels must exceed upsample_rates, {rate}, by an even number", kernel)
    _require(c.base_channels % 2**num == 0, where, f".base_channels must be a multiple of {2**num}", c.base_channels)
    for name in ("resblock_kernels", "source_resblock_kernels"):
        value = getattr(c, name)
        _require(all(kernel % 2 for kernel in value), where, f".{name} must be odd", value)
    for name in ("resblock_kernels", "resblock_dilations"):
        _require(bool(getattr(c, name)), where, f".{name} must have an item", getattr(c, name))


AGREEMENTS: dict[type, Callable[[Any, str], None]] = {
    T3Config: _check_t3,
    LlamaConfig: _check_llama,
    S3TokenizerConfig: _check_s3_tokenizer,
    FlowEncoderConfig: _check_flow_encoder,
    CAMPPlusConfig: _check_camp_plus,
    HiFTConfig: _check_vocoder,
}
