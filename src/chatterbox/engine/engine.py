"""The decode engine: N requests at once, one speech token each per step, on the rows of one decoder.

Owns: joining and leaving between steps, stop and length limits, requests on hold. Does not know: text, voices by name,
audio, who asks for what and when (`scheduler`), how a row's past is remembered (`decoder`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from chatterbox.engine.batch_state import BatchState, DecodeSequence, Rewind, SamplerState, StepResult, sample_next
from chatterbox.engine.cuda_graphs import StepGraphs
from chatterbox.engine.decoder import RowDecoder, RowStart
from chatterbox.engine.guards import Guards, readers_of, start_guards
from chatterbox.engine.prefill import CachedPrefix
from chatterbox.engine.request import (
    Between,
    Request,
    Turn,
    limit_of,
    pieces,
    prefill_embeds,
    speech_embeds,
    start_embeds,
)
from chatterbox.engine.row_pool import RowTable
from chatterbox.engine.sampler import draw_exponential
from chatterbox.kvcache import Segment
from chatterbox.models.t3.attention import HeadReader
from chatterbox.models.t3.t3 import T3

logger = logging.getLogger(__name__)

_HANDLES = itertools.count(1)  # of all engines: what was parked in one may come back to another


class DecodeEngine:
    """Requests on the rows of one decoder: `join`, then `step` until none is left. Not for several threads at once."""

    def __init__(
        self,
        t3: T3,
        decoder: RowDecoder,
        *,
        stop_stride: int = 1,
        graphs: StepGraphs | None = None,
        prefill_len: int | None = None,
    ) -> None:
        """Args:
        stop_stride: steps between two looks at the tokens. More than 1 spares a device its waits; requests decode up to
            ``stop_stride - 1`` tokens for nothing.
        graphs: where steps are captured and replayed; None is as the device has it: on CUDA yes, else no.
        prefill_len: positions of a prefix that are run at once; a longer one is cut at its multiples. None never cuts.
        """
        if stop_stride < 1:
            raise ValueError(f"stop_stride must be at least 1, got {stop_stride}")
        self.t3, self.decoder, self.stop_stride, self.prefill_len = t3, decoder, stop_stride, prefill_len
        self._graphs = StepGraphs() if graphs is None and t3.device.type == "cuda" else graphs
        self._running: list[DecodeSequence] = []  # those whose first token is still to be decoded come last
        self._held: dict[int, DecodeSequence] = {}
        self._rows = RowTable(decoder)
        with torch.inference_mode():
            self._settle(SamplerState.empty(t3.num_speech_tokens, t3.device))

    @property
    def num_requests(self) -> int:
        """Requests that the next step decodes for."""
        return len(self._running)

    @property
    def num_rows(self) -> int:
        """Rows in use, those on hold among them."""
        return self._rows.num_used

    @property
    def running(self) -> list[int]:
        """Handles of the requests that the next step decodes for."""
        return [one.handle for one in self._running]

    @torch.inference_mode()
    def join(
        self,
        request: Request,
        *,
        kept_len: int = 0,
        prefix: CachedPrefix | None = None,
        keeps_rows: bool = False,
        between: Between | None = None,
    ) -> int:
        """Take a request in: run its prefix, so that the next `step` decodes its first token. Returns its handle.

        Args:
            kept_len: positions that the rows of an empty engine already hold and that stay; what comes after them is
                forgotten. With any, the conditioning is taken to be among them, and only text and start tokens are run.
            prefix: of `Prefiller.acquire` for this request; only the start tokens are run. May be released after.
            keeps_rows: its rows stay when it ends, for a request that continues it, until it leaves.
            between: called between two pieces of a long prefix; it may call `step`.

        Raises:
            ValueError: the decoder never has the rows or the room for it.
            NoRoomError: it has not at present. The engine is as before then.
        """
        limit = limit_of(self.t3, request)
        one = DecodeSequence(next(_HANDLES), [Turn(request)], limit, keeps_rows)
        first_len = kept_len if prefix is None else prefix.length
        embeds = self._prompt(request, prefix, has_cond=not kept_len)
        self.decoder.require(self.num_rows, request.num_rows, first_len, embeds.shape[1] + request.num_forced, limit)
        cond_len = self.t3.cond_len_of(request.t3_cond)
        # What a continued sequence had before, its voice apart, may go where a policy forgets.
        pinned = range(cond_len if prefix is None else first_len), range(first_len, first_len + embeds.shape[1])
        text_start = kept_len if kept_len and prefix is None else cond_len
        try:
            self._take_rows(one, prefix, pinned, kept_len if kept_len and prefix is None else None)
            self._run_prompt(one, embeds, text_start, between)
        except BaseException:
            self._rows.free(one)
            raise
        return one.handle

    @torch.inference_mode()
    def follow(self, handle: int, request: Request, *, between: Between | None = None) -> None:
        """Let ``request`` continue one that ended and kept its rows: its text and speech come behind that one's.

        Raises:
            KeyError: there is no such. ValueError, NoRoomError: as `join`; the rows stay then.
        """
        one = self._held[handle]
        limit, kept_len = limit_of(self.t3, request), self.decoder.length(one.rows[0])
        embeds = self._prompt(request, None, has_cond=False)
        self.decoder.require(self.num_rows, 0, kept_len, embeds.shape[1] + request.num_forced, limit)
        pinned = range(self.t3.cond_len_of(request.t3_cond)), range(kept_len, kept_len + embeds.shape[1])
        self._begin(one, (), pinned, kept_len)
        try:
            one.turns.append(Turn(request))
            one.limit = limit
            del self._held[handle]
            self._run_prompt(one, embeds, kept_len, between)
        except BaseException:
            self._rows.free(one)
            raise

    def keeps(self, handle: int) -> bool:
        """Whether the rows of a request that ended, or is on hold, are here."""
        return handle in self._held

    def length(self, handle: int) -> int:
        """Positions of a request that ended and kept its rows. Raises KeyError: it is not here."""
        return self.decoder.length(self._held[handle].rows[0])

    def has_decoded(self, handle: int) -> bool:
        """Whether a running request's first token is decoded. Raises KeyError: it is not running."""
        return self._running[self._place(handle)].fresh is None

    @torch.inference_mode()
    def leave(self, handle: int) -> None:
        """Take a request out before its end, or one that ended and kept its rows; they are free.

        Raises:
            KeyError: it is not here.
        """
        if handle in self._held:
            self._rows.free(self._held.pop(handle))
            return
        out, sampler = self._take_out([self._place(handle)])
        self._rows.free(out[0])
        self._settle(sampler)

    @torch.inference_mode()
    def hold(self, handle: int) -> None:
        """Let steps pass a request by; its rows stay. Not before its first token is decoded."""
        place = self._place(handle)
        one = self._running[place]
        assert one.fresh is None, "a request decodes its first token before it is put on hold"
        one.sampler = self._state.sampler(self._names).select([place])
        self._held[handle] = one
        self._settle(self._take_out([place])[1])

    @torch.inference_mode()
    def resume(self, handle: int) -> None:
        """Let steps decode for a request that was on hold."""
        one = self._held.pop(handle)
        sampler, one.sampler = one.sampler, None
        assert sampler is not None, "a request that ended is followed, not resumed"
        places = [place for place, other in enumerate(self._running) if other.fresh is not None]
        behind = self._state.sampler(self._names).select(places)
        fresh, before = self._take_out(places)
        self._running += [one, *fresh]
        self._settle(before.join(sampler).join(behind))

    @torch.inference_mode()
    def withdraw(self, handle: int) -> DecodeSequence | None:
        """Take out a request whose first token is not decoded yet, for it to come again as if it had never been here.

        Returns what it continued, parked; None: nothing.
        """
        out, sampler = self._take_out([self._place(handle)])
        self._rows.free(out[0])
        self._settle(sampler)
        out[0].turns.pop()
        out[0].fresh, out[0].limit = None, out[0].num_decoded if out[0].turns else 0
        return out[0] if out[0].turns else None

    @torch.inference_mode()
    def park(self, handle: int) -> DecodeSequence:
        """Take a request out with all that `rejoin` needs to bring it back; its rows are free meanwhile.

        Not before its first token is decoded; see `withdraw`.
        """
        if handle not in self._held:
            self.hold(handle)
        one = self._held.pop(handle)
        self._rows.free(one)
        return one

    @torch.inference_mode()
    def rejoin(
        self, one: DecodeSequence, *, prefix: CachedPrefix | None = None, between: Between | None = None
    ) -> None:
        """Bring back what was parked, on hold: its rows are computed anew. ``prefix``: of its first turn's request.

        Raises:
            ValueError, NoRoomError: as `join`.
        """
        first = one.turns[0].request
        parts = []
        for index, turn in enumerate(one.turns):
            parts.append(self._prompt(turn.request, None if index else prefix, has_cond=not index))
            if len(tokens := turn.run_tokens()):
                parts.append(speech_embeds(self.t3, tokens, first.num_rows))
        embeds, first_len = torch.cat(parts, dim=1), 0 if prefix is None else prefix.length
        self.decoder.require(self.num_rows, first.num_rows, first_len, embeds.shape[1], one.limit - one.num_decoded)
        prompt_len = first_len + parts[0].shape[1]
        try:
            self._take_rows(one, prefix, (range(prompt_len),), None)
            self._extend(one, embeds, (), between)
        except BaseException:
            self._rows.free(one)
            raise
        self._held[one.handle] = one

    @torch.inference_mode()
    def step(self) -> StepResult:
        """Draw ``stop_stride`` tokens of every running request, and let go of those that end.

        A request whose logits are not finite fails alone.

        Raises:
            NoRoomError: the rows cannot grow; nothing has changed then.
        """
        result = StepResult()
        if not self._running:
            return result
        stride = min([self.stop_stride, *(one.limit - one.num_decoded for one in self._running)])
        self.decoder.require_step(self._num_running_rows, stride)
        rewind = Rewind(self.t3.device, self._from_global, stride)
        columns = []
        for _ in range(stride):
            columns.append(self._advance())
            rewind.note()
        gone: set[int] = set()
        for number, column in enumerate(torch.stack(columns).tolist()):
            for place, (one, (token, forced, broken)) in enumerate(zip(self._running, column, strict=True)):
                if place in gone:
                    continue
                if broken:
                    result.failed[one.handle] = RuntimeError(
                        f"T3 computed NaN or infinite logits at speech token {one.num_decoded + 1}; "
                        "check the weights, their dtype and the voice"
                    )
                    gone.add(place)
                    continue
                one.turns[-1].decoded.append(token)
                result.tokens.append((one.handle, token))
                stopped = one.request.stop_on_eos and token == self.t3.hp.stop_speech_token
                if stopped or one.num_decoded == one.limit:
                    result.ended.add(one.handle)
                    gone.add(place)
                    rewind.ended(place, number)
                    self._report(one, bool(stopped and forced))
        if gone:
            self._finish(gone, result)
        return result

    def _finish(self, gone: set[int], result: StepResult) -> None:
        """Take out the requests at the places ``gone``, which ended or failed."""
        out, sampler = self._take_out(gone)
        for one in out:
            if one.keeps_rows and one.handle in result.ended:
                self._held[one.handle] = one
            else:
                self._rows.free(one, wipe=one.handle in result.failed)
        self._settle(sampler)

    def _report(self, one: DecodeSequence, forced: bool) -> None:
        """Log it where a guard ended a request: it chose the stop token (``forced``) or lowered the limit."""
        most = one.request.max_new_tokens or self.t3.max_speech_len
        if forced or one.num_decoded == one.limit < most:
            why = "it went on without saying more" if forced else "longer than its text can be"
            logger.warning("guard %r ended an utterance at %d tokens: %s", one.request.guard, one.num_decoded, why)

    def _prompt(self, request: Request, prefix: CachedPrefix | None, *, has_cond: bool) -> Tensor:
        """(rows, T, hidden): what comes before a request's speech, as far as it is not there yet."""
        if prefix is not None:
            return start_embeds(self.t3, request.num_rows)
        embeds = prefill_embeds(self.t3, request)
        return embeds if has_cond else embeds[:, self.t3.cond_len_of(request.t3_cond) :]

    def _take_rows(
        self, one: DecodeSequence, prefix: CachedPrefix | None, pinned: tuple[range, ...], kept_len: int | None
    ) -> None:
        self._rows.take(one, one.turns[0].request.num_rows, self._num_running_rows)
        self._begin(one, () if prefix is None else prefix.rows, pinned, kept_len)

    def _begin(
        self,
        one: DecodeSequence,
        segments: Sequence[Sequence[Segment]],
        pinned: tuple[range, ...],
        kept_len: int | None,
    ) -> None:
        for place, row in enumerate(one.rows):
            start = RowStart(segments[place] if segments else (), pinned, is_conditional=place == 0)
            self.decoder.begin(row, start, kept_len)

    def _run_prompt(self, one: DecodeSequence, embeds: Tensor, text_start: int, between: Between | None) -> None:
        """Run what comes before the first decoded token, and let the request take part in steps."""
        request, device = one.request, self.t3.device
        new_text = request.new_text
        guards = start_guards(request.guard, text_start + new_text.start, len(new_text), device)
        index = torch.full((1,), sorted(one.rows).index(one.rows[0]), dtype=torch.long, device=device)
        readers = readers_of(guards, [request.guard], slice(0, 1), self.t3.hp.alignment_heads, index)
        hidden = self._extend(one, embeds, readers, between)
        if len(tokens := one.turns[-1].run_tokens()):
            speech = speech_embeds(self.t3, tokens, request.num_rows)
            hidden = self._extend(one, speech, (), between, tokens.to(device))
        one.fresh = self._logits(hidden)
        self._enter(one, self._first_state(request, guards))

    def _extend(
        self,
        one: DecodeSequence,
        embeds: Tensor,
        readers: Sequence[HeadReader],
        between: Between | None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Hidden state (rows, hidden) behind ``embeds`` (rows, T, hidden), run in pieces."""
        parts = pieces(self.decoder.length(one.rows[0]), embeds.shape[1], self.prefill_len)
        for part in parts:
            if part.start and between is not None:
                between()
            hidden = self.decoder.extend(
                embeds[:, part],
                one.rows,
                readers if part is parts[-1] else (),
                None if tokens is None else tokens[part],
            )
        return hidden

    def _first_state(self, request: Request, guards: Guards) -> SamplerState:
        """Of a request whose first token is to be decoded."""
        hp = self.t3.hp
        state = SamplerState.empty(self.t3.num_speech_tokens, self.t3.device)
        last = state.tokens.new_full((1, 1), hp.start_speech_token)
        num_forced = state.tokens.new_full((1, 1), request.num_forced)
        seen = state.seen.new_zeros(1, state.seen.shape[1])
        seen[:, hp.start_speech_token] = hp.start_stays_seen or not request.num_forced
        if request.forced is not None and request.num_forced:
            forced = request.forced.tokens.to(last)[None]
            last = forced[:, -1:]
            seen.scatter_(1, forced, True)
        return SamplerState([request.guard], last, num_forced, num_forced.clone(), seen, guards)

    def _readers(self, part: slice, rows: Tensor | None) -> list[HeadReader]:
        """As `decoder.MakeReaders`."""
        state = self._state
        rows = state.conditional if rows is None else rows
        return readers_of(state.guards, self._names, part, self.t3.hp.alignment_heads, rows)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.t3.predict_speech(hidden, batch_invariant=self.decoder.batch_invariant).float()

    def _advance(self) -> Tensor:
        """Draw the next token of every request; returns (N, 3): it, 1 where a guard chose it, 1 where it is noise."""
        state = self._state
        if state.noise is not None:
            draw_exponential(state.noise, self._from_global)
        fresh = self._fresh_logits()
        num_old = self._num_running_rows - len(fresh)
        if not num_old:
            sample_next(self._state, torch.cat(fresh), self.t3.hp)
        else:
            self.decoder.reserve(num_old)
            shape = self.decoder.step_shape
            if self._graphs is None or fresh or shape is None:
                sample_next(self._state, torch.cat([self._decoded(num_old), *fresh]), self.t3.hp)
            else:
                step = partial(self._decode_and_sample, num_old)
                self._graphs.run(state, shape, step, memory_id=self.decoder.memory_id)
        for one in self._running:
            one.fresh = None
        return torch.cat([state.tokens, state.guard_stopped, state.broken], dim=1)

    def _decode_and_sample(self, num_rows: int) -> None:
        sample_next(self._state, self._decoded(num_rows), self.t3.hp)

    def _fresh_logits(self) -> list[Tensor]:
        """(1, V) of each row that joined since the last step, by row."""
        logits: dict[int, Tensor] = {}
        for one in self._running:
            if one.fresh is not None:
                logits |= zip(one.rows, one.fresh[:, None], strict=True)
        return [logits[row] for row in sorted(logits)]

    def _decoded(self, num_rows: int) -> Tensor:
        """Logits (rows, V) after the last decoded tokens of the first ``num_rows`` rows."""
        state = self._state
        spans = [one.rows for one in self._running if one.fresh is None]
        embeds = self.t3.embed_speech(state.tokens, state.num_decoded)[state.owners[:num_rows]]
        return self._logits(self.decoder.decode(embeds, state.tokens[state.owners[:num_rows]], spans, self._readers))

    @property
    def _names(self) -> list[str | None]:
        """The guard of each running request."""
        return [one.request.guard for one in self._running]

    @property
    def _num_running_rows(self) -> int:
        return sum(len(one.rows) for one in self._running)

    def _place(self, handle: int) -> int:
        for place, one in enumerate(self._running):
            if one.handle == handle:
                return place
        raise KeyError(f"request {handle} is not in the engine")

    def _enter(self, one: DecodeSequence, sampler: SamplerState) -> None:
        """Let a request take part in steps."""
        before = self._state.sampler(self._names)
        self._running.append(one)
        try:
            self._settle(before.join(sampler))
        except BaseException:
            self._running.remove(one)
            self._settle(before)
            raise

    def _take_out(self, places: Collection[int]) -> tuple[list[DecodeSequence], SamplerState]:
        """Requests that no longer take part in steps, and the state of those that do, to be settled with."""
        keep = [place for place in range(len(self._running)) if place not in places]
        sampler = self._state.sampler(self._names).select(keep)
        out = [self._running[place] for place in sorted(places)]
        self._running = [self._running[place] for place in keep]
        return out, sampler

    def _settle(self, sampler: SamplerState) -> None:
        """Go on with the running requests, whose state this is; the rest follows from them."""
        old = [one for one in self._running if one.fresh is None]
        self._rows.pack(old, self._running[len(old) :])
        requests = [one.request for one in self._running]
        state = BatchState.of(sampler, requests, [one.rows for one in self._running])
        self._state = state if self._graphs is None else self._graphs.adopt(state)
        self._from_global = state.from_global
