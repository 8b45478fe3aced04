"""Which heads need their whole past: a score per head, from its keys and values alone.

Owns: the score. Does not know: how a cache lets a head forget, which is `headwindow`'s.

DuoAttention (Xiao et al. 2024) finds such heads by training gates. Nothing is trained here: as there, a head is worth
what its output would lose if it saw no more than the prefix and the newest positions. A cache holds no queries, so
the newest keys stand in for them; queries and keys of a head have one rotation and live in one space.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_QUERIES = 64


def identify_important_heads(k: Tensor, v: Tensor, *, prefix_len: int = 4, window: int | None = None) -> Tensor:
    """How much each head's output depends on what lies between the prefix and the newest positions.

    Args:
        k: keys (..., heads, positions, head_dim), as they are cached.
        v: values, same shape.
        prefix_len: positions of the prefix that no head forgets.
        window: newest positions that a query sees in any case; None is a quarter of all.

    Returns:
        (..., heads) float32, 0 or more: distance of the outputs with and without the middle, per length of the output,
        mean over the queries. Comparable across layers.

    Raises:
        ValueError: keys and values of different shapes, or without positions.
    """
    if k.shape != v.shape or k.ndim < 3 or not k.shape[-2]:
        raise ValueError(f"keys and values must be (..., heads, positions, head_dim), got {k.shape} and {v.shape}")
    keys, values = k.float(), v.float()
    num, device = keys.shape[-2], keys.device
    window = max(1, num // 4) if window is None else window
    positions = torch.arange(num, device=device)
    queries = positions[-min(MOST_QUERIES, max(1, num // 4)) :]
    scores = keys[..., queries, :] @ keys.mT * keys.shape[-1] ** -0.5  # (..., heads, queries, positions)
    reached = positions <= queries[:, None]
    kept = reached & ((positions < prefix_len) | (positions > queries[:, None] - window))
    whole, cut = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values for seen in (reached, kept))
    length = whole.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((whole - cut).norm(dim=-1) / length).mean(-1)
