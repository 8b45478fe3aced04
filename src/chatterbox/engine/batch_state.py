"""What a decode step of a batch reads and writes on the device, how requests come into it and leave it, and the next
token of each from its rows' logits.

Owns: a request's rows, turns and sampler while it is served; guidance, guards and noise in their order; torch's global
generator behind them. Does not know: the backbone, caches, who joins when, what a setting does (`sampler`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatterbox.engine.guards import Guards, Verdict, join_guards, select_guards
from chatterbox.engine.request import Request, Turn
from chatterbox.engine.sampler import SamplingParams, apply_cfg, hashed_exponential, sample
from chatterbox.models.config import T3Config


@dataclass
class SamplerState:
    """Of N requests, all that their next tokens depend on beside the logits. A request keeps it while it is on hold."""

    names: list[str | None]  # the guard that each asked for
    tokens: Tensor  # (N, 1), the last decoded
    num_decoded: Tensor  # (N, 1), the speech position of `tokens`: how many were decoded, or forced before
    num_forced: Tensor  # (N, 1), how many of them were forced
    seen: Tensor  # (N, V) bool
    guards: Guards = field(default_factory=dict)  # by name, of those requests that asked for it

    @classmethod
    def empty(cls, size: int, device: torch.device) -> SamplerState:
        none = torch.zeros(0, 1, dtype=torch.long, device=device)
        return cls([], none, none, none, torch.zeros(0, size, dtype=torch.bool, device=device))

    def __len__(self) -> int:
        return len(self.names)

    def join(self, other: SamplerState) -> SamplerState:
        """Both, as a copy: the requests of ``other`` come behind."""
        return SamplerState(
            [*self.names, *other.names],
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.num_decoded, other.num_decoded]),
            torch.cat([self.num_forced, other.num_forced]),
            torch.cat([self.seen, other.seen]),
            join_guards(self.guards, len(self), other.guards),
        )

    def select(self, keep: list[int]) -> SamplerState:
        """A copy of some requests' state, in the order of ``keep``, which is ascending."""
        return SamplerState(
            [self.names[place] for place in keep],
            self.tokens[keep],
            self.num_decoded[keep],
            self.num_forced[keep],
            self.seen[keep],
            select_guards(self.guards, self.names, keep),
        )


@dataclass
class BatchState:
    """A step's own view of `SamplerState`, and of the rows: N requests on R rows."""

    tokens: Tensor
    num_decoded: Tensor
    num_forced: Tensor
    seen: Tensor
    noise: Tensor | None  # (N, V), fresh Exp(1) of torch's global generator before every step; None: nobody uses it
    seeds: Tensor | None  # (N, 1), of those requests that have one; None: nobody uses one
    is_seeded: Tensor | None  # (N, 1) bool, where some have a seed and some use the global generator
    owners: Tensor  # (R,), the request of each row
    conditional: Tensor  # (N,), its first row
    unconditional: Tensor  # (N,), its last: the same one without guidance
    guard_stopped: Tensor  # (N, 1), 1 where a guard made the last token the stop token
    broken: Tensor  # (N, 1), 1 once the logits were not finite
    params: SamplingParams
    guards: Guards = field(default_factory=dict)
    from_global: tuple[int, ...] = ()  # places whose noise torch's global generator draws

    @classmethod
    def of(cls, sampler: SamplerState, requests: Sequence[Request], rows: Sequence[Sequence[int]]) -> BatchState:
        """For the steps of ``requests``, whose ``rows`` these are, all of 0 to R - 1 among them."""
        device = sampler.tokens.device
        seeds = [None if _is_greedy(request) else request.seed for request in requests]
        from_global = [request.seed is None and not _is_greedy(request) for request in requests]
        places = tuple(place for place, one in enumerate(from_global) if one)
        has_seeds = any(seed is not None for seed in seeds)
        owners = {row: place for place, held in enumerate(rows) for row in held}

        def index(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        def column(values: Sequence[int | bool]) -> Tensor:
            return index([int(value) for value in values])[:, None]

        return cls(
            tokens=sampler.tokens,
            num_decoded=sampler.num_decoded,
            num_forced=sampler.num_forced,
            seen=sampler.seen,
            noise=torch.ones(sampler.seen.shape, dtype=torch.float32, device=device) if places else None,
            seeds=column([seed or 0 for seed in seeds]) if has_seeds else None,
            is_seeded=column([not one for one in from_global]).bool() if has_seeds and places else None,
            owners=index([owners[row] for row in range(len(owners))]),
            conditional=index([held[0] for held in rows]),
            # Without guidance a request's own row stands in: it is guided by a difference of 0.
            unconditional=index([held[-1] for held in rows]),
            guard_stopped=torch.zeros_like(sampler.tokens),
            broken=torch.zeros_like(sampler.tokens),
            params=SamplingParams.of([request.sampling for request in requests], device),
            guards=sampler.guards,
            from_global=places,
        )

    def sampler(self, names: list[str | None]) -> SamplerState:
        """The requests' own part; ``names`` as there."""
        return SamplerState(names, self.tokens, self.num_decoded, self.num_forced, self.seen, self.guards)

    def named_tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NO_TENSORS}
        named |= {f"params.{f.name}": getattr(self.params, f.name) for f in dataclasses.fields(self.params)}
        for guard in self.guards:
            named |= {f"{guard}.{name}": tensor for name, tensor in self.guards[guard].tensors().items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def shape(self) -> Hashable:
        """All that decides which operations a step is made of, but for the cache."""
        return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in self.named_tensors().items())


_NO_TENSORS = ("params", "guards", "from_global")


def _is_greedy(request: Request) -> bool:
    return request.sampling.temperature == 0.0


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


@dataclass(eq=False)
class DecodeSequence:
    """What a handle stands for: a request, and those before it that it continues."""

    handle: int
    turns: list[Turn]
    limit: int = 0  # tokens that the last turn may decode
    keeps_rows: bool = False
    rows: list[int] = field(default_factory=list)  # the conditional one first; none while it is parked
    fresh: Tensor | None = None  # logits (rows, V) behind its prefix, until its first token is decoded
    sampler: SamplerState | None = None  # while it is on hold or parked

    @property
    def request(self) -> Request:
        return self.turns[-1].request

    @property
    def num_decoded(self) -> int:
        return len(self.turns[-1].decoded)


@dataclass
class StepResult:
    """tokens: (handle, token) in the order they were decoded. ended, failed: handles that have left with that."""

    tokens: list[tuple[int, int]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    failed: dict[int, RuntimeError] = field(default_factory=dict)
