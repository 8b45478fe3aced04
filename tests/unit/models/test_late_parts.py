"""Parts whose weights are read when they are first used: nobody sees them without, and nobody reads them twice."""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chatterbox.checkpoints import ENGLISH, CheckpointError, load_models
from chatterbox.checkpoints.tensors import HeldFile
from chatterbox.models.late import LateParts
from chatterbox.models.weights import modules_of, nbytes_of
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import recording

KEY = "tokenizer.encoder.blocks.0.mlp.0.weight"
needs_held_files = pytest.mark.skipif(not HeldFile.can_hold(), reason="files are held by /proc")


class Two(LateParts):
    def __init__(self) -> None:
        super().__init__()
        self.now, self.later = nn.Linear(2, 2), nn.Linear(2, 2)


def two() -> tuple[Two, list[int]]:
    network, calls = Two(), [0]
    nn.init.zeros_(network.later.weight)

    def fill(one: nn.Module) -> None:
        calls[0] += 1
        one._modules["later"].weight.data.fill_(3.0)

    network.requires_grad_(False).eval().fill_later(["later"], fill)
    return network, calls


LOOKS: dict[str, Callable[[Two], Any]] = {
    "by name": lambda one: one.later.weight,
    "getattr": lambda one: getattr(one, "later").weight,  # noqa: B009
    "get_submodule": lambda one: one.get_submodule("later").weight,
    "modules": lambda one: [*one.modules()][-1].weight,
    "children": lambda one: [*one.children()][-1].weight,
    "parameters": lambda one: [*one.parameters()][2],
    "named_parameters": lambda one: dict(one.named_parameters())["later.weight"],
    "state_dict": lambda one: one.state_dict()["later.weight"],
    "of a network around it": lambda one: nn.ModuleList([one]).state_dict()["0.later.weight"],
    "walk around it": lambda one: [*nn.ModuleList([one]).parameters()][2],
    "deepcopy": lambda one: copy.deepcopy(one).later.weight,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)).later.weight,
    "move": lambda one: one.double().later.weight.float(),
    "move of one around it": lambda one: nn.ModuleList([one]).double()[0].later.weight.float(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_finds_the_weights(look: str) -> None:
    network, calls = two()
    assert network.waits and network.now(torch.zeros(1, 2)).shape == (1, 2) and calls == [0]
    assert (LOOKS[look](network) == 3.0).all()
    assert (network.later.weight == 3.0).all() and calls == [1] and not network.waits


def test_weights_that_are_loaded_meanwhile_stay() -> None:
    for load in (lambda one, state: one.load_state_dict(state), lambda one, state: around(one).load_state_dict(state)):
        network, calls = two()
        name = "0." if load.__code__.co_names[0] == "around" else ""
        state = {f"{name}{key}": torch.full_like(value, 7.0) for key, value in Two().state_dict().items()}
        load(network, state)
        assert (network.later.weight == 7.0).all() and calls == [1]


def around(one: nn.Module) -> nn.Module:
    return nn.ModuleList([one])


def test_a_part_that_is_replaced_meanwhile_stays() -> None:
    network, _ = two()
    network.later = other = nn.Linear(2, 5)
    assert network.later is other


def test_what_cannot_be_read_is_told_each_time_and_tried_again() -> None:
    network, answers = Two(), [OSError("gone"), None]

    def fill(one: nn.Module) -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    network.fill_later(["later"], fill)
    with pytest.raises(OSError, match="gone"):
        network.later  # noqa: B018
    assert network.waits
    network.later  # noqa: B018
    assert not network.waits


def test_threads_that_look_at_once_read_once() -> None:
    network, calls = two()
    start, seen = threading.Barrier(8), []

    def look() -> None:
        start.wait()
        seen.append(bool((network.later.weight == 3.0).all()))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert seen == [True] * 8 and calls == [1]


def test_counting_wakes_nobody() -> None:
    network, calls = two()
    assert nbytes_of(network) == 48 and len([*modules_of(network)]) == 3 and calls == [0]


@needs_held_files
def test_only_a_recording_needs_the_ears(small_folder: Path) -> None:
    tts = ChatterboxTTS.from_local(small_folder, "cpu")
    tts.generate("Hello.", seed=1)
    for _ in tts.generate_stream("Hello.", seed=1, print_metrics=False):
        pass
    assert tts.s3gen.waits
    tts.unload()
    tts.generate("Hello.", seed=1)
    assert tts.s3gen.waits
    tts.prepare_conditionals((24_000, recording(1.0)))
    assert not tts.s3gen.waits
    assert torch.equal(tts.s3gen.state_dict()[KEY], load_file(small_folder / ENGLISH.s3gen)[KEY].float())
    tts.unload()  # to have read them is no change
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    assert vc.s3gen.waits and vc.generate((24_000, recording(1.0)), seed=1).isfinite().all() and not vc.s3gen.waits


@needs_held_files
def test_the_same_voice_as_when_all_is_read_at_once(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = ChatterboxTTS.from_local(small_folder, "cpu")
    monkeypatch.setattr(HeldFile, "can_hold", staticmethod(lambda: False))
    at_once = ChatterboxTTS.from_local(small_folder, "cpu")
    assert late.s3gen.waits and not at_once.s3gen.waits
    heard = (24_000, recording(1.0))
    voices = [model.s3gen.embed_ref(torch.from_numpy(heard[1]), heard[0]) for model in (late, at_once)]
    assert all(torch.equal(voices[0][key], voices[1][key]) for key in ("prompt_token", "embedding", "prompt_feat"))


@needs_held_files
def test_a_folder_that_is_gone_is_still_read(small_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "model"))
    s3gen = load_models(folder, "cpu").s3gen
    wanted = load_file(folder / ENGLISH.s3gen)[KEY].float()
    shutil.rmtree(folder)
    assert torch.equal(s3gen.state_dict()[KEY], wanted)


@needs_held_files
def test_a_file_that_was_written_over_is_refused_and_one_that_took_its_place_is_not_read(
    small_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "model"))
    path = folder / ENGLISH.s3gen
    weights = load_file(path)
    first, second = (load_models(folder, "cpu").s3gen for _ in range(2))
    other = {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}
    save_file(other, tmp_path / "other.safetensors")
    os.replace(tmp_path / "other.safetensors", path)
    assert torch.equal(first.state_dict()[KEY], weights[KEY].float())
    third = load_models(folder, "cpu").s3gen
    with path.open("r+b") as file:
        file.seek(-4, io.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(CheckpointError, match=r"s3gen.safetensors has changed since .* load the model again"):
        third.tokenizer  # noqa: B018
    assert torch.equal(second.state_dict()[KEY], weights[KEY].float())


@needs_held_files
def test_a_model_that_is_dropped_lets_go_of_its_file(small_folder: Path) -> None:
    def held() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(link == os.path.realpath(small_folder / ENGLISH.s3gen) for link in links)

    before = held()
    models = load_models(small_folder, "cpu")
    assert held() == before + 1
    s3gen = models.s3gen
    s3gen.fill()
    assert held() == before
    del models
    waiting = load_models(small_folder, "cpu").s3gen
    assert held() == before + 1
    del waiting
    assert held() == before


@needs_held_files
def test_pickled_weights_wait_too(small_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "model"))
    weights = load_file(folder / ENGLISH.s3gen)
    (folder / ENGLISH.s3gen).unlink()
    torch.save(weights, folder / "s3gen.pt")
    s3gen = load_models(folder, "cpu").s3gen
    assert s3gen.waits and torch.equal(s3gen.state_dict()[KEY], weights[KEY].float())
