"""Layers with weights in fewer bits: they are the product, row by row, and stand where the layer stood."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.packed import MATRICES, Int8Matrix, PackedLinear, quantize_rows
from chatterbox.models.precision import Packing
from chatterbox.models.shared_input import SharedInput
from chatterbox.models.t3.gpt2 import conv1d

ERRORS = {"float16": 6e-4, "bfloat16": 6e-3, "int8": 2.5e-2}  # of an output, as a share of all outputs' size
KINDS = pytest.mark.parametrize("kind", MATRICES)


def weight_of(num_out: int = 48, num_in: int = 64) -> Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(0)) * 0.05


def layer_of(kind: str, *, bias: bool = True) -> tuple[PackedLinear, nn.Linear]:
    plain = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        plain.weight.copy_(weight_of())
    return PackedLinear(MATRICES[kind](plain.weight.detach()), slice(0, 48), plain.bias), plain


def error_of(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@KINDS
@pytest.mark.parametrize("rows", [1, 2, 3, 17, 130])
def test_it_is_nearly_the_product(kind: str, rows: int) -> None:
    packed, plain = layer_of(kind)
    x = torch.randn(2, rows, 64)
    with torch.inference_mode():
        assert packed(x).shape == (2, rows, 48)
        assert error_of(packed(x), plain(x)) < ERRORS[kind]
        # Of the numbers that it has, it is the product.
        assert error_of(packed(x), F.linear(x, packed.weight, packed.bias)) < max(
            1e-6, ERRORS[kind] * (kind != "float16")
        )


@KINDS
def test_no_rows(kind: str) -> None:
    assert layer_of(kind)[0](torch.zeros(2, 0, 64)).shape == (2, 0, 48)


@torch.inference_mode()
def test_a_row_of_int8_has_the_same_bits_alone_and_beside_others() -> None:
    packed, _ = layer_of("int8")
    x = torch.randn(40, 64) * torch.logspace(-6, 6, 40)[:, None]
    together = packed(x)
    for row in range(40):
        assert torch.equal(packed(x[row : row + 1])[0], together[row])
        assert torch.equal(packed(x[[row, 3, 39]])[0], together[row])


@torch.inference_mode()
def test_the_largest_inputs_and_weights_do_not_overflow_what_they_are_added_up_in() -> None:
    """Without VNNI two neighbours are added up in 16 bits."""
    matrix = Int8Matrix(torch.full((8, 512), 0.3))
    x = torch.full((3, 512), 2.0)
    torch.testing.assert_close(matrix.multiply(x), torch.full((3, 8), 0.3 * 2.0 * 512), rtol=1e-5, atol=0)
    torch.testing.assert_close(matrix.multiply(-x), torch.full((3, 8), -0.3 * 2.0 * 512), rtol=1e-5, atol=0)


@KINDS
@torch.inference_mode()
def test_zeros_and_what_is_no_number_stay_in_their_rows(kind: str) -> None:
    packed, _ = layer_of(kind)
    x = torch.randn(4, 64)
    x[0], x[1, 5], x[2, 7] = 0.0, float("nan"), float("inf")
    out = packed(x)
    assert torch.equal(out[0], packed.bias)
    assert out[1].isnan().all() and not out[2].isfinite().any()
    assert torch.equal(out[3], packed(torch.cat([x[3:], torch.randn(3, 64)]))[0])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.inference_mode()
def test_inputs_of_another_type(kind: str, dtype: torch.dtype) -> None:
    packed, plain = layer_of(kind)
    x = torch.randn(3, 64)
    out = packed(x.to(dtype))
    assert out.dtype == dtype and error_of(out.float(), plain(x)) < ERRORS[kind] + 1e-2


@KINDS
def test_gradients_reach_the_input(kind: str) -> None:
    packed, _ = layer_of(kind)
    x = torch.randn(3, 64, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, packed.weight.sum(0).expand(3, 64))


def test_codes_are_within_half_a_step() -> None:
    weight = weight_of()
    weight[3] = 0.0
    codes, scales = quantize_rows(weight)
    assert codes.dtype == torch.int8 and codes.abs().amax(1).tolist() == [127 * (row != 3) for row in range(48)]
    assert ((codes * scales[:, None] - weight).abs() <= scales[:, None] * 0.501).all()


def test_float16_cannot_hold_every_weight() -> None:
    for value in (7e4, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="float16"):
            MATRICES["float16"](torch.tensor([[value, 1.0]]))


@KINDS
def test_state_dicts_have_published_names_and_numbers(kind: str) -> None:
    packed, plain = layer_of(kind)
    state = packed.state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in plain.state_dict().items()
    }
    assert error_of(state["weight"], plain.weight.detach()) < ERRORS[kind] and torch.equal(state["bias"], plain.bias)
    matrix = packed.matrix
    packed.load_state_dict(state)
    assert packed.matrix is matrix  # nothing new, nothing done
    other = {"weight": 2 * plain.weight.detach(), "bias": torch.zeros(48)}
    packed.load_state_dict(other)
    x = torch.randn(5, 64)
    with torch.inference_mode():
        assert error_of(packed(x), 2 * F.linear(x, plain.weight)) < ERRORS[kind]
    for wrong, message in (
        ({"bias": torch.zeros(48)}, "Missing"),
        ({**other, "weight": torch.zeros(2, 2)}, "mismatch"),
    ):
        with pytest.raises(RuntimeError, match=message):
            packed.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match="Unexpected"):
        packed.load_state_dict({**other, "scale": torch.zeros(1)})


@KINDS
def test_copies_and_pickles(kind: str) -> None:
    packed, _ = layer_of(kind)
    x = torch.randn(5, 64)
    with torch.inference_mode():
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(other(x), packed(x))


@KINDS
def test_it_stays_on_the_cpu_and_its_sums_in_float32(kind: str) -> None:
    packed, _ = layer_of(kind)
    with pytest.raises(RuntimeError, match="stay on the CPU"):
        packed.to("meta")
    x = torch.randn(5, 64)
    with torch.inference_mode():
        before = packed(x)
        assert torch.equal(packed.half()(x), before)


class Three(SharedInput):
    JOINED = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, size, bias=False) for size in (8, 4, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.project(x)


@KINDS
@torch.inference_mode()
def test_layers_that_share_an_input_share_a_product(kind: str) -> None:
    three, x = Three(), torch.randn(5, 16)
    plain = three.project(x)
    Packing(("",), MATRICES[kind]).pack("", three)
    assert three.a.matrix is three.b.matrix is three.c.matrix and three._shared_matrix() is three.a.matrix
    found = three.project(x)
    assert [part.shape[-1] for part in found] == [8, 4, 12]
    for part, wanted, name in zip(found, plain, "abc", strict=True):
        assert error_of(part, wanted) < 1.5 * ERRORS[kind]
        torch.testing.assert_close(part, getattr(three, name)(x))
    three.load_state_dict({**three.state_dict(), "b.weight": torch.zeros(4, 16)})
    a, b, c = three.project(x)
    assert not b.any() and torch.equal(a, found[0]) and torch.equal(c, found[2])


@torch.inference_mode()
def test_a_shared_product_calls_whoever_was_put_there() -> None:
    three, x = Three(), torch.randn(5, 16)
    Packing(("",), MATRICES["int8"]).pack("", three)
    before = three.project(x)
    hook = three.b.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(three.project(x)[1], before[1] + 1)
    hook.remove()
    torch.testing.assert_close(three.project(x)[1], before[1])
    three.c = nn.Linear(16, 3, bias=False)
    assert [part.shape[-1] for part in three.project(x)] == [8, 4, 3]
    three.a.forward = lambda x: x.new_zeros(5, 8)  # type: ignore[method-assign]
    assert not three.project(x)[0].any()


@KINDS
@torch.inference_mode()
def test_weights_that_are_stored_the_other_way(kind: str) -> None:
    block = nn.Module()
    block.proj = conv1d()(24, 16)
    nn.init.normal_(block.proj.bias)
    x = torch.randn(5, 16)
    wanted, stored = block.proj(x), {key: tensor.clone() for key, tensor in block.state_dict().items()}
    Packing(("",), MATRICES[kind]).pack("", block)
    assert isinstance(block.proj, PackedLinear) and error_of(block.proj(x), wanted) < 1.5 * ERRORS[kind]
    state = block.state_dict()
    assert state["proj.weight"].shape == (16, 24) and state["proj.weight"].is_contiguous()
    block.load_state_dict({**stored, "proj.weight": -stored["proj.weight"]})
    assert error_of(block.proj(x) - block.proj.bias, stored["proj.bias"] - wanted) < 2 * ERRORS[kind]
