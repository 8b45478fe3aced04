"""Products with few rows: whichever way is taken, they are the product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chatterbox.models.linear import EXACT_ROWS, ONEDNN, SMALL, LinearSequential, apply_linear, linear, shared_rows


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 32, 33, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product(rows: int, dtype: torch.dtype) -> None:
    weight, x = torch.randn(24, 16).to(dtype), torch.randn(3, rows, 16).to(dtype)[1:2]
    expected = (x.double() @ weight.double().T).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), expected)
        interleaved = x[0].T.contiguous().T  # rows that do not lie whole in memory
        torch.testing.assert_close(linear(interleaved, weight), expected[0])


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_gradient_reaches_weight_and_input(rows: int) -> None:
    weight, x = torch.randn(24, 16, requires_grad=True), torch.randn(rows, 16, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(24, 16))
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(rows, 16))


@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 33, 100, 400, 417])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_bias_and_weights_that_are_stored_the_other_way(rows: int, is_transposed: bool) -> None:
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(2, rows, 16)
    weight = weight.T.contiguous().T if is_transposed else weight
    with torch.inference_mode():
        out = linear(x, weight, bias)
        assert out.shape == (2, rows, 24)
        torch.testing.assert_close(out, (x.double() @ weight.double().T + bias.double()).float())


def test_many_rows_come_in_few_numbers() -> None:
    assert [shared_rows(rows) for rows in (1, EXACT_ROWS, 33, 36, 37, 400)] == [1, 32, 36, 36, 40, 416]
    assert len({shared_rows(rows) for rows in range(1, 4097)}) == EXACT_ROWS + 7 * 8


def test_layers_one_after_the_other() -> None:
    layers, x = [torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 16)], torch.randn(3, 50, 16)
    torch.testing.assert_close(LinearSequential(*layers)(x), torch.nn.Sequential(*layers)(x))
    with torch.inference_mode():
        expected = linear(F.gelu(linear(x, layers[0].weight, layers[0].bias)), layers[2].weight, layers[2].bias)
        assert torch.equal(LinearSequential(*layers)(x), expected)


@pytest.mark.parametrize("rows", range(1, 10))
def test_small_matrices_are_multiplied_from_the_left_and_one_row_as_two(monkeypatch, rows):
    """In another way than large ones; either way it is the product."""
    small, large = torch.randn(64, 16), torch.randn(2 * SMALL // 16, 16)
    x, taken = torch.randn(1, rows, 16), []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: taken.append(b.shape[1]) or matmul(a, b))
    with torch.inference_mode():
        for weight in (small, large):
            torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-5)
    expected = [max(2, rows)] if rows <= 8 else []
    assert taken == expected + ([rows] if rows in (2, 3, 4) or (not ONEDNN and rows > 1) else [])


def test_a_layer_that_nobody_touched_goes_through_the_faster_product() -> None:
    layer, x = torch.nn.Linear(16, 24), torch.randn(3, 16)
    with torch.inference_mode():
        assert torch.equal(apply_linear(layer, x), linear(x, layer.weight, layer.bias))
        layer._compiled_call_impl = lambda rows: rows * 2  # what `compile` assigns
        assert torch.equal(apply_linear(layer, x), x * 2)


def test_a_weight_of_another_kind_has_a_product_of_its_own() -> None:
    class Halved(torch.nn.Parameter):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                out = function(*args, **(kwargs or {}))
            return out / 2 if function is F.linear else out

    layer, x = torch.nn.Linear(16, 24, bias=False), torch.randn(3, 16)
    with torch.inference_mode():
        expected = layer(x) / 2
        layer.weight = Halved(layer.weight.detach())
        torch.testing.assert_close(apply_linear(layer, x), expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 40])
def test_large_weights_that_lie_the_other_way(rows: int) -> None:
    """As GPT-2's do after they were loaded by assignment."""
    weight, x = torch.randn(768, 1024), torch.randn(rows, 768)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight.T), (x.double() @ weight.double()).float(), rtol=1e-4, atol=1e-4)
