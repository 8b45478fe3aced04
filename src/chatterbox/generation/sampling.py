"""From logits to the next token, as pure functions.

Owns: guidance, repetition penalty, temperature, min-p, top-p, top-k, the draw. Does not know: models, caches, requests.
All work on (..., V) tensors, return new tensors, and mark dropped tokens with -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox.config import SamplingConfig

DROPPED = float("-inf")


def guide(conditional: Tensor, unconditional: Tensor, cfg_weight: float) -> Tensor:
    """Classifier-free guidance: ``cond + w * (cond - uncond)``."""
    return conditional + cfg_weight * (conditional - unconditional)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens with ``seen`` (bool, (..., V)) less likely, once however often they occurred (Keskar et al. 2019)."""
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Drop tokens less likely than ``min_p`` times the likeliest (Nguyen et al. 2024)."""
    if min_p <= 0.0:
        return logits
    probs = logits.softmax(-1)
    top = probs.amax(-1, keepdim=True)
    return logits.masked_fill((probs < min_p * top) & (probs < top), DROPPED)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Drop the least likely tokens whose cumulative probability is at most ``1 - top_p`` (Holtzman et al. 2020)."""
    if top_p >= 1.0:
        return logits
    ascending, order = logits.sort(dim=-1, descending=False)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[..., -1] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), DROPPED)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Drop all but the ``top_k`` likeliest tokens (ties with the k-th stay); 0 keeps all."""
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], DROPPED)


def process(logits: Tensor, seen: Tensor, sampling: SamplingConfig) -> Tensor:
    """Probabilities of the next token, (..., V), from guided logits, in the order of the published model's loop."""
    logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    logits = apply_temperature(logits, sampling.temperature)
    logits = keep_min_p(logits, sampling.min_p)
    return keep_top_p(logits, sampling.top_p).softmax(-1)


def draw(logits: Tensor, seen: Tensor, sampling: SamplingConfig, generator: torch.Generator | None = None) -> Tensor:
    """Next token ids, (rows, 1), from guided logits (rows, V). Temperature 0 takes the likeliest and draws nothing."""
    if sampling.temperature == 0.0:
        return penalize_repetition(logits, seen, sampling.repetition_penalty).argmax(-1, keepdim=True)
    return torch.multinomial(process(logits, seen, sampling), num_samples=1, generator=generator)
