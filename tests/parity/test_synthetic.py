"""Synthetic weights are the goldens' weights, bit for bit."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tests.parity.support import load_json, manifest
from tools.synthetic import (
    SEED,
    _offset_and_scale,
    fill_module,
    fill_tensors,
    is_derived,
    synthetic_tensor,
    uniform,
)

GOLDEN = load_json("synthetic_weights")
RULES_SHA256 = "d7f9d683d56dcd3cd114359b48234aeb34799787cff69c89b1581797eb83c628"  # from the goldens' generator


def test_stream():
    assert GOLDEN["seed"] == SEED
    assert uniform("speech_emb.weight", 8).tolist() == GOLDEN["uniform_stream_speech_emb_weight"]


@pytest.mark.parametrize("entry", GOLDEN["keys"], ids=lambda entry: entry["key"])
def test_tensor(entry):
    values = synthetic_tensor(entry["key"], entry["shape"])
    assert values.flatten()[:4].tolist() == entry["first"]
    assert hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest() == entry["sha256_float32_le"]


def test_rule_of_every_published_key():
    digest = hashlib.sha256()
    for layout in ("ve", "t3_cfg", "t3_mtl", "t3_turbo", "s3gen", "s3gen_meanflow"):
        for key, shape in manifest(layout).items():
            if not is_derived(key) and not key.endswith("num_batches_tracked"):
                digest.update("{} {:.9g} {:.9g}\n".format(key, *_offset_and_scale(key, shape)).encode())
    assert digest.hexdigest() == RULES_SHA256


def test_another_seed_gives_other_values():
    assert not torch.equal(synthetic_tensor("proj.weight", (4, 4)), synthetic_tensor("proj.weight", (4, 4), seed=1))


@pytest.mark.parametrize("key", ["tokenizer._mel_filters", "tokenizer.window", "mel2wav.stft_window", "trim_fade"])
def test_derived_keys_have_no_values(key):
    assert is_derived(key)
    assert synthetic_tensor(key, (4,)) is None


@pytest.mark.parametrize("key", ["window.weight", "proj.weight", "speech_pos_emb.emb.weight"])
def test_other_keys_are_not_derived(key):
    assert not is_derived(key)


def test_fill_module_uses_the_place_in_the_checkpoint():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    module[1].num_batches_tracked.fill_(7)
    assert fill_module(module, prefix="tfmr.") is module
    assert torch.equal(module[0].weight, synthetic_tensor("tfmr.0.weight", (2, 3)))
    assert torch.equal(module[1].running_var, synthetic_tensor("tfmr.1.running_var", (2,)))
    assert module[1].num_batches_tracked.item() == 0


def test_fill_tensors_equals_fill_module():
    module = fill_module(torch.nn.Conv1d(2, 3, 5), prefix="flow.")
    layout = {key: (tensor.shape, tensor.dtype) for key, tensor in module.state_dict().items()}
    filled = fill_tensors({**layout, "window": ((4,), torch.float32)}, prefix="flow.")
    assert filled.keys() == layout.keys()
    assert all(torch.equal(filled[key], tensor) for key, tensor in module.state_dict().items())
