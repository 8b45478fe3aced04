"""What a config.json says: whose it is, and values that no tensor would show to be wrong."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from chatterbox.checkpoints import (
    ENGLISH,
    MULTILINGUAL,
    CheckpointError,
    all_layouts,
    config_of,
    load_models,
    read_folder,
    read_s3gen,
)
from chatterbox.checkpoints.stored_config import _require_heads
from chatterbox.config import to_dict
from chatterbox.models.config import ModelConfig
from chatterbox.models.config_checks import check_config
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import SMALL, SMALL_TURBO

TEXT = "Hi."


def changed(path: str, value: object) -> str:
    """The small model's config.json with another value."""
    config = table = to_dict(SMALL)
    *tables, name = path.split(".")
    for one in tables:
        table = table[one]
    assert name in table
    table[name] = value
    return json.dumps(config)


def refused(folder, content: str) -> str:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        load_models(folder, "cpu")
    said = str(error.value)
    assert "\n" not in said and "config.json" in said and len(said) < 700
    return said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("t3.perceiver_heads", 3, "must divide the 32 channels, got 3"),
        ("t3.num_trailing_silence", 10**7, "must be a whole number from 0 to 250, got 10000000"),
        ("t3.num_start_tokens", 10**9, "must be a whole number from 1 to 16, got 1000000000"),
        ("t3.start_text_token", 10**6, "must be below the 256 tokens that there are, got 1000000"),
        ("t3.stop_speech_token", 6563, "must be below the 6563 tokens that there are, got 6563"),
        ("t3.silent_speech_tokens", [10**9], "must be a whole number from 0 to 1048576, got 1000000000"),
        ("t3.input_pos_emb", "rotary", "must be \"learned\" or null, got 'rotary'"),
        ("t3.backbone.rope_theta", 0, "must be a number from 1 to 1e+12, got 0"),
        ("t3.backbone.num_heads", 4, "it must be such that num_heads, 4, times head_dim, 16, is 32"),
        ("s3gen.tokenizer.hidden_size", 0, "must be a whole number from 1 to"),
        ("s3gen.tokenizer.num_heads", 3, "must divide the 64 channels, got 3"),
        ("s3gen.flow.num_steps", 0, "must be a whole number from 1 to 1000, got 0"),
        ("s3gen.flow.guidance_rate", float("nan"), "must be a number from 0 to 100, got nan"),
        ("s3gen.speaker_encoder.block_dilations", [1], "must be 3, one for each block, got (1,)"),
        ("s3gen.speaker_encoder.block_dilations", [10**9] * 3, "must be a whole number from 1 to 1024"),
        ("s3gen.vocoder.resblock_kernels", [3] * 20_000, "must be a list of 64 items at most, got 20000"),
        ("s3gen.vocoder.upsample_rates", [1] * 100_000, "must be a list of 64 items at most, got 100000"),
        ("s3gen.vocoder.upsample_rates", [4, 5, 3], "and istft_hop, 4, must multiply to 480, got (4, 5, 3)"),
        ("s3gen.vocoder.source_resblock_kernels", [7], "must be 3, one for each of upsample_rates, got (7,)"),
        ("s3gen.vocoder.excitation", "saws", 'must be "sines" or "pulses", got \'saws\''),
        ("s3gen.vocoder.excitation", "pulses", "num_harmonics must be 1 with excitation pulses, got 8"),
        ("s3gen.vocoder.sample_rate", 48_000, "must be 24000, got 48000"),
        ("s3gen.vocoder.istft_n_fft", 10**9, "must be a whole number from 1 to 16384, got 1000000000"),
        ("voice_encoder.n_fft", 10**9, "must be a whole number from 1 to 16384, got 1000000000"),
        ("voice_encoder.windows_per_second", 0, "must be a number from 0.01 to 100, got 0"),
    ],
)
def test_values_that_cannot_be_are_refused_with_key_value_and_file(own_folder, path, value, said):
    message = refused(own_folder, changed(path, value))
    assert path.rpartition(".")[2] in message and path.partition(".")[0] in message and said in message


def test_heads_of_a_published_width_are_the_published_ones(tmp_path):
    """No tensor shows them, and others would speak noise."""
    for table, said in (
        ({"t3": {"perceiver_heads": 1}}, "t3.perceiver_heads is 1, it must be 4"),
        ({"t3": {"backbone": {"num_heads": 32}}}, "t3.backbone.num_heads is 32, it must be 16"),
        ({"s3gen": {"flow": {"estimator": {"num_heads": 4}}}}, "s3gen.flow.estimator.num_heads is 4, it must be 8"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(table))
        with pytest.raises(CheckpointError, match=said):
            config_of(read_folder(tmp_path, [ENGLISH]))


def test_values_that_are_published_or_small_are_accepted():
    for config in (*(one.config for one in all_layouts()), SMALL, SMALL_TURBO, ModelConfig()):
        for part in ("t3", "s3gen", "voice_encoder"):
            check_config(getattr(config, part), part)
            _require_heads(None, to_dict(config), part, getattr(config, part), getattr(MULTILINGUAL.config, part))


@pytest.mark.parametrize(
    "content",
    [
        '{"learning_rate": 1e-4, "batch_size": 4}',
        '{"library_name": "chatterbox"}',
        '{"t3": "t3_cfg.safetensors", "s3gen": "s3gen.safetensors"}',
        "[]",
        "null",
        "",
        "{}",
        '{"architectures": ["X"], "model_type": "t3"}',
    ],
)
def test_a_config_that_is_not_ours_is_not_read_and_named_once(own_folder, content, caplog):
    (own_folder / "config.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert config_of(read_folder(own_folder)).sampling == ENGLISH.config.sampling
    (record,) = caplog.records
    tables = "s3gen, sampling, t3, voice_encoder"
    assert record.getMessage() == (
        f"{own_folder / 'config.json'} has none of the tables {tables}: it is not of this package and is not read"
    )


def test_a_config_with_a_mark_of_its_bytes_or_keys_of_a_hub_tool_is_read(own_folder, small_tts):
    text = json.dumps({**to_dict(SMALL), "model_type": "x", "architectures": ["Y"]})
    (own_folder / "config.json").write_text("\ufeff" + text, encoding="utf-8")
    tts = ChatterboxTTS.from_local(own_folder, "cpu")
    assert tts.sampling == SMALL.sampling
    assert torch.equal(tts.generate(TEXT, seed=3), small_tts.generate(TEXT, seed=3))


def test_conversion_reads_its_own_table_alone(own_folder):
    content = {**to_dict(SMALL), "t3": {"perceiver_heads": 3}, "voice_encoder": {"n_fft": 0}}
    (own_folder / "config.json").write_text(json.dumps(content))
    assert read_s3gen(own_folder) == (own_folder / "s3gen.safetensors", SMALL.s3gen)
    content["s3gen"]["flow"]["num_steps"] = 0
    (own_folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"config.json: s3gen.flow.num_steps must be a whole number from 1"):
        ChatterboxVC.from_local(own_folder, "cpu")
