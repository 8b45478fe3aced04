"""From logits to the next token, as pure functions.

Owns: guidance, repetition penalty, temperature, min-p, top-p, top-k, the noise, the sample. Does not know: models,
caches, requests.
All work on (N, V) tensors, return new tensors, and mark dropped tokens with -inf. A parameter is a number, or one per
row as an (N, 1) tensor; both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.config import SamplingConfig

DROPPED = float("-inf")
Param = float | Tensor


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of N requests, each (N, 1). None: no request uses it, so it costs nothing."""

    temperature: Tensor  # 1 where greedy
    greedy: Tensor  # bool
    cfg_weight: Tensor | None
    repetition_penalty: Tensor | None
    min_p: Tensor | None
    top_p: Tensor | None
    top_k: Tensor | None

    @classmethod
    def of(cls, settings: Sequence[SamplingConfig], device: torch.device | str = "cpu") -> SamplingParams:
        def column(name: str, off: float) -> Tensor | None:
            values = [getattr(one, name) for one in settings]
            if all(value == off for value in values):
                return None
            dtype = torch.long if name == "top_k" else torch.float32
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        temperature = torch.tensor([one.temperature for one in settings], dtype=torch.float32, device=device)[:, None]
        greedy = temperature == 0.0
        return cls(
            temperature=temperature.masked_fill(greedy, 1.0),
            greedy=greedy,
            cfg_weight=column("cfg_weight", 0.0),
            repetition_penalty=column("repetition_penalty", 1.0),
            min_p=column("min_p", 0.0),
            top_p=column("top_p", 1.0),
            top_k=column("top_k", 0),
        )


def apply_cfg(conditional: Tensor, unconditional: Tensor, cfg_weight: Param) -> Tensor:
    """Classifier-free guidance: ``cond + w * (cond - uncond)``."""
    return conditional + cfg_weight * (conditional - unconditional)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Param) -> Tensor:
    """Make tokens with ``seen`` (bool, (N, V)) less likely, once however often they occurred (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_min_p(logits: Tensor, min_p: Param) -> Tensor:
    """Drop tokens less likely than ``min_p`` times the likeliest (Nguyen et al. 2024)."""
    probs = logits.softmax(-1)
    top = probs.amax(-1, keepdim=True)
    return logits.masked_fill((probs < min_p * top) & (probs < top), DROPPED)


def apply_top_p(logits: Tensor, top_p: Param) -> Tensor:
    """Drop the least likely tokens whose cumulative probability is at most ``1 - top_p`` (Holtzman et al. 2020)."""
    ascending, order = logits.sort(dim=-1, descending=False)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[..., -1] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), DROPPED)


def apply_top_k(logits: Tensor, top_k: int | Tensor) -> Tensor:
    """Drop all but the ``top_k`` likeliest tokens (ties with the k-th stay); 0 keeps all."""
    size = logits.shape[-1]
    rank = torch.as_tensor(top_k, device=logits.device).clamp(max=size)
    last = rank.where(rank > 0, size).expand(*logits.shape[:-1], 1) - 1
    return logits.masked_fill(logits < logits.sort(dim=-1, descending=True).values.gather(-1, last), DROPPED)


def process(logits: Tensor, seen: Tensor, params: SamplingParams, *, penalty_last: bool = False) -> Tensor:
    """Probabilities of the next token, (N, V), from guided logits, in the order of the published models' loops.

    top-k, which the Llama models' loop does not have, comes between min-p and top-p. ``penalty_last``: as Turbo's
    loop, which penalises repetition after all filters.
    """
    return _shape(logits, seen, params, penalty_last)[1]


def sample(
    logits: Tensor, seen: Tensor, params: SamplingParams, noise: Tensor | None, *, penalty_last: bool = False
) -> Tensor:
    """Next token ids, (N, 1), from guided logits (N, V) and noise (N, V) of Exp(1).

    The likeliest of ``probability / noise`` is a sample of the distribution; with the noise of a torch generator it is
    the very one that `torch.multinomial` makes of it. Greedy rows take the likeliest; where all are, there is no noise.
    """
    penalized, probabilities = _shape(logits, seen, params, penalty_last)
    if noise is None:
        return penalized.argmax(-1, keepdim=True)
    return torch.where(params.greedy, penalized, probabilities / noise).argmax(-1, keepdim=True)


def draw_exponential(out: Tensor, rows: Sequence[int]) -> None:
    """Fill ``rows`` of ``out`` (N, V), one after the other, with draws of Exp(1) from torch's global generator."""
    for row in rows:
        out[row].exponential_()


def hashed_exponential(seeds: Tensor, steps: Tensor, size: int) -> Tensor:
    """Noise of Exp(1), (N, size), that is a function of each row's seed and step alone, in one operation for all rows.

    ``seeds``, ``steps``: (N, 1) int64. A counter of seed, step and place goes through the mixing of SplitMix64 (Steele,
    Lea and Flood 2014; shifts keep the sign), and 64 bits make two numbers. The same on every device up to the last
    bits of the logarithm.
    """
    places = torch.arange(-(-size // 2), device=seeds.device)
    bits = seeds + steps * _STEP + places * _PLACE
    bits ^= bits >> 30
    bits *= _MIX_1
    bits ^= bits >> 27
    bits *= _MIX_2
    bits ^= bits >> 31
    uniform = (bits.view(torch.int32) & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(_SCALE)
    return uniform.neg_().log1p_().neg_()[:, :size]


# Odd constants of the hash as signed numbers of 64 bits, and what brings 31 bits below 1.
_STEP, _PLACE = 0x632BE59BD9B4E019, 0x9E3779B97F4A7C15 - 2**64
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_SCALE = 2.0**-31 * (1 - 2.0**-24)


def _penalize(logits: Tensor, seen: Tensor, params: SamplingParams) -> Tensor:
    return (
        logits
        if params.repetition_penalty is None
        else apply_repetition_penalty(logits, seen, params.repetition_penalty)
    )


def _shape(logits: Tensor, seen: Tensor, params: SamplingParams, penalty_last: bool) -> tuple[Tensor, Tensor]:
    """Penalised logits, of which greedy rows take the likeliest, and probabilities."""
    if penalty_last:
        penalized = _penalize(_filter(logits, params), seen, params)
        return penalized, penalized.softmax(-1)
    penalized = _penalize(logits, seen, params)
    return penalized, _filter(penalized, params).softmax(-1)


def _filter(logits: Tensor, params: SamplingParams) -> Tensor:
    logits = logits / params.temperature
    if params.min_p is not None:
        logits = apply_min_p(logits, params.min_p)
    if params.top_k is not None:
        logits = apply_top_k(logits, params.top_k)
    if params.top_p is not None:
        logits = apply_top_p(logits, params.top_p)
    return logits
