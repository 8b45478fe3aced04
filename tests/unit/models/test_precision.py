"""What the name of a precision means here, and what it does to a model that speaks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch

from chatterbox.checkpoints import load_models
from chatterbox.config import PRECISIONS, PrecisionConfig, S3GenOptions, precision_config
from chatterbox.kvcache.prefix.keys import weights_fingerprint
from chatterbox.models import precision
from chatterbox.models.config import T3Config
from chatterbox.models.packed import MATRICES, Float16Matrix, Int8Matrix, PackedLinear
from chatterbox.models.precision import S3GEN_LAYERS, T3_LAYERS, Packing, pack, s3gen_precision, t3_precision
from chatterbox.models.t3 import T3
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from tests.support import small
from tests.support.decoding import generate_batch
from tests.support.folders import recording

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALLER = PRECISIONS[2:]


def packed_t3(kind: str, hp: T3Config = small.SMALL) -> T3:
    t3 = small.build(hp)
    pack(t3, Packing(T3_LAYERS, MATRICES[kind]))
    return t3


def test_auto_is_exact_on_a_cpu_and_what_a_file_was_packed_in() -> None:
    auto = PrecisionConfig()
    assert t3_precision(auto, CPU) == s3gen_precision(auto, CPU) == "float32"
    assert t3_precision(auto, CPU, "int8") == s3gen_precision(auto, CPU, "int8") == "int8"
    assert t3_precision(auto, CUDA) == s3gen_precision(auto, CUDA, "int8") == "bfloat16"
    assert t3_precision(PrecisionConfig("float32"), CPU, "int8") == "float32"


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_s3gen_follows_t3_as_the_cpu_can(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has_bfloat16)
    assert s3gen_precision(PrecisionConfig("int8"), CPU) == ("bfloat16" if has_bfloat16 else "int8")
    assert s3gen_precision(PrecisionConfig("int8"), CPU, "int8") == "int8"
    assert s3gen_precision(PrecisionConfig("int8", s3gen="int8"), CPU) == "int8"
    assert s3gen_precision(PrecisionConfig("int8", s3gen="float32"), CPU) == "float32"
    assert s3gen_precision(PrecisionConfig("float16"), CPU) == "float16"


def test_a_type_that_the_cpu_is_slow_at_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "has_fbgemm", lambda: False)
    precision._warn_if_slow.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for kind in PRECISIONS[1:]:
                t3_precision(PrecisionConfig(kind), CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "precision float16 is slow here: this torch has no such products; float32 is faster",
        "precision bfloat16 is slow on this CPU, which has no such products; float32 is faster",
        "precision int8 is slow here: this torch has no such products; float32 is faster",
    ]
    precision._warn_if_slow.cache_clear()


@pytest.mark.parametrize("value", ["half", "", 16, None, torch.float16])
def test_no_such_precision(value: object, small_folder: Path) -> None:
    with pytest.raises(ValueError, match="float16, bfloat16, int8"):
        ChatterboxTTS.from_local(small_folder, "cpu", precision=value)  # type: ignore[arg-type]


def test_int8_is_for_cpus() -> None:
    with pytest.raises(ValueError, match="int8 is for CPUs, and the model is on cuda; take 'bfloat16'"):
        t3_precision(PrecisionConfig("int8"), CUDA)
    assert precision_config("int8") == PrecisionConfig("int8")


@pytest.mark.parametrize("hp", [small.SMALL, small.SMALL_GPT2], ids=["llama", "gpt2"])
def test_layers_of_t3(hp: T3Config) -> None:
    t3 = packed_t3("int8", hp)
    packed = {name for name, one in t3.named_modules() if isinstance(one, PackedLinear)}
    assert packed and all(name.startswith(T3_LAYERS) for name in packed) and {"speech_head", "text_head"} < packed
    assert not any(isinstance(one, torch.nn.Linear) for one in t3.tfmr.modules())
    assert type(t3.cond_enc.spkr_enc) is torch.nn.Linear and t3.dtype == torch.float32
    assert t3.state_dict().keys() == small.build(hp).state_dict().keys()


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("hp", [small.SMALL, small.SMALL_GPT2], ids=["llama", "gpt2"])
def test_requests_together_are_requests_alone(kind: str, hp: T3Config) -> None:
    t3, requests = packed_t3(kind, hp), [small.make_request(seed, hp) for seed in range(5)]
    alone = [generate_batch(t3, [one])[0] for one in requests]
    assert [tokens.tolist() for tokens in generate_batch(t3, requests)] == [tokens.tolist() for tokens in alone]


@pytest.mark.parametrize("kind", SMALLER)
def test_logits_are_near(kind: str) -> None:
    plain, packed = small.build(small.SMALL), packed_t3(kind)
    embeds = torch.randn(2, 30, 32)
    with torch.inference_mode():
        wanted, found = (one.predict_speech(one.tfmr(embeds)) for one in (plain, packed))
    assert 0 < (found - wanted).norm() / wanted.norm() < {"float16": 2e-3, "bfloat16": 2e-2, "int8": 6e-2}[kind]


def test_another_precision_is_another_model_to_caches() -> None:
    plain = small.build(small.SMALL)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.copy_(weight.half())
    halved = copy.deepcopy(plain)
    pack(halved, Packing(T3_LAYERS, Float16Matrix))
    assert weights_fingerprint(plain) == weights_fingerprint(halved)  # the numbers are the same, the products are not
    assert plain.watch.fingerprint(plain) != halved.watch.fingerprint(halved)
    again = packed_t3("int8")
    assert again.watch.fingerprint(again) == (other := packed_t3("int8")).watch.fingerprint(other)


def test_weights_that_are_loaded_into_a_packed_model_are_noticed() -> None:
    t3 = packed_t3("int8")
    before = t3.watch.fingerprint(t3)
    state = t3.state_dict()
    t3.load_state_dict(state)
    assert t3.watch.fingerprint(t3) == before
    state["tfmr.layers.0.mlp.down_proj.weight"] *= 2
    t3.load_state_dict(state)
    assert t3.watch.fingerprint(t3) != before


@pytest.mark.parametrize("kind", SMALLER)
def test_a_model_speaks(kind: str, small_folder: Path) -> None:
    tts = ChatterboxTTS.from_local(small_folder, "cpu", precision=kind)
    assert isinstance(tts.t3.speech_head, PackedLinear)
    wav = tts.generate("Hello there.", seed=1)
    assert wav.isfinite().all() and torch.equal(wav, tts.generate("Hello there.", seed=1))
    chunks = torch.cat([audio for audio, _ in tts.generate_stream("Hello there.", seed=1, print_metrics=False)], dim=1)
    assert chunks.shape == wav.shape
    tts.unload()
    assert torch.equal(tts.generate("Hello there.", seed=1), wav) and isinstance(tts.t3.speech_head, PackedLinear)


def test_each_network_its_own(small_folder: Path) -> None:
    models = load_models(small_folder, "cpu", precision=PrecisionConfig("int8", s3gen="float16"))
    kinds = {type(one.matrix) for one in models.s3gen.modules() if isinstance(one, PackedLinear)}
    assert kinds == {Float16Matrix}
    assert {type(one.matrix) for one in models.t3.modules() if isinstance(one, PackedLinear)} == {Int8Matrix}
    packed = [name for name, one in models.s3gen.named_modules() if isinstance(one, PackedLinear)]
    assert all(name.startswith(S3GEN_LAYERS) for name in packed)
    plain = load_models(small_folder, "cpu")
    assert not any(isinstance(one, PackedLinear) for one in (*plain.t3.modules(), *plain.s3gen.modules()))
    assert models.s3gen.state_dict().keys() == plain.s3gen.state_dict().keys()


def test_s3gen_in_bfloat16_solves_in_float32(small_folder: Path) -> None:
    models = load_models(small_folder, "cpu", precision=PrecisionConfig("float32", s3gen="bfloat16"))
    assert models.s3gen.flow.decoder.estimator.dtype == torch.bfloat16
    assert models.s3gen.flow.dtype == torch.float32
    mel = models.s3gen.flow_inference(torch.arange(20)[None], ref_dict=models.conds.gen, n_cfm_timesteps=2)
    assert mel.dtype == torch.float32 and mel.isfinite().all()


def test_turbo_and_conversion(turbo_folder: Path, small_folder: Path) -> None:
    turbo = ChatterboxTurboTTS.from_local(turbo_folder, "cpu", precision="int8")
    assert turbo.generate("Hello.", seed=1).isfinite().all()
    vc = ChatterboxVC.from_local(small_folder, "cpu", precision="int8")
    assert any(isinstance(one, PackedLinear) for one in vc.s3gen.modules())
    assert vc.generate((24_000, recording(1.0)), seed=1).isfinite().all()


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("memory", ["prompt", "past"])
def test_what_s3gen_remembers_is_of_its_own_type(kind: str, memory: str, small_folder: Path) -> None:
    options = S3GenOptions(memory=memory)
    tts = ChatterboxTTS.from_local(small_folder, "cpu", precision=PrecisionConfig(kind, kind), s3gen_options=options)
    said = {"chunk_size": 2, "first_chunk": 2, "seed": 1, "print_metrics": False}
    heard = [torch.cat([audio for audio, _ in tts.generate_stream("Hello there.", **said)], dim=1) for _ in range(2)]
    assert heard[0].isfinite().all() and torch.equal(heard[0], heard[1])
