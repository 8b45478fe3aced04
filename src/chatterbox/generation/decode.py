"""The decode engine: N requests at once, one speech token each per step, on the rows of one key-value cache.

Owns: rows of requests (guidance owns two), joining and leaving between steps, stop and length limits. Does not know:
text, voices by name, audio, how a cache keeps its content.

`generate` and `stream` are the engine with one request. With ``use_cache=False`` they are the oracle that everything
else is checked against: the whole sequence anew at every step, no cache object at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.generation.prefix import PrefixSource, RowPrefixes
from chatterbox.generation.requests import (
    DecodeRequest,
    allocate_cache,
    checked_limit,
    prefill_embeds,
    required_capacity,
    start_embeds,
)
from chatterbox.generation.sampling import Knobs, draw, exponential_noise, guide
from chatterbox.kvcache import KVCache
from chatterbox.models.t3.t3 import T3


def generate(t3: T3, request: DecodeRequest, *, use_cache: bool = True, cache_policy: str = "static") -> Tensor:
    """All tokens of one request, (N,), the stop token included.

    Raises:
        ValueError: before any work, if the text lacks its start or stop token, a length exceeds the position tables, or
            there is no such cache policy.
    """
    return decode(t3, request, use_cache=use_cache, cache_policy=cache_policy)[0]


def stream(
    t3: T3,
    request: DecodeRequest,
    *,
    use_cache: bool = True,
    cache_policy: str = "static",
    prefixes: PrefixSource | None = None,
) -> Iterator[int]:
    """Yield the tokens of one request as they are drawn; the stop token is the last.

    ``prefixes``: where what comes before the start tokens is looked up, and kept; None computes it for this request
    alone, as does ``use_cache=False``.
    """
    capacity = required_capacity(t3, request)
    if not use_cache:
        yield from _run(t3, request, None)
        return
    cache = allocate_cache(t3, request.num_rows, capacity, cache_policy)
    if prefixes is None:
        yield from _run(t3, request, cache)
        return
    with prefixes.acquire(request) as prefix:
        yield from _run(t3, request, cache, prefix=prefix)


def decode(
    t3: T3,
    request: DecodeRequest,
    *,
    use_cache: bool = True,
    cache_policy: str = "static",
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
        capacity += kept_len - t3.hp.cond_len
        cache = past if capacity <= past.capacity else past.clone_prefix(kept_len, capacity)
    tokens = list(_run(t3, request, cache, kept_len=kept_len))
    return torch.tensor(tokens, dtype=torch.long, device=t3.device), cache


def _check_past(t3: T3, request: DecodeRequest, past: KVCache, kept_len: int) -> None:
    if len(past.row_lens) != request.num_rows:
        raise ValueError(
            f"past_key_values has {len(past.row_lens)} rows, the request needs {request.num_rows}; "
            "guidance (cfg_weight above 0) takes two, and must be as it was when the cache was made"
        )
    if len(set(past.row_lens)) != 1:
        raise ValueError(f"past_key_values has rows of different lengths: {past.row_lens}")
    if not t3.hp.cond_len <= kept_len <= past.length:
        raise ValueError(
            f"cache_offset must be from {t3.hp.cond_len} (the conditioning prefix) to {past.length} "
            f"(what past_key_values holds), got {kept_len}"
        )


def _run(
    t3: T3,
    request: DecodeRequest,
    cache: KVCache | None,
    *,
    kept_len: int = 0,
    prefix: RowPrefixes | None = None,
) -> Iterator[int]:
    engine = DecodeEngine(t3, cache)
    engine.join(request, kept_len=kept_len, prefix=prefix)
    while engine.num_requests:
        for _, token in engine.step():
            yield token


def generate_batch(t3: T3, requests: Sequence[DecodeRequest], *, cache_policy: str = "static") -> list[Tensor]:
    """Tokens of several requests decoded together, each (N_i,), as `generate` gives them one by one."""
    if not requests:
        return []
    capacity = max(required_capacity(t3, request) for request in requests)
    engine = DecodeEngine(t3, allocate_cache(t3, sum(r.num_rows for r in requests), capacity, cache_policy))
    drawn: dict[int, list[int]] = {engine.join(request): [] for request in requests}
    while engine.num_requests:
        for handle, token in engine.step():
            drawn[handle].append(token)
    return [torch.tensor(tokens, dtype=torch.long, device=t3.device) for tokens in drawn.values()]


@dataclass
class _Slot:
    """One request in the engine."""

    handle: int
    request: DecodeRequest
    limit: int
    generator: torch.Generator | None
    num_drawn: int = 0


class DecodeEngine:
    """Requests on the rows of one cache: `join`, then `step` until none is left.

    Rows are packed: a request owns the rows after those of the request that joined before it, its conditional row
    first, and when one leaves, the rows behind it move up. Not for several threads at once.
    """

    def __init__(self, t3: T3, cache: KVCache | None, *, stop_stride: int = 1) -> None:
        """Args:
        cache: of `allocate_cache`, as many rows as the requests that will share it need; None recomputes every
            sequence at every step.
        stop_stride: steps between two looks at the tokens. More than 1 spares a device its waits; requests draw up to
            ``stop_stride - 1`` tokens in vain.
        """
        if stop_stride < 1:
            raise ValueError(f"stop_stride must be at least 1, got {stop_stride}")
        self.t3, self.cache, self.stop_stride = t3, cache, stop_stride
        self._slots: list[_Slot] = []
        self._num_joined = 0
        size, device = t3.hp.speech_tokens_dict_size, t3.device
        # Per request, (N, ...):
        self._tokens = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._num_drawn = torch.zeros(0, 1, dtype=torch.long, device=device)  # the speech position of `_tokens`
        self._seen = torch.zeros(0, size, dtype=torch.bool, device=device)
        self._noise = torch.ones(0, size, device=device)
        # Logits (rows, V) of the last requests, which have joined since the last step.
        self._fresh = torch.zeros(0, size, device=device)
        self._histories: list[Tensor] = []  # without a cache: each request's inputs so far, (rows, T, hidden)

    @property
    def num_requests(self) -> int:
        return len(self._slots)

    @property
    def num_rows(self) -> int:
        return sum(slot.request.num_rows for slot in self._slots)

    @torch.inference_mode()
    def join(self, request: DecodeRequest, *, kept_len: int = 0, prefix: RowPrefixes | None = None) -> int:
        """Take a request in: run its prefix, so that the next `step` draws its first token. Returns its handle.

        ``kept_len``: positions that its rows of the cache already hold and that stay; what comes after them is
        forgotten. With any, the conditioning is taken to be among them, and only text and start tokens are run.
        ``prefix``: of `PrefixSource.acquire` for this request; only the start tokens are run. It may be released after.

        Raises:
            ValueError: as `checked_limit`, or the cache lacks the rows or the capacity. The engine is as before then.
        """
        limit = checked_limit(self.t3, request)
        rows = slice(self.num_rows, self.num_rows + request.num_rows)
        if prefix is not None:
            embeds, kept_len = start_embeds(self.t3, request.num_rows), prefix.length
        else:
            embeds = prefill_embeds(self.t3, request)[:, self.t3.hp.cond_len if kept_len else 0 :]
        if self.cache is not None:
            self._require_room(rows, kept_len, embeds.shape[1] + limit)
            self._place(rows, kept_len, prefix)
        logits = self._run_prefix(embeds, rows)
        generator = None
        if request.seed is not None:
            generator = torch.Generator(device=self.t3.device).manual_seed(request.seed)
        self._num_joined += 1
        self._slots.append(_Slot(self._num_joined, request, limit, generator))
        self._fresh = torch.cat([self._fresh, logits])
        seen = self._seen.new_zeros(1, self._seen.shape[1])
        seen[:, self.t3.hp.start_speech_token] = True
        self._seen = torch.cat([self._seen, seen])
        self._noise = torch.cat([self._noise, self._noise.new_ones(1, self._noise.shape[1])])
        self._tokens, self._num_drawn = (torch.cat([x, x.new_zeros(1, 1)]) for x in (self._tokens, self._num_drawn))
        self._index()
        return self._num_joined

    def leave(self, handle: int) -> None:
        """Take a request out before its end; its rows are free. Raises KeyError if it is not here."""
        place = next((i for i, slot in enumerate(self._slots) if slot.handle == handle), None)
        if place is None:
            raise KeyError(f"request {handle} is not in the engine")
        self._remove([place])

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """Draw ``stop_stride`` tokens of every request, and let go of those that end.

        Returns:
            (handle, token) in the order they were drawn. A request's last one is the stop token, or its limit's.
        """
        if not self._slots:
            return []
        stride = min([self.stop_stride, *(slot.limit - slot.num_drawn for slot in self._slots)])
        columns = [self._draw(self._next_logits()) for _ in range(stride)]
        drawn, ended = [], set()
        for column in torch.cat(columns, dim=1).T.tolist():
            for place, (slot, token) in enumerate(zip(self._slots, column, strict=True)):
                if place in ended:
                    continue
                slot.num_drawn += 1
                drawn.append((slot.handle, token))
                stopped = slot.request.stop_on_eos and token == self.t3.hp.stop_speech_token
                if stopped or slot.num_drawn == slot.limit:
                    ended.add(place)
        self._remove(ended)
        return drawn

    def _require_room(self, rows: slice, kept_len: int, new_len: int) -> None:
        available = len(self.cache.row_lens)
        if rows.stop > available:
            raise ValueError(
                f"the cache has {available} rows, {rows.start} in use, and the request needs {rows.stop - rows.start}; "
                "allocate more rows or wait for a request to end"
            )
        if kept_len + new_len > self.cache.capacity:
            raise ValueError(
                f"the request may take {kept_len} + {new_len} positions, the cache has {self.cache.capacity}; "
                "allocate a larger capacity or lower max_new_tokens"
            )

    def _place(self, rows: slice, kept_len: int, prefix: RowPrefixes | None) -> None:
        """Bring the rows to the content that the request begins with."""
        if kept_len and prefix is None:
            self.cache.crop(kept_len)
            return
        segments = [()] * (rows.stop - rows.start) if prefix is None else prefix.rows
        for row, parts in enumerate(segments, rows.start):
            self.cache.load(row, *parts)

    def _run_prefix(self, embeds: Tensor, rows: slice) -> Tensor:
        """Logits (request rows, V) after the prefix."""
        if self.cache is None:
            self._histories.append(embeds)
            return self._logits(self.t3.tfmr(embeds))
        positions = self.cache.reserve(embeds.shape[1], rows)
        return self._logits(self.t3.tfmr(embeds, self.cache, positions=positions))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.t3.predict_speech(hidden[:, -1]).float()

    def _next_logits(self) -> Tensor:
        """(rows, V): the last drawn tokens are run, where there are any; who has just joined has its logits."""
        num_rows = len(self._owners) - len(self._fresh)
        logits, self._fresh = self._fresh, self._fresh[:0]
        if num_rows == 0:
            return logits
        embeds = (self.t3.speech_emb(self._tokens) + self.t3.speech_pos_emb.emb(self._num_drawn))[self._owners]
        if self.cache is None:
            logits = torch.cat([*self._recomputed(embeds, num_rows), logits])
        else:
            positions = self.cache.reserve(1, slice(0, num_rows))
            hidden = self.t3.tfmr(embeds[:num_rows], self.cache, positions=positions)
            logits = torch.cat([self._logits(hidden), logits])
        return logits

    def _recomputed(self, embeds: Tensor, num_rows: int) -> Iterator[Tensor]:
        first = 0
        for place, history in enumerate(self._histories):
            if first == num_rows:
                return
            last = first + len(history)
            self._histories[place] = torch.cat([history, embeds[first:last]], dim=1)
            yield self._logits(self.t3.tfmr(self._histories[place]))
            first = last

    def _draw(self, logits: Tensor) -> Tensor:
        """Next tokens (N, 1) of all requests, from the logits (rows, V)."""
        guided = logits[self._conditional]
        if self._knobs.cfg_weight is not None:
            guided = guide(guided, logits[self._unconditional], self._knobs.cfg_weight)
        exponential_noise(self._noise, [slot.generator for slot in self._slots], self._greedy)
        self._tokens = draw(guided, self._seen, self._knobs, self._noise)
        self._seen.scatter_(1, self._tokens, True)
        self._num_drawn += 1
        return self._tokens

    def _index(self) -> None:
        """What follows from who is here and in which order."""
        counts = [slot.request.num_rows for slot in self._slots]
        settings = [slot.request.sampling for slot in self._slots]
        device = self.t3.device
        self._owners = torch.tensor([i for i, rows in enumerate(counts) for _ in range(rows)], device=device).long()
        firsts = torch.tensor([sum(counts[:i]) for i in range(len(counts))], device=device).long()
        self._conditional = firsts
        # Without guidance a request's own row stands in: it is guided by a difference of 0.
        self._unconditional = firsts + torch.tensor(counts, device=device).long() - 1
        self._knobs = Knobs.of(settings, device)
        self._greedy = [one.temperature == 0.0 for one in settings]

    @torch.inference_mode()
    def _remove(self, places: set[int] | list[int]) -> None:
        if not places:
            return
        keep = [i for i in range(len(self._slots)) if i not in places]
        kept_rows = torch.isin(self._owners, torch.tensor(keep, device=self._owners.device)).nonzero()[:, 0]
        num_old_rows = len(self._owners) - len(self._fresh)
        self._fresh = self._fresh[kept_rows[kept_rows >= num_old_rows] - num_old_rows]
        if self.cache is None:
            self._histories = [self._histories[i] for i in keep]
        else:
            for target, source in enumerate(kept_rows.tolist()):
                if source != target:
                    self.cache.move_row(source, target)
        self._slots = [self._slots[i] for i in keep]
        self._tokens, self._num_drawn, self._seen, self._noise = (
            x[keep] for x in (self._tokens, self._num_drawn, self._seen, self._noise)
        )
        self._index()
