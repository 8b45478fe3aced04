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

from chatterbox.models.t3.backbone import LlamaBackbone
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


@ENGLISH
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_backbone_is_left_as_it_is_and_named(in_place, model, say, caplog):
    before = say()
    with caplog.at_level(logging.WARNING, "chatterbox"):
        if in_place:
            model.t3.tfmr.compile()
        else:
            model.t3.tfmr = torch.compile(model.t3.tfmr)
    assert isinstance(model.t3.tfmr, LlamaBackbone) and torch.equal(say(), before)
    assert "torch.compile of T3's backbone is left out" in caplog.text


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
