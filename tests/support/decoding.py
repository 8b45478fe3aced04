"""Speech tokens of requests through the engine and the scheduler, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chatterbox.config import EngineConfig, KVCacheConfig
from chatterbox.engine.decode import decoder_on, run
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request, allocate_cache, required_capacity
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, cache_config
from chatterbox.models.t3 import T3


def stream(
    t3: T3,
    request: Request,
    *,
    use_cache: bool = True,
    cache_policy: str | KVCacheConfig = "static",
    prefixes: Prefiller | None = None,
) -> Iterator[int]:
    """Tokens of one request as they are decoded, on an engine of its own; ``prefixes``: where its prefix comes from."""
    capacity = required_capacity(t3, request)
    cache = allocate_cache(t3, request.num_rows, capacity, cache_policy) if use_cache else None
    if prefixes is None or cache is None:
        yield from run(t3, request, decoder_on(t3, cache))
        return
    with prefixes.acquire(request) as prefix:
        yield from run(t3, request, decoder_on(t3, cache), prefix=prefix)


def scheduler_of(t3: T3, *, prefixes: Prefiller | None = None, **settings) -> Scheduler:
    """A scheduler; without ``prefixes`` it keeps none. ``settings``: of `EngineConfig`."""
    prefixes = Prefiller(t3, GlobalKVCacheManager(budget_bytes=0)) if prefixes is None else prefixes
    return Scheduler(prefixes, EngineConfig(**settings))


def generate_batch(
    t3: T3,
    requests: Sequence[Request],
    *,
    cache_policy: str | KVCacheConfig = "static",
    prefixes: Prefiller | None = None,
    max_rows: int = 32,
) -> list[Tensor]:
    """Tokens of several requests decoded together, each (N_i,), through a scheduler of their own."""
    scheduler = scheduler_of(t3, prefixes=prefixes, max_rows=max_rows)
    try:
        streams = [scheduler.stream(request, policy=cache_config(cache_policy)) for request in requests]
        return [torch.tensor(list(one), dtype=torch.long) for one in streams]
    finally:
        scheduler.close()
