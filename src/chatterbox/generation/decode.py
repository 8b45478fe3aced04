"""The decode loop: prefill the sequence, then one speech token a step.

Owns: rows of a request (guidance owns two), the doubled start token, stop and length limits. Does not know: text,
voices by name, audio. `generate` with ``use_cache=False`` is the oracle: the whole sequence anew at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.config import SamplingConfig
from chatterbox.generation.sampling import draw, guide
from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.static import StaticKVCache
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.t3 import T3


@dataclass(frozen=True)
class DecodeRequest:
    """One text to speak.

    text_tokens: (S,) or (rows, S) ids with start and stop; row 0 counts. max_new_tokens: None is as many as the model
    has positions for. seed: None draws from torch's global generator.
    """

    t3_cond: T3Cond
    text_tokens: Tensor
    sampling: SamplingConfig
    max_new_tokens: int | None = None
    stop_on_eos: bool = True
    seed: int | None = None


def generate(t3: T3, request: DecodeRequest, *, use_cache: bool = True) -> Tensor:
    """All tokens of one request, (N,), the stop token included.

    Raises:
        ValueError: before any work, if the text lacks its start or stop token or a length exceeds the position tables.
    """
    tokens = list(stream(t3, request, use_cache=use_cache))
    return torch.tensor(tokens, dtype=torch.long, device=t3.device)


@torch.inference_mode()
def stream(t3: T3, request: DecodeRequest, *, use_cache: bool = True) -> Iterator[int]:
    """Yield the tokens of one request as they are drawn; the stop token is the last."""
    limit = checked_limit(t3, request)
    embeds = prefill_embeds(t3, request)
    advance = _cached_step(t3, embeds, limit) if use_cache else _uncached_step(t3, embeds)
    generator = None
    if request.seed is not None:
        generator = torch.Generator(device=t3.device).manual_seed(request.seed)
    seen = torch.zeros(1, t3.hp.speech_tokens_dict_size, dtype=torch.bool, device=t3.device)
    seen[:, t3.hp.start_speech_token] = True
    next_embeds = embeds
    for step in range(limit):
        logits = t3.speech_head(advance(next_embeds))  # (rows, V)
        if len(logits) == 2:
            logits = guide(logits[:1], logits[1:], request.sampling.cfg_weight)
        token = draw(logits, seen, request.sampling, generator)  # (1, 1)
        seen.scatter_(1, token, True)
        yield (drawn := int(token))
        if request.stop_on_eos and drawn == t3.hp.stop_speech_token:
            return
        next_embeds = (t3.speech_emb(token) + t3.speech_pos_emb.get_fixed_embedding(step + 1)).expand(
            len(embeds), -1, -1
        )


def checked_limit(t3: T3, request: DecodeRequest) -> int:
    """Number of tokens this request may draw; raises ValueError if it cannot be served."""
    text = torch.atleast_2d(request.text_tokens)[0]
    for name, token in (("start", t3.hp.start_text_token), ("stop", t3.hp.stop_text_token)):
        if not (text == token).any():
            raise ValueError(f"text_tokens lack the {name} token {token}; pad it on before generating")
    if (worst := int(text.max())) >= t3.hp.text_tokens_dict_size or int(text.min()) < 0:
        raise ValueError(f"text token {worst} is outside of the vocabulary of {t3.hp.text_tokens_dict_size}")
    limit = t3.hp.max_speech_tokens if request.max_new_tokens is None else request.max_new_tokens
    if not 1 <= limit <= t3.hp.max_speech_tokens:
        raise ValueError(f"max_new_tokens must be from 1 to the model's {t3.hp.max_speech_tokens}, got {limit}")
    return limit


def prefill_embeds(t3: T3, request: DecodeRequest) -> Tensor:
    """(rows, cond_len + S + 2, hidden): rows is 2 with guidance, else 1.

    The start token enters twice, both times at speech position 0: the published weights are driven this way.
    """
    rows = 2 if request.sampling.cfg_weight > 0.0 else 1
    text = torch.atleast_2d(request.text_tokens)[:1].to(t3.device).long().expand(rows, -1)
    start = torch.full((rows, 1), t3.hp.start_speech_token, device=t3.device)
    embeds, _ = t3.prepare_input_embeds(
        t3_cond=request.t3_cond, text_tokens=text, speech_tokens=start, cfg_weight=request.sampling.cfg_weight
    )
    return torch.cat([embeds, embeds[:, -1:]], dim=1)


def allocate_cache(t3: T3, rows: int, capacity: int) -> KVCache:
    """An empty exact cache that fits this model."""
    backbone = t3.hp.backbone
    weight = t3.speech_head.weight
    return StaticKVCache(
        backbone.num_layers,
        rows,
        backbone.num_heads,
        backbone.head_dim,
        capacity,
        dtype=weight.dtype,
        device=weight.device,
    )


def _cached_step(t3: T3, prefill: Tensor, limit: int) -> Callable[[Tensor], Tensor]:
    cache = allocate_cache(t3, len(prefill), prefill.shape[1] + limit)
    return lambda new: t3.tfmr(new, cache)[:, -1]


def _uncached_step(t3: T3, prefill: Tensor) -> Callable[[Tensor], Tensor]:
    sequence = [prefill[:, :0]]

    def advance(new: Tensor) -> Tensor:
        sequence.append(new)
        return t3.tfmr(torch.cat(sequence, dim=1))[:, -1]

    return advance
