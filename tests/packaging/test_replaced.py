"""Programs that put functions of their own in place of a model's: they are what runs, or a warning names them."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import threading
from functools import reduce
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import perth
import pytest
import torch

from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.t3 import T3
from chatterbox.vc import ChatterboxVC
from chatterbox.watermark.perth import PerthWatermarker
from tests.packaging.conftest import TEXT

LONG = "Hello there, World. " * 12


class Counter:
    """A function around another: how often it was called, with what, and in which thread."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls, self.threads = function, [], []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append(options)
        self.threads.append(threading.current_thread())
        return self.function(*args, **options)


def count(monkeypatch, owner: Any, name: str) -> Counter:
    counter = Counter(getattr(owner, name))
    monkeypatch.setattr(owner, name, counter)
    return counter


@pytest.fixture
def stream(published, model) -> Any:
    def generate_stream(**arguments) -> torch.Tensor:
        options = {**published.arguments, "seed": 5, "print_metrics": False, **arguments}
        return torch.cat([audio for audio, _ in model.generate_stream(TEXT, **options)], dim=1)

    return generate_stream


@pytest.fixture
def inference(published) -> str:
    return "inference_turbo" if published.module.endswith("turbo") else "inference"


def test_a_wrapped_inference_runs_in_the_callers_thread_and_changes_nothing(model, say, inference, monkeypatch):
    expected = say(), say(seed=7)
    counter = count(monkeypatch, model.t3, inference)
    assert torch.equal(say(), expected[0]) and torch.equal(say(seed=7), expected[1])
    assert len(counter.calls) == 2 and set(counter.threads) == {threading.current_thread()}
    assert {"t3_cond", "text_tokens", "temperature", "top_p", "repetition_penalty"} <= counter.calls[0].keys()


def test_long_texts_call_it_once_an_utterance(model, published, inference, monkeypatch):
    expected = model.generate(LONG, **published.arguments, seed=7)
    counter = count(monkeypatch, model.t3, inference)
    assert torch.equal(model.generate(LONG, **published.arguments, seed=7), expected)
    assert len(counter.calls) == len(model.synthesizer.utterances(model._request(LONG, None, {}))) > 1


def test_what_it_returns_is_spoken(model, say, inference):
    setattr(model.t3, inference, lambda **_: torch.tensor([[30, 31, 32, 33, 6562]]))
    silence = 3 * 960 if inference == "inference_turbo" else 0
    assert say().shape == (1, 4 * 960 + silence)
    setattr(model.t3, inference, lambda **_: None)
    with pytest.raises(TypeError, match=f"in place of T3.{inference} returned NoneType; it must return speech tokens"):
        say()


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_a_class_that_is_patched_and_one_that_is_derived(model, say, monkeypatch):
    expected, original = say(), T3.inference

    def inference(self, *args: Any, **options: Any) -> Any:
        calls.append(self)
        return original(self, *args, **options)

    calls: list[Any] = []
    monkeypatch.setattr(T3, "inference", inference)
    assert torch.equal(say(), expected) and calls == [model.t3]
    monkeypatch.undo()
    model.t3.__class__ = type("Mine", (T3,), {"inference": inference})
    assert torch.equal(say(), expected) and len(calls) == 2


def test_streams_and_batches_name_it_once(model, published, stream, inference, caplog, monkeypatch):
    expected, options = stream(), published.arguments
    counter = count(monkeypatch, model.t3, inference)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        assert torch.equal(stream(), expected) and torch.equal(stream(), expected)
        if published.module.endswith(".tts"):
            model.generate_batch([TEXT, TEXT], seed=1, **options)
    named = [message for message in caplog.messages if "replaced" in message]
    assert named == [f"streams and batches do not call the replaced t3.{inference}; generate does"]
    assert not counter.calls


def test_a_replaced_prepare_conditionals_makes_the_voices(model, published, say, stream, voice_file, monkeypatch):
    built_in, expected, streamed = model.conds, say(audio_prompt_path=voice_file), stream(audio_prompt_path=voice_file)
    counter = count(monkeypatch, model, "prepare_conditionals")
    assert torch.equal(say(audio_prompt_path=voice_file, exaggeration=0.5), expected)
    assert model.conds is not built_in
    assert torch.equal(stream(audio_prompt_path=voice_file), streamed)
    assert set(counter.threads) == {threading.current_thread()} and all("exaggeration" in one for one in counter.calls)
    assert len(counter.calls) == 2
    model.prepare_conditionals = lambda wav_fpath, exaggeration=0.5, norm_loudness=True: setattr(
        model, "conds", built_in
    )
    assert torch.equal(say(audio_prompt_path=voice_file), say())


def test_a_derived_class_makes_the_voices(model, say, voice_file):
    built_in = model.conds

    class Mine(type(model)):
        def prepare_conditionals(self, wav_fpath, exaggeration=0.5, **_):
            self.conds = built_in

    model.__class__ = Mine
    assert torch.equal(say(audio_prompt_path=voice_file), say())


def test_a_replaced_punc_norm_sees_every_text(model, published, say, stream, monkeypatch):
    module = importlib.import_module(published.module)
    expected = say(), stream()
    seen: list[str] = []
    monkeypatch.setattr(module, "punc_norm", lambda text: seen.append(text) or "Something else.")
    assert not torch.equal(say(), expected[0]) and set(seen) == {TEXT}
    assert not torch.equal(stream(), expected[1])
    monkeypatch.undo()
    assert torch.equal(say(), expected[0])


@pytest.mark.parametrize(
    "path", ["flow.inference", "mel2wav.inference", "flow_inference", "hift_inference", "inference"]
)
def test_wrapped_methods_of_s3gen_run_and_change_nothing(path, model, say, stream, monkeypatch):
    expected = say(), say(seed=7), stream(chunk_size=8, first_chunk=4)
    owner = model.s3gen
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    counter = count(monkeypatch, owner, name)
    assert torch.equal(say(), expected[0]) and len(counter.calls) == 1
    assert torch.equal(say(seed=7), expected[1]) and len(counter.calls) == 2
    streamed = stream(chunk_size=8, first_chunk=4)
    assert torch.allclose(streamed, expected[2], atol=2e-4)
    assert len(counter.calls) > 2 or path == "inference"


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_streams_name_a_replaced_s3gen_inference(model, stream, caplog, monkeypatch):
    count(monkeypatch, model.s3gen, "inference")
    with caplog.at_level(logging.WARNING, "chatterbox"):
        stream(chunk_size=8, first_chunk=4)
    named = (
        "streams call the replaced s3gen.inference for utterances of one chunk alone; generate and batches do for all"
    )
    assert [message for message in caplog.messages if "replaced" in message] == [named]


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_functions_of_upstreams_signature_get_no_argument_of_ours(model, say, stream, monkeypatch):
    flow, vocoder, calls = model.s3gen.flow, model.s3gen.mel2wav, []

    def flow_inference(
        token, token_len, prompt_token, prompt_token_len, prompt_feat, prompt_feat_len, embedding, finalize,
        n_timesteps=10, noised_mels=None, meanflow=False,
    ):  # fmt: skip
        calls.append((token.shape[1], token_len.tolist(), n_timesteps, meanflow))
        return CausalMaskedDiffWithXvec.inference(
            flow, token, token_len, prompt_token, prompt_token_len, prompt_feat, prompt_feat_len, embedding, finalize
        )

    def vocoder_inference(speech_feat, cache_source):
        calls.append(cache_source.shape[2])
        return type(vocoder).inference(vocoder, speech_feat, cache_source)

    monkeypatch.setattr(flow, "inference", flow_inference)
    monkeypatch.setattr(vocoder, "inference", vocoder_inference)
    wav = say()
    num_tokens, lens, *rest = calls[0]
    steps = model.s3gen.config.flow.num_steps
    assert [num_tokens] == lens and rest == [steps, False] and calls[1] == 0 and wav.isfinite().all()
    streamed = stream(chunk_size=8, first_chunk=4)
    assert streamed.isfinite().all() and max(one for one in calls if isinstance(one, int)) > 0


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_the_flows_guidance_is_set(model, say):
    before = say()
    model.s3gen.flow.decoder.inference_cfg_rate = 0.2
    assert not torch.equal(say(), before)
    model.s3gen.flow.decoder.inference_cfg_rate = 0.7
    assert torch.equal(say(), before)


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_anothers_function_is_another_function(model, say, request):
    """What is this package's own, but of another model, is what runs."""
    other = type(model).from_local(request.getfixturevalue("small_folder"), "cpu")
    with torch.no_grad():
        other.t3.speech_head.weight.neg_()
    model_says = say()
    model.t3.inference = other.t3.inference
    assert not torch.equal(say(), model_says)
    del model.t3.inference
    assert torch.equal(say(), model_says)


@pytest.mark.parametrize("published", ["english"], indirect=True)
def test_punctuation_of_another_model_is_used(model, say, monkeypatch):
    english, multilingual = (importlib.import_module(f"chatterbox.{name}") for name in ("tts", "mtl_tts"))
    seen: list[str] = []
    own = model.tokenizer.text_to_tokens
    monkeypatch.setattr(model.tokenizer, "text_to_tokens", lambda text: seen.append(text) or own(text))
    torch.manual_seed(3)
    model.generate("hello。", cleaning="none")
    monkeypatch.setattr(english, "punc_norm", multilingual.punc_norm)
    torch.manual_seed(3)
    model.generate("hello。", cleaning="none")
    assert "Hello。." in seen and seen[-1] == "Hello。"


@pytest.mark.parametrize("name", ["s3gen.embed_ref", "s3gen.tokenizer.forward", "ve.embeds_from_wavs", "ve.inference"])
def test_what_hears_a_voice_is_called_each_time(name, model, say, voice_file, monkeypatch):
    """Also for a recording that was heard before."""
    expected = say(audio_prompt_path=voice_file)
    *path, method = name.split(".")
    counter = count(monkeypatch, reduce(getattr, path, model), method)
    assert torch.equal(say(audio_prompt_path=voice_file), expected)
    num_calls = len(counter.calls)
    assert num_calls and torch.equal(say(audio_prompt_path=voice_file), expected)
    assert len(counter.calls) == 2 * num_calls


@pytest.mark.parametrize("path", ["s3gen.tokenizer", "s3gen.speaker_encoder", "ve"])
@pytest.mark.parametrize("way", ["counted", "through data", "by a hook"])
def test_a_voice_is_made_anew_by_changed_networks(path, way, model, voice_file):
    model.prepare_conditionals(voice_file)
    before, part = model.conds, reduce(getattr, path.split("."), model)
    weights = [one for one in part.parameters() if one.dim() > 1]
    for weight in weights if way != "by a hook" else ():
        (weight.data if way == "through data" else weight.detach()).mul_(-1.5)
    heard: list[Any] = []
    if way == "by a hook":
        part.register_forward_pre_hook(lambda module, arguments: heard.append(module))
    model.prepare_conditionals(voice_file)
    if way == "by a hook":
        assert heard
        return
    same = [
        torch.equal(model.conds.t3.speaker_emb, before.t3.speaker_emb),
        torch.equal(model.conds.gen["embedding"], before.gen["embedding"]),
        torch.equal(model.conds.gen["prompt_token"], before.gen["prompt_token"]),
    ]
    assert same == [path != "ve", path != "s3gen.speaker_encoder", path != "s3gen.tokenizer"]


def test_another_voice_encoder_makes_other_voices(model, voice_file):
    model.prepare_conditionals(voice_file)
    before = model.conds.t3.speaker_emb
    other = copy.deepcopy(model.ve)
    for weight in other.parameters():
        weight.data.mul_(-1.5)
    model.ve = other
    model.prepare_conditionals(voice_file)
    assert not torch.equal(model.conds.t3.speaker_emb, before)


def test_a_replaced_filter_of_speech_tokens_is_named_once(model, published, say, stream, caplog, monkeypatch):
    module = importlib.import_module(published.module)
    monkeypatch.setitem(vars(module), "drop_invalid_tokens", lambda tokens: tokens)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        say(), stream(), say()
    named = f"the replaced {published.module}.drop_invalid_tokens is not called: speech tokens are chosen as they come"
    assert [message for message in caplog.messages if "replaced" in message] == [named]


class Quiet:
    """A watermarker that marks nothing."""

    def apply_watermark(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        return wav


def replace_class(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(perth, "PerthImplicitWatermarker", Quiet)


def replace_class_by_a_function(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(perth, "PerthImplicitWatermarker", lambda: Quiet())


def replace_by_perths_dummy(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(perth, "PerthImplicitWatermarker", perth.DummyWatermarker)


def replace_through_the_facade(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(module.perth, "PerthImplicitWatermarker", Quiet)


def replace_module(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "perth", SimpleNamespace(PerthImplicitWatermarker=Quiet))


def replace_name(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setitem(vars(module), "perth", SimpleNamespace(PerthImplicitWatermarker=Quiet))


WAYS = [
    replace_class,
    replace_class_by_a_function,
    replace_by_perths_dummy,
    replace_through_the_facade,
    replace_module,
    replace_name,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_watermarker_of_ones_own(way, published, request, monkeypatch):
    module = importlib.import_module(published.module)
    way(module, monkeypatch)
    model = getattr(module, published.cls).from_local(request.getfixturevalue(published.folder), "cpu")
    wav = model.generate(TEXT, **published.arguments, seed=1)
    plain = model.generate(TEXT, **published.arguments, seed=1, watermark=False)
    model.watermarker = PerthWatermarker()
    marked = model.generate(TEXT, **published.arguments, seed=1)
    assert torch.allclose(wav, plain, atol=1e-4) and not torch.allclose(
        marked, plain, atol=1e-4
    )  # Perth's dummy rounds


RETURNS = [
    (lambda wav, sample_rate: None, "returned None, which"),
    (lambda wav, sample_rate: MagicMock(), "returned a MagicMock, which"),
    (lambda wav, sample_rate: wav[None], r"returned a ndarray of shape \(1, \d+\), which"),
    (lambda wav, sample_rate: "marked", "returned a str, which"),
]


@pytest.mark.parametrize("published", ["english"], indirect=True)
@pytest.mark.parametrize(("mark", "message"), RETURNS, ids=["None", "mock", "two channels", "text"])
def test_a_watermarker_that_returns_no_audio(mark, message, model):
    model.watermarker = SimpleNamespace(apply_watermark=mark)
    message = f"^the watermarker, SimpleNamespace, {message} is no audio of one channel: .* or pass watermark=False$"
    with pytest.raises(TypeError, match=message):
        model.generate(TEXT, seed=1)
    with pytest.raises(TypeError, match=message):
        list(model.generate_stream(TEXT, seed=1, print_metrics=False))
    assert model.generate(TEXT, seed=1, watermark=False).any()


def test_a_watermarker_may_return_a_list_or_a_tensor(small_folder):
    model = importlib.import_module("chatterbox.tts").ChatterboxTTS.from_local(small_folder, "cpu")
    plain = model.generate(TEXT, seed=1, watermark=False)
    for kind in (torch.from_numpy, list):
        model.watermarker = SimpleNamespace(apply_watermark=lambda wav, sample_rate, kind=kind: kind(wav))
        assert torch.equal(model.generate(TEXT, seed=1), plain)


def test_a_mock_of_perth_is_named(small_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "perth", MagicMock())
    model = importlib.import_module("chatterbox.tts").ChatterboxTTS.from_local(small_folder, "cpu")
    with pytest.raises(TypeError, match=r"^the watermarker, MagicMock, returned a MagicMock, which is no audio"):
        model.generate(TEXT, seed=1)


def test_conversion_has_it_too(small_folder, voice_file, monkeypatch):
    replace_module(importlib.import_module("chatterbox.vc"), monkeypatch)
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    assert torch.equal(vc.generate(voice_file, seed=1), vc.generate(voice_file, seed=1, watermark=False))


def test_an_empty_stub_of_perth_leaves_our_watermark(small_folder, monkeypatch):
    """As programs have it that want to import without Perth's own requirements."""
    monkeypatch.setitem(sys.modules, "perth", ModuleType("perth"))
    model = importlib.import_module("chatterbox.tts").ChatterboxTTS.from_local(small_folder, "cpu")
    wav = model.generate(TEXT, seed=1)
    assert not torch.equal(wav, model.generate(TEXT, seed=1, watermark=False))
