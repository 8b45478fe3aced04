"""What the decode engine is asked for: one text in one voice, checked, as embeddings, and the cache that fits it.

Owns: the layout and the lengths of a request, its start tokens. Does not know: rows of other requests, sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.guards import guard_of
from chatterbox.kvcache import KVCache, cache_config, make_cache
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.t3 import T3
from chatterbox.values import Fields, seed_of

Between = Callable[[], None]  # called between two pieces of a long prefix


@dataclass(frozen=True)
class ForcedPrefix:
    """The previous utterance, which the request continues.

    tokens: (k,) speech tokens, which follow the start tokens and are not decoded again. text_len: ids of the request's
    text, its start token among them, that they say.
    """

    tokens: Tensor
    text_len: int


@dataclass(frozen=True)
class Request:
    """One text to speak.

    text_tokens: (S,) or (rows, S) ids, with start and stop where the model has such; row 0 counts. max_new_tokens: None
    is as many as the model has positions for. seed: as `chatterbox.values.seed_of`; None draws
    from torch's global generator. guard: a name of
    `chatterbox.engine.guards.GUARDS`; None, or "none", is the published models' plain loop. forced: the
    previous utterance, which this request continues.
    """

    t3_cond: T3Cond
    text_tokens: Tensor
    sampling: SamplingConfig
    max_new_tokens: int | None = None
    stop_on_eos: bool = True
    seed: int | None = None
    guard: str | None = None
    forced: ForcedPrefix | None = None

    def __post_init__(self) -> None:
        own = Fields(self)
        own.whole_or_none("max_new_tokens", 1, "None is as many as the model has positions for")
        own.switch("stop_on_eos")
        own.put("seed", seed_of(self.seed))

    @property
    def num_forced(self) -> int:
        """Speech tokens of the previous utterance."""
        return 0 if self.forced is None else len(self.forced.tokens)

    @property
    def new_text(self) -> range:
        """Places in the text of what is not forced."""
        return range(0 if self.forced is None else self.forced.text_len, torch.atleast_2d(self.text_tokens).shape[1])

    @property
    def num_rows(self) -> int:
        return 2 if self.sampling.cfg_weight > 0.0 else 1


@dataclass
class Turn:
    """A request in a sequence, and the tokens decoded for it so far."""

    request: Request
    decoded: list[int] = field(default_factory=list)

    def run_tokens(self) -> Tensor:
        """(k,) speech tokens behind the start tokens that T3 has run: forced and decoded, but for the last decoded."""
        decoded = torch.tensor(self.decoded[:-1], dtype=torch.long)
        forced = self.request.forced
        return decoded if forced is None else torch.cat([forced.tokens.cpu().long(), decoded])


def check_request(t3: T3, request: Request) -> None:
    """Raise ValueError if this model cannot serve the request. Once, where it comes in; what follows relies on it."""
    text, hp = torch.atleast_2d(request.text_tokens)[0], t3.hp
    if request.num_rows > 1 and not hp.has_guidance:
        raise ValueError(f"cfg_weight must be 0 for this model, got {request.sampling.cfg_weight}; it has no guidance")
    for name, token in (("start", hp.start_text_token), ("stop", hp.stop_text_token)) if hp.mark_text else ():
        if not (text == token).any():
            raise ValueError(f"text_tokens lack the {name} token {token}; pad it on before generating")
    if not len(text):
        raise ValueError("text_tokens are empty; pass at least one token of text")
    largest, smallest = int(text.max()), int(text.min())
    vocabulary = t3.num_text_tokens
    if largest >= vocabulary or smallest < 0:
        worst = smallest if smallest < 0 else largest
        raise ValueError(f"text token {worst} is outside of the vocabulary of {vocabulary}")
    most = t3.max_speech_len - request.num_forced
    limit = most if request.max_new_tokens is None else request.max_new_tokens
    if not 1 <= limit <= most:
        behind = f" behind {request.num_forced} that are given" if request.num_forced else ""
        raise ValueError(f"max_new_tokens must be from 1 to the model's {most}{behind}, got {limit!r}")
    if guard := guard_of(request.guard):
        guard.check(hp)
    num_speech = hp.num_start_tokens + request.num_forced + limit_of(t3, request)
    t3.check_lens(t3.cond_len_of(request.t3_cond), len(text), num_speech)


def limit_of(t3: T3, request: Request) -> int:
    """Number of tokens this request may decode."""
    limit = request.max_new_tokens or t3.max_speech_len - request.num_forced
    guard = guard_of(request.guard)
    bound = None if guard is None else guard.max_tokens(t3.hp, len(request.new_text))
    return limit if bound is None else min(limit, bound)


def prefix_len(t3: T3, request: Request) -> int:
    """Positions of each row before the first speech token, given or decoded."""
    text_len = torch.atleast_2d(request.text_tokens).shape[1]
    return t3.cond_len_of(request.t3_cond) + text_len + t3.hp.num_start_tokens


def required_capacity(t3: T3, request: Request) -> int:
    """Positions that a request may come to have."""
    return prefix_len(t3, request) + request.num_forced + limit_of(t3, request)


def prefill_embeds(t3: T3, request: Request) -> Tensor:
    """``[conditioning][text][start tokens]``, (rows, T, hidden): rows is 2 with guidance, else 1."""
    rows = request.num_rows
    text = torch.atleast_2d(request.text_tokens)[:1].to(t3.device).long().expand(rows, -1)
    start = torch.full((rows, 1), t3.hp.start_speech_token, device=t3.device)
    embeds, _ = t3.prepare_input_embeds(
        t3_cond=request.t3_cond, text_tokens=text, speech_tokens=start, cfg_weight=request.sampling.cfg_weight
    )
    return torch.cat([embeds, *[embeds[:, -1:]] * (t3.hp.num_start_tokens - 1)], dim=1)


def start_embeds(t3: T3, rows: int) -> Tensor:
    """(rows, start tokens, hidden): what follows a request's text. All of them are at speech position 0."""
    start = torch.full((rows, 1), t3.hp.start_speech_token, device=t3.device)
    return t3.embed_speech(start).repeat(1, t3.hp.num_start_tokens, 1)


def speech_embeds(t3: T3, tokens: Tensor, rows: int) -> Tensor:
    """(rows, k, hidden) of the speech tokens (k,) that follow an utterance's start tokens."""
    positions = torch.arange(1, len(tokens) + 1, device=t3.device)[None]
    return t3.embed_speech(tokens.to(t3.device)[None], positions).expand(rows, -1, -1)


def pieces(start: int, length: int, piece_len: int | None) -> list[slice]:
    """``length`` positions from ``start`` on, cut at the multiples of ``piece_len``; None never cuts."""
    first = length if piece_len is None else piece_len - start % piece_len
    ends = [*range(first, length, piece_len or length), length]
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def allocate_cache(t3: T3, rows: int, capacity: int, cache_policy: str | KVCacheConfig = "static") -> KVCache | None:
    """An empty cache of a policy, a name or settings, that fits this model; None for "none"."""
    config, backbone = cache_config(cache_policy), t3.sizes
    if config.silent_tokens is None:
        config = dataclasses.replace(config, silent_tokens=t3.hp.silent_speech_tokens)
    return make_cache(
        config,
        backbone.num_layers,
        rows,
        backbone.num_heads,
        backbone.head_dim,
        capacity,
        dtype=t3.dtype,
        device=t3.device,
    )
