"""Attention to keys in several places is attention to all of them in one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.models.s3gen.attention import attend

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def drawn(num_frames: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """(R, H, F, d), as heads lie in a product."""
    generator = torch.Generator().manual_seed(seed)
    return (
        (scale * torch.randn(2, num_frames, 4, 16, generator=generator, dtype=torch.float64)).to(dtype).transpose(1, 2)
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lens", [(7,), (50, 7), (1, 1), (0, 7), (5, 0, 2), (50, 20, 7), (3, 90, 1, 40)])
@pytest.mark.parametrize("scale", [1.0, 8.0])  # of the keys: the weights of places are then far apart
@torch.inference_mode()
def test_it_is_attention_to_all(lens: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    q = drawn(7, dtype, 0)
    places = [
        (drawn(length, dtype, 2 * i + 1, scale), drawn(length, dtype, 2 * i + 2)) for i, length in enumerate(lens)
    ]
    keys, values = (torch.cat(side, dim=2).double() for side in zip(*places, strict=True))
    wanted = F.scaled_dot_product_attention(q.double(), keys, values)
    found = attend(q, places)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, atol=scale * TOLERANCE[dtype], rtol=0)


@torch.inference_mode()
def test_views_of_what_is_remembered() -> None:
    whole = drawn(60, torch.float32, 3)
    q, new = drawn(5, torch.float32, 0), (drawn(5, torch.float32, 1), drawn(5, torch.float32, 2))
    remembered = whole[:, :, :50], whole[:, :, 5:55]
    keys, values = (torch.cat([old, one], dim=2) for old, one in zip(remembered, new, strict=True))
    torch.testing.assert_close(attend(q, [remembered, new]), F.scaled_dot_product_attention(q, keys, values))


@torch.inference_mode()
def test_products_whose_rows_do_not_lie_whole() -> None:
    """As those of few rows come out (`chatterbox.models.linear`)."""
    q, k, v = (drawn(8, torch.float32, seed).transpose(1, 3).contiguous().transpose(1, 3) for seed in range(3))
    assert q.stride(-1) != 1
    whole = (torch.cat([k, k], dim=2), torch.cat([v, -v], dim=2))
    torch.testing.assert_close(
        attend(q, [(k, v), (k, -v)]), F.scaled_dot_product_attention(q, *whole), atol=1e-6, rtol=0
    )


def test_gradients_and_masks() -> None:
    q = drawn(5, torch.float32, 0).requires_grad_()
    places = [
        (drawn(6, torch.float32, 1), drawn(6, torch.float32, 2)),
        (drawn(5, torch.float32, 3), drawn(5, torch.float32, 4)),
    ]
    attend(q, places).sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., 4:] = False
    with torch.inference_mode():
        masked = attend(q.detach(), places[:1], mask)
        torch.testing.assert_close(
            masked[1:], attend(q.detach()[1:], [(k[1:, :, :4], v[1:, :, :4]) for k, v in places[:1]])
        )
