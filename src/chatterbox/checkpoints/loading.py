"""Weights into models: a folder becomes the models of its layout.

Owns: strict loading with its listed exceptions; the device check. Does not know: where folders come from (`hub`), what
is in them (`contents`), how files are read (`tensors`), what the models compute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chatterbox.checkpoints.contents import Contents, config_of, read_folder
from chatterbox.checkpoints.layouts import NONE_GIVEN, CheckpointError, Files, Layout
from chatterbox.checkpoints.packed_files import Reader, packed_in
from chatterbox.checkpoints.tensors import HeldFile, Shapes, open_tensors, prefix_of, without_prefix
from chatterbox.config import PrecisionConfig
from chatterbox.models.config import ModelConfig, S3GenConfig, T3Config
from chatterbox.models.late import LateParts
from chatterbox.models.packed import Int8Matrix
from chatterbox.models.precision import (
    ESTIMATOR,
    S3GEN_LAYERS,
    T3_LAYERS,
    Packing,
    packing_of,
    s3gen_precision,
    t3_precision,
)
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer, TextTokenizer, TurboTokenizer
from chatterbox.models.tokenizers.languages import CANGJIE_FILE
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.runtime.allocator import return_freed_memory
from chatterbox.runtime.torch_context import ShapesAlone, own_context
from chatterbox.voice.conditionals import Conditionals

logger = logging.getLogger(__name__)

AS_STORED = PrecisionConfig()
CONDITIONALS_FILES = ("conds.safetensors", "conds.pt")

# Computed by the tokenizer itself; older files lack them.
MAY_LACK = frozenset({"tokenizer._mel_filters", "tokenizer.window"})
HEARING = ("tokenizer", "speaker_encoder")  # children of S3Gen that only a new recording needs
# GPT-2's own embedding, which nothing reads: inputs are always embeddings.
UNUSED = frozenset({"tfmr.wte.weight"})
MEANFLOW_KEY = "flow.decoder.estimator.time_embed_mixer.weight"  # that the S3Gen of two steps alone has

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
    layout: Layout | None = None

    @property
    def language(self) -> str | None:
        """That a text is in where a call names none."""
        return None if self.layout is None else self.layout.language


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


def folder_at(folder: object) -> Path:
    """The path that a caller gives. Raises TypeError if it is none."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"ckpt_dir must be the path of a checkpoint folder, got {folder!r}")
    return Path(folder)


def load_models(
    folder: str | Path,
    device: str | torch.device,
    layouts: Sequence[Layout] | Layout = (),
    given: Files = NONE_GIVEN,
    *,
    precision: PrecisionConfig = AS_STORED,
    fetch_base: Callable[[Layout], Path] | None = None,
) -> LoadedModels:
    """Load a text-to-speech checkpoint folder (upstream's layout; ``config.json`` optional).

    Args:
        layouts: that the caller can use, the likeliest first; none given is all.
        given: files that the caller names.
        precision: of the weights; no more of them is in memory at a time than one block's in float32.
        fetch_base: as `read_folder`.

    Raises:
        CheckpointError: a file is missing, unreadable or of another model.
        ValueError: the device does not exist, or has no such precision.
        TypeError: ``folder`` is no path.
    """
    folder, device = folder_at(folder), resolve_device(device)
    layouts = (layouts,) if isinstance(layouts, Layout) else layouts
    contents = read_folder(folder, layouts, given, fetch_base)
    voice_encoder, t3, s3gen, vocabulary = map(contents.require, ("voice_encoder", "t3", "s3gen", "tokenizer"))
    config = config_of(contents)
    tokenizer = _load_tokenizer(contents, vocabulary, spells_numbers=config.t3.spells_numbers)
    if tokenizer.largest_id >= config.t3.text_tokens_dict_size:
        raise CheckpointError(
            f"{vocabulary} has ids up to {tokenizer.largest_id}, but t3 embeds only "
            f"{config.t3.text_tokens_dict_size} text tokens; the two belong to different models"
        )
    models = LoadedModels(
        t3=load_t3(t3, device, config.t3, precision),
        s3gen=load_s3gen(s3gen, device, config.s3gen, precision),
        voice_encoder=load_module(lambda: VoiceEncoder(config.voice_encoder), voice_encoder, device),
        tokenizer=tokenizer,
        device=device,
        config=config,
        conds=load_conditionals(contents.folders, device),
        layout=contents.layout,
    )
    return_freed_memory()
    return models


def _load_tokenizer(contents: Contents, vocabulary: Path, *, spells_numbers: bool) -> TextTokenizer:
    try:
        tokenizer = contents.layout.make_tokenizer(vocabulary)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if isinstance(tokenizer, EnTokenizer | TurboTokenizer):
        tokenizer.spells_numbers = spells_numbers
    table = contents.find(CANGJIE_FILE)
    if table is not None and isinstance(tokenizer, MTLTokenizer):
        tokenizer.table_folder = table.parent
    return tokenizer


def load_t3(path: Path, device: torch.device, config: T3Config, precision: PrecisionConfig = AS_STORED) -> T3:
    """``precision``: of the layers of its backbone and its head on a CPU; elsewhere of all of it."""
    kind = t3_precision(precision, device, packed_in(path))
    t3 = load_module(lambda: T3(config), path, device, ignored=UNUSED, packing=packing_of(kind, T3_LAYERS, device))
    return t3 if device.type == "cpu" else t3.to(getattr(torch, kind))


def load_s3gen(path: Path, device: torch.device, config: S3GenConfig, precision: PrecisionConfig = AS_STORED) -> S3Gen:
    """An S3Gen of any published kind: the file's keys say whether it is the one of two steps.

    ``precision``: of the flow's layers. In bfloat16, and on a GPU, it is that of its estimator, all of it; the solver,
    the encoder and the vocoder stay in float32.
    """
    kind = s3gen_precision(precision, device, packed_in(path))
    casts = device.type != "cpu" or kind == "bfloat16"
    packing = None if casts else packing_of(kind, S3GEN_LAYERS, device)
    s3gen = load_module(make_s3gen(path, config), path, device, MAY_LACK, packing=packing, late=HEARING)
    if casts:
        s3gen.get_submodule(ESTIMATOR).to(getattr(torch, kind))
    return s3gen


def make_s3gen(path: Path, config: S3GenConfig) -> Callable[[], S3Gen]:
    """What builds the S3Gen of a file, without its weights."""
    with open_tensors(path) as (shapes, _):
        meanflow = any(key.endswith(MEANFLOW_KEY) for key in shapes)
    return lambda: S3Gen(meanflow, config=config)


def load_conditionals(folders: Sequence[Path], device: torch.device) -> Conditionals | None:
    """The built-in voice of the first of some folders that has one, or None."""
    for path in (folder / name for folder in folders for name in CONDITIONALS_FILES):
        if path.is_file():
            try:
                return Conditionals.load(path, map_location=device)
            except ValueError as error:
                raise CheckpointError(str(error)) from None
    return None


@own_context()
def load_module(
    build: Callable[[], Module],
    path: Path,
    device: torch.device,
    may_lack: frozenset[str] = frozenset(),
    ignored: frozenset[str] = frozenset(),
    packing: Packing | None = None,
    late: tuple[str, ...] = (),
) -> Module:
    """Build a module and fill it from a file, safetensors or (``.pt``) a pickled state dict.

    Every key and shape must match, but that the file ``may_lack`` some, and some that it holds are ``ignored``. Whole
    numbers where the model has others are refused: a quantised file without what scales it.

    Tensors are read one at a time, from the mapped file, into the module's own memory and cast to float32, whatever
    torch's default dtype: no second copy of the model is allocated. Those that ``packing`` names are packed block by
    block. All keys and shapes are compared before the first is read. On a CPU the children ``late`` of a `LateParts`
    are read when they are first used.
    """
    with open_tensors(path) as (stored, read):
        file = HeldFile(path) if late and may_wait(device) else None
        prefix, shapes = check_tensors(path, stored, shapes_of(build, path), may_lack, ignored)
        return_freed_memory()  # what is built of freed memory would take it although nothing was written yet
        with _WithoutInitialisation():
            module = build()
        module = module.to(device, torch.float32).eval()
        left = dict.fromkeys(shapes)
        with torch.no_grad():
            if packing is not None:
                for before, parent in packing.parents(module):
                    children = packing.children(before, parent)
                    codes = _codes_of(packing, [f"{prefix}{before}{name}.weight" for name in children], read)
                    parts = ("bias",) if codes else ("weight", "bias")
                    own = [f"{before}{name}.{part}" for name in children for part in parts]
                    _fill(module, [key for key in own if key in left], read, prefix, path)
                    for name in children:
                        left.pop(f"{before}{name}.weight", None)
                        left.pop(f"{before}{name}.bias", None)
                    packing.pack(before, parent, dict(zip(children, codes, strict=True)) if codes else None)
            if file is None:
                late = ()
            waiting = [key for key in left if key.partition(".")[0] in late]
            _fill(module, [key for key in left if key.partition(".")[0] not in late], read, prefix, path)
    module.requires_grad_(False)
    if file is not None:
        assert isinstance(module, LateParts), "nobody else would read what is left out"
        module.fill_later(late, partial(_fill_late, path, file, prefix, waiting))
    return module


def _codes_of(packing: Packing, keys: Sequence[str], read: Reader) -> list[tuple[Tensor, Tensor]]:
    """Codes of the weights ``keys``, where the file has them of all, and codes are what is wanted; else none."""
    found = [read.codes(key) for key in keys] if packing.matrix is Int8Matrix else []
    codes = [one for one in found if one is not None]
    return codes if len(codes) == len(keys) else []


def may_wait(device: torch.device) -> bool:
    """Whether weights may be read later: on a GPU their memory is taken at once, and a file may have gone."""
    return device.type == "cpu" and HeldFile.can_hold()


@own_context()
@torch.no_grad()
def _fill_late(path: Path, file: HeldFile, prefix: str, keys: Sequence[str], module: nn.Module) -> None:
    file.check()
    with open_tensors(path, file.at) as (_, read):
        _fill(module, keys, read, prefix, path)


def _fill(module: nn.Module, keys: Sequence[str], read: Reader, prefix: str, path: Path) -> None:
    """Write what the file has under ``prefix`` and each key into the module's own memory."""
    for key in keys:
        tensor, (owner, _, name) = read(prefix + key), key.rpartition(".")
        target: Tensor = getattr(_submodule(module, owner), name).data  # not as a change of a model
        if target.is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {prefix}{key} is of {kind}, this model needs floating-point numbers; quantised files of "
                "other programs cannot be loaded, take the one that it was made of (`chatterbox pack` makes some that "
                "can)"
            )
        target.copy_(tensor)


def check_tensors(
    path: Path, stored: Shapes, wanted: Shapes, may_lack: frozenset[str], ignored: frozenset[str]
) -> tuple[str, Shapes]:
    """What stands before a model's keys in a file, and its shapes by the model's keys, without those ``ignored``.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    prefix = prefix_of(path, stored, wanted)
    shapes = without_prefix(stored, prefix)
    shapes = {key: shape for key, shape in shapes.items() if key in wanted or key not in ignored}
    _compare(path, shapes, wanted, may_lack)
    return prefix, shapes


def _submodule(module: nn.Module, name: str) -> Any:
    """As torch's ``get_submodule``, which would wake parts that are being filled."""
    found: Any = module
    for part in name.split(".") if name else ():
        found = found._modules[part]
    return found


def shapes_of(build: Callable[[], nn.Module], path: Path) -> Shapes:
    """Shapes by key of a module that is not built: it has no memory."""
    try:
        with without_memory():
            return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: sizes that cannot be ({reason}); config.json must be the file's own") from None


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters that are built have shapes alone."""
    with _WithoutInitialisation(), ShapesAlone():
        yield


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
