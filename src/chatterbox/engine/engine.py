"""The decode engine: N requests at once, one speech token each per step, on the rows of one key-value cache.

Owns: rows of requests (guidance owns two), joining and leaving between steps, stop and length limits. Does not know:
text, voices by name, audio, how a cache keeps its content.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from chatterbox.engine.cuda_graphs import StepGraphs, StepState
from chatterbox.engine.guards.batch import Guards, Verdict, join_guards, readers_of, select_guards, start_guards
from chatterbox.engine.prefill import RowPrefixes
from chatterbox.engine.request import (
    DecodeRequest,
    checked_limit,
    prefill_embeds,
    spoken_embeds,
    start_embeds,
)
from chatterbox.engine.sampler import Knobs, draw, exponential_noise, guide
from chatterbox.kvcache import KVCache, Segment
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.t3 import T3

logger = logging.getLogger(__name__)


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

    def __init__(
        self, t3: T3, cache: KVCache | None, *, stop_stride: int = 1, graphs: StepGraphs | None = None
    ) -> None:
        """Args:
        cache: of `allocate_cache`, as many rows as the requests that will share it need; None recomputes every
            sequence at every step.
        stop_stride: steps between two looks at the tokens. More than 1 spares a device its waits; requests draw up to
            ``stop_stride - 1`` tokens in vain.
        graphs: where steps are captured and replayed; None is as the device has it: on CUDA yes, else no.
        """
        if stop_stride < 1:
            raise ValueError(f"stop_stride must be at least 1, got {stop_stride}")
        self.t3, self.cache, self.stop_stride = t3, cache, stop_stride
        self._graphs = StepGraphs() if graphs is None and t3.device.type == "cuda" else graphs
        self._slots: list[_Slot] = []
        self._num_joined = 0
        size, device = t3.hp.speech_tokens_dict_size, t3.device
        none = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._state = StepState(
            tokens=none,
            num_drawn=none,
            num_given=none,
            seen=torch.zeros(0, size, dtype=torch.bool, device=device),
            noise=torch.ones(0, size, device=device),
            owners=none[:, 0],
            conditional=none[:, 0],
            unconditional=none[:, 0],
            forced=none,
            broken=none,
            knobs=Knobs.of([], device),
        )
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
            ValueError: as `checked_limit`, or the cache lacks the rows or the room. The engine is as before then.
        """
        limit = checked_limit(self.t3, request)
        rows = slice(self.num_rows, self.num_rows + request.num_rows)
        cond_len, heads = self.t3.cond_len_of(request.t3_cond), self.t3.hp.alignment_heads
        text_start = kept_len if kept_len and prefix is None else cond_len
        new_text = request.new_text
        guards = start_guards(request.guard, text_start + new_text.start, len(new_text), self.t3.device)
        if prefix is not None:
            embeds, kept_len = start_embeds(self.t3, request.num_rows), prefix.length
        else:
            embeds = prefill_embeds(self.t3, request)[:, cond_len if kept_len else 0 :]
        if self.cache is not None:
            _require_room(self.cache, rows, kept_len, embeds.shape[1] + request.spoken_len + limit)
            # What a continued sequence had before, its voice apart, may go where a policy forgets.
            pinned_len = self.t3.cond_len_of(request.t3_cond) if prefix is None else kept_len
            pinned = range(pinned_len), range(kept_len, kept_len + embeds.shape[1])
            self.cache.require_pinned(*pinned)
            _place(self.cache, rows, kept_len, prefix, pinned)
        state = self._state
        zero = state.num_drawn.new_zeros(1, 1)
        logits = self._run_prefix(embeds, rows, readers_of(guards, [request.guard], slice(0, 1), heads, zero[0]))
        last, num_given = zero + self.t3.hp.start_speech_token, zero + request.spoken_len
        seen = state.seen.new_zeros(1, state.seen.shape[1])
        seen[:, self.t3.hp.start_speech_token] = self.t3.hp.start_stays_seen or not request.spoken_len
        if request.spoken is not None and request.spoken_len:
            logits = self._run_spoken(request, rows)
            given = request.spoken.tokens.to(last)[None]
            last = given[:, -1:]
            seen.scatter_(1, given, True)
        generator = None
        if request.seed is not None:
            generator = torch.Generator(device=self.t3.device).manual_seed(request.seed)
        self._num_joined += 1
        self._slots.append(_Slot(self._num_joined, request, limit, generator))
        self._fresh = torch.cat([self._fresh, logits])
        self._rearrange(
            torch.cat([state.tokens, last]),
            torch.cat([state.num_drawn, num_given]),
            torch.cat([state.num_given, num_given]),
            torch.cat([state.seen, seen]),
            torch.cat([state.noise, state.noise.new_ones(1, state.noise.shape[1])]),
            join_guards(state.guards, len(self._slots) - 1, guards),
        )
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

        Raises:
            RuntimeError: the model computed logits that are not finite. All requests have left then.
        """
        if not self._slots:
            return []
        stride = min([self.stop_stride, *(slot.limit - slot.num_drawn for slot in self._slots)])
        columns = [self._advance() for _ in range(stride)]
        drawn, ended = [], set()
        for column in torch.stack(columns).tolist():
            for place, (slot, (token, forced, broken)) in enumerate(zip(self._slots, column, strict=True)):
                if place in ended:
                    continue
                if broken:
                    self._remove(set(range(len(self._slots))))
                    raise RuntimeError(
                        f"T3 computed NaN or infinite logits at speech token {slot.num_drawn + 1}; "
                        "check the weights and their dtype"
                    )
                slot.num_drawn += 1
                drawn.append((slot.handle, token))
                stopped = slot.request.stop_on_eos and token == self.t3.hp.stop_speech_token
                if stopped or slot.num_drawn == slot.limit:
                    ended.add(place)
                    self._report(slot, bool(stopped and forced))
        self._remove(ended)
        return drawn

    def _report(self, slot: _Slot, forced: bool) -> None:
        """Log it where a guard ended a request: it chose the stop token (``forced``) or lowered the limit."""
        most = slot.request.max_new_tokens or self.t3.hp.max_speech_tokens
        if forced or slot.num_drawn == slot.limit < most:
            why = "it went on without saying more" if forced else "longer than its text can be"
            logger.warning("guard %r ended an utterance at %d tokens: %s", slot.request.guard, slot.num_drawn, why)

    def _run_prefix(self, embeds: Tensor, rows: slice, readers: Sequence[HeadReader]) -> Tensor:
        """Logits (request rows, V) after the prefix."""
        if self.cache is None:
            self._histories.append(embeds)
            return self._logits(self.t3.tfmr(embeds, readers=readers))
        positions = self.cache.reserve(embeds.shape[1], rows)
        return self._logits(self.t3.tfmr(embeds, self.cache, positions=positions, readers=readers))

    def _run_spoken(self, request: DecodeRequest, rows: slice) -> Tensor:
        """Logits (request rows, V) after the speech tokens that are given."""
        embeds = spoken_embeds(self.t3, request)
        if self.cache is None:
            self._histories[-1] = torch.cat([self._histories[-1], embeds], dim=1)
            return self._logits(self.t3.tfmr(self._histories[-1]))
        positions = self.cache.reserve(embeds.shape[1], rows)
        if self.cache.wants_tokens and request.spoken is not None:
            given = request.spoken.tokens.to(self.t3.device).long()
            self.cache.note_tokens(given.expand(request.num_rows, -1))
        return self._logits(self.t3.tfmr(embeds, self.cache, positions=positions))

    def _readers(self, part: slice, rows: Tensor) -> list[HeadReader]:
        """Of the requests ``part`` in a pass; ``rows``: of all requests, their conditional rows in it."""
        names = [slot.request.guard for slot in self._slots]
        return readers_of(self._state.guards, names, part, self.t3.hp.alignment_heads, rows)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.t3.predict_speech(hidden[:, -1]).float()

    def _advance(self) -> Tensor:
        """Draw the next token of every request; returns (N, 3): it, 1 where a guard chose it, 1 where it is noise."""
        state, num_fresh = self._state, len(self._fresh)
        exponential_noise(state.noise, [slot.generator for slot in self._slots], self._greedy)
        num_rows = len(state.owners) - num_fresh
        if self.cache is None:
            self._draw(torch.cat([*self._recomputed(num_rows), self._fresh]))
        elif num_rows == 0:
            self._draw(self._fresh)
        else:
            positions = self.cache.reserve(1, slice(0, num_rows))
            cache_shape = self.cache.step_shape
            if self._graphs is None or num_fresh or cache_shape is None:
                self._draw(torch.cat([self._decoded(self.cache, positions), self._fresh]))
            else:
                cache = self.cache
                self._graphs.run(state, cache_shape, lambda: self._draw(self._decoded(cache, positions)))
        self._fresh = self._fresh[:0]
        return torch.cat([state.tokens, state.forced, state.broken], dim=1)

    def _embedded(self) -> Tensor:
        """The last drawn tokens as inputs of all rows, (rows, 1, hidden)."""
        state = self._state
        return self.t3.embed_speech(state.tokens, state.num_drawn)[state.owners]

    def _decoded(self, cache: KVCache, positions: Tensor) -> Tensor:
        """Logits (rows, V) after the last drawn tokens of the rows that ``positions`` (rows, 1) were reserved for."""
        if cache.wants_tokens:
            cache.note_tokens(self._state.tokens[self._state.owners][: len(positions)])
        ends = accumulate(slot.request.num_rows for slot in self._slots)
        part = slice(0, sum(end <= len(positions) for end in ends))
        readers = self._readers(part, self._state.conditional)
        embeds = self._embedded()[: len(positions)]
        return self._logits(self.t3.tfmr(embeds, cache, positions=positions, readers=readers))

    def _recomputed(self, num_rows: int) -> Iterator[Tensor]:
        embeds, first = self._embedded(), 0
        for place, history in enumerate(self._histories):
            if first == num_rows:
                return
            last = first + len(history)
            self._histories[place] = torch.cat([history, embeds[first:last]], dim=1)
            readers = self._readers(slice(place, place + 1), torch.zeros_like(self._state.conditional))
            yield self._logits(self.t3.tfmr(self._histories[place], readers=readers))
            first = last

    def _draw(self, logits: Tensor) -> None:
        """Next tokens of all requests, from the logits (rows, V), into the state."""
        state = self._state
        guided = logits[state.conditional]
        if state.knobs.cfg_weight is not None:
            guided = guide(guided, logits[state.unconditional], state.knobs.cfg_weight)
        state.broken |= ~guided.isfinite().all(1, keepdim=True)
        hp, stop_token = self.t3.hp, self.t3.hp.stop_speech_token
        num_new = state.num_drawn - state.num_given
        verdict = Verdict.of(state.guards.values(), state.tokens, num_new) if state.guards else None
        if verdict:
            verdict.mask(guided, stop_token)
        tokens = draw(guided, state.seen, state.knobs, state.noise, penalty_last=hp.penalty_last)
        if verdict:
            tokens = verdict.correct(tokens, guided, stop_token)
            state.forced.copy_(verdict.must_stop)
        state.tokens.copy_(tokens)
        if not hp.start_stays_seen:
            state.seen[:, hp.start_speech_token, None] &= state.num_drawn > 0
        state.seen.scatter_(1, state.tokens, True)
        state.num_drawn += 1

    def _rearrange(
        self, tokens: Tensor, num_drawn: Tensor, num_given: Tensor, seen: Tensor, noise: Tensor, guards: Guards
    ) -> None:
        """Go on with the requests in `_slots`, whose state this is; the rest follows from their order."""
        counts = [slot.request.num_rows for slot in self._slots]
        settings = [slot.request.sampling for slot in self._slots]
        device = self.t3.device
        firsts = torch.tensor([sum(counts[:i]) for i in range(len(counts))], device=device).long()
        state = StepState(
            tokens=tokens,
            num_drawn=num_drawn,
            num_given=num_given,
            seen=seen,
            noise=noise,
            owners=torch.tensor([i for i, rows in enumerate(counts) for _ in range(rows)], device=device).long(),
            conditional=firsts,
            # Without guidance a request's own row stands in: it is guided by a difference of 0.
            unconditional=firsts + torch.tensor(counts, device=device).long() - 1,
            forced=torch.zeros_like(tokens),
            broken=torch.zeros_like(tokens),
            knobs=Knobs.of(settings, device),
            guards=guards,
        )
        self._state = state if self._graphs is None else self._graphs.adopt(state)
        self._greedy = [one.temperature == 0.0 for one in settings]

    @torch.inference_mode()
    def _remove(self, places: set[int] | list[int]) -> None:
        if not places:
            return
        keep = [i for i in range(len(self._slots)) if i not in places]
        state = self._state
        kept_rows = torch.isin(state.owners, torch.tensor(keep, device=state.owners.device)).nonzero()[:, 0]
        num_old_rows = len(state.owners) - len(self._fresh)
        self._fresh = self._fresh[kept_rows[kept_rows >= num_old_rows] - num_old_rows]
        if self.cache is None:
            self._histories = [self._histories[i] for i in keep]
        else:
            for target, source in enumerate(kept_rows.tolist()):
                if source != target:
                    self.cache.move_row(source, target)
        guards = select_guards(state.guards, [slot.request.guard for slot in self._slots], keep)
        self._slots = [self._slots[i] for i in keep]
        tokens, num_drawn, num_given = state.tokens[keep], state.num_drawn[keep], state.num_given[keep]
        self._rearrange(tokens, num_drawn, num_given, state.seen[keep], state.noise[keep], guards)


def _require_room(cache: KVCache, rows: slice, kept_len: int, new_len: int) -> None:
    available = cache.num_rows
    if rows.stop > available:
        raise ValueError(
            f"the cache has {available} rows, {rows.start} in use, and the request needs {rows.stop - rows.start}; "
            "allocate more rows or wait for a request to end"
        )
    if kept_len + new_len > cache.capacity:
        raise ValueError(
            f"the request may take {kept_len} + {new_len} positions, the cache has {cache.capacity}; "
            "allocate a larger capacity or lower max_new_tokens"
        )


def _place(cache: KVCache, rows: slice, kept_len: int, prefix: RowPrefixes | None, pinned: tuple[range, ...]) -> None:
    """Bring the rows to the content that the request begins with."""
    segments: Sequence[Sequence[Segment]] = [()] * (rows.stop - rows.start) if prefix is None else prefix.rows
    if kept_len and prefix is None:
        cache.crop(kept_len)
    else:
        for row, parts in enumerate(segments, rows.start):
            cache.load(row, *parts)
    for row in range(rows.start, rows.stop):
        cache.begin(row, *pinned, is_conditional=row == rows.start)


def run(
    t3: T3, request: DecodeRequest, cache: KVCache | None, *, kept_len: int = 0, prefix: RowPrefixes | None = None
) -> Iterator[int]:
    """Tokens of one request as they are drawn, on an engine of its own; arguments as `DecodeEngine.join`."""
    engine = DecodeEngine(t3, cache)
    engine.join(request, kept_len=kept_len, prefix=prefix)
    while engine.num_requests:
        for _, token in engine.step():
            yield token
