"""What a checkpoint folder holds: which file is which part, what model that is, and the sizes that its tensors tell.

Owns: the one place where a folder is understood, by names, then by keys and shapes. Does not know: where folders come
from (`hub`), how weights get into models (`loading`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatterbox.checkpoints.layouts import (
    ENGLISH,
    MULTILINGUAL_VERSIONS,
    S3GEN_VERSIONS,
    CheckpointError,
    Layout,
    Unsaid,
    all_layouts,
    layout_named,
    multilingual,
)
from chatterbox.checkpoints.tensors import Shapes, open_tensors, prefix_of
from chatterbox.config import from_dict, to_dict
from chatterbox.models.config import GPT2Config, ModelConfig, T3Config

logger = logging.getLogger(__name__)

CONTAINERS = (".safetensors", ".pt")
OURS = frozenset(("t3", "s3gen", "voice_encoder", "sampling"))  # tables of a config.json of this package
TOOLS = frozenset(("architectures", "model_type", "_name_or_path", "transformers_version", "torch_dtype", "auto_map"))
HEAD_DIM = 64  # of every published T3
EXTRA_TEXT_POSITIONS, EXTRA_SPEECH_POSITIONS = 2, 4  # learned positions beyond the longest text and speech
SIZES = frozenset(
    ("text_tokens_dict_size", "speech_tokens_dict_size", "max_text_tokens", "max_speech_tokens", "speaker_embed_size")
) | frozenset(("perceiver_queries", "num_layers", "hidden_size", "intermediate_size", "max_positions"))
COUNTS = frozenset(("num_layers", "num_up_layers", "num_mid_blocks", "num_transformers", "block_layers"))
MARKS = ("text_emb.weight", "speech_emb.weight", "speech_head.weight")  # keys of every T3


@dataclass(frozen=True)
class Files:
    """Names that a caller gives for parts of a folder: a file of it, with or without its ending; None finds it.

    t3_model: also "v2", "v3" and their long names. s3gen_model: also "v1" and "v3". tokenizer: a file.
    """

    t3_model: str | None = None
    s3gen_model: str | None = None
    tokenizer: str | None = None


NONE_GIVEN = Files()


@dataclass(frozen=True)
class Contents:
    """A folder that is understood: its files by part, None where one is missing, and the layout that they are of.

    base: the folder of the repository that has what this one lacks, if the layout has such.
    """

    folder: Path
    base: Path | None
    layout: Layout
    t3: Path | None
    s3gen: Path | None
    voice_encoder: Path | None
    tokenizer: Path | None

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,) if self.base is None else (self.folder, self.base)

    def find(self, name: str) -> Path | None:
        """A file of this folder, or of the base's."""
        return next((path for folder in self.folders if (path := find_file(folder, name))), None)

    def require(self, part: str) -> Path:
        """The file of a part. Raises CheckpointError if the folder has none, with what it has and needs."""
        path: Path | None = getattr(self, part)
        if path is not None:
            return path
        if not self.folder.is_dir():
            raise CheckpointError(f"checkpoint folder {self.folder} does not exist")
        name = getattr(self.layout, part)
        raise CheckpointError(
            f"checkpoint folder {self.folder} has no {name}; it needs {', '.join(self.layout.needed)}"
        )


def read_folder(
    folder: Path,
    layouts: Sequence[Layout] = (),
    given: Files = NONE_GIVEN,
    fetch_base: Callable[[Layout], Path] | None = None,
) -> Contents:
    """What a folder holds.

    Args:
        layouts: those that the caller can use, the likeliest first; none given is all.
        fetch_base: the folder with what a layout's own repository lacks; asked if something is missing.

    Raises:
        CheckpointError: a file that is ``given`` is not there, or the folder is another model's.
    """
    layouts = tuple(layouts) or all_layouts()
    t3 = None
    if given.t3_model in (*MULTILINGUAL_VERSIONS, *MULTILINGUAL_VERSIONS.values()):
        version = multilingual(given.t3_model)
        layouts = (version, *(one for one in layouts if one != version))
        t3 = find_file(folder, version.t3)
        if t3 is None and not isinstance(given.t3_model, Unsaid):
            _given(folder, version.t3, "t3_model")
    else:
        t3 = _given(folder, given.t3_model, "t3_model")
    t3 = t3 or _find_t3(folder, layouts)
    layout = layouts[0] if t3 is None else _layout_of(folder, t3, layouts)
    base = None
    if fetch_base is not None and any(find_file(folder, name) is None for name in layout.base if name in layout.needed):
        base = fetch_base(layout)
    contents = Contents(
        folder,
        base,
        layout,
        t3,
        _given(folder, given.s3gen_model, "s3gen_model"),
        None,
        _given(folder, given.tokenizer, "tokenizer") or _find_tokenizer(folder, layout),
    )
    return replace(
        contents,
        s3gen=contents.s3gen or contents.find(layout.s3gen) or _only(folder, "s3gen", "s3gen_model"),
        voice_encoder=contents.find(layout.voice_encoder),
    )


def find_file(folder: Path, name: str) -> Path | None:
    """A file of this name, or of the same name in the other container."""
    stem = Path(name).stem if Path(name).suffix in CONTAINERS else None
    names = [name] if stem is None else [name, *(f"{stem}{suffix}" for suffix in CONTAINERS)]
    return next((folder / one for one in names if (folder / one).is_file()), None)


def _given(folder: Path, name: str | None, argument: str) -> Path | None:
    """The file that a caller names: of the folder, with or without its ending, or anywhere."""
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{argument} must be the name of a file in the folder, got {name!r}")
    known = S3GEN_VERSIONS.get(name, name) if argument == "s3gen_model" else name
    endings = ("", *CONTAINERS) if argument != "tokenizer" else ("", ".json")
    for path in (folder / f"{known}{ending}" for ending in endings):  # an absolute name stays as it is
        if path.is_file():
            return path
    versions = f", nor is that one of {', '.join(MULTILINGUAL_VERSIONS)}" if argument == "t3_model" else ""
    there = ", ".join(sorted(path.name for path in _files(folder))) or "nothing"
    raise CheckpointError(f"checkpoint folder {folder} has no {name}, which {argument} names{versions}; it has {there}")


def _files(folder: Path) -> Iterator[Path]:
    suffixes = (*CONTAINERS, ".json")
    return (path for path in sorted(folder.glob("*")) if path.suffix in suffixes and path.is_file())


def _find_t3(folder: Path, layouts: Sequence[Layout]) -> Path | None:
    """The T3 of a folder: of a published name, those of the caller's layouts first, else the only one that may be."""
    for layout in (*layouts, *all_layouts()):
        if path := find_file(folder, layout.t3):
            return path
    return _only(folder, "t3", "t3_model")


def _only(folder: Path, start: str, argument: str) -> Path | None:
    """The file of weights whose name begins so. Raises CheckpointError if there are several."""
    found = [path for path in _files(folder) if path.suffix in CONTAINERS and path.name.startswith(start)]
    if len({path.stem for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"checkpoint folder {folder} has several such files, {names}; name one with {argument}=")
    return found[0] if found else None


def _layout_of(folder: Path, t3: Path, layouts: Sequence[Layout]) -> Layout:
    """The layout of a T3 file, for whoever can use ``layouts``."""
    layout = layout_named(t3.stem) or _layout_by_contents(folder, t3)
    allowed = {one.facade for one in layouts}
    if layout.facade not in allowed:
        call = f"{layout.facade}.from_local({', '.join(filter(None, ('folder, device', layout.argument)))})"
        raise CheckpointError(f"checkpoint folder {folder} has no {layouts[0].t3} but {t3.name}, which {call} loads")
    return replace(layout, t3=t3.name)


def _layout_by_contents(folder: Path, t3: Path) -> Layout:
    """What a T3 of an unknown name is: by its backbone and width; of two Llama models by what else the folder has."""
    shapes = t3_shapes(t3)
    sizes = t3_sizes(shapes)
    candidates = [one for one in all_layouts() if one.config.t3.backbone.kind == sizes["backbone"]["kind"]]
    if sizes["backbone"]["kind"] == GPT2Config.kind:
        widths = {one.config.t3.n_channels: one for one in candidates}
        return widths.get(sizes["backbone"]["hidden_size"], candidates[0])
    rows = {one.config.t3.text_tokens_dict_size: one for one in reversed(candidates)}
    known = rows.get(sizes["text_tokens_dict_size"])
    beside = (one for one in candidates if one.tokenizer != ENGLISH.tokenizer and (folder / one.tokenizer).is_file())
    return known or next(beside, ENGLISH)


def _find_tokenizer(folder: Path, layout: Layout) -> Path | None:
    """The layout's tokenizer file, else the only one of the folder that may be."""
    if path := find_file(folder, layout.tokenizer):
        return path
    if Path(layout.tokenizer).stem == "vocab":  # GPT-2's: several files of fixed names
        return None
    found = [path for path in _files(folder) if path.suffix == ".json" and "tokenizer" in path.name]
    found = [path for path in found if path.name != "tokenizer_config.json"]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"checkpoint folder {folder} has several tokenizers, {names}; name one with tokenizer=")
    return found[0] if found else None


def t3_shapes(path: Path) -> Shapes:
    """Shapes of a T3 file by the keys that T3 has them under. Raises CheckpointError if it is none."""
    with open_tensors(path) as (shapes, _):
        prefix = prefix_of(path, shapes, MARKS)
    shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
    if lacking := [key for key in MARKS if len(shapes.get(key, ())) != 2]:
        raise CheckpointError(f"{path} is no T3: it has no {lacking[0]}, but {', '.join(sorted(shapes)[:3])}, ...")
    return shapes


def t3_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sizes of `T3Config` that a file's tensors tell, nested as ``config.json`` has them."""
    is_gpt2 = any(key.startswith("tfmr.h.") for key in shapes)
    part, first = ("h", "mlp.c_fc.weight") if is_gpt2 else ("layers", "mlp.gate_proj.weight")
    layers = {int(key.split(".")[2]) for key in shapes if key.startswith(f"tfmr.{part}.")}
    hidden = shapes["text_emb.weight"][1]
    inner = shapes.get(f"tfmr.{part}.0.{first}", (4 * hidden,) * 2)
    backbone = {
        "kind": "gpt2" if is_gpt2 else "llama",
        "num_layers": len(layers),
        "hidden_size": hidden,
        "num_heads": max(1, hidden // HEAD_DIM),
        "intermediate_size": inner[1] if is_gpt2 else inner[0],
    }
    sizes: dict[str, Any] = {
        "text_tokens_dict_size": shapes["text_emb.weight"][0],
        "speech_tokens_dict_size": shapes["speech_emb.weight"][0],
    }
    for name, key, place, extra in (
        ("max_text_tokens", "text_pos_emb.emb.weight", 0, EXTRA_TEXT_POSITIONS),
        ("max_speech_tokens", "speech_pos_emb.emb.weight", 0, EXTRA_SPEECH_POSITIONS),
        ("speaker_embed_size", "cond_enc.spkr_enc.weight", 1, 0),
        ("perceiver_queries", "cond_enc.perceiver.pre_attention_query", 1, 0),
    ):
        if key in shapes:
            sizes[name] = shapes[key][place] - extra
    if "tfmr.wpe.weight" in shapes:
        backbone["max_positions"] = shapes["tfmr.wpe.weight"][0]
    return {**sizes, "backbone": backbone}


def config_of(contents: Contents) -> ModelConfig:
    """Sizes and defaults of a folder: as its layout was published, but for what its tensors and ``config.json`` say.

    Raises:
        CheckpointError: ``config.json`` is broken, or names another size than the T3 file has.
    """
    published, stored = to_dict(contents.layout.config), _stored_config(contents.folder)
    told = {} if contents.t3 is None else t3_sizes(t3_shapes(contents.t3))
    mine = stored.get("t3", {})
    if isinstance(mine, dict):
        _require_sizes(contents, mine, told)
        stored["t3"] = T3Config.completed(mine)
    try:
        values = _merged(_merged(published, {"t3": told} if told else {}), stored)
        config: ModelConfig = from_dict(ModelConfig, values)
    except ValueError as error:
        raise CheckpointError(f"{contents.folder / 'config.json'}: {error}") from None
    for part in ("s3gen", "voice_encoder") if stored else ():
        if path := getattr(contents, part):
            _require_counts(contents.folder, path, part, getattr(config, part))
    return config


def _stored_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says; nothing where there is none, or where it is another tool's."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if isinstance(stored, dict) and not stored.keys() & OURS and stored.keys() & TOOLS:
        logger.info("%s is not of this package and is not read", path)
        return {}
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: config must be a table of settings, got {stored!r}")
    return stored


def _require_sizes(contents: Contents, mine: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Raise CheckpointError where ``config.json`` names another size than the T3 file has, before anything is built."""
    for where, table, found in (("t3.", mine, told), ("t3.backbone.", mine.get("backbone"), told.get("backbone"))):
        if not isinstance(table, dict) or not isinstance(found, dict):
            continue
        for name, value in found.items():
            if name in SIZES and isinstance(table.get(name), int) and table[name] != value:
                stated = f"{contents.folder / 'config.json'} says {where}{name} is {table[name]!r}"
                raise CheckpointError(
                    f"{stated}, {contents.t3} has {value}; leave it out, or take the file's own config.json"
                )


def _require_counts(folder: Path, file: Path, where: str, config: Any) -> None:
    """Raise CheckpointError where ``config.json`` asks for more layers than a file has tensors to fill."""
    with open_tensors(file) as (shapes, _):
        most = len(shapes)
    waiting = [(where, config)]
    while waiting:
        where, table = waiting.pop()
        for one in dataclasses.fields(table):
            value, name = getattr(table, one.name), f"{where}.{one.name}"
            if dataclasses.is_dataclass(value):
                waiting.append((name, value))
            counts = (value if isinstance(value, tuple) else (value,)) if one.name in COUNTS else ()
            if any(count > most for count in counts):
                raise CheckpointError(
                    f"{folder / 'config.json'} says {name} is {value}, {file} has {most} tensors in all; "
                    "leave it out, or take the file's own config.json"
                )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with what ``above`` says, table by table; a table of another kind replaces the whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if (
            isinstance(under, dict)
            and isinstance(value, dict)
            and value.get("kind", under.get("kind")) == under.get("kind")
        ):
            value = _merged(under, value)
        merged[key] = value
    return merged
