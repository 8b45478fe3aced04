"""T3 speaking one utterance after another, and what each finds in memory of what came before.

Owns: the cache that an utterance is decoded on: a new one behind its leased beginning, or the last one's, continued.
Does not know: text, audio, how utterances are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

from chatterbox.config import GPT2Config, KVCacheConfig
from chatterbox.generation.engine import run
from chatterbox.generation.prefix import PrefixSource
from chatterbox.generation.requests import DecodeRequest, allocate_cache, prefix_len, required_capacity
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
            ValueError: as `chatterbox.generation.requests.checked_limit`, or the cache cannot hold the request.
        """
        needed = required_capacity(self._t3, request)
        if not self._use_cache:
            self._count(request, 0)
            yield from run(self._t3, request, None)
        elif self._cache is not None and self._follows(needed):
            self._count(request, self._cache.length)
            yield from run(self._t3, request, self._cache, kept_len=self._cache.length)
        else:
            cache = self._allocate(request, needed)
            self._cache = cache if self._continued else None
            yield from self._begin(request, cache)

    def _begin(self, request: DecodeRequest, cache: KVCache | None) -> Iterator[int]:
        if self._prefixes is None or cache is None:
            self._count(request, 0)
            yield from run(self._t3, request, cache)
            return
        cache.require_pinned(range(prefix_len(self._t3, request)))
        with self._prefixes.acquire(request) as prefix:
            # Where nothing is kept, what the rows share is counted in each lease.
            served = max(0, request.num_rows * prefix.length - prefix.num_computed)
            self._count(request, 0, served)
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

    def _follows(self, needed: int) -> bool:
        """Whether ``needed`` positions more find room, in the cache and in the model."""
        cache, backbone = self._cache, self._t3.hp.backbone
        if cache is None:
            return False
        most = backbone.max_positions if isinstance(backbone, GPT2Config) else ENDLESS
        return cache.length + needed <= min(cache.capacity, most)

    def _count(self, request: DecodeRequest, kept_len: int, num_served: int | None = None) -> None:
        """Count the positions before the request's first drawn token, ``kept_len`` of each row being held already."""
        rows, new_len = request.num_rows, prefix_len(self._t3, request) + request.spoken_len
        if kept_len:
            new_len += kept_len - self._t3.cond_len_of(request.t3_cond)
        served = rows * kept_len if num_served is None else num_served
        self.num_served += served
        self.num_computed += rows * new_len - served
