"""Speech tokens of one request, all at once, on a cache that the caller may bring and take along.

Owns: which cache such a call decodes on, and what a continued one must fit. Does not know: the steps (`engine`), other
requests, text, audio.

With ``use_cache=False`` this is what everything else is checked against: the whole sequence anew at every step, no
cache object at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.decoder import CachedDecoder, RowDecoder, UncachedDecoder
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import CachedPrefix
from chatterbox.engine.request import Request, allocate_cache, check_request, required_capacity
from chatterbox.kvcache import KVCache
from chatterbox.models.t3.t3 import T3
from chatterbox.values import shown, whole


def decoder_on(t3: T3, cache: KVCache | None) -> RowDecoder:
    """A decoder on the rows of ``cache``, or without any."""
    return UncachedDecoder(t3) if cache is None else CachedDecoder(t3, cache)


def generate(
    t3: T3, request: Request, *, use_cache: bool = True, cache_policy: str | KVCacheConfig = "static"
) -> Tensor:
    """All tokens of one request, (N,), the stop token included.

    Raises:
        ValueError: before any work, if the text lacks its start or stop token, a length exceeds the position tables, or
            there is no such cache policy, or no such guard for this model.
    """
    return decode(t3, request, use_cache=use_cache, cache_policy=cache_policy)[0]


def decode(
    t3: T3,
    request: Request,
    *,
    use_cache: bool = True,
    cache_policy: str | KVCacheConfig = "static",
    past: KVCache | None = None,
    kept_len: int | None = None,
) -> tuple[Tensor, KVCache | None]:
    """All tokens of one request, (N,), and the cache, which holds all of its positions but the last token's.

    ``past``: what an earlier call returned. The request's text and speech follow its first ``kept_len`` positions
    (None: all); it is written to, or a larger copy of it where it is too small. ``cache_policy`` is for a new cache.

    Raises:
        ValueError: before any work, as `generate`, or ``past`` does not fit the request.
    """
    check_request(t3, request)
    capacity = required_capacity(t3, request)
    if past is None:
        if kept_len is not None:
            raise ValueError(f"cache_offset {shown(kept_len)} needs past_key_values, the cache that it counts in")
        kept_len = 0
        cache = allocate_cache(t3, request.num_rows, capacity, cache_policy) if use_cache else None
    else:
        if not use_cache:
            raise ValueError("past_key_values needs use_cache=True; without a cache nothing is continued")
        kept_len = past.length if kept_len is None else whole("cache_offset", kept_len, 0, "None keeps all")
        _check_past(t3, request, past, kept_len)
        capacity += kept_len - t3.cond_len_of(request.t3_cond)
        cache = past if capacity <= past.capacity else past.clone_prefix(kept_len, capacity)
    tokens = list(run(t3, request, decoder_on(t3, cache), kept_len=kept_len))
    return torch.tensor(tokens, dtype=torch.long, device=t3.device), cache


def _check_past(t3: T3, request: Request, past: KVCache, kept_len: int) -> None:
    if past.num_rows != request.num_rows:
        raise ValueError(
            f"past_key_values has {past.num_rows} rows, the request needs {request.num_rows}; "
            "guidance (cfg_weight above 0) takes two, and must be as it was when the cache was made"
        )
    if len(set(past.row_lens)) != 1:
        raise ValueError(f"past_key_values has rows of different lengths: {past.row_lens}")
    cond_len = t3.cond_len_of(request.t3_cond)
    if not cond_len <= kept_len <= past.length:
        raise ValueError(
            f"cache_offset must be from {cond_len} (the conditioning prefix) to {past.length} "
            f"(what past_key_values holds), got {kept_len}"
        )


def run(
    t3: T3, request: Request, decoder: RowDecoder, *, kept_len: int = 0, prefix: CachedPrefix | None = None
) -> Iterator[int]:
    """Tokens of one request as they are decoded, on an engine of its own; arguments as `DecodeEngine.join`.

    The rows of ``decoder`` hold it all afterwards, but for the last token.

    Raises:
        RuntimeError: the model computed logits that are not finite.
    """
    engine = DecodeEngine(t3, decoder)
    with torch.autocast(t3.device.type, enabled=False):
        engine.join(request, kept_len=kept_len, prefix=prefix, keeps_rows=True)
    while engine.num_requests:
        with torch.autocast(t3.device.type, enabled=False):
            result = engine.step()
        for _, token in result.tokens:
            yield token
        for error in result.failed.values():
            raise error
