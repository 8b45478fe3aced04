"""The next token of every request of a step, from its rows' logits.

Owns: guidance, guards and noise in their order, what is remembered of a token, and torch's global generator behind it.
Does not know: rows, caches, the model (`engine`); what a knob does (`sampler`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatterbox.engine.batch_state import BatchState
from chatterbox.engine.guards.batch import Verdict
from chatterbox.engine.sampler import apply_cfg, hashed_exponential, sample
from chatterbox.models.config import T3Config


def sample_next(state: BatchState, logits: Tensor, hp: T3Config) -> None:
    """Next tokens of all requests, from the logits (rows, V), into ``state``."""
    guided = logits[state.conditional]
    if state.params.cfg_weight is not None:
        guided = apply_cfg(guided, logits[state.unconditional], state.params.cfg_weight)
    state.broken |= ~guided.isfinite().all(1, keepdim=True)
    num_new = state.num_decoded - state.num_forced
    verdict = Verdict.of(state.guards.values(), state.tokens, num_new) if state.guards else None
    if verdict:
        verdict.mask(guided, hp.stop_speech_token)
    tokens = sample(guided, state.seen, state.params, _noise(state, num_new), penalty_last=hp.penalty_last)
    if verdict:
        tokens = verdict.correct(tokens, guided, hp.stop_speech_token)
        state.guard_stopped.copy_(verdict.must_stop)
    state.tokens.copy_(tokens)
    if not hp.start_stays_seen:
        state.seen[:, hp.start_speech_token, None] &= state.num_decoded > 0
    state.seen.scatter_(1, state.tokens, True)
    state.num_decoded += 1


def _noise(state: BatchState, num_new: Tensor) -> Tensor | None:
    """(N, V) of this step, the ``num_new``-th (N, 1) of each request."""
    if state.seeds is None:
        return state.noise
    hashed = hashed_exponential(state.seeds, num_new, state.seen.shape[1])
    if state.noise is None or state.is_seeded is None:
        return hashed
    return torch.where(state.is_seeded, hashed, state.noise)


class Rewind:
    """Takes back what torch's global generator drew beyond the end of the only request that uses it.

    So the number of steps between two looks at the tokens does not change what the generator gives next.
    """

    def __init__(self, device: torch.device, places: Sequence[int], stride: int) -> None:
        """``places``: of the requests that use the generator."""
        self._place = places[0] if len(places) == 1 and stride > 1 else None
        if self._place is not None:
            self._generator = torch.default_generator
            if device.type == "cuda":
                self._generator = torch.cuda.default_generators[device.index or 0]
        self._states: list[Tensor] = []

    def note(self) -> None:
        """A step has decoded."""
        if self._place is not None:
            self._states.append(self._generator.get_state())

    def ended(self, place: int, number: int) -> None:
        """The request at ``place`` ended with the step ``number``."""
        # Where somebody else has drawn since, their numbers are not drawn twice.
        if place == self._place and torch.equal(self._generator.get_state(), self._states[-1]):
            self._generator.set_state(self._states[number])
