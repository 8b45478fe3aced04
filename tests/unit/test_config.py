"""Configuration dataclasses: conversion, unknown keys, validation."""

from __future__ import annotations

import dataclasses
import json

import pytest

from chatterbox.cli.config import SayCommandConfig
from chatterbox.config import SamplingConfig, from_dict, to_dict
from chatterbox.models.config import TURBO_DRIVING, HiFTConfig, ModelConfig, T3Config
from tests.support.folders import SMALL, SMALL_TURBO


@pytest.mark.parametrize("config", [ModelConfig(), SMALL, SayCommandConfig(), T3Config.multilingual()])
def test_round_trip_through_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_missing_keys_keep_their_defaults():
    config = from_dict(ModelConfig, {"t3": {"backbone": {"num_layers": 2}}})
    assert config.t3.backbone.num_layers == 2
    assert dataclasses.replace(config, t3=T3Config()) == ModelConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nope": 1}, r"config has no setting 'nope'; it has s3gen, sampling, t3, voice_encoder"),
        ({"t3": {"backbone": {"depth": 2}}}, r"config.t3.backbone has no setting 'depth'"),
        ({"t3": 3}, "config.t3 must be a table of settings, got 3"),
        ({"t3": {"max_text_tokens": 1.5}}, "config.t3.max_text_tokens must be int, got 1.5"),
        ({"t3": {"max_text_tokens": True}}, "config.t3.max_text_tokens must be int, got True"),
        ({"t3": {"max_text_tokens": None}}, "config.t3.max_text_tokens must be int, got None"),
        ({"s3gen": {"vocoder": {"upsample_rates": [8, "x"]}}}, "vocoder.upsample_rates must be int, got 'x'"),
        ({"sampling": {"top_p": 2}}, "top_p must be a number from 0 to 1, got 2.0"),
    ],
)
def test_values_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(ModelConfig, values)


@pytest.mark.parametrize("cls", [ModelConfig, T3Config, SamplingConfig, HiFTConfig, SayCommandConfig])
def test_frozen(cls):
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "ten", [10], 2**31])
def test_max_new_tokens_is_a_positive_whole_number(value):
    with pytest.raises(ValueError, match="max_new_tokens must be a whole number from 1"):
        SamplingConfig(max_new_tokens=value)


def test_turbo_s_file_without_the_driving_fields_is_driven_as_turbo():
    """Files written before these fields existed name the backbone alone."""
    values = to_dict(SMALL_TURBO)
    for name in TURBO_DRIVING:
        del values["t3"][name]
    assert from_dict(ModelConfig, values) == SMALL_TURBO
    assert from_dict(ModelConfig, {"t3": {**values["t3"], "num_trailing_silence": 1}}).t3.num_trailing_silence == 1
    with pytest.raises(ValueError, match=r"config\.t3 has no setting 'driven_as'"):
        from_dict(ModelConfig, {"t3": {**values["t3"], "driven_as": "turbo"}})


def test_driving_fields_are_those_of_the_config():
    turbo, llama = T3Config.turbo(), T3Config()
    assert all(getattr(turbo, name) == value != getattr(llama, name) for name, value in TURBO_DRIVING.items())
    assert {name: getattr(T3Config.nano(), name) for name in TURBO_DRIVING} == TURBO_DRIVING


def test_traits_that_contradict_each_other():
    with pytest.raises(ValueError, match="has_guidance must be False where input_pos_emb is None"):
        T3Config(input_pos_emb=None)
    with pytest.raises(ValueError, match="num_start_tokens must be a whole number from 1, got 0"):
        T3Config(num_start_tokens=0)


def test_published_sizes():
    config = ModelConfig()
    assert config.t3.cond_len == 34 and config.t3.n_channels == 1024 and not config.t3.is_multilingual
    assert T3Config.english_only() == T3Config() and T3Config.multilingual().is_multilingual
    assert config.s3gen.vocoder.hop_len == 480
