"""Tensors of a checkpoint's file, read one at a time: safetensors, or a pickled state dict without running it.

Owns: the containers, told by their first bytes, what a state dict is wrapped in, prefixes of its keys, adapters, and
the error for a broken file. Does not know: which tensors a model has.
"""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox.checkpoints.code_tables import with_plain_tables
from chatterbox.checkpoints.layouts import CheckpointError
from chatterbox.checkpoints.packed_files import Reader, with_plain_weights

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "weights")  # that trainers put a state dict in
SAVE_ALONE = "save the state dict alone (torch.save(model.state_dict(), path))"
FILES_OF_PROCESS = Path("/proc/self/fd")
MAPPED_AT_ONCE = 2**26  # bytes of a file that may be in memory beside what was made of them
LFS = b"version https://git-lfs"
ADAPTERS = {  # kind -> what keys of it have
    "LoRA": r"\.lora_(A|B|down|up|embedding|magnitude)",
    "LoKr": r"\.lokr_",
    "LoHa": r"\.hada_",
    "IA3": r"\.ia3_",
    "VeRA": r"\.vera_",
    "OFT": r"\.oft_",
    "peft": r"\.(base_layer|modules_to_save|original_module)\.",
}


class HeldFile:
    """A file that stays readable as it is: where it is removed, too; one that was written to since is refused."""

    @staticmethod
    def can_hold() -> bool:
        return FILES_OF_PROCESS.is_dir()

    def __init__(self, path: Path) -> None:
        self._path, fd = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, fd)
        self.at, self._fd, self._state = FILES_OF_PROCESS / str(fd), fd, self._state_of(fd)

    @staticmethod
    def _state_of(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Raise CheckpointError if it was written to."""
        if self._state_of(self._fd) != self._state:
            raise CheckpointError(
                f"{self._path} has changed since the model was loaded, which reads of it what a first recording needs "
                "when one comes; load the model again"
            )


class _Mapped:
    """A safetensors file, mapped; what was read is let go now and then, so that all of it is never in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._open = path, ExitStack()
        self._reopen()

    def _reopen(self) -> None:
        from safetensors import safe_open

        self._open.close()
        self._file, self._num_bytes = self._open.enter_context(safe_open(str(self._path), "pt")), 0

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def shapes(self) -> Shapes:
        return {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def read(self, key: str) -> Tensor:
        if self._num_bytes > MAPPED_AT_ONCE:
            self._reopen()
        tensor: Tensor = self._file.get_tensor(key)
        self._num_bytes += tensor.nbytes
        return tensor


@contextmanager
def open_tensors(path: Path, at: Path | None = None) -> Iterator[tuple[Shapes, Reader]]:
    """Shapes by key, and a function that reads one tensor to the CPU. ``at``: where to read what ``path`` names."""
    from safetensors import SafetensorError

    at = path if at is None else at
    start = _start_of(at)
    if start.startswith(LFS):
        raise CheckpointError(
            f"{path} is a pointer of git-LFS, not the file: run `git lfs pull` in its clone, or download it"
        )
    if path.suffix in PICKLES and start[8:9] != b"{":
        tensors = _unpickled(path, at)
        yield {key: tuple(tensor.shape) for key, tensor in tensors.items()}, Reader(tensors.__getitem__)
        return
    try:
        with _Mapped(at) as file:
            try:
                plain = with_plain_weights(*with_plain_tables(file.shapes(), file.read))
            except ValueError as error:
                raise CheckpointError(f"{path}: {error}; copy or download it again") from None
            yield plain
    except (SafetensorError, OSError) as error:
        reason = "it is a pickle" if _is_pickle(start) else str(error)
        raise CheckpointError(f"{path} is not a whole safetensors file ({reason}); copy or download it again") from None


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(LFS))
    except OSError:
        return b""


def _is_pickle(start: bytes) -> bool:
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def _unpickled(path: Path, at: Path) -> dict[str, Tensor]:
    """A state dict, mapped from its file; nothing in it is executed."""
    is_mappable = _start_of(at).startswith(b"PK")  # not as torch wrote before 1.6
    try:
        tensors = torch.load(at, map_location="cpu", weights_only=True, mmap=is_mappable)
    except Exception as error:  # the file's own damage decides which
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            name = found[1].removeprefix("builtins.")
            raise CheckpointError(
                f"{path} holds a {name} beside weights or in their place, and only tensors and plain values are "
                f"read from a pickle; {SAVE_ALONE}"
            ) from None
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole file of weights ({reason}); copy or download it again") from None
    state = _unwrapped(tensors)
    if state is None:
        raise CheckpointError(f"{path} holds no state dict; {SAVE_ALONE}, or download it again")
    return state


def _unwrapped(found: Any) -> dict[str, Tensor] | None:
    """The state dict in what a file holds: itself, the first of a list, or what a trainer keeps beside other things.

    Several of them become one, each behind its name, as a whole model's has them; what is no tensor is left out.
    """
    if isinstance(found, list | tuple) and found:
        return _unwrapped(found[0])
    if not isinstance(found, Mapping):
        return None
    tensors = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors and (len(tensors) == len(found) or any("." in key for key in tensors)):
        return tensors
    inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping | list | tuple)), None)
    if inner is not None:
        return _unwrapped(inner)
    states = {name: state for name, value in found.items() if isinstance(name, str) and (state := _unwrapped(value))}
    if len(states) == 1:
        return next(iter(states.values()))
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()} or None


def prefix_of(path: Path, found: Collection[str], wanted: Collection[str]) -> str:
    """What stands before the model's own keys in a file: ``t3.``, ``module.``; often nothing. Others are left out.

    Raises:
        CheckpointError: the keys are those of an adapter that is not merged, or of several such models.
    """
    _refuse_adapters(path, found, wanted)
    if not found or any(key in wanted for key in found):
        return ""
    prefixes = Counter(
        key[:place] for key in found for place, char in enumerate(key, start=1) if char == "." and key[place:] in wanted
    )
    if not prefixes:
        return ""
    most = max(prefixes.values())
    likely = [prefix for prefix, count in prefixes.items() if count == most]
    if len(likely) > 1:
        raise CheckpointError(
            f"{path} holds several models of this kind, under {', '.join(sorted(likely))}: save one of them alone"
        )
    return likely[0]


def without_prefix(shapes: Shapes, prefix: str) -> Shapes:
    """What is behind a prefix, by the keys without it."""
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _refuse_adapters(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    kind = next((kind for kind, mark in ADAPTERS.items() if any(re.search(mark, key) for key in found)), None)
    if kind is None:
        return
    put_on = "put it on the loaded model (peft.PeftModel.from_pretrained(tts.t3.tfmr, folder))"
    if kind == "peft":
        raise CheckpointError(
            f"{path} was saved from inside of peft (base_layer, modules_to_save), not as the model's own weights; "
            "save it after merge_and_unload"
        )
    if not any(key.endswith(name) for key in found for name in wanted):
        raise CheckpointError(f"{path} is a {kind} adapter without the weights that it changes; {put_on}")
    raise CheckpointError(
        f"{path} holds a {kind} adapter beside its weights; merge it before it is saved (peft: merge_and_unload), or "
        f"{put_on}"
    )
