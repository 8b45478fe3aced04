"""Checkpoint folders for tests: synthetic weights of any size, in upstream's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from chatterbox.checkpoints import ENGLISH, MULTILINGUAL, TURBO, Layout
from chatterbox.config import SamplingConfig, to_dict
from chatterbox.models.config import (
    CAMPPlusConfig,
    EstimatorConfig,
    FlowConfig,
    FlowEncoderConfig,
    GPT2Config,
    HiFTConfig,
    LlamaConfig,
    ModelConfig,
    S3GenConfig,
    S3TokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
)
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers.languages import LANGUAGES
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.voice.conditionals import prepare_conditionals
from tools.synthetic import fill_module

# Every part at a size that runs in milliseconds; ids of the tokenizer as in the published model.
SMALL = ModelConfig(
    t3=T3Config(
        text_tokens_dict_size=256,
        max_text_tokens=120,
        speech_tokens_dict_size=6563,  # speech tokens, start and stop: hardly a token is none of these
        max_speech_tokens=60,
        speech_cond_prompt_len=20,
        speaker_embed_size=16,
        perceiver_queries=3,
        perceiver_heads=2,
        backbone=LlamaConfig(num_layers=2, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48),
    ),
    s3gen=S3GenConfig(
        tokenizer=S3TokenizerConfig(hidden_size=64, num_heads=1, num_layers=1),
        speaker_encoder=CAMPPlusConfig(
            head_channels=4, tdnn_channels=16, growth_rate=4, block_layers=(1, 2, 1), embed_size=24
        ),
        flow=FlowConfig(
            speaker_embed_size=24,
            num_steps=2,
            encoder=FlowEncoderConfig(hidden_size=32, num_heads=2, feed_forward_size=48, num_layers=1, num_up_layers=1),
            estimator=EstimatorConfig(channels=32, num_mid_blocks=1, num_transformers=1, num_heads=1, head_dim=16),
        ),
        vocoder=HiFTConfig(base_channels=32, f0_channels=16),
    ),
    voice_encoder=VoiceEncoderConfig(hidden_size=16, num_layers=1, embed_size=16),
    sampling=SamplingConfig(max_new_tokens=8),
)
# Turbo at such a size: its folder has GPT-2's bytes as text tokens.
SMALL_TURBO = dataclasses.replace(
    SMALL,
    t3=dataclasses.replace(
        T3Config.turbo(),
        text_tokens_dict_size=257,
        max_speech_tokens=60,
        speech_cond_prompt_len=20,
        speaker_embed_size=16,
        backbone=GPT2Config(
            num_layers=2, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48, max_positions=200
        ),
    ),
    sampling=dataclasses.replace(TURBO.config.sampling, max_new_tokens=8),
)


def recording(seconds: float, rate: int = 24_000, pitch: float = 140.0) -> np.ndarray:
    """Samples (L,) float32 of a buzz with vibrato and a breath of noise: something that a voice model can read."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * pitch * t + 3 * np.sin(2 * np.pi * 5 * t)
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.15 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + 0.003 * noise).astype(np.float32)


def write_tokenizer(path: Path, config: T3Config, languages: Iterable[str] = LANGUAGES) -> None:
    """A tokenizer of single characters and language marks with the special tokens where ``config`` expects them."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    special = {"[STOP]": config.stop_text_token, "[START]": config.start_text_token, "[UNK]": 1, "[SPACE]": 2}
    special |= {f"[{language}]": 97 + index for index, language in enumerate(languages)}
    letters = (chr(code) for code in range(33, 127))
    vocabulary = {**special, **{letter: 3 + index for index, letter in enumerate(letters)}}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(path))


def write_gpt2_tokenizer(folder: Path) -> None:
    """The files of a GPT-2 tokenizer whose tokens are single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {symbol: index for index, symbol in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "model_max_length": 1024})
    )


def write_weights(module: nn.Module, path: Path, **others: torch.Tensor) -> None:
    """The state dict of ``module``, and ``others``, pickled if the name ends in ``.pt``."""
    tensors = {**module.state_dict(), **others}
    torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)


def write_folder(
    folder: Path, config: ModelConfig = SMALL, *, layout: Layout = ENGLISH, built_in_voice: bool = True
) -> Path:
    """Write a whole checkpoint folder with synthetic weights, one model after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    t3, unused = fill_module(T3(config.t3)), {}
    if not config.t3.mark_text:
        write_gpt2_tokenizer(folder)
        unused["tfmr.wte.weight"] = torch.zeros_like(t3.text_emb.weight)  # published, and read by nothing
    else:
        is_multilingual = layout.facade == MULTILINGUAL.facade
        write_tokenizer(folder / layout.tokenizer, config.t3, LANGUAGES if is_multilingual else ())
    write_weights(t3, folder / layout.t3, **unused)
    del t3
    voice_encoder = fill_module(VoiceEncoder(config.voice_encoder)).eval()
    write_weights(voice_encoder, folder / layout.voice_encoder)
    s3gen = fill_module(S3Gen(layout.meanflow, config=config.s3gen)).eval()
    write_weights(s3gen, folder / layout.s3gen)
    if built_in_voice:
        reference = recording(max(3.0, config.t3.min_recording_seconds + 0.52))
        prepare_conditionals(s3gen, voice_encoder, reference, hp=config.t3).save(folder / "conds.pt")
    return folder
