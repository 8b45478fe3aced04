"""Any cache policy as a `transformers.Cache`: an unmodified transformers model decodes on it.

Owns: translating between the two contracts, in every form that transformers gave its own from 5.2 on. Does not know:
models, policies. The only file of this package's caches that imports transformers; nothing imports it unasked.

| | transformers 5.2 and 5.3 | later |
| --- | --- | --- |
| `update` | with a dictionary of further arguments | with any further arguments |
| `get_mask_sizes` | (cache_position, layer) | (number of queries, layer) |
| `crop` | length to keep, or minus what to remove | minus what to remove |

transformers knows of one length for all rows, and of keys that follow one another and end with the newest. A policy
that forgets is mapped to that: what it keeps counts as the newest positions, ``offset`` = had - kept. Every query sees
what it should, as only the new positions are ever hidden from each other. Masks of padded batches do not survive it,
and heads that keep positions of their own cannot be said at all: such a step is refused.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

try:
    from transformers import PreTrainedConfig
    from transformers.cache_utils import Cache, CacheLayerMixin
except ImportError:
    raise ImportError(
        f"TransformersCache needs transformers 5.2 or newer, {transformers.__version__} is installed; "
        "pip install -U transformers"
    ) from None

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.registry import cache_config, make_cache

CROP_COUNTS_REMOVED = "tokens_to_remove" in inspect.signature(Cache.crop).parameters


@dataclass
class _Pass:
    """New positions that are reserved, from the moment that a mask is made for them."""

    num_new: int
    num_kept: int  # positions that each row holds with them
    has_appended: bool = False
    positions: Tensor | None = None  # of the slots, as the last layer's append returned them
    order: Tensor | None = None  # of these slots; None: as they are


class TransformersCache(Cache):
    """A `KVCache` in transformers' clothes; the cache itself is `kvcache`, and does all the work."""

    def __init__(self, kvcache: KVCache, *, pinned_len: int = 0) -> None:
        """Wrap an empty cache, with one row per sequence of the batch (times beams).

        ``pinned_len``: first positions that a bounded policy never forgets.

        Raises:
            ValueError: the policy wants to see tokens or queries, which transformers shows no cache; or it cannot pin
                so much.
        """
        if kvcache.wants_tokens or kvcache.wants_queries:
            raise ValueError(
                f"{type(kvcache).__name__} is to score tokens or attention, which transformers shows no cache; "
                "use eviction='recency'"
            )
        self.kvcache, self._pinned = kvcache, range(pinned_len)
        self._pass: _Pass | None = None
        super().__init__(layers=[_Layer(self, index) for index in range(kvcache.num_layers)])
        self._begin()

    @classmethod
    def for_model(
        cls,
        config: PreTrainedConfig,
        rows: int,
        capacity: int,
        *,
        policy: str | KVCacheConfig = "static",
        pinned_len: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TransformersCache:
        """An empty cache of a policy for a model's configuration, as `LlamaConfig` or `GPT2Config`.

        Raises:
            ValueError: there is no such policy, or it is "none", or as the constructor.
        """
        num_heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        sizes = (config.num_hidden_layers, rows, kv_heads, head_dim, capacity)
        cache = make_cache(cache_config(policy), *sizes, dtype=dtype, device=device)
        if cache is None:
            raise ValueError("policy 'none' is no cache; pass use_cache=False to the model instead")
        return cls(cache, pinned_len=pinned_len)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's (rows, heads, new, head_dim); returns all that is kept, in the order of positions."""
        if len(keys) != self.kvcache.num_rows:
            raise ValueError(
                f"the cache has {self.kvcache.num_rows} rows, the batch {len(keys)}; allocate as many rows as sequences"
            )
        current = self._reserved(keys.shape[2]) if layer == 0 else self._pass
        assert current is not None  # the first layer has begun it
        seen_keys, seen_values, positions = self.kvcache.append(layer, keys, values)
        current.has_appended = True
        if current.positions is not positions:
            current.positions, current.order = positions, self._order(positions, current.num_kept)
        if layer == self.kvcache.num_layers - 1:
            self._pass = None
        if current.order is None:
            return seen_keys[:, :, : current.num_kept], seen_values[:, :, : current.num_kept]
        order = current.order[:, None, :, None]
        return seen_keys.take_along_dim(order, dim=2), seen_values.take_along_dim(order, dim=2)

    def seen_len(self) -> int:
        """Positions that each sequence has had, without those of a pass that has not appended yet."""
        lens = set(self.kvcache.row_lens)
        if len(lens) > 1:
            raise ValueError(f"transformers needs rows of one length, the cache has {self.kvcache.row_lens}")
        return lens.pop() - (self._pass.num_new if self._pass and not self._pass.has_appended else 0)

    def mask_sizes(self, num_new: int) -> tuple[int, int]:
        """Number of keys that the coming pass will see, and the position that the first of them counts as."""
        num_kept = self._reserved(num_new).num_kept
        return num_kept, self.kvcache.length - num_kept

    def reset(self) -> None:
        self.kvcache.reset()
        self._begin()

    def crop(self, count: int) -> None:
        """Forget the newest positions; ``count`` as in transformers' own `crop` of the installed version."""
        if count > 0 and CROP_COUNTS_REMOVED:
            raise ValueError(f"crop takes minus the number of tokens to remove in this version, got {count}")
        self._forget_pass()
        seen = self.seen_len()
        keep = max(0, seen + count) if count < 0 or CROP_COUNTS_REMOVED else count
        if keep < seen:
            self.kvcache.crop(keep)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        self._forget_pass()
        sources = beam_idx.tolist()
        moved = sorted({source for row, source in enumerate(sources) if row != source})
        if not moved:
            return
        aside = self.kvcache.empty_like(len(moved), max(1, self.seen_len()))
        for place, source in enumerate(moved):
            aside.take_row(place, self.kvcache, source)
        for row, source in enumerate(sources):
            if row != source:
                self.kvcache.take_row(row, aside, moved.index(source))

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise ValueError(f"rows are allocated once; allocate {repeats} times as many rows as sequences instead")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise ValueError("rows are allocated once and stay; decode the sequences that go on in a cache of their own")

    def _begin(self) -> None:
        self._pass = None
        for row in range(self.kvcache.num_rows):
            self.kvcache.begin(row, self._pinned)

    def _forget_pass(self) -> None:
        """Take back a pass that a mask was made for and that did not come to its end."""
        if self._pass:
            self.kvcache.crop(self.kvcache.length - self._pass.num_new)
        self._pass = None

    def _reserved(self, num_new: int) -> _Pass:
        """The pass that begins, reserved now unless its mask was asked for before."""
        if self._pass and not self._pass.has_appended and self._pass.num_new == num_new:
            return self._pass
        self._forget_pass()
        self.seen_len()
        self.kvcache.reserve(num_new)
        counts = {len(self.kvcache.held(row)) for row in range(self.kvcache.num_rows)}
        if len(counts) > 1:
            raise ValueError(f"rows keep different numbers of positions, {sorted(counts)}; transformers masks know one")
        self._pass = _Pass(num_new, counts.pop())
        return self._pass

    def _order(self, positions: Tensor, num_kept: int) -> Tensor | None:
        """Slots (rows, kept) of what rows hold, by position; None where they are the first ones, in order."""
        if positions.ndim == 3:
            raise ValueError(
                "heads keep positions of their own, which transformers masks cannot say; raise max_cache_size"
            )
        by_row = torch.atleast_2d(positions)
        order = by_row.argsort(dim=1)[:, :num_kept]
        assert bool(((by_row < self.kvcache.length).sum(1) == num_kept).all())
        if torch.equal(order, torch.arange(num_kept, device=order.device).expand_as(order)):
            return None
        return order.expand(self.kvcache.num_rows, -1)


class _Layer(CacheLayerMixin):
    """One layer of a `TransformersCache`, as transformers addresses it."""

    is_sliding = False
    is_compileable = False

    def __init__(self, owner: TransformersCache, index: int) -> None:
        super().__init__()
        self._owner, self._index, self.is_initialized = owner, index, True
        self.batch_size = self.max_batch_size = owner.kvcache.num_rows
        self.max_cache_len = owner.kvcache.capacity

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]  # an attribute there
        """Whether nothing was forgotten."""
        cache = self._owner.kvcache
        return all(len(cache.held(row)) == length for row, length in enumerate(cache.row_lens))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do: the cache was allocated when it was made."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._owner.append(self._index, key_states, value_states)

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """``query_length``: number of new positions, or in older versions the positions themselves, (new,)."""
        return self._owner.mask_sizes(len(query_length) if isinstance(query_length, Tensor) else query_length)

    def get_seq_length(self) -> int:
        return self._owner.seen_len()

    def get_max_length(self) -> int:
        return self.max_cache_len

    get_max_cache_shape = get_max_length
