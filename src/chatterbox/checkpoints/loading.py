"""Weights into models: a folder becomes the models of its layout.

Owns: reading files one tensor at a time, safetensors or pickled state dicts without running them; strict loading with
its listed exceptions; the device check. Does not know: where folders come from (`hub`), what the models compute.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chatterbox.checkpoints.layouts import ENGLISH, CheckpointError, Layout, layout_of
from chatterbox.config import from_dict
from chatterbox.models.config import ModelConfig
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.voice.conditionals import Conditionals

logger = logging.getLogger(__name__)

CONDITIONALS_FILES = ("conds.safetensors", "conds.pt")

# Computed by the tokenizer itself; older files lack them.
MAY_LACK = frozenset({"tokenizer._mel_filters", "tokenizer.window"})
# GPT-2's own embedding, which nothing reads: inputs are always embeddings.
UNUSED = frozenset({"tfmr.wte.weight"})

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LoadedModels:
    """A complete text-to-speech model on one device. ``conds`` is the built-in voice, if the checkpoint has one."""

    t3: T3
    s3gen: S3Gen
    voice_encoder: VoiceEncoder
    tokenizer: TextTokenizer
    device: torch.device
    config: ModelConfig
    conds: Conditionals | None = None


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that exists here. "auto" is CUDA if present, else the CPU; "mps" falls back to the CPU, as upstream.

    Raises:
        ValueError: no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {device!r} does not exist; use 'cpu', 'cuda', 'cuda:0' or 'mps'") from None
    if resolved.type == "cpu":
        return resolved
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        logger.warning("device mps is not available here, using cpu")
        return torch.device("cpu")
    if (resolved.index or 0) >= (count := _count_devices(resolved.type)):
        raise ValueError(f"device {str(device)!r} does not exist: {count} {resolved.type} here; 'cpu' always works")
    return resolved


def _count_devices(kind: str) -> int:
    try:
        return torch.get_device_module(kind).device_count()
    except (RuntimeError, AttributeError):  # a kind that this build of torch does not run on
        return 0


def load_models(folder: str | Path, device: str | torch.device, layout: Layout = ENGLISH) -> LoadedModels:
    """Load a text-to-speech checkpoint folder (upstream's layout; ``config.json`` optional).

    Raises:
        CheckpointError: a file is missing, unreadable or of another model.
        ValueError: the device does not exist.
    """
    folder, device = Path(folder), resolve_device(device)
    _check_layout(folder, layout)
    voice_encoder, t3, _, vocabulary = (_required(folder, name, layout.needed) for name in layout.needed)
    config = load_config(folder, layout.config)
    try:
        tokenizer = layout.make_tokenizer(vocabulary)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if tokenizer.largest_id >= config.t3.text_tokens_dict_size:
        raise CheckpointError(
            f"{vocabulary} has ids up to {tokenizer.largest_id}, but t3 embeds only "
            f"{config.t3.text_tokens_dict_size} text tokens; the two belong to different models"
        )
    return LoadedModels(
        t3=load_module(lambda: T3(config.t3), t3, device, ignored=UNUSED),
        s3gen=load_s3gen(folder, device, config, layout),
        voice_encoder=load_module(lambda: VoiceEncoder(config.voice_encoder), voice_encoder, device),
        tokenizer=tokenizer,
        device=device,
        config=config,
        conds=load_conditionals(folder, device),
    )


def load_s3gen(folder: Path, device: torch.device, config: ModelConfig, layout: Layout = ENGLISH) -> S3Gen:
    path = _required(folder, layout.s3gen, layout.needed)
    return load_module(lambda: S3Gen(layout.meanflow, config=config.s3gen), path, device, MAY_LACK)


def load_config(folder: Path, published: ModelConfig = ENGLISH.config) -> ModelConfig:
    """``config.json`` of a folder; without one, the published model's sizes and sampling defaults."""
    path = folder / "config.json"
    if not path.is_file():
        return published
    try:
        return from_dict(ModelConfig, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # JSON's own errors included
        raise CheckpointError(f"{path}: {error}") from None


def load_conditionals(folder: Path, device: torch.device) -> Conditionals | None:
    """The built-in voice of a folder, or None if it has none."""
    for path in (folder / name for name in CONDITIONALS_FILES):
        if path.is_file():
            try:
                return Conditionals.load(path, map_location=device)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
    return None


def load_module(
    build: Callable[[], Module],
    path: Path,
    device: torch.device,
    may_lack: frozenset[str] = frozenset(),
    ignored: frozenset[str] = frozenset(),
) -> Module:
    """Build a module and fill it from a file, safetensors or (``.pt``) a pickled state dict.

    Every key and shape must match, but that the file ``may_lack`` some, and some that it holds are ``ignored``.

    Tensors are read one at a time, from the mapped file, into the module's own memory and cast to float32, whatever
    torch's default dtype: no second copy of the model is allocated. All keys and shapes are compared before the first
    is read.
    """
    with open_tensors(path) as (shapes, read):
        with _WithoutInitialisation():
            module = build()
        module = module.to(device, torch.float32).eval()
        targets = module.state_dict()
        shapes = {key: shape for key, shape in shapes.items() if key in targets or key not in ignored}
        _compare(path, shapes, {key: tuple(target.shape) for key, target in targets.items()}, may_lack)
        with torch.no_grad():
            for key in shapes:
                targets[key].copy_(read(key))
    return module.requires_grad_(False)


class _WithoutInitialisation(TorchFunctionMode):
    """Skips the random filling of fresh parameters, which loading overwrites: their memory is first touched then."""

    FILLS = frozenset(
        getattr(owner, name)
        for owner, names in (
            (nn.init, ("kaiming_uniform_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "orthogonal_")),
            (Tensor, ("uniform_", "normal_")),
        )
        for name in names
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_layout(folder: Path, layout: Layout) -> None:
    """Raise CheckpointError if a folder has another model's T3 and not that of ``layout``."""
    found = layout_of(folder)
    if not (folder / layout.t3).is_file() and (folder / found.t3).is_file():
        call = f"{found.facade}.from_local({', '.join(filter(None, ('folder, device', found.argument)))})"
        raise CheckpointError(f"checkpoint folder {folder} has no {layout.t3} but {found.t3}, which {call} loads")


def _compare(
    path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], may_lack: frozenset[str]
) -> None:
    lacking, unknown = wanted.keys() - found.keys() - may_lack, found.keys() - wanted.keys()
    for kind, keys in (("lacks", lacking), ("has unknown", unknown)):
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise CheckpointError(
                f"{path} {kind} tensors: {shown} ({len(keys)}); it belongs to another model or version"
            )
    for key, shape in found.items():
        if shape != wanted[key]:
            raise CheckpointError(
                f"{path}: {key} has shape {shape}, this model needs {wanted[key]}; config.json must be the file's own"
            )


def _required(folder: Path, name: str, needed: Sequence[str]) -> Path:
    path = folder / name
    if not path.is_file():
        what = f"has no {name}" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint folder {folder} {what}; it needs {', '.join(needed)}")
    return path


@contextmanager
def open_tensors(path: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]]:
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
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds no state dict; copy or download it again")
    return tensors


def _looks_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
