"""T3's prefixes through the prefix cache: what a voice and a text have computed before is not computed again.

Owns: which positions may be shared by whom, and how a missing part is computed. Does not know: budgets, threads,
eviction.

    conditional row      [conditioning][emotion][text ................][start start][speech ...
    unconditional row    [conditioning][emotion][no text, same length  ][start start][speech ...

Conditioning up to the emotion is one segment for every exaggeration and both rows. Turbo and Nano have no emotion, one
row and one start token. The unconditional row's text part is
zeros plus learned positions: it depends on the voice and the length alone, and a shorter one begins every longer one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.engine.request import Between, Request, allocate_cache, pieces, prefill_embeds
from chatterbox.kvcache import make_manager
from chatterbox.kvcache.base import KVCache, Segment
from chatterbox.kvcache.prefix.disk import Form
from chatterbox.kvcache.prefix.keys import content_hash
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager, Lease, PrefillResult
from chatterbox.kvcache.prefix.tree import NO_TEXT, Label
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.t3 import T3
from chatterbox.models.weights import nbytes_of

Segments = tuple[Segment, ...]
SHARE_OF_WEIGHTS = 8
DEFAULTS = KVCacheConfig()


@dataclass(frozen=True)
class CachedPrefix:
    """Leased segments of each row of a request, all up to its start tokens. Use it in a ``with`` block."""

    leases: tuple[Lease, ...]
    num_cached_tokens: int = 0  # positions of all rows that the manager knew before this request

    @property
    def rows(self) -> tuple[Segments, ...]:
        return tuple(lease.segments for lease in self.leases)

    @property
    def length(self) -> int:
        """Positions of each row."""
        return self.rows[0][-1].end

    def release(self) -> None:
        for lease in self.leases:
            lease.release()

    def __enter__(self) -> CachedPrefix:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Prefiller:
    """One T3 and the manager that keeps its prefixes. A change of its weights or layers begins anew."""

    def __init__(
        self,
        t3: T3,
        manager: GlobalKVCacheManager | KVCacheConfig = DEFAULTS,
        *,
        prefill_len: int | None = None,
        batch_invariant: bool = False,
        beside_bytes: int = 0,
    ) -> None:
        """Args:
        manager: one that several models may share, or the settings of one for this model alone.
        prefill_len: as `chatterbox.engine.engine.DecodeEngine` has it.
        batch_invariant: as `chatterbox.config.EngineConfig` has it; what differs in last bits is never served.
        beside_bytes: of the default budget, for what is kept beside T3's prefixes.
        """
        if isinstance(manager, KVCacheConfig):
            default_bytes = nbytes_of(t3) // SHARE_OF_WEIGHTS + beside_bytes
            manager = make_manager(manager, default_bytes, t3.device)
        self.t3, self.manager, self._prefill_len = t3, manager, prefill_len
        self._batch_invariant = batch_invariant

    def clear(self) -> None:
        """Forget all prefixes that nobody holds, and what is known of the weights."""
        self.manager.clear()
        self.t3.watch.forget()

    def voice_of(self, cond: T3Cond) -> str:
        """Name by content of all that shapes a voice's positions before the emotion."""
        model = f"{self.t3.watch.fingerprint(self.t3)} {self.t3.dtype} {self.t3.device.type}"
        model += " batch_invariant" if self._batch_invariant else ""
        return content_hash(model, cond.speaker_emb, cond.cond_prompt_speech_tokens, cond.cond_prompt_speech_emb)

    def acquire(self, request: Request, between: Between | None = None) -> CachedPrefix:
        """Lease, and compute where needed, all that comes before a request's start tokens.

        ``between``: called between two pieces of a long one.

        Raises:
            RuntimeError: NaN or infinite keys or values came out, none of which is kept.
        """
        while True:
            prefixes = self._acquire(self.voice_of(request.t3_cond), request, between)
            if not self.t3.watch.has_changed():
                return prefixes
            prefixes.release()  # of weights that are there no more

    def _acquire(self, voice: str, request: Request, between: Between | None) -> CachedPrefix:
        emotion = self._emotion(request.t3_cond)
        options: dict[str, Any] = {"device": self.t3.device, "form": self._form(request.t3_cond, len(emotion))}
        text = torch.atleast_2d(request.text_tokens)[0].tolist()
        rows: list[tuple[Sequence[Label], bool]] = [(text, True), ([NO_TEXT] * len(text), False)]
        leases: list[Lease] = []
        num_cached_tokens = 0
        texts: list[PrefillResult] = []  # of each row, if they are computed with the conditioning
        try:
            prefill_cond = partial(self._prefill_conditioning, request, texts, between)
            with self.manager.acquire(voice, emotion, prefill_cond, **options) as base:
                for row, (labels, is_conditional) in enumerate(rows[: request.num_rows]):
                    computed = texts[row] if texts else None
                    prefill_text = partial(self._prefill_text, text, is_conditional, base.segments, computed, between)
                    leases.append(self.manager.acquire(voice, [*emotion, *labels], prefill_text, **options))
                    known = leases[-1].num_cached_tokens
                    # No more than the base is known: by this very request, where it was computed just now.
                    num_cached_tokens += known if known > len_of(base.segments) else base.num_cached_tokens
        except BaseException:
            CachedPrefix(tuple(leases)).release()
            raise
        return CachedPrefix(tuple(leases), num_cached_tokens)

    def warm(self, requests: Sequence[Request], *, pin: bool = False, between: Between | None = None) -> None:
        """Compute the prefixes of requests ahead of time. ``pin``: keep their voices' own parts on the device."""
        for request in requests:
            self.acquire(request, between).release()
            if pin:
                self.manager.pin(self.voice_of(request.t3_cond))

    def _form(self, cond: T3Cond, num_emotion: int) -> Form:
        """Of this model's segments and one voice's own part: what a file on disk must have."""
        backbone = self.t3.hp.backbone
        root_len = self.t3.cond_len_of(cond) - num_emotion
        return Form(backbone.num_layers, backbone.num_heads, backbone.head_dim, self.t3.dtype, root_len)

    def _emotion(self, cond: T3Cond) -> list[Label]:
        """Labels of the conditioning's last positions, which the voice does not decide; Turbo has no such."""
        if not self.t3.has_emotion:
            return []
        return [("emotion", float(torch.as_tensor(cond.emotion_adv).flatten()[0]))]

    @torch.inference_mode()
    def _prefill_conditioning(
        self, request: Request, texts: list[PrefillResult], between: Between | None, known: Segments
    ) -> PrefillResult:
        """The conditioning, and into ``texts`` what follows it in each row, all in one pass."""
        started, first = time.perf_counter(), len_of(known)
        embeds = prefill_embeds(self.t3, request)[:, first : -self.t3.hp.num_start_tokens]
        cache = self._run(embeds, known, between)
        middle, end = self.t3.cond_len_of(request.t3_cond), cache.length
        parts = [cache.segment(0, first, middle), *(cache.segment(row, middle, end) for row in range(cache.num_rows))]
        require_finite(*parts)
        # Where there are two rows, the conditioning was computed in both.
        ms_per_position = 1000 * (time.perf_counter() - started) / (cache.num_rows * (end - first))
        texts += [PrefillResult(part, ms_per_position * len(part)) for part in parts[1:]]
        return PrefillResult(parts[0], ms_per_position * len(parts[0]) * cache.num_rows)

    @torch.inference_mode()
    def _prefill_text(
        self,
        text: list[int],
        is_conditional: bool,
        base: Segments,
        computed: PrefillResult | None,
        between: Between | None,
        known: Segments,
    ) -> Segment | PrefillResult:
        first, start = len_of(base), len_of(known)
        if computed is not None and start >= first:
            rest = computed.segment[start - first :]
            return PrefillResult(rest, computed.ms * len(rest) / len(computed.segment))
        ids = torch.tensor([text], device=self.t3.device)
        embeds = self.t3.embed_text(ids) if is_conditional else self.t3.embed_no_text(ids)  # (1, S, hidden)
        # The manager may not know the base any more, but this request holds it.
        before = max(base, known, key=len_of)
        cache = self._run(embeds[:, len_of(before) - first :], before, between)
        computed_now = cache.segment(0, start, first + len(text))
        require_finite(computed_now)
        return computed_now

    def _run(self, embeds: Tensor, before: Segments, between: Between | None) -> KVCache:
        """A cache in which ``embeds`` (rows, T, hidden) follow ``before`` in every row."""
        rows, new_len, _ = embeds.shape
        cache = allocate_cache(self.t3, rows, len_of(before) + new_len)
        assert cache is not None  # the default policy is one
        for row in range(rows):
            cache.load(row, *before)
        for part in pieces(len_of(before), new_len, self._prefill_len):
            if part.start and between is not None:
                between()
            self.t3.tfmr(embeds[:, part], cache, batch_invariant=self._batch_invariant)
        return cache


def require_finite(*segments: Segment) -> None:
    """Raise RuntimeError if a key or value is NaN or infinite: attention would spread it over the whole row."""
    if not all(segment.is_finite for segment in segments):
        raise RuntimeError(
            "T3 computed NaN or infinite values for this voice or text; check the weights, their dtype and the voice"
        )


def len_of(segments: Segments) -> int:
    return sum(map(len, segments))
