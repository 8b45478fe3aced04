"""T3 speaking one utterance after another, and what each finds in memory of what came before.

Owns: the cache that an utterance is decoded on: a new one behind its leased beginning, or the last one's, continued.
Does not know: text, audio, how utterances are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

from chatterbox.config import GPT2Config, KVCacheConfig
from chatterbox.engine.engine import run
from chatterbox.engine.prefill import PrefixSource
from chatterbox.engine.request import DecodeRequest, allocate_cache, prefix_len, required_capacity
from chatterbox.kvcache import KVCache, policy, settings_of
from chatterbox.models.t3.t3 import T3

# Positions of a continued cache whose memory grows with them: 80 s of speech and its text.
CONTINUED_LEN = 2048
ENDLESS = 2**40


class Utterances:
    """Requests of one voice, decoded in turn. Not for several threads at once.

    num_served, num_computed: positions, over all rows, that utterances so far had before their first drawn token:
    found in memory, or run.
    """

    def __init__(
        self,
        t3: T3,
        *,
        use_cache: bool = True,
        cache_policy: str | KVCacheConfig = "static",
        prefixes: PrefixSource | None = None,
        continued: bool = False,
    ) -> None:
        """Args:
            use_cache: False recomputes the whole sequence at every step.
            cache_policy: of the rows being decoded, a name or settings.
            prefixes: where what comes before the start tokens is looked up, and kept.
            continued: each utterance follows those before in one sequence, on one cache. Where that is full, or the
                model has no more positions, the next utterance begins anew from the voice.

        Raises:
            ValueError: utterances can only be continued on a cache.
        """
        if continued and (not use_cache or settings_of(cache_policy).policy == "none"):
            raise ValueError('continuity "append" needs a cache; pass use_cache=True and another policy than "none"')
        self._t3, self._use_cache, self._policy, self._prefixes = t3, use_cache, cache_policy, prefixes
        self._continued = continued
        self._cache: KVCache | None = None  # of the last utterance, where the next one continues it
        self.num_served = self.num_computed = 0

    def stream(self, request: DecodeRequest) -> Iterator[int]:
        """Yield the tokens of the next utterance as they are drawn; the stop token is the last.

        Raises:
            ValueError: as `chatterbox.engine.request.checked_limit`, or the cache cannot hold the request.
        """
        needed, cache = required_capacity(self._t3, request), self._cache
        if cache is not None and self._follows(cache, needed):
            self._count(request, kept_len=cache.length)
            yield from run(self._t3, request, cache, kept_len=cache.length)
            return
        cache = self._allocate(request, needed) if self._use_cache else None
        self._cache = cache if self._continued else None
        yield from self._begin(request, cache)

    def _begin(self, request: DecodeRequest, cache: KVCache | None) -> Iterator[int]:
        if self._prefixes is None or cache is None:
            self._count(request)
            yield from run(self._t3, request, cache)
            return
        cache.require_pinned(range(prefix_len(self._t3, request)))
        with self._prefixes.acquire(request) as prefix:
            self._count(request, prefix.num_served)
            yield from run(self._t3, request, cache, prefix=prefix)

    def _allocate(self, request: DecodeRequest, needed: int) -> KVCache | None:
        capacity = needed
        if self._continued:
            capacity = ENDLESS if self._is_endless() else max(CONTINUED_LEN, 2 * needed)
        return allocate_cache(self._t3, request.num_rows, capacity, self._policy)

    def _is_endless(self) -> bool:
        """Whether the policy's memory stays however long a row becomes."""
        kind = policy(settings_of(self._policy).policy)
        return kind is not None and kind.has_ceiling

    def _follows(self, cache: KVCache, needed: int) -> bool:
        """Whether ``needed`` positions more find room, in the cache and in the model."""
        backbone = self._t3.hp.backbone
        most = backbone.max_positions if isinstance(backbone, GPT2Config) else ENDLESS
        return cache.length + needed <= min(cache.capacity, most)

    def _count(self, request: DecodeRequest, num_served: int = 0, *, kept_len: int = 0) -> None:
        """Count the positions before the request's first drawn token; its rows go on behind ``kept_len`` of them."""
        length = prefix_len(self._t3, request) + request.spoken_len
        if kept_len:
            num_served = request.num_rows * kept_len
            length += kept_len - self._t3.cond_len_of(request.t3_cond)
        self.num_served += num_served
        self.num_computed += request.num_rows * length - num_served
