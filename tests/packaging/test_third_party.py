"""Programs written for chatterbox-tts, as public servers and scripts use it: their imports, attributes and calls."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.s3tokenizer import SPEECH_VOCAB_SIZE, drop_invalid_tokens
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.vc import ChatterboxVC
from tests.packaging.conftest import MODELS, TEXT
from tests.support.folders import SMALL, SMALL_TURBO, recording

IMPORTS = """
import chatterbox
from chatterbox import ChatterboxTTS
from chatterbox import ChatterboxMultilingualTTS, ChatterboxVC, SUPPORTED_LANGUAGES
from chatterbox.tts import ChatterboxTTS, punc_norm
from chatterbox.tts import ChatterboxTTS, Conditionals, REPO_ID
from chatterbox.mtl_tts import ChatterboxMultilingualTTS, SUPPORTED_LANGUAGES
from chatterbox.mtl_tts import Conditionals, punc_norm
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS, Conditionals, punc_norm
from chatterbox.vc import ChatterboxVC
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.const import S3GEN_SR
from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.s3gen.hifigan import HiFTGenerator
from chatterbox.models.s3gen.s3gen import S3Token2Mel, S3Token2Wav, mel_spectrogram
from chatterbox.models.s3gen.utils.mel import mel_spectrogram
from chatterbox.models.s3gen.xvector import CAMPPlus
from chatterbox.models.s3tokenizer import S3_SR, SPEECH_VOCAB_SIZE, S3Tokenizer, drop_invalid_tokens
from chatterbox.models.s3tokenizer.s3tokenizer import S3_HOP, S3Tokenizer
from chatterbox.models.t3 import T3
from chatterbox.models.t3.t3 import T3, T3Cond
from chatterbox.models.t3.modules.cond_enc import T3Cond, T3CondEnc
from chatterbox.models.t3.modules.learned_pos_emb import LearnedPositionEmbeddings
from chatterbox.models.t3.modules.perceiver import Perceiver
from chatterbox.models.t3.modules.t3_config import T3Config
from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.voice_encoder.voice_encoder import VoiceEncoder
from chatterbox.tts import T3, T3Cond, S3Gen, S3GEN_SR, S3_SR, VoiceEncoder, EnTokenizer, drop_invalid_tokens
from chatterbox.tts import F, load_file, hf_hub_download
from chatterbox.mtl_tts import T3, T3Config, T3Cond, S3Gen, S3GEN_SR, S3_SR, VoiceEncoder, MTLTokenizer
from chatterbox.mtl_tts import drop_invalid_tokens, load_safetensors, snapshot_download
from chatterbox.tts_turbo import T3, T3Config, T3Cond, S3Gen, S3GEN_SR, S3GEN_SIL, S3_SR, VoiceEncoder, EnTokenizer
from chatterbox.tts_turbo import AutoTokenizer, load_file, snapshot_download
from chatterbox.vc import S3GEN_SR, S3_SR, S3Gen, hf_hub_download, load_file
from chatterbox.models.t3.t3 import T3Config, T3CondEnc, AttrDict, LLAMA_CONFIGS, LlamaConfig, LlamaModel, tqdm
from chatterbox.models.t3.llama_configs import LLAMA_520M_CONFIG_DICT, GPT2_MEDIUM_CONFIG, LLAMA_CONFIGS
from chatterbox.models.utils import AttrDict
from chatterbox.models.voice_encoder.config import VoiceEncConfig
from chatterbox.models.voice_encoder.voice_encoder import VoiceEncConfig
from chatterbox.models.tokenizers.tokenizer import EnTokenizer, MTLTokenizer, REPO_ID
""".strip().splitlines()


@pytest.mark.parametrize("statement", IMPORTS)
def test_import(statement):
    names: dict[str, Any] = {}
    exec(statement, names)
    assert len(names) > 1  # the builtins, and what was imported


def test_attributes(model, conditionals):
    assert (model.sr, str(model.device)) == (24_000, "cpu")
    assert (model.ENC_COND_LEN % 16_000, model.DEC_COND_LEN) == (0, 240_000)
    for part in (model.t3, model.s3gen, model.ve):
        assert isinstance(part, torch.nn.Module) and not part.training
    assert model.t3.device == model.s3gen.device == torch.device("cpu")
    assert isinstance(model.conds, conditionals) and isinstance(model.conds.t3, T3Cond)
    assert model.conds.t3.speaker_emb.shape == (1, SMALL.t3.speaker_embed_size)
    assert {"prompt_token", "prompt_token_len", "prompt_feat", "embedding"} <= set(model.conds.gen)
    assert model.t3.hp.stop_speech_token == 6562 and model.t3.hp.speech_cond_prompt_len > 0
    assert callable(model.tokenizer.encode)


def test_audio_is_seeded_and_goes_to_a_file(model, say):
    wav = say()
    assert wav.dim() == 2 and wav.dtype == torch.float32 and wav.device.type == "cpu"
    assert torch.equal(wav, say())
    buffer = io.BytesIO()
    soundfile.write(buffer, wav.squeeze(0).numpy(), model.sr, format="WAV")
    buffer.seek(0)
    assert soundfile.info(buffer).frames == wav.shape[-1]
    pcm = (wav.squeeze().detach().cpu().numpy() * 32767).astype("int16").tobytes()
    assert len(pcm) == 2 * wav.shape[-1]


def test_every_setting_by_name(say, voice_file):
    assert say(temperature=0.7, repetition_penalty=1.3, top_p=0.9, audio_prompt_path=voice_file).any()
    assert say(exaggeration=0.7, cfg_weight=0.3, min_p=0.1).any()


def test_a_voice_is_prepared_once(model, say, voice_file):
    named = say(audio_prompt_path=voice_file)
    built_in = say()
    model.prepare_conditionals(voice_file, exaggeration=0.5)
    assert torch.equal(say(), named) and not torch.equal(named, built_in)


@pytest.mark.parametrize("how", ["generate", "conds"])
def test_a_voice_that_upstream_would_go_on_with_is_named_once(how, model, say, voice_file, caplog):
    built_in = say()
    say(audio_prompt_path=voice_file)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        assert how == "conds" or torch.equal(say(), built_in)
        for _ in range(2):
            voice = model.conds
    told = [
        message for message in caplog.messages if message.startswith("conds is not the voice of the last recording")
    ]
    assert len(told) == 1
    assert "call prepare_conditionals(recording)" in caplog.text
    model.prepare_conditionals(voice_file)
    assert model.conds is not voice and not torch.equal(say(), built_in)


def test_nothing_is_said_of_voices_that_are_prepared_or_all_named(model, say, voice_file, caplog):
    with caplog.at_level(logging.WARNING, "chatterbox"):
        say()
        model.conds.to("cpu")
        say(audio_prompt_path=voice_file)
        say(audio_prompt_path=voice_file)
        model.prepare_conditionals(voice_file)
        say()
        assert model.conds is not None
    assert "conds" not in caplog.text


def test_a_voice_is_stored_and_loaded(model, conditionals, say, voice_file, tmp_path):
    model.prepare_conditionals(voice_file)
    spoken = say()
    model.conds.save(tmp_path / "speaker.pt")
    for path in (tmp_path / "speaker.pt", str(tmp_path / "speaker.pt")):
        model.conds = None
        model.conds = conditionals.load(path, map_location=model.device).to(model.device)
        assert torch.equal(say(), spoken)
    model.conds = conditionals(copy.deepcopy(model.conds.t3), dict(model.conds.gen))
    assert torch.equal(say(), spoken)


def test_a_voice_is_stored_in_memory(model, conditionals, say, voice_file):
    """As servers keep voices in a database or an archive."""
    model.prepare_conditionals(voice_file)
    spoken, buffer = say(), io.BytesIO()
    model.conds.save(buffer)
    buffer.seek(0)
    model.conds = conditionals.load(buffer, map_location="cpu")
    assert torch.equal(say(), spoken)


def test_a_copy_speaks_alike_and_has_a_voice_of_its_own(model, published, say, voice_file):
    before, other = say(), copy.deepcopy(model)
    assert type(other) is type(model) and other.layout == model.layout and other.sampling == model.sampling
    other.prepare_conditionals(voice_file)
    torch.manual_seed(3)
    assert not torch.equal(other.generate(TEXT, **published.arguments), before)
    other.close()
    assert torch.equal(say(), before)


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_a_configuration_is_changed_and_built(model, say):
    from chatterbox.models.t3 import T3
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config(text_tokens_dict_size=model.t3.hp.text_tokens_dict_size)
    assert (hp.llama_config_name, hp.n_channels, hp.is_multilingual) == ("Llama_520M", 1024, False)
    for name, value in dataclasses.asdict(SMALL.t3).items():
        setattr(hp, name, getattr(SMALL.t3, name) if name == "backbone" else value)
    t3 = T3(hp)
    assert t3.hp is hp and t3.text_emb.num_embeddings == hp.text_tokens_dict_size
    t3.load_state_dict(model.t3.state_dict())
    before = say()
    model.t3 = t3.eval()
    assert torch.equal(say(), before)


@pytest.mark.parametrize("copied", [False, True])
def test_a_loaded_model_gives_the_configuration_of_a_larger_one(copied, model, say):
    """As fine-tunes begin: the loaded model stays as it is."""
    from chatterbox.models.t3 import T3

    before, old = say(), model.t3
    cfg = copy.deepcopy(old.hp) if copied else old.hp
    cfg.text_tokens_dict_size += 7
    cfg.max_text_tokens += 3
    cfg.emotion_adv = not cfg.emotion_adv
    cfg.use_cache = False
    rows = old.text_emb.num_embeddings
    assert torch.equal(say(), before) and old.num_text_tokens == rows
    cfg.emotion_adv = not cfg.emotion_adv
    cfg.max_text_tokens -= 3
    new = T3(hp=cfg)
    assert new.hp is cfg and new.text_emb.num_embeddings == new.text_head.out_features == rows + 7
    state = old.state_dict()
    for name in ("text_emb.weight", "text_head.weight"):
        state[name] = torch.cat([state[name], torch.randn(7, old.dim)])
    new.load_state_dict(state)
    model.t3 = new.eval()
    assert torch.equal(say(), before)


def test_a_vocabulary_that_grows_in_place(model):
    """A program puts a larger table in the model, and says so in its configuration, or does not."""
    from chatterbox.engine.request import Request, check_request

    t3, rows = model.t3, model.t3.text_emb.num_embeddings
    text = torch.tensor([t3.hp.start_text_token, rows + 2, t3.hp.stop_text_token])
    request = Request(model.conds.t3, text, dataclasses.replace(model.sampling, cfg_weight=0.0), 2, seed=1)
    with pytest.raises(ValueError, match=f"text token {rows + 2} is outside of the vocabulary of {rows}"):
        check_request(t3, request)
    grown = torch.nn.Embedding(rows + 3, t3.dim)
    with torch.no_grad():
        grown.weight[:rows] = t3.text_emb.weight
    t3.text_emb = grown
    check_request(t3, request)
    assert t3.num_text_tokens == rows + 3


def test_a_longer_speech_than_there_are_positions_is_not_tried(model):
    most = model.t3.hp.max_speech_tokens
    model.t3.hp.max_speech_tokens = most + 100
    assert model.t3.max_speech_len == (most + 100 if model.t3.speech_pos_emb is None else most)
    model.t3.hp.max_speech_tokens = 2
    assert model.t3.max_speech_len == 2


def test_configurations_are_equal_by_what_they_say(model, published):
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = model.t3.hp
    assert isinstance(hp, T3Config) and hp == copy.deepcopy(hp) == dataclasses.replace(hp)
    size = SMALL_TURBO.t3 if published.cls == "ChatterboxTurboTTS" else SMALL.t3
    if published.cls != "ChatterboxMultilingualTTS":
        assert hp == size and size == hp
    assert hp != dataclasses.replace(hp, stop_text_token=3) and hp != "T3Config"


def test_attributes_of_upstream_parts(model):
    assert (model.t3.compiled, model.t3.deepspeed_patch_applied) == (False, False)
    ve = model.ve.hp
    assert (ve.sample_rate, ve.num_mels, ve.n_fft, ve.hop_size, ve.win_size) == (16_000, 40, 400, 160, 400)
    assert (ve.ve_partial_frames, ve.speaker_embed_size) == (160, SMALL.voice_encoder.embed_size)
    assert ve.ve_hidden_size == SMALL.voice_encoder.hidden_size


@pytest.fixture
def backbones(monkeypatch):
    """Upstream's table, as it was after the test."""
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS

    for name in list(LLAMA_CONFIGS):
        monkeypatch.setitem(LLAMA_CONFIGS, name, copy.deepcopy(LLAMA_CONFIGS[name]))
    yield LLAMA_CONFIGS
    for name in LLAMA_CONFIGS.keys() - {"Llama_520M", "GPT2_medium"}:
        del LLAMA_CONFIGS[name]


def test_a_backbone_is_what_the_table_says(backbones):
    from chatterbox.models import config
    from chatterbox.models.t3 import T3
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config()
    backbones["Llama_520M"].update(num_hidden_layers=2, rms_norm_eps=1e-6)
    with torch.device("meta"):
        t3 = T3(hp)
        assert len(t3.tfmr.layers) == len(T3(T3Config()).tfmr.layers) == t3.sizes.num_layers == 2
        assert t3.tfmr.norm.eps == 1e-6 and t3.cfg.num_hidden_layers == 2
        assert len(T3(config.T3Config()).tfmr.layers) == 30  # of a file that says so
    backbones["mine"] = dict(backbones["Llama_520M"], num_hidden_layers=1, hidden_size=64, intermediate_size=96)
    backbones["mine"] |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    hp.llama_config_name = "mine"
    assert (hp.llama_config_name, hp.n_channels, hp.mark_text) == ("mine", 64, True)
    backbones["small_gpt2"] = dict(backbones["GPT2_medium"], n_layer=3, hidden_size=64, n_head=4, n_inner=None)
    turbo = T3Config()
    turbo.llama_config_name = "small_gpt2"
    expected = config.GPT2Config(num_layers=3, hidden_size=64, num_heads=4, head_dim=16, intermediate_size=256)
    assert turbo.backbone == expected and (turbo.mark_text, turbo.llama_config_name) == (False, "small_gpt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, r"\['hidden_act'\] must be 'silu', got 'gelu'"),
        ({"model_type": "mamba"}, r"\['model_type'\] must be 'llama' or 'gpt2', got 'mamba'"),
        ({"num_key_value_heads": 4}, r"\['num_key_value_heads'\] must be 16, as heads, got 4"),
        ({"rope_scaling": None}, r"\['rope_scaling'\] must be of rope_type 'llama3', got None"),
        ({"hidden_size": ...}, "lacks 'hidden_size'; set it"),
    ],
)
def test_what_a_backbone_cannot_be_is_said(change, message, backbones):
    from chatterbox.models.t3.modules.t3_config import T3Config

    entry = {**backbones["Llama_520M"], **change}
    backbones["mine"] = {key: value for key, value in entry.items() if value is not ...}
    with pytest.raises(ValueError, match=r"LLAMA_CONFIGS\['mine'\]" + (" " if "lacks" in message else "") + message):
        T3Config().llama_config_name = "mine"


class OwnTokenizer:
    """A program's, that has nothing but what is called."""

    def __init__(self, inner):
        self.inner = inner

    def text_to_tokens(self, text, **language):
        return self.inner.text_to_tokens(text, **language)


def test_a_tokenizer_of_ones_own(model, say):
    before = say()
    model.tokenizer = OwnTokenizer(model.tokenizer)
    assert torch.equal(say(), before)
    model.tokenizer = object()
    with pytest.raises(TypeError, match="the tokenizer, object, can neither be called nor has text_to_tokens"):
        say()


@pytest.mark.parametrize("published", ["turbo"], indirect=True)
def test_turbo_is_built_with_the_tokenizer_of_transformers(model, say, turbo_folder):
    from chatterbox.tts_turbo import AutoTokenizer

    before, calls = say(), []
    tokenizer = AutoTokenizer.from_pretrained(turbo_folder)
    parts = model.t3, model.s3gen, model.ve
    built = type(model)(*parts, tokenizer, "cpu", model.conds, sampling=model.sampling)
    torch.manual_seed(3)
    assert built.tokenizer is tokenizer and torch.equal(built.generate(TEXT), before)
    texts = ["Hello; there -", "and again..."]
    assert built.synthesizer.utterances(built._request(texts, None, {})) == model.synthesizer.utterances(
        model._request(texts, None, {})
    )

    class Counted:
        def __call__(self, text, **options):
            calls.append(text)
            return tokenizer(text, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    model.tokenizer = Counted()
    assert torch.equal(say(), before) and TEXT in calls


@pytest.mark.parametrize("published", ["turbo"], indirect=True)
def test_turbos_tokenizer_has_what_transformers_has(model):
    tokenizer = copy.deepcopy(model.tokenizer)
    assert len(tokenizer) == len(tokenizer.tokenizer) and tokenizer.eos_token == "<|endoftext|>"
    with pytest.raises(AttributeError, match="no_such_name"):
        tokenizer.no_such_name  # noqa: B018


def test_a_configuration_of_turbo_is_made_as_upstream_makes_it():
    from chatterbox.models import config
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config(text_tokens_dict_size=50276)
    hp.llama_config_name = "GPT2_medium"
    hp.speech_tokens_dict_size = 6563
    hp.input_pos_emb = None
    hp.speech_cond_prompt_len = 375
    hp.use_perceiver_resampler = False
    hp.emotion_adv = False
    hp.utterance_text_len = 80  # ours
    assert dataclasses.asdict(hp) == dataclasses.asdict(config.T3Config.turbo())
    with pytest.raises(ValueError, match="llama_config_name must be one of Llama_520M, GPT2_medium, got 'Llama_3'"):
        hp.llama_config_name = "Llama_3"


def test_an_emotion_is_read_and_replaced(model, say):
    before = say(exaggeration=0.9)
    assert float(model.conds.t3.emotion_adv[0, 0, 0].item()) == 0.5
    old = model.conds.t3
    model.conds.t3 = T3Cond(
        speaker_emb=old.speaker_emb,
        cond_prompt_speech_tokens=old.cond_prompt_speech_tokens,
        emotion_adv=0.9 * torch.ones(1, 1, 1),
    ).to(device=model.device)
    model.conds.t3.emotion_adv = 0.9 * torch.ones(1, 1, 1, device=model.device)
    assert torch.equal(say(exaggeration=0.9), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_t3_in_half_precision(model, say, dtype):
    model.t3.to(dtype=dtype)
    model.conds.t3.to(dtype=dtype)
    assert model.t3.speech_head.weight.dtype == dtype
    assert say().isfinite().all()


def test_parts_are_moved_one_by_one(model, say):
    before = say()
    model.t3 = model.t3.to("cpu").eval()
    model.s3gen = model.s3gen.to("cpu")
    model.ve.to(device="cpu").eval()
    model.conds.to("cpu")
    model.conds = model.conds.to("cpu")
    model.device = "cpu"
    assert torch.equal(say(), before)


def test_fine_tuned_weights_are_loaded_into_it(model, say):
    state = {key: value.clone() for key, value in model.t3.state_dict().items()}
    state["speech_head.weight"] *= -1
    missing, unexpected = model.t3.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    tuned = say()
    model.t3.load_state_dict({**state, "speech_head.weight": -state["speech_head.weight"]})
    assert not torch.equal(say(), tuned)


def test_built_from_its_parts(model, published, say):
    before, cls = say(), type(model)
    rebuilt = cls(model.t3, model.s3gen, model.ve, model.tokenizer, "cpu", conds=model.conds)
    rebuilt.sampling = model.sampling  # the small model's own limit
    torch.manual_seed(3)
    assert torch.equal(rebuilt.generate(TEXT, **published.arguments), before)


@pytest.mark.parametrize("published", ["english", "multilingual"], indirect=True)
def test_the_steps_of_generate_written_out(model, published, say):
    """As servers that stream or batch do it; without the watermark, that is what `generate` gives."""
    punc_norm = importlib.import_module(published.module).punc_norm
    options = {"language_id": published.arguments["language_id"]} if "language_id" in published.arguments else {}
    text_tokens = model.tokenizer.text_to_tokens(punc_norm(TEXT), **options).to(model.device)
    text_tokens = torch.cat([text_tokens, text_tokens], dim=0)
    text_tokens = F.pad(text_tokens, (1, 0), value=model.t3.hp.start_text_token)
    text_tokens = F.pad(text_tokens, (0, 1), value=model.t3.hp.stop_text_token)
    torch.manual_seed(3)
    with torch.inference_mode():
        speech_tokens = model.t3.inference(
            t3_cond=model.conds.t3,
            text_tokens=text_tokens,
            max_new_tokens=SMALL.sampling.max_new_tokens,
            temperature=0.8,
            cfg_weight=0.5,
            repetition_penalty=1.2,
            min_p=0.1,
            top_p=1.0,
        )[0]
        speech_tokens = drop_invalid_tokens(speech_tokens)
        speech_tokens = speech_tokens[speech_tokens < SPEECH_VOCAB_SIZE].to(model.device)
        wav, _ = model.s3gen.inference(speech_tokens=speech_tokens, ref_dict=model.conds.gen)
        wav = wav.squeeze(0).detach().cpu()
    assert torch.equal(wav, say(min_p=0.1, repetition_penalty=1.2, watermark=False)[0])


@pytest.mark.parametrize("published", ["turbo"], indirect=True)
def test_the_steps_of_turbos_generate_written_out(model, published, say):
    text = importlib.import_module(published.module).punc_norm(TEXT)
    text_tokens = model.tokenizer(text, return_tensors="pt", padding=True, truncation=True).input_ids.to(model.device)
    torch.manual_seed(3)
    with torch.inference_mode():
        speech_tokens = model.t3.inference_turbo(
            t3_cond=model.conds.t3,
            text_tokens=text_tokens,
            temperature=0.8,
            top_k=1000,
            top_p=0.95,
            repetition_penalty=1.2,
            max_gen_len=SMALL_TURBO.sampling.max_new_tokens,
        )
        speech_tokens = speech_tokens[speech_tokens < SPEECH_VOCAB_SIZE].to(model.device)
        silence = torch.tensor([S3GEN_SIL, S3GEN_SIL, S3GEN_SIL]).long().to(model.device)
        speech_tokens = torch.cat([speech_tokens, silence])
        wav, _ = model.s3gen.inference(speech_tokens=speech_tokens, ref_dict=model.conds.gen, n_cfm_timesteps=2)
    assert torch.equal(wav.cpu(), say(watermark=False))


def test_a_speaker_embedding_of_samples(model):
    embedding = torch.from_numpy(model.ve.embeds_from_wavs([recording(2.0, 16_000)], sample_rate=16_000))
    assert embedding.mean(axis=0, keepdim=True).shape == model.conds.t3.speaker_emb.shape
    tokens, _ = model.s3gen.tokenizer.forward([recording(2.0, 16_000)], max_len=10)
    assert torch.atleast_2d(tokens).shape == (1, 10)
    assert model.s3gen.embed_ref(recording(1.0), 24_000, device=model.device)["prompt_token"].shape == (1, 25)


def test_the_watermarker_is_used_and_replaced(model, say):
    """Both ways that servers have: marking by themselves, and a stand-in that marks nothing."""
    marked = say()
    plain = say(watermark=False)
    by_hand = model.watermarker.apply_watermark(plain[0].numpy(), sample_rate=model.sr)
    assert model.watermarker.get_watermark(by_hand, sample_rate=model.sr) == 1.0
    assert np.array_equal(by_hand, marked[0].numpy())

    class Plain:
        def apply_watermark(self, wav, sample_rate):
            return wav

    model.watermarker = Plain()
    assert torch.equal(say(), plain) and not torch.equal(plain, marked)


def test_languages():
    from chatterbox.mtl_tts import SUPPORTED_LANGUAGES, ChatterboxMultilingualTTS

    choices = [(f"{name} ({code})", code) for code, name in sorted(SUPPORTED_LANGUAGES.items())]
    assert len(choices) == 23 and ("French (fr)", "fr") in choices and "xx" not in SUPPORTED_LANGUAGES
    assert ChatterboxMultilingualTTS.get_supported_languages() == SUPPORTED_LANGUAGES


def test_voice_conversion(small_folder, voice_file):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    wav = vc.generate(audio=voice_file, target_voice_path=voice_file)
    assert (vc.sr, wav.squeeze(0).numpy().shape) == (24_000, (6 * 24_000,))


def test_conversions_target_that_upstream_would_go_on_with_is_named_once(small_folder, voice_file, caplog):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    convert = partial(vc.generate, voice_file, seed=1, watermark=False)
    built_in, other = convert(), convert(target_voice_path=voice_file)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        assert torch.equal(convert(), built_in) and not torch.equal(built_in, other)
        assert torch.equal(convert(), built_in)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the target voice is not that of the last recording"
    ]
    vc.set_target_voice(voice_file)
    assert torch.equal(convert(), other)


def test_a_replaced_set_target_voice_makes_the_target(small_folder, voice_file):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    own, heard = vc.set_target_voice, []
    vc.set_target_voice = lambda path: heard.append(path) or own(path)
    first = vc.generate(voice_file, target_voice_path=voice_file, seed=1)
    assert heard == [voice_file] and torch.equal(vc.generate(voice_file, seed=1), first)


@pytest.mark.parametrize("name", ["ENC_COND_LEN", "DEC_COND_LEN"])
@pytest.mark.parametrize("of", ["class", "model"])
def test_how_much_of_a_recording_is_heard_is_set(name, of, model, voice_file, monkeypatch):
    model.prepare_conditionals(voice_file)
    before = model.conds
    monkeypatch.setattr(type(model) if of == "class" else model, name, 2 * (16_000 if name.startswith("E") else 24_000))
    model.prepare_conditionals(voice_file)
    t3, gen = model.conds.t3.cond_prompt_speech_tokens.shape[1], model.conds.gen["prompt_token"].shape[1]
    if name == "ENC_COND_LEN":
        assert t3 == min(50, before.t3.cond_prompt_speech_tokens.shape[1])
        assert gen == before.gen["prompt_token"].shape[1]
    else:
        assert gen == 50 and t3 == before.t3.cond_prompt_speech_tokens.shape[1]


PROGRAM = """
import io, os, random, sys
import numpy as np
import soundfile as sf
import torch
from chatterbox.{module} import {cls}, Conditionals
from chatterbox.models.s3gen.const import S3GEN_SR

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
folder, voice, out = sys.argv[1:]
model = {cls}.from_local(folder, "cpu")
voices = {{}}


def set_seed(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def use(name, path):
    if name not in voices:
        if not os.path.exists(name + ".pt"):
            model.prepare_conditionals(path, exaggeration=0.5)
            model.conds.save(name + ".pt")
        voices[name] = Conditionals.load(name + ".pt", map_location="cpu").to(model.device)
    model.conds = voices[name]


def synthesize(text, seed=0, **options):
    if seed:
        set_seed(seed)
    chunks = [model.generate(part, **options) for part in text.split("|")]
    buffer = io.BytesIO()
    sf.write(buffer, torch.cat(chunks, dim=-1).squeeze(0).cpu().numpy(), model.sr, format="WAV")
    return buffer.getvalue()


with torch.inference_mode():
    use("narrator", voice)
    first = synthesize("Hello there.|And good bye.", seed=5, {options})
    use("narrator", voice)
    assert synthesize("Hello there.|And good bye.", seed=5, {options}) == first
open(out, "wb").write(first)
assert model.sr == S3GEN_SR
"""


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_program(name, request, voice_file, tmp_path):
    """In a process of its own, in a folder of its own, with a library that writes files."""
    published = MODELS[name]
    options = ", ".join(f"{key}={value!r}" for key, value in {"temperature": 0.8, **published.arguments}.items())
    program = PROGRAM.format(module=published.module.partition(".")[2], cls=published.cls, options=options)
    arguments = [str(request.getfixturevalue(published.folder)), voice_file, "out.wav"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and soundfile.info(tmp_path / "out.wav").samplerate == 24_000
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["narrator.pt", "out.wav"]
