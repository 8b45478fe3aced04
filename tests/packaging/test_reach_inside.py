"""Programs that reach one layer down: adapters, the backbone by itself, types, copies in other processes."""

from __future__ import annotations

import copy
import io
import logging
import multiprocessing
import pickle
from typing import Any

import peft
import pytest
import torch

from chatterbox.models.t3 import T3
from chatterbox.models.t3.uncompiled import LEFT_OUT
from chatterbox.vc import ChatterboxVC
from tests.packaging.conftest import TEXT

ENGLISH = pytest.mark.parametrize("published", ["english"], indirect=True)


def lora(**options: Any) -> Any:
    return peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False, **options)


@ENGLISH
@pytest.mark.parametrize("whole", [False, True], ids=["tfmr", "t3"])
def test_an_adapter_is_put_on_merged_and_taken_off(whole, model, say, tmp_path):
    """Prefixes are cached by then: each state has its own."""
    owner, name = (model, "t3") if whole else (model.t3, "tfmr")
    base = say()
    setattr(owner, name, peft.get_peft_model(getattr(owner, name), lora()))
    adapter = getattr(owner, name)
    adapted = say()
    assert not torch.equal(adapted, base)
    with adapter.disable_adapter():
        assert torch.equal(say(), base)
    assert torch.equal(say(), adapted)
    adapter.merge_adapter()
    merged = say()
    assert not torch.equal(merged, base) and merged.shape == adapted.shape
    adapter.unmerge_adapter()
    unmerged = say()
    assert unmerged.shape == adapted.shape and not torch.equal(unmerged, base)
    adapter.save_pretrained(tmp_path / "adapter")
    setattr(owner, name, adapter.unload())
    setattr(owner, name, peft.PeftModel.from_pretrained(getattr(owner, name), tmp_path / "adapter"))
    assert torch.allclose(say(), adapted, atol=1e-3)
    setattr(owner, name, getattr(owner, name).merge_and_unload())
    assert not torch.equal(say(), base)


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
def test_the_backbone_is_called_as_in_transformers(model):
    tfmr, embeds = model.t3.tfmr, torch.randn(2, 7, model.t3.dim)
    with torch.inference_mode():
        whole = tfmr(inputs_embeds=embeds, use_cache=False, output_hidden_states=True, return_dict=True)
        assert torch.equal(whole[0], whole.last_hidden_state) and torch.equal(whole[0], tfmr(embeds))
        assert whole.past_key_values is None and len(whole.hidden_states) == tfmr.config.num_hidden_layers + 1
        assert torch.equal(whole.hidden_states[-1], whole[0])
        first = tfmr(inputs_embeds=embeds[:, :5], attention_mask=torch.ones(2, 5))
        options = {"past_key_values": first.past_key_values, "use_cache": True, "return_dict": False}
        last, cache = tfmr(inputs_embeds=embeds[:, 5:], **options, position_ids=torch.arange(5, 7)[None])
    assert torch.allclose(last, whole[0][:, 5:], atol=1e-5) and cache is first.past_key_values and cache.length == 7
    assert tfmr.config.hidden_size == model.t3.dim and tfmr.config.num_attention_heads > 0


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
def test_the_configuration_of_the_backbone_says_what_a_call_leaves_out(model, say):
    tfmr, embeds, before = model.t3.tfmr, torch.randn(1, 3, model.t3.dim), say()
    with torch.inference_mode():
        assert tfmr(inputs_embeds=embeds).past_key_values is not None
        tfmr.config.use_cache = False
        tfmr.config.output_hidden_states = True
        assert tfmr(inputs_embeds=embeds).past_key_values is None
        assert len(tfmr(inputs_embeds=embeds).hidden_states) == tfmr.config.num_hidden_layers + 1
        tfmr.config.return_dict = False
        assert isinstance(tfmr(inputs_embeds=embeds), tuple)
    assert torch.equal(say(), before)
    tfmr.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions is not available"):
        tfmr(inputs_embeds=embeds)
    assert tfmr.config.to_dict()["hidden_size"] == model.t3.dim
    assert model.t3.cfg is tfmr.config and model.t3.is_gpt is (tfmr.config.model_type == "gpt2")


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
@pytest.mark.parametrize("options", [None, {"use_reentrant": True}])
def test_gradients_with_layers_that_are_computed_again(options, model):
    tfmr, embeds = model.t3.tfmr, torch.randn(2, 5, model.t3.dim)
    layers = tfmr.layers if hasattr(tfmr, "layers") else tfmr.h
    calls: list[object] = []
    layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    weights = list(layers.requires_grad_(True).parameters())
    plain = torch.autograd.grad(tfmr(embeds).square().mean(), weights)
    assert len(calls) == 1 and not tfmr.is_gradient_checkpointing
    tfmr.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    tfmr.enable_input_require_grads()
    tfmr.train()
    calls.clear()
    loss = tfmr(embeds).square().mean()
    loss.backward()
    assert len(calls) == 2 and tfmr.is_gradient_checkpointing and not embeds.requires_grad
    for weight, gradient in zip(weights, plain, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-6)
    tfmr.eval()
    calls.clear()
    tfmr(embeds).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
def test_gradients_of_what_enters_the_backbone(model):
    tfmr, entering = model.t3.tfmr.requires_grad_(False), torch.randn(1, 4, model.t3.dim)
    assert not tfmr(entering).requires_grad
    tfmr.enable_input_require_grads()
    assert tfmr(entering).requires_grad and not entering.requires_grad
    tfmr.disable_input_require_grads()
    assert not tfmr(entering).requires_grad
    assert (tfmr.dtype, tfmr.device) == (torch.float32, torch.device("cpu"))


@ENGLISH
def test_input_embeddings(model):
    tfmr = model.t3.tfmr
    assert tfmr.get_input_embeddings() is tfmr.embed_tokens
    tfmr.set_input_embeddings(other := torch.nn.Embedding(9, model.t3.dim))
    assert tfmr.get_input_embeddings() is other


@pytest.mark.parametrize("published", ["turbo"], indirect=True)
def test_turbo_has_no_input_embeddings(model):
    with pytest.raises(AttributeError, match=r"no input embeddings; T3's are t3\.text_emb and t3\.speech_emb"):
        model.t3.tfmr.get_input_embeddings()


@ENGLISH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": torch.zeros(1, 3)}, "takes inputs_embeds, not input_ids"),
        ({"head_mask": torch.ones(1)}, "takes inputs_embeds, not head_mask"),
        ({"past_key_values": ((1, 2),)}, "must be what an earlier call returned, got tuple"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, "attention_mask must be all ones"),
        ({"output_attentions": True}, "output_attentions is not available"),
        ({"position_ids": torch.arange(3, 6)}, "position_ids must follow what is cached, 0 to 2"),
    ],
)
def test_what_the_backbone_has_not_is_said(model, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.t3.tfmr(inputs_embeds=torch.randn(1, 3, model.t3.dim), **options)


@ENGLISH
def test_an_unknown_argument_of_the_backbone(model):
    with pytest.raises(TypeError, match="LlamaBackbone got an unexpected argument 'causal'"):
        model.t3.tfmr(torch.randn(1, 3, model.t3.dim), causal=True)


@ENGLISH
def test_the_backbone_learns_when_called_as_in_transformers(model):
    embeds = torch.randn(1, 4, model.t3.dim, requires_grad=True)
    model.t3.tfmr(inputs_embeds=embeds).last_hidden_state.sum().backward()
    assert embeds.grad is not None and embeds.grad.any()


def compile_backbone(t3: T3) -> None:
    t3.tfmr = torch.compile(t3.tfmr)


def compile_backbone_in_place(t3: T3) -> None:
    t3.tfmr.compile()


def compile_its_forward(t3: T3) -> None:
    t3.tfmr.forward = torch.compile(t3.tfmr.forward)


def compile_its_forward_eagerly(t3: T3) -> None:
    t3.tfmr.forward = torch.compile(t3.tfmr.forward, backend="eager")


def compile_a_layer(t3: T3) -> None:
    t3.tfmr.layers[0] = torch.compile(t3.tfmr.layers[0], backend="eager")


def compile_layers_in_place(t3: T3) -> None:
    for layer in t3.tfmr.layers:
        layer.compile(backend="eager")


def compile_part_of_a_layer(t3: T3) -> None:
    t3.tfmr.layers[0].self_attn = torch.compile(t3.tfmr.layers[0].self_attn, backend="eager")


def compile_an_adapter(t3: T3) -> None:
    t3.tfmr = torch.compile(peft.get_peft_model(t3.tfmr, peft.LoraConfig(target_modules=["q_proj"])))


COMPILED = [
    compile_backbone,
    compile_backbone_in_place,
    compile_its_forward,
    compile_its_forward_eagerly,
    compile_a_layer,
    compile_layers_in_place,
    compile_part_of_a_layer,
    compile_an_adapter,
]


@ENGLISH
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_backbone_is_left_as_it_is_and_named_once(compiled, model, say, caplog):
    before = say()
    with caplog.at_level(logging.WARNING, "chatterbox"):
        compiled(model.t3)
    assert torch.equal(say(), before)
    assert [message for message in caplog.messages if "torch.compile" in message] == [LEFT_OUT]
    assert all(not hasattr(part, "_orig_mod") for part in model.t3.modules())


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_take_effect(model, say):
    plain, before = model.t3, say()
    quantised = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    kinds = {type(layer) for layer in quantised.modules()}
    assert torch.ao.nn.quantized.dynamic.Linear in kinds and torch.nn.Linear not in kinds
    hidden = torch.randn(1, 3, plain.dim)
    with torch.inference_mode():
        error = (quantised.predict_speech(hidden) - plain.predict_speech(hidden)).abs().max()
    assert 0 < error < 0.1
    assert quantised.watch.fingerprint(quantised) != plain.watch.fingerprint(plain)
    calls: list[object] = []
    quantised.speech_head.register_forward_hook(lambda *_: calls.append(None))
    model.t3 = quantised
    assert say().isfinite().all() and calls
    model.t3 = plain
    assert torch.equal(say(), before)


@pytest.mark.parametrize("published", ["english", "turbo"], indirect=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_of_s3gen_take_effect(model, say, voice_file):
    before, plain = say(watermark=False), model.s3gen
    model.s3gen = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    kinds = {type(layer) for layer in model.s3gen.modules()}
    assert torch.ao.nn.quantized.dynamic.Linear in kinds and torch.nn.Linear not in kinds
    wav = say(watermark=False)
    assert wav.shape == before.shape and wav.isfinite().all() and not torch.equal(wav, before)
    assert say(audio_prompt_path=voice_file).isfinite().all()
    model.s3gen = plain
    assert torch.equal(say(watermark=False), before)


@pytest.mark.parametrize("published", ["turbo"], indirect=True)
def test_an_adapter_on_turbo(model, say):
    """peft knows the layers by their type, transformers' own."""
    base = say()
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, init_lora_weights=False)
    model.t3 = adapter = peft.get_peft_model(model.t3, config)
    adapted = say()
    assert not torch.equal(adapted, base)
    adapter.merge_adapter()
    merged = say()
    assert not torch.equal(merged, base) and merged.shape == adapted.shape
    adapter.unmerge_adapter()
    with adapter.disable_adapter():
        assert torch.allclose(say(), base, atol=1e-4)
    model.t3 = adapter.merge_and_unload()
    assert not torch.equal(say(), base)


@pytest.mark.parametrize("wrapped", ["t3", "s3gen", "ve"])
@ENGLISH
def test_a_part_in_data_parallel_speaks(wrapped, model, say, voice_file, caplog):
    before = say(audio_prompt_path=voice_file)
    part = getattr(model, wrapped)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        setattr(model, wrapped, torch.nn.DataParallel(part))
    assert getattr(model, wrapped) is part and "DataParallel is left out" in caplog.text
    assert torch.equal(say(audio_prompt_path=voice_file), before)
    parts = {"t3": model.t3, "s3gen": model.s3gen, "ve": model.ve}
    parts[wrapped] = torch.nn.DataParallel(part)
    assert getattr(type(model)(**parts, tokenizer=model.tokenizer, device="cpu"), wrapped) is part


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["all", "flow", "all but the vocoder"])
def test_s3gen_in_half_precision(part, dtype, model, published, say, voice_file):
    (model.s3gen.flow if part == "flow" else model.s3gen).to(dtype)
    if part == "all but the vocoder":
        model.s3gen.mel2wav.float()
    wav = say()
    assert wav.isfinite().all() and wav.any() and wav.dtype == torch.float32
    options = {**published.arguments, "seed": 1, "print_metrics": False, "first_chunk": 4, "chunk_size": 4}
    chunks = [audio for audio, _ in model.generate_stream(TEXT, **options)]
    assert all(audio.isfinite().all() for audio in chunks)
    assert say(audio_prompt_path=voice_file).isfinite().all()


def _speak(model: Any, arguments: dict[str, Any], answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(model.generate(TEXT, **arguments, seed=3).numpy())


def test_a_spawned_worker_gets_the_model(model, published):
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=_speak, args=(model, published.arguments, answers))
    worker.start()
    answer = answers.get(timeout=120)
    worker.join(60)
    assert torch.equal(torch.from_numpy(answer), model.generate(TEXT, **published.arguments, seed=3))


def test_a_pickle_keeps_what_the_model_was_given(model, published, say):
    before = say()
    model.mine = "note"
    model.watermarker = None
    other = pickle.loads(pickle.dumps(model))
    assert other.mine == "note" and other.watermarker is None and other.layout == model.layout
    assert other.sampling == model.sampling and other.s3gen.state_dict().keys() == model.s3gen.state_dict().keys()
    torch.manual_seed(3)
    assert torch.equal(
        other.generate(TEXT, **published.arguments, watermark=False), say(watermark=False)
    ) and not torch.equal(before, say(watermark=False))


def test_parts_and_conversion_are_pickled(small_folder, voice_file):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    expected = vc.generate(voice_file, seed=1)
    for other in (pickle.loads(pickle.dumps(vc)), copy.deepcopy(vc)):
        assert torch.equal(other.generate(voice_file, seed=1), expected)
    buffer = io.BytesIO()
    torch.save(vc.s3gen, buffer)
    buffer.seek(0)
    vc.s3gen = torch.load(buffer, weights_only=False)
    assert torch.equal(vc.generate(voice_file, seed=1), expected)
