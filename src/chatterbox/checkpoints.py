"""Where weights come from, and how they get into models.

Owns: the names of models and which class speaks which (`named_models`), the embedded voice, checkpoint folders and the
hub; strict loading with its listed exceptions; the device check. Does not know: what the models compute.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chatterbox.config import SamplingConfig, from_dict
from chatterbox.models.config import ModelConfig, T3Config
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer, TextTokenizer, TurboTokenizer
from chatterbox.models.tokenizers.languages import CANGJIE_FILE
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.voice.conditionals import Conditionals

logger = logging.getLogger(__name__)

REPO_ID = "ResembleAI/chatterbox"
EMBEDDED_VOICES = Path(__file__).parent / "voices"
CONDITIONALS_FILES = ("conds.safetensors", "conds.pt")

# Computed by the tokenizer itself; older files lack them.
MAY_LACK = frozenset({"tokenizer._mel_filters", "tokenizer.window"})
# GPT-2's own embedding, which nothing reads: inputs are always embeddings.
UNUSED = frozenset({"tfmr.wte.weight"})

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """File names of one published model, and what it is where the folder has no ``config.json``."""

    t3: str
    tokenizer: str
    voice_encoder: str
    s3gen: str
    make_tokenizer: Callable[[Path], TextTokenizer]
    config: ModelConfig = field(default_factory=ModelConfig)
    extras: tuple[str, ...] = ()  # fetched with the rest; the model works without
    meanflow: bool = False  # of S3Gen
    repo: str = REPO_ID
    facade: str = "ChatterboxTTS"  # the class that speaks it
    argument: str = ""  # that the class's ``from_local`` needs beside folder and device

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.voice_encoder, self.t3, self.s3gen, self.tokenizer)

    @property
    def files(self) -> tuple[str, ...]:
        """All that is fetched from the hub."""
        return (*self.needed, *self.extras, "conds.pt")

    @property
    def s3gen_files(self) -> tuple[str, ...]:
        """What voice conversion fetches."""
        return (self.s3gen, "conds.pt")


ENGLISH = Layout("t3_cfg.safetensors", "tokenizer.json", "ve.safetensors", "s3gen.safetensors", EnTokenizer)
MULTILINGUAL = Layout(
    t3="t3_mtl23ls_v2.safetensors",
    tokenizer="grapheme_mtl_merged_expanded_v1.json",
    voice_encoder="ve.pt",
    s3gen="s3gen.pt",
    make_tokenizer=MTLTokenizer,
    config=ModelConfig(t3=T3Config.multilingual(), sampling=SamplingConfig(repetition_penalty=2.0)),
    extras=(CANGJIE_FILE,),
    facade="ChatterboxMultilingualTTS",
)
TURBO = Layout(
    t3="t3_turbo_v1.safetensors",
    tokenizer="vocab.json",
    voice_encoder="ve.safetensors",
    s3gen="s3gen_meanflow.safetensors",
    make_tokenizer=TurboTokenizer,
    config=ModelConfig(t3=T3Config.turbo(), sampling=SamplingConfig(cfg_weight=0.0, min_p=0.0, top_p=0.95, top_k=1000)),
    extras=("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    meanflow=True,
    repo="ResembleAI/chatterbox-turbo",
    facade="ChatterboxTurboTTS",
)
NANO = dataclasses.replace(
    TURBO,
    t3="t3_nano_v1.safetensors",
    config=dataclasses.replace(TURBO.config, t3=T3Config.nano()),
    repo="ResembleAI/chatterbox-nano",
    argument="nano=True",
)
MULTILINGUAL_V3 = dataclasses.replace(
    MULTILINGUAL,
    config=ModelConfig(t3=dataclasses.replace(T3Config.multilingual(), num_trailing_noise=1)),
    argument="t3_model='v3'",
)
MULTILINGUAL_VERSIONS = {"v2": "t3_mtl23ls_v2", "v3": "t3_mtl23ls_v3"}
PUBLISHED = {"chatterbox": ENGLISH, "multilingual": MULTILINGUAL, "turbo": TURBO, "nano": NANO}


def multilingual(t3_model: str) -> Layout:
    """Layout of a version: "v2", "v3", their long names, or the name of a ``.safetensors`` file.

    Raises:
        ValueError: no such version; the message lists them.
    """
    name = MULTILINGUAL_VERSIONS.get(t3_model, t3_model)
    if name in MULTILINGUAL_VERSIONS.values():
        name += ".safetensors"
    elif not (isinstance(name, str) and name.endswith(".safetensors")):
        choices = ", ".join((*MULTILINGUAL_VERSIONS, *MULTILINGUAL_VERSIONS.values()))
        raise ValueError(f"t3_model {t3_model!r} does not exist; choose from {choices}, or name a .safetensors file")
    return dataclasses.replace(MULTILINGUAL_V3 if "_v3" in name else MULTILINGUAL, t3=name)


class CheckpointError(ValueError):
    """A checkpoint cannot be found or does not fit; the message is one line and names the remedy."""


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


def named_models() -> dict[str, Layout]:
    """All models that have a name, which ``--model`` and every ``from_pretrained(model=...)`` know."""
    return {**{name: layout_of(EMBEDDED_VOICES / name) for name in embedded_voices()}, **PUBLISHED}


def find_checkpoint(model: str | Path, layout: Layout = ENGLISH, *, local_files_only: bool = False) -> Path:
    """Folder of a model, for the class that loads ``layout``.

    Args:
        model: a name of `named_models`, or a folder. A published model comes from the hub or its local cache.
        local_files_only: never reach for the network; HF_HUB_OFFLINE does the same.

    Raises:
        CheckpointError: no such model, another class speaks it, or the hub cannot be reached.
    """
    named = _named(model)
    if named is not None and named.facade != layout.facade:
        known = ", ".join(name for name, one in named_models().items() if one.facade == layout.facade)
        raise CheckpointError(
            f"model {model!r} is spoken by {named.facade}.from_pretrained(device, model={model!r}); "
            f"{layout.facade} speaks {known} or a folder"
        )
    if named is not None and model in PUBLISHED:
        return _download(layout.repo, layout.files, local_files_only)
    return _local_folder(model)


def find_model(model: str | Path, *, local_files_only: bool = False) -> tuple[Path, Layout]:
    """Folder of a model of any class, and what it is; arguments and errors as `find_checkpoint`."""
    layout = _named(model) or layout_of(_local_folder(model))
    return find_checkpoint(model, layout, local_files_only=local_files_only), layout


def find_s3gen(model: str | Path, *, local_files_only: bool = False) -> tuple[Path, Layout]:
    """As `find_model`; of a published model the S3Gen alone is fetched, and of a folder no more is needed."""
    layout = _named(model)
    if layout is not None and model in PUBLISHED:
        return _download(layout.repo, layout.s3gen_files, local_files_only), layout
    folder = _local_folder(model)
    return folder, s3gen_layout(folder)


def layout_of(folder: Path) -> Layout:
    """What a folder holds, by its T3; `ENGLISH` where there is none."""
    return next((layout for layout in _layouts() if (folder / layout.t3).is_file()), ENGLISH)


def _layouts() -> tuple[Layout, ...]:
    return (ENGLISH, *map(multilingual, MULTILINGUAL_VERSIONS), TURBO, NANO)


def _named(model: object) -> Layout | None:
    return named_models().get(model) if isinstance(model, str) else None


def _local_folder(model: str | Path) -> Path:
    if isinstance(model, str) and model in embedded_voices():
        return EMBEDDED_VOICES / model
    if isinstance(model, (str, Path)) and str(model) and Path(model).is_dir():
        return Path(model)
    names = ", ".join(map(repr, named_models()))
    raise CheckpointError(f"no model {str(model)!r}: use {names} or a checkpoint folder that exists")


def embedded_voices() -> list[str]:
    """Names of the models that are part of this package."""
    return sorted(path.parent.name for path in EMBEDDED_VOICES.glob("*/config.json"))


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


def s3gen_layout(folder: Path) -> Layout:
    """The layout that a folder's S3Gen is of; `ENGLISH` where there is none."""
    return next((layout for layout in PUBLISHED.values() if (folder / layout.s3gen).is_file()), ENGLISH)


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
    with _open_tensors(path) as (shapes, read):
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


@contextmanager
def _open_tensors(path: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]]:
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


def _check_layout(folder: Path, layout: Layout) -> None:
    """Raise CheckpointError if a folder has another model's T3 and not that of ``layout``."""
    found = layout_of(folder)
    if not (folder / layout.t3).is_file() and (folder / found.t3).is_file():
        call = f"{found.facade}.from_local({', '.join(filter(None, ('folder, device', found.argument)))})"
        raise CheckpointError(f"checkpoint folder {folder} has no {layout.t3} but {found.t3}, which {call} loads")


def _required(folder: Path, name: str, needed: Sequence[str]) -> Path:
    path = folder / name
    if not path.is_file():
        what = f"has no {name}" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint folder {folder} {what}; it needs {', '.join(needed)}")
    return path


def _download(repo: str, files: Sequence[str], local_files_only: bool) -> Path:
    """Fetch what a repository has of ``files``; a needed one that it lacks is reported when it is read."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(files), local_files_only=local_files_only))
    except Exception as error:  # the hub's client, its HTTP library and the file system each have their own
        logger.debug("fetching %s failed", repo, exc_info=error)
        raise CheckpointError(
            f"{repo} is neither in the local cache nor reachable on the hub ({type(error).__name__}); "
            "go online, pass a checkpoint folder, or use model='tiny', which works offline"
        ) from None
