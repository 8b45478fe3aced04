"""Tensors of a checkpoint's file, read one at a time: safetensors, or a pickled state dict without running it.

Owns: the containers, what a state dict is wrapped in, prefixes of its keys, and the error for a broken file. Does not
know: which tensors a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox.checkpoints.layouts import CheckpointError

Shapes = dict[str, tuple[int, ...]]
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "weights")  # that trainers put a state dict in
ADAPTER_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector")


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[Shapes, Callable[[str], Tensor]]]:
    """Shapes by key, and a function that reads one tensor to the CPU."""
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".pt":
        tensors = _unpickled(path)
        yield {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__
        return
    try:
        with safe_open(str(path), "pt") as file:
            yield {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = "it is a pickle" if _looks_pickled(path) else str(error)
        raise CheckpointError(f"{path} is not a whole safetensors file ({reason}); copy or download it again") from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A state dict, mapped from its file; nothing in it is executed."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the file's own damage decides which
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole file of weights ({reason}); copy or download it again") from None
    state = _unwrapped(tensors)
    if state is None:
        raise CheckpointError(f"{path} holds no state dict; copy or download it again")
    return state


def _unwrapped(found: Any) -> dict[str, Tensor] | None:
    """The state dict in what a file holds: itself, the first of a list, or what a trainer keeps beside other things."""
    if isinstance(found, list | tuple) and found:
        return _unwrapped(found[0])
    if not isinstance(found, Mapping):
        return None
    if found and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        return dict(found)
    inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping | list | tuple)), None)
    return None if inner is None else _unwrapped(inner)


def prefix_of(path: Path, found: Collection[str], wanted: Collection[str]) -> str:
    """What stands before all keys of a file and not before the model's own: ``t3.``, ``module.``; often nothing.

    Raises:
        CheckpointError: the keys are those of an adapter that is not merged.
    """
    if any(mark in key for mark in ADAPTER_MARKS for key in found):
        raise CheckpointError(
            f"{path} holds a LoRA adapter beside its weights; merge it before it is saved (peft: merge_and_unload), or "
            "put it on the loaded model (peft.PeftModel.from_pretrained(tts.t3.tfmr, folder))"
        )
    if not found or any(key in wanted for key in found):
        return ""
    first = min(found)
    dots = [place for place, char in enumerate(first, start=1) if char == "."]
    prefixes = (first[:dot] for dot in dots if all(key.startswith(first[:dot]) for key in found))
    return next((one for one in prefixes if any(key[len(one) :] in wanted for key in found)), "")


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
