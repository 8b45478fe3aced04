"""Speech tokens of requests: all at once, as they are drawn, or several requests together.

Owns: which cache a call decodes on, and what a continued one must fit. Does not know: the steps (`engine`), text,
audio.

With ``use_cache=False`` these are the oracle that everything else is checked against: the whole sequence anew at every
step, no cache object at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.engine import DecodeEngine, run
from chatterbox.engine.prefill import PrefixSource
from chatterbox.engine.request import DecodeRequest, allocate_cache, required_capacity
from chatterbox.engine.utterances import Utterances
from chatterbox.kvcache import KVCache, MemoryMonitor
from chatterbox.models.t3.t3 import T3

MAX_ROWS = 32  # of a batch, unless it is told otherwise: 16 requests with guidance


def generate(
    t3: T3, request: DecodeRequest, *, use_cache: bool = True, cache_policy: str | KVCacheConfig = "static"
) -> Tensor:
    """All tokens of one request, (N,), the stop token included.

    Raises:
        ValueError: before any work, if the text lacks its start or stop token, a length exceeds the position tables, or
            there is no such cache policy, or no such guard for this model.
    """
    return decode(t3, request, use_cache=use_cache, cache_policy=cache_policy)[0]


def stream(
    t3: T3,
    request: DecodeRequest,
    *,
    use_cache: bool = True,
    cache_policy: str | KVCacheConfig = "static",
    prefixes: PrefixSource | None = None,
) -> Iterator[int]:
    """Yield the tokens of one request as they are drawn; the stop token is the last.

    ``cache_policy``: of the rows being decoded, a name or settings. ``prefixes``: where what comes before the start
    tokens is looked up, and kept; None computes it for this request alone, as does decoding without a cache.
    """
    utterances = Utterances(t3, use_cache=use_cache, cache_policy=cache_policy, prefixes=prefixes)
    return utterances.stream(request)


def decode(
    t3: T3,
    request: DecodeRequest,
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
    capacity = required_capacity(t3, request)
    if past is None:
        if kept_len is not None:
            raise ValueError(f"cache_offset {kept_len} needs past_key_values, the cache that it counts in")
        kept_len = 0
        cache = allocate_cache(t3, request.num_rows, capacity, cache_policy) if use_cache else None
    else:
        if not use_cache:
            raise ValueError("past_key_values needs use_cache=True; without a cache nothing is continued")
        kept_len = past.length if kept_len is None else kept_len
        _check_past(t3, request, past, kept_len)
        capacity += kept_len - t3.cond_len_of(request.t3_cond)
        cache = past if capacity <= past.capacity else past.clone_prefix(kept_len, capacity)
    tokens = list(run(t3, request, cache, kept_len=kept_len))
    return torch.tensor(tokens, dtype=torch.long, device=t3.device), cache


def _check_past(t3: T3, request: DecodeRequest, past: KVCache, kept_len: int) -> None:
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


def generate_batch(
    t3: T3,
    requests: Sequence[DecodeRequest],
    *,
    cache_policy: str | KVCacheConfig = "static",
    prefixes: PrefixSource | None = None,
    monitor: MemoryMonitor | None = None,
    max_rows: int = MAX_ROWS,
) -> list[Tensor]:
    """Tokens of several requests decoded together, each (N_i,), as `generate` gives them one by one.

    Args:
        prefixes: where what comes before the start tokens is looked up, and kept.
        monitor: while it says that memory is short, requests wait until those before them have ended.
        max_rows: of the cache; requests beyond them wait likewise.
    """
    capacities = [required_capacity(t3, request) for request in requests]
    tokens: list[Tensor] = []
    while (first := len(tokens)) < len(requests):
        end, rows = first + 1, requests[first].num_rows
        while end < len(requests) and (monitor is None or monitor.admits()):
            rows += requests[end].num_rows
            if rows > max_rows:
                break
            end += 1
        tokens += _decode_together(t3, requests[first:end], max(capacities[first:end]), cache_policy, prefixes)
    return tokens


def _decode_together(
    t3: T3,
    requests: Sequence[DecodeRequest],
    capacity: int,
    cache_policy: str | KVCacheConfig,
    prefixes: PrefixSource | None,
) -> list[Tensor]:
    engine = DecodeEngine(t3, allocate_cache(t3, sum(r.num_rows for r in requests), capacity, cache_policy))
    drawn: dict[int, list[int]] = {}
    for request in requests:
        if prefixes is None or engine.cache is None:
            drawn[engine.join(request)] = []
            continue
        with prefixes.acquire(request) as prefix:
            drawn[engine.join(request, prefix=prefix)] = []
    while engine.num_requests:
        for handle, token in engine.step():
            drawn[handle].append(token)
    return [torch.tensor(tokens, dtype=torch.long, device=t3.device) for tokens in drawn.values()]
