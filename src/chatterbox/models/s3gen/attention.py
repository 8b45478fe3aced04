"""Attention of the flow's estimator: everywhere, to keys that may lie in several places.

Owns: which of torch's ways is taken. Does not know: what is remembered, and where it lies.

What is remembered of a voice is many times a chunk's own size, at each Euler step, so it is not copied beside the
chunk's: each place is attended to for itself, and the results are weighed by the sums of their exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Place = tuple[Tensor, Tensor]  # keys and values, (R, H, F, d) each


def attend(q: Tensor, places: Sequence[Place], mask: Tensor | None = None) -> Tensor:
    """(R, H, T, d) of queries (R, H, T, d) to the keys of all places.

    ``mask``: (R, 1, 1, F) of a single place, True at keys to look at.
    """
    places = [place for place in places if place[0].shape[2]]  # what has no keys has no weight
    on_cpu = q.device.type == "cpu" and not torch.is_grad_enabled()
    if on_cpu and q.dtype == torch.bfloat16 and mask is None:
        return _by_products(q, *_joined(places))
    if len(places) == 1 or not on_cpu or q.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(q, *_joined(places), attn_mask=mask)
    out, total = _weighed(q, *places[0])
    for place in places[1:]:
        other, weight = _weighed(q, *place)
        out = torch.lerp(out, other, torch.sigmoid(weight - total)[..., None].to(out.dtype))
        total = torch.logaddexp(total, weight)
    return out


def _weighed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What attention to one place gives, (R, H, T, d), and the logarithm of its weight, (R, H, T)."""
    lying = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # it reads no others, and does not say so
    out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*lying)
    return out, weight


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's kernel on CPUs gains nothing from bfloat16, and products do."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1) @ v


def _joined(places: Sequence[Place]) -> Place:
    if len(places) == 1:
        return places[0]
    keys, values = (torch.cat(side, dim=2) for side in zip(*places, strict=True))
    return keys, values
