"""GPT-2's weights: (in, out) by shape, (out, in) in memory, and in one piece for whoever saves them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox.models.t3 import T3
from chatterbox.tts_turbo import ChatterboxTurboTTS
from tests.support import small

KEY = "tfmr.h.0.attn.c_attn.weight"


def built() -> T3:
    return small.build(small.SMALL_GPT2)


def lies_as_read(t3: T3) -> bool:
    weight = t3.tfmr.h[0].attn.c_attn.weight
    return weight.shape == (32, 96) and weight.T.is_contiguous()


def test_they_lie_as_products_read_them() -> None:
    t3 = built()
    assert lies_as_read(t3) and lies_as_read(copy.deepcopy(t3)) and lies_as_read(pickle.loads(pickle.dumps(t3)))
    assert lies_as_read(built().double()) and lies_as_read(built().to(torch.bfloat16))


@pytest.mark.parametrize("part", ["", "tfmr.", "tfmr.h.", "tfmr.h.0.", "tfmr.h.0.attn."])
def test_a_state_dict_can_be_saved_from_any_part(part: str, tmp_path: Path) -> None:
    t3 = built()
    state = t3.get_submodule(part.rstrip(".")).state_dict()
    assert all(value.is_contiguous() for value in state.values())
    save_file(state, tmp_path / "part.safetensors")
    assert torch.equal(load_file(tmp_path / "part.safetensors")[KEY.removeprefix(part)], t3.get_parameter(KEY))
    assert t3.state_dict(keep_vars=True)[KEY] is t3.get_parameter(KEY)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_speak(assign: bool) -> None:
    t3, other = built(), built()
    state = {key: value * 1.25 if value.is_floating_point() else value for key, value in t3.state_dict().items()}
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other.get_parameter(KEY), state[KEY])
    embeds = torch.randn(3, 1, 32)
    t3.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(other.tfmr(embeds), t3.tfmr(embeds))


def test_a_checkpoint_is_as_its_file(turbo_folder: Path) -> None:
    turbo = ChatterboxTurboTTS.from_local(turbo_folder, "cpu")
    stored = load_file(turbo_folder / "t3_turbo_v1.safetensors")
    assert torch.equal(turbo.t3.state_dict()[KEY], stored[KEY].float())
    assert turbo.t3.tfmr.h[0].mlp.c_fc.weight.T.is_contiguous()
