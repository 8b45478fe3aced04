"""Guards against what goes wrong in an utterance: one class, one file, one line here each; see docs/guards.md.

Owns: their names; the guards of a batch, whose requests each asked for one, or for none: which request a guard's rows
belong to, what decisions do to logits and tokens. Does not know: any rule. Must not import: `kvcache`, `synthesis`.

Guards of a batch are a dictionary by name; ``names`` lists the name, or None, of each of its requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatterbox.engine.guards.alignment import AlignmentGuard
from chatterbox.engine.guards.guard import Guard
from chatterbox.engine.guards.light import LightGuard
from chatterbox.models.config import NUM_SPEECH_TOKENS, T3Config
from chatterbox.models.t3.attention import HeadReader

GUARDS: dict[str, type[Guard]] = {"light": LightGuard, "alignment": AlignmentGuard}
NO_GUARD = "none"
Guards = dict[str, Guard]
MASKED = -32768.0  # the published guard's logit of a stop token that must not be


def check_guard(name: str, hp: T3Config | None = None) -> None:
    """Raise ValueError if there is no such guard, or a model has not got what it looks at."""
    if not isinstance(name, str) or (name != NO_GUARD and name not in GUARDS):
        raise ValueError(f"guard must be one of {', '.join((*GUARDS, NO_GUARD))}, got {name!r}")
    if hp is not None and name in GUARDS:
        GUARDS[name].check(hp)


def guard_of(name: str | None) -> type[Guard] | None:
    """The class of a guard; None for None and "none". Raises ValueError if there is no such guard."""
    if name is None:
        return None
    check_guard(name)
    return GUARDS.get(name)


def start_guards(name: str | None, text_start: int, text_len: int, device: torch.device) -> Guards:
    """Of one request, as `Guard.start`; none where it asks for none."""
    guard = guard_of(name)
    return {} if name is None or guard is None else {name: guard.start(text_start, text_len, device)}


def join_guards(guards: Guards, num_requests: int, others: Guards) -> Guards:
    """Of ``num_requests`` and, behind them, other requests."""
    joined = dict(guards)
    for name, guard in others.items():
        guard = dataclasses.replace(guard, places=guard.places + num_requests)
        joined[name] = guards[name].join(guard) if name in guards else guard
    return joined


def select_guards(guards: Guards, names: Sequence[str | None], keep: Sequence[int]) -> Guards:
    """With those requests alone whose places are in ``keep``, ascending; copies."""
    selected = {}
    for name, guard in guards.items():
        held = [place for place, other in enumerate(names) if other == name]
        kept = [row for row, place in enumerate(held) if place in keep]
        if kept:
            places = torch.tensor([keep.index(held[row]) for row in kept], device=guard.places.device)
            selected[name] = dataclasses.replace(guard.select(kept), places=places)
    return selected


def readers_of(
    guards: Guards, names: Sequence[str | None], part: slice, heads: tuple[tuple[int, int], ...], rows: Tensor
) -> list[HeadReader]:
    """For the requests ``part`` in a pass; ``heads`` and ``rows`` as `Guard.reader`."""
    readers = []
    for name, guard in guards.items():
        first, num = names[: part.start].count(name), names[part].count(name)
        if num and (reader := guard.reader(heads, rows, slice(first, first + num))):
            readers.append(reader)
    return readers


@dataclass(frozen=True)
class Verdict:
    """What all guards say of all N requests of a batch, each (N, 1) bool; None: no guard says such."""

    masked: Tensor | None  # the stop token is taken out of the logits
    replaced: Tensor | None  # the stop token is replaced if it is decoded
    must_stop: Tensor

    @classmethod
    def of(cls, guards: Iterable[Guard], last: Tensor, num_decoded: Tensor) -> Verdict:
        """Let guards look at a step; ``last`` and ``num_decoded`` (N, 1) as `Guard.look`."""
        merged: dict[str, Tensor] = {}
        for guard in guards:
            everyone = len(guard.places) == len(last)  # as with a single request: nothing to pick and spread
            decisions = guard.look(*(x if everyone else x[guard.places] for x in (last, num_decoded)))
            kind = "masked" if guard.masks_logits else "replaced"
            for name, decision in zip((kind, "must_stop"), decisions, strict=True):
                if not everyone:
                    decision = decision.new_zeros(len(last), 1).index_copy_(0, guard.places, decision)
                merged[name] = merged[name] | decision if name in merged else decision
        return cls(merged.get("masked"), merged.get("replaced"), merged["must_stop"])

    def mask(self, logits: Tensor, stop_token: int) -> None:
        """Change logits (N, V) in place, before sampling."""
        if self.masked is not None:
            logits[:, stop_token, None].masked_fill_(self.masked, MASKED)

    def correct(self, tokens: Tensor, logits: Tensor, stop_token: int) -> Tensor:
        """Tokens (N, 1); a stop token that must not be is replaced by the likeliest speech token of ``logits``."""
        if self.replaced is not None:
            likeliest = logits[:, :NUM_SPEECH_TOKENS].argmax(-1, keepdim=True)
            tokens = torch.where(self.replaced & (tokens == stop_token), likeliest, tokens)
        return tokens.masked_fill(self.must_stop, stop_token)
