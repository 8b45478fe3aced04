"""Files of weights as trainers and tools leave them: containers, wrappers, adapters, whole models, quantised files."""

from __future__ import annotations

import argparse
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox.checkpoints import CheckpointError, load_models
from chatterbox.tts import ChatterboxTTS

T3 = "t3_cfg.safetensors"
PROJECTION = "tfmr.layers.0.self_attn.q_proj"


@pytest.fixture
def weights(own_folder) -> dict[str, torch.Tensor]:
    """T3's tensors; their file is gone."""
    tensors = {key: value.clone() for key, value in load_file(own_folder / T3).items()}
    (own_folder / T3).unlink()
    return tensors


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as error:
        load_models(folder, "cpu")
    said = str(error.value)
    assert "\n" not in said and "\x1b" not in said
    return said


def require_same(folder, tts, **files) -> None:
    """The folder speaks as ``tts`` does."""
    loaded = ChatterboxTTS.from_local(folder, "cpu", **files)
    assert torch.equal(loaded.generate("Hi.", seed=3), tts.generate("Hi.", seed=3))


@pytest.mark.parametrize("name", ["t3", "ema", "net", "params", "generator", "model_state", "t3_state_dict", "student"])
def test_a_state_dict_under_any_name_if_it_is_the_only_one(own_folder, weights, small_tts, name):
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    torch.save({name: weights, "epoch": 1, "optimizer": optimizer}, own_folder / "t3_cfg.pt")
    require_same(own_folder, small_tts)


@pytest.mark.parametrize(
    "kept",
    [
        lambda t: {**t, "step": 5, "loss": None},
        lambda t: {**{f"t3.{key}": value for key, value in t.items()}, "s3gen.x": torch.zeros(2)},
        lambda t: {**{f"model.t3.{key}": value for key, value in t.items()}, "loss_fn.w": torch.zeros(2)},
        lambda t: {"t3": t, "s3gen": {"mel2wav.x": torch.zeros(2)}},
    ],
    ids=["numbers beside", "whole model", "with a loss", "whole model, nested"],
)
def test_what_is_beside_the_weights_is_left_out(own_folder, weights, small_tts, kept):
    torch.save(kept(weights), own_folder / "t3_cfg.pt")
    require_same(own_folder, small_tts)


def test_two_models_of_a_kind_in_a_file_are_refused(own_folder, weights):
    torch.save({"ema": weights, "student": weights}, own_folder / "t3_cfg.pt")
    assert refused(own_folder).endswith("several models of this kind, under ema., student.: save one of them alone")


@pytest.mark.parametrize(
    ("beside", "kind"),
    [(argparse.Namespace(lr=1), "argparse.Namespace"), (np.float64(1.0), "numpy"), (torch.nn.Linear(2, 2), "torch.nn")],
)
def test_objects_of_a_trainer_are_named_with_the_remedy(own_folder, weights, beside, kind):
    torch.save({"model": weights, "args": beside}, own_folder / "t3_cfg.pt")
    said = refused(own_folder)
    assert f"t3_cfg.pt holds a {kind}" in said and "save the state dict alone (torch.save(model.state_dict()" in said


@pytest.mark.parametrize("ending", [".pth", ".bin", ".ckpt", ".pt"])
def test_pickles_of_any_ending_by_name(own_folder, weights, small_tts, ending):
    torch.save(weights, own_folder / f"t3_mine{ending}")
    require_same(own_folder, small_tts, t3_model=f"t3_mine{ending}")
    require_same(own_folder, small_tts, t3_model="t3_mine")


def test_a_safetensors_file_named_as_a_pickle_and_an_old_pickle(own_folder, weights, small_tts):
    save_file(weights, own_folder / "t3_cfg.pt")
    require_same(own_folder, small_tts)
    torch.save(weights, own_folder / "t3_cfg.pt", _use_new_zipfile_serialization=False)
    require_same(own_folder, small_tts)


@pytest.mark.parametrize("name", ["t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "t3_cfg.pt"])
def test_a_pointer_of_git_lfs_is_named(own_folder, name):
    (own_folder / T3).unlink() if name.startswith("t3") else None
    (own_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aaa\nsize 123\n")
    assert f"{name} is a pointer of git-LFS, not the file: run `git lfs pull`" in refused(own_folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(own_folder, weights, dtype):
    save_file({key: value.to(dtype) for key, value in weights.items()}, own_folder / T3)
    said = refused(own_folder)
    assert f"is of {str(dtype).removeprefix('torch.')}, this model needs floating-point numbers" in said and T3 in said


def test_floating_point_numbers_of_any_width_are(own_folder, weights):
    save_file({key: value.bfloat16() for key, value in weights.items()}, own_folder / T3)
    tts = ChatterboxTTS.from_local(own_folder, "cpu")
    assert torch.equal(tts.t3.speech_head.weight, weights["speech_head.weight"].bfloat16().float())


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{PROJECTION}.lora_A.default.weight", "a LoRA adapter"),
        (f"{PROJECTION}.lora_A", "a LoRA adapter"),
        (f"{PROJECTION}.lora_down.weight", "a LoRA adapter"),
        (f"{PROJECTION}.lokr_w1.default", "a LoKr adapter"),
        (f"{PROJECTION}.hada_w1_a.default", "a LoHa adapter"),
        (f"{PROJECTION}.ia3_l.default", "a IA3 adapter"),
    ],
)
def test_adapters_of_every_kind_are_named(own_folder, weights, key, kind):
    save_file({**weights, key: torch.zeros(2, 32)}, own_folder / T3)
    assert f"holds {kind} beside its weights; merge it before it is saved (peft: merge_and_unload)" in refused(
        own_folder
    )
    save_file({f"base_model.model.{key}": torch.zeros(2, 32)}, own_folder / T3)
    assert f"is {kind} without the weights that it changes; put it on the loaded model" in refused(own_folder)


@pytest.mark.parametrize("key", [f"{PROJECTION}.base_layer.weight", "speech_head.modules_to_save.default.weight"])
def test_a_file_saved_from_inside_of_peft_is_named(own_folder, weights, key):
    save_file({**weights, key: torch.zeros(2, 32)}, own_folder / T3)
    assert "was saved from inside of peft" in refused(own_folder)


def test_a_folder_of_an_adapter_alone_and_one_beside_a_model(own_folder, weights, small_folder, caplog):
    adapter = {f"base_model.model.{PROJECTION}.lora_A.weight": torch.zeros(2, 32)}
    save_file(adapter, own_folder / "adapter_model.safetensors")
    said = refused(own_folder)
    assert "has no t3_cfg.safetensors but adapter_model.safetensors, an adapter: load the model that it" in said
    assert "peft.PeftModel.from_pretrained(tts.t3.tfmr, folder)" in said
    shutil.copy(small_folder / T3, own_folder / T3)
    with caplog.at_level(logging.WARNING):
        load_models(own_folder, "cpu")
    assert caplog.text.count("adapter_model.safetensors, an adapter, is not read; put it on the loaded model") == 1
