"""Tables of speech tokens stored by what a token is made of."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chatterbox.checkpoints.code_tables import PARTS, code_table
from chatterbox.checkpoints.layouts import CheckpointError
from chatterbox.checkpoints.loading import load_module

S, R, D, K = 3, 2, 4, 2


@pytest.fixture
def parts() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"first": (S, D), "second": (S, D), "left": (S, R), "right": (S, R), "mix": (R, D), "special": (K, D)}
    assert tuple(shapes) == PARTS
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_a_row_is_its_two_symbols_and_what_they_are_together(parts):
    table = code_table(**parts)
    assert table.shape == (S * S + K, D)
    for second in range(S):
        for first in range(S):
            pair = (parts["left"][first] * parts["right"][second]) @ parts["mix"]
            wanted = parts["first"][first] + parts["second"][second] + pair
            torch.testing.assert_close(table[first + S * second], wanted)
    assert torch.equal(table[S * S :], parts["special"])


def test_a_file_with_parts_loads_as_plain_weights(parts, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({f"emb.code_table.{name}": part for name, part in parts.items()} | {"out.bias": torch.ones(2)}, str(path))
    module = nn.ModuleDict({"emb": nn.Embedding(S * S + K, D), "out": nn.Linear(1, 2)})
    module["out"].weight = None
    load_module(lambda: module, path, torch.device("cpu"))
    torch.testing.assert_close(module["emb"].weight, code_table(**parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("mix"), "'emb' lacks mix"),
        (lambda parts: parts.update(mix=torch.zeros(R + 1, D)), "'emb' do not fit each other"),
        (lambda parts: parts.update(first=torch.zeros(S)), "'emb' do not fit each other"),
        (lambda parts: parts.update(special=torch.zeros(())), "'emb' do not fit each other"),
    ],
)
def test_a_broken_table_is_told_of(change, message, parts, tmp_path):
    change(parts)
    path = tmp_path / "a.safetensors"
    save_file({f"emb.code_table.{name}": part for name, part in parts.items()}, str(path))
    with pytest.raises(CheckpointError, match=message):
        load_module(lambda: nn.ModuleDict({"emb": nn.Embedding(11, D)}), path, torch.device("cpu"))
