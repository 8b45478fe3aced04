"""T3's beginnings through the prefix cache: what a voice and a text have computed before is not computed again.

Owns: which positions may be shared by whom, and how a missing part is computed. Does not know: budgets, threads,
eviction.

    conditional row      [conditioning][emotion][text ................][start start][speech ...
    unconditional row    [conditioning][emotion][no text, same length  ][start start][speech ...

Conditioning up to the emotion is one segment for every exaggeration and both rows. Turbo and Nano have no emotion, one
row and one start token. The unconditional row's text part is
zeros plus learned positions: it depends on the voice and the length alone, and a shorter one begins every longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.generation.requests import DecodeRequest, allocate_cache
from chatterbox.kvcache import make_manager
from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.keys import content_hash, weights_fingerprint
from chatterbox.kvcache.manager import GlobalKVCacheManager, Lease
from chatterbox.kvcache.prefix import NO_TEXT, Label
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.t3 import T3

Segments = tuple[Segment, ...]
SHARE_OF_WEIGHTS = 8
DEFAULTS = KVCacheConfig()


@dataclass(frozen=True)
class RowPrefixes:
    """Leased segments of each row of a request, all up to its start tokens. Use it in a ``with`` block."""

    leases: tuple[Lease, ...]
    num_served: int = 0  # positions of all rows that the manager knew before this request

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

    def __enter__(self) -> RowPrefixes:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class PrefixSource:
    """One T3 and the manager that keeps its beginnings. A change of its weights in place begins anew."""

    def __init__(self, t3: T3, manager: GlobalKVCacheManager | KVCacheConfig = DEFAULTS) -> None:
        """``manager``: one that several models may share, or the settings of one for this model alone."""
        if isinstance(manager, KVCacheConfig):
            default_bytes = sum(weight.nbytes for weight in t3.parameters()) // SHARE_OF_WEIGHTS
            manager = make_manager(manager, default_bytes, t3.device)
        self.t3, self.manager = t3, manager
        self._fingerprint: tuple[int, str] | None = None  # and the weights' version it is of

    def _weights(self) -> str:
        """Fingerprint of the weights as they are: torch counts every change in place."""
        version = sum(weight._version for weight in self.t3.parameters() if not weight.is_inference())
        if self._fingerprint is None or self._fingerprint[0] != version:
            self._fingerprint = version, weights_fingerprint(self.t3)
        return self._fingerprint[1]

    def voice_of(self, cond: T3Cond) -> str:
        """Name by content of all that shapes a voice's positions before the emotion."""
        weight = self.t3.speech_head.weight
        model = f"{self._weights()} {weight.dtype} {weight.device.type}"
        return content_hash(model, cond.speaker_emb, cond.cond_prompt_speech_tokens, cond.cond_prompt_speech_emb)

    def acquire(self, request: DecodeRequest) -> RowPrefixes:
        """Lease, and compute where needed, all that comes before a request's start tokens."""
        cond, voice, emotion = request.t3_cond, self.voice_of(request.t3_cond), self._emotion(request.t3_cond)
        text = torch.atleast_2d(request.text_tokens)[0].tolist()
        rows: list[tuple[Sequence[Label], bool]] = [(text, True), ([NO_TEXT] * len(text), False)]
        leases: list[Lease] = []
        num_served = 0
        try:
            with self.manager.acquire(voice, emotion, partial(self._conditioning, cond), device=self.t3.device) as base:
                for labels, spoken in rows[: request.num_rows]:
                    fill = partial(self._text, text, spoken, base.segments)
                    leases.append(self.manager.acquire(voice, [*emotion, *labels], fill, device=self.t3.device))
                    known = leases[-1].num_served
                    # No more than the base is known: by this very request, where it was computed just now.
                    num_served += known if known > len_of(base.segments) else base.num_served
        except BaseException:
            RowPrefixes(tuple(leases)).release()
            raise
        return RowPrefixes(tuple(leases), num_served)

    def warm(self, requests: Sequence[DecodeRequest], *, pin: bool = False) -> None:
        """Compute the beginnings of requests ahead of time. ``pin``: keep their voices' own parts on the device."""
        for request in requests:
            self.acquire(request).release()
            if pin:
                self.manager.pin(self.voice_of(request.t3_cond))

    def _emotion(self, cond: T3Cond) -> list[Label]:
        """Labels of the conditioning's last positions, which the voice does not decide; Turbo has no such."""
        if not self.t3.hp.emotion_adv:
            return []
        return [("emotion", float(torch.as_tensor(cond.emotion_adv).flatten()[0]))]

    @torch.inference_mode()
    def _conditioning(self, cond: T3Cond, known: Segments) -> Segment:
        return self._compute(self.t3.prepare_conditioning(cond), 0, known, len_of(known))

    @torch.inference_mode()
    def _text(self, text: list[int], spoken: bool, base: Segments, known: Segments) -> Segment:
        ids = torch.tensor([text], device=self.t3.device)
        embeds = self.t3.embed_text(ids) if spoken else self.t3.embed_no_text(ids)  # (1, S, hidden)
        # The manager may not know the base any more, but this request holds it.
        return self._compute(embeds, len_of(base), max(base, known, key=len_of), len_of(known))

    def _compute(self, embeds: Tensor, first: int, before: Segments, start: int) -> Segment:
        """Positions from ``start`` on of ``embeds`` (1, T, hidden), whose first is ``first``; ``before`` is known."""
        done, end = len_of(before), first + embeds.shape[1]
        cache = allocate_cache(self.t3, 1, end)
        assert cache is not None  # the default policy is one
        cache.load(0, *before)
        self.t3.tfmr(embeds[:, done - first :], cache)
        return cache.segment(0, start, end)


def len_of(segments: Segments) -> int:
    return sum(map(len, segments))
