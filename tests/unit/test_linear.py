"""Products with few rows: whichever way is taken, they are the product."""

from __future__ import annotations

import pytest
import torch

from chatterbox.models.linear import linear


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
