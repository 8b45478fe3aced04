"""Whether a model still computes what it computed before: its weights, and all that stands in for a layer.

Owns: noticing a change at a small price, and the name by content of a model as it is. Does not know: caches, or what a
model is for.

What is looked at, each time:

- by the host: which modules there are, hooks and assigned ``forward``; identity, address and torch's counter of every
  weight; and of modules that are not this package's, as adapters, their plain attributes: peft's say what is active,
  scaled and merged;
- by the device: a few values of every weight, in one gather, which finds what torch does not count, as
  ``weight.data.mul_()``.

On a GPU nobody waits for the gather: its answer is read by a later look, which `WeightsWatch.has_changed` is, too.
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatterbox.kvcache.prefix.keys import content_hash, weights_fingerprint
from chatterbox.models.linear import has_global_hooks
from chatterbox.models.packed import PackedLinear
from chatterbox.models.shared_input import SharedInput
from chatterbox.models.weights import modules_of
from chatterbox.runtime.replaceable import functions_on

NUM_RUNS, RUN_LEN = 2, 8  # of values that are looked at of each weight; those of a run are neighbours
PLAIN_TYPES = frozenset({nn.ModuleList, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm})  # torch's, of our models
SAME, OTHER, PENDING = 0, 1, 2  # what a device has answered


class _Seen(NamedTuple):
    """A model at the last look."""

    fingerprint: str
    marks: list[object]
    runs: list[Tensor]  # (bytes,) uint8 each, views of the weights
    values: Tensor  # (bytes of all runs,)
    answer: Tensor | None  # (1,) uint8 in pinned memory; None where comparing takes no waiting


class WeightsWatch:
    """What is remembered of one model. A copy begins without memory. Threads may look at once."""

    def __init__(self) -> None:
        self.version = 0  # of modules, weights and their addresses; another one at every change that was noticed
        self._seen: _Seen | None = None
        self._last = ""  # fingerprint
        self._tainted: set[str] = set()  # fingerprints that something else may have been computed under

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightsWatch, ()

    def fingerprint(self, module: nn.Module) -> str:
        """Name of ``module`` as it is; while nobody touches a layer, the same on every machine for the same file."""
        seen = self._seen
        if seen is None or self.has_changed() or seen.marks != _marks_of(module) or self._finds_others(seen):
            seen = self._look(module)
        return seen.fingerprint

    def has_changed(self) -> bool:
        """Whether the device has found other values since the last look; never waits for it."""
        seen = self._seen
        if seen is None or seen.answer is None or int(seen.answer) != OTHER:
            return False
        self.taint()  # something may have been computed with the new values, and kept under the old name
        return True

    def forget(self) -> None:
        """Look at everything the next time, and hold no memory of weights until then."""
        self._seen = None

    def taint(self) -> None:
        """`forget`, and give the model another name the next time, even if its weights are the same."""
        self._tainted.add(self._last)
        self._seen = None

    @torch.no_grad()
    def _look(self, module: nn.Module) -> _Seen:
        for one in module.modules():
            if isinstance(one, SharedInput):
                one.join()  # now, as it moves weights
        marks, runs = _marks_of(module), _runs_of(module)
        values = torch.cat(runs)
        answer = torch.full((1,), SAME, dtype=torch.uint8).pin_memory() if values.is_cuda else None
        fingerprint, about = weights_fingerprint(module), _about(module)
        if about:
            fingerprint = content_hash(fingerprint, *about)
        if fingerprint in self._tainted:
            fingerprint = content_hash(fingerprint, uuid.uuid4().hex)
        self._last, self._seen = fingerprint, _Seen(fingerprint, marks, runs, values, answer)
        self.version += 1
        return self._seen

    @torch.no_grad()
    def _finds_others(self, seen: _Seen) -> bool:
        """Whether the values differ; on a GPU only the question is asked."""
        if seen.answer is None:
            return not torch.equal(torch.cat(seen.runs), seen.values)
        if int(seen.answer) != PENDING:
            seen.answer.fill_(PENDING)
            differ = (torch.cat(seen.runs) != seen.values).any(0, keepdim=True)
            seen.answer.copy_(differ.to(torch.uint8), non_blocking=True)
        return False


def state_of(*parts: Any) -> list[object]:
    """What parts of a model are now, holding none of them; differs once one is replaced, moved, hooked, or changed as
    torch counts it.
    """
    state: list[object] = []
    for part in parts:
        state += id(part), list(map(id, functions_on(part)))
        for one in modules_of(part) if isinstance(part, nn.Module) else ():
            own = vars(one)
            state += (
                id(one),
                id(type(one)),
                list(map(id, functions_on(one))),
                len(own["_forward_hooks"]),
                len(own["_forward_pre_hooks"]),
            )
            for weight in (*own["_parameters"].values(), *own["_buffers"].values()):
                if weight is not None:
                    state.append((id(weight), weight.dtype, weight.device, _num_changes(weight)))
    return state


def _marks_of(module: nn.Module) -> list[object]:
    """All that the host can see."""
    marks: list[object] = [has_global_hooks()]
    waiting = [module]
    while waiting:
        one = waiting.pop()
        own, kind = one.__dict__, type(one)
        marks += id(one), kind
        if _has_functions(own):
            functions = own.get("forward"), *own["_forward_pre_hooks"].values(), *own["_forward_hooks"].values()
            marks.append(tuple(map(id, functions)))
        if not _is_ours(kind):
            marks.append(_hyperparameters_of(one))
        for weights in (own["_parameters"], own["_buffers"]):
            for weight in weights.values():
                if weight is not None:
                    marks += _marks_of_weight(weight)
        waiting += [child for child in own["_modules"].values() if child is not None]
    return marks


def _marks_of_weight(weight: Tensor) -> tuple[object, ...]:
    if type(weight) not in (nn.Parameter, Tensor):  # quantised ones may have no address
        return id(weight), type(weight)
    return id(weight), weight.data_ptr(), _num_changes(weight)


def _num_changes(weight: Tensor) -> int:
    try:
        return weight._version
    except RuntimeError:  # made in inference mode, where torch does not count
        return 0


def _runs_of(module: nn.Module) -> list[Tensor]:
    """Bytes of a few values of every weight, as views of it."""
    device, runs = next(module.parameters()).device, []
    for weight in (*module.parameters(), *module.buffers()):
        if type(weight) not in (nn.Parameter, Tensor) or weight.device != device or not weight.numel():
            continue
        length = min(RUN_LEN, weight.numel())
        for run in range(NUM_RUNS):
            start = (weight.numel() - length) * (2 * run + 1) // (2 * NUM_RUNS)
            values = weight.detach().as_strided((length,), (1,), weight.storage_offset() + start)
            runs.append(values.view(torch.uint8))
    return runs


def _about(module: nn.Module) -> list[str]:
    """What shapes the results beside weights and this package's own modules; nothing where nobody touched a layer."""
    about = [] if not has_global_hooks() else [uuid.uuid4().hex]
    # The same numbers give other last bits in other products.
    about += sorted({type(one.matrix).__name__ for one in module.modules() if isinstance(one, PackedLinear)})
    for one in module.modules():
        kind = type(one)
        if not _is_ours(kind):
            about.append(f"{kind.__module__}.{kind.__qualname__} {_hyperparameters_of(one)}")
        if _has_functions(one.__dict__):
            about.append(uuid.uuid4().hex)  # functions have no content to name them by
    return about


def _has_functions(own: dict[str, Any]) -> bool:
    return bool("forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"])


def _is_ours(kind: type) -> bool:
    return kind in PLAIN_TYPES or kind.__module__.startswith(("chatterbox.", "transformers.pytorch_utils"))


def _hyperparameters_of(module: nn.Module) -> str:
    """Attributes that are plain data."""
    every_module_has = vars(nn.Module())
    plain = [(name, value) for name, value in vars(module).items() if name not in every_module_has and _is_plain(value)]
    return repr(sorted(plain))


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
