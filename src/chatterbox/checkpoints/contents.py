"""What a checkpoint folder holds: which file is which part, what model that is, and the sizes that its tensors tell.

Owns: the one place where a folder is understood, by names, then by keys and shapes. Does not know: where folders come
from (`hub`), how weights get into models (`loading`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatterbox.checkpoints.layouts import (
    BASE_S3GEN,
    ENGLISH,
    MULTILINGUAL,
    MULTILINGUAL_V3,
    MULTILINGUAL_VERSIONS,
    NONE_GIVEN,
    PACKS,
    REPO_ID,
    S3GEN_VERSIONS,
    TURBO,
    CheckpointError,
    Files,
    Layout,
    all_layouts,
    is_v3,
    layout_named,
    multilingual,
    of_base_s3gen,
)
from chatterbox.checkpoints.stored_config import model_config, s3gen_config
from chatterbox.checkpoints.tensors import PICKLES, Shapes, open_tensors, prefix_of, without_prefix
from chatterbox.models.config import GPT2Config, ModelConfig, S3GenConfig
from chatterbox.models.tokenizers.languages import LANGUAGES

logger = logging.getLogger(__name__)

CONTAINERS = (".safetensors", ".pt")
HEAD_DIM = 64  # of every published T3
EXTRA_TEXT_POSITIONS, EXTRA_SPEECH_POSITIONS = 2, 4  # learned positions beyond the longest text and speech
MARKS = ("text_emb.weight", "speech_emb.weight", "speech_head.weight")  # keys of every T3
ADAPTER = "adapter_model"  # peft's file of an adapter alone
PUT_ON = "put it on the loaded model: peft.PeftModel.from_pretrained(tts.t3.tfmr, folder)"


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
        name, needed = getattr(self.layout, part), ", ".join(self.layout.needed)
        if part == "t3" and (adapter := find_file(self.folder, f"{ADAPTER}.safetensors", PICKLES)):
            raise CheckpointError(
                f"checkpoint folder {self.folder} has no {name} but {adapter.name}, an adapter: load the model that it "
                f"was trained on, and {PUT_ON}"
            )
        if name in self.layout.base:
            nor = "" if self.base is None else f", nor has {self.base}"
            raise CheckpointError(
                f"checkpoint folder {self.folder} is a Single Language Pack, {self.layout.t3}, and has no {name}{nor}; "
                f"copy it from {REPO_ID}"
            )
        raise CheckpointError(f"checkpoint folder {self.folder} has no {name}; it needs {needed}")


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
        if t3 is None and given.explicit_t3_model:
            _given(folder, version.t3, "t3_model")
    else:
        t3 = _given(folder, given.t3_model, "t3_model")
    t3 = t3 or _find_t3(folder, layouts)
    tokenizer = _given(folder, given.tokenizer, "tokenizer")
    layout = layouts[0] if t3 is None else _layout_of(folder, t3, layouts, tokenizer)
    s3gen = None
    if layout.base and given.s3gen_model in BASE_S3GEN and find_file(folder, MULTILINGUAL.s3gen) is None:
        layout = of_base_s3gen(layout)
    else:
        s3gen = _given(folder, given.s3gen_model, "s3gen_model")
    base = None if fetch_base is None else _base_of(folder, layout, fetch_base)
    tokenizer = tokenizer or _find_tokenizer(folder, layout)
    contents = Contents(folder, base, layout, t3, s3gen, None, tokenizer)
    if t3 is not None and (adapter := find_file(folder, f"{ADAPTER}.safetensors", PICKLES)):
        logger.warning("%s, an adapter, is not read; %s", adapter, PUT_ON)
    s3gen = s3gen or contents.find(layout.s3gen)
    if s3gen is None and given.s3gen_model is None:
        s3gen = _only(folder, "s3gen", "s3gen_model")
    return replace(contents, s3gen=s3gen, voice_encoder=contents.find(layout.voice_encoder))


def _base_of(folder: Path, layout: Layout, fetch_base: Callable[[Layout], Path]) -> Path | None:
    """The folder with what this one lacks of its layout; None where it lacks nothing that is needed."""
    lacking = [name for name in layout.base if name in layout.needed and find_file(folder, name) is None]
    if not lacking:
        return None
    try:
        return fetch_base(layout)
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint folder {folder} is a Single Language Pack, {layout.t3}, without {', '.join(lacking)}, and "
            f"{error}; or copy what it lacks from {REPO_ID}"
        ) from None


def read_s3gen(folder: Path, s3gen_model: str | None = None, layout: Layout | None = None) -> tuple[Path, S3GenConfig]:
    """The S3Gen of a folder, and its sizes; no other part is looked at, but for the names of the files.

    ``layout``: what the folder is known to be of.

    Raises:
        CheckpointError: there is none, or ``config.json`` says of it what cannot be.
    """
    found = _given(folder, s3gen_model, "s3gen_model")
    if found is None:
        named = layout or next((one for one in all_layouts() if find_file(folder, one.t3)), ENGLISH)
        usual = (one.s3gen for one in (named, ENGLISH, TURBO, PACKS["pt-br"]))
        found = next((path for name in usual if (path := find_file(folder, name))), None)
    found = found or _only(folder, "s3gen", "s3gen_model")
    if found is None:
        lacks = f"has no {ENGLISH.s3gen}, which voice conversion needs" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint folder {folder} {lacks}")
    return found, s3gen_config(folder, found)


def find_file(folder: Path, name: str, others: Sequence[str] = CONTAINERS) -> Path | None:
    """A file of this name, or of the same name in another container."""
    stem = Path(name).stem if Path(name).suffix in CONTAINERS else None
    names = [name] if stem is None else [name, *(f"{stem}{suffix}" for suffix in others)]
    return next((folder / one for one in names if (folder / one).is_file()), None)


def _given(folder: Path, name: str | None, argument: str) -> Path | None:
    """The file that a caller names: of the folder, with or without its ending, or anywhere."""
    if name is None:
        return None
    known = S3GEN_VERSIONS.get(name, name) if argument == "s3gen_model" else name
    endings = ("", *CONTAINERS, *PICKLES) if argument != "tokenizer" else ("", ".json")
    for path in (folder / f"{known}{ending}" for ending in endings):  # an absolute name stays as it is
        if path.is_file():
            return path
    is_version = argument != "t3_model" or Path(name).stem in MULTILINGUAL_VERSIONS.values()
    versions = "" if is_version else f", nor is that one of {', '.join(MULTILINGUAL_VERSIONS)}"
    there = ", ".join(sorted(path.name for path in _files(folder))) or "nothing"
    raise CheckpointError(f"checkpoint folder {folder} has no {name}, which {argument} names{versions}; it has {there}")


def _files(folder: Path) -> Iterator[Path]:
    suffixes = (*CONTAINERS, *PICKLES, ".json")
    return (path for path in sorted(folder.glob("*")) if path.suffix in suffixes and path.is_file())


def _find_t3(folder: Path, layouts: Sequence[Layout]) -> Path | None:
    """The T3 of a folder: of a published name, those of the caller's layouts first, else the only one that may be."""
    found = [path for one in (*layouts, *all_layouts()) if (path := find_file(folder, one.t3))]
    packs = sorted({path.name for path in found if _stem_of_pack(path.name)})
    if found and len(packs) > 1 and found[0].name in packs and Path(layouts[0].t3).stem != found[0].stem:
        raise CheckpointError(
            f"checkpoint folder {folder} has several Single Language Packs, {', '.join(packs)}; name one with t3_model="
        )
    return found[0] if found else _only(folder, "t3", "t3_model")


def _stem_of_pack(name: str) -> bool:
    return any(Path(one.t3).stem == Path(name).stem for one in PACKS.values())


def _only(folder: Path, start: str, argument: str) -> Path | None:
    """The file of weights whose name begins so. Raises CheckpointError if there are several."""
    found = [path for path in _files(folder) if path.suffix in CONTAINERS and path.name.startswith(start)]
    if len({path.stem for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"checkpoint folder {folder} has several such files, {names}; name one with {argument}=")
    return found[0] if found else None


def _layout_of(folder: Path, t3: Path, layouts: Sequence[Layout], tokenizer: Path | None) -> Layout:
    """The layout of a T3 file, for whoever can use ``layouts``; ``tokenizer`` is the caller's."""
    layout = layout_named(t3.stem) or _layout_by_contents(folder, t3, tokenizer)
    only_v3 = find_file(folder, PACKS["pt-br"].s3gen) and not find_file(folder, MULTILINGUAL.s3gen)
    if layout.facade == MULTILINGUAL.facade and (is_v3(t3.stem) or only_v3):
        layout = replace(layout, config=MULTILINGUAL_V3.config)
    allowed = {one.facade for one in layouts}
    if layout.facade not in allowed:
        call = f"{layout.facade}.from_local({', '.join(filter(None, ('folder, device', layout.argument)))})"
        raise CheckpointError(f"checkpoint folder {folder} has no {layouts[0].t3} but {t3.name}, which {call} loads")
    return replace(layout, t3=t3.name)


def _layout_by_contents(folder: Path, t3: Path, tokenizer: Path | None) -> Layout:
    """What a T3 of an unknown name is: by its backbone and width; of two Llama models by what else the folder has."""
    shapes = t3_shapes(t3)
    sizes = t3_sizes(shapes)
    candidates = [one for one in all_layouts() if one.config.t3.backbone.kind == sizes["backbone"]["kind"]]
    if sizes["backbone"]["kind"] == GPT2Config.kind:
        widths = {one.config.t3.n_channels: one for one in candidates}
        return widths.get(sizes["backbone"]["hidden_size"], candidates[0])
    rows = {one.config.t3.text_tokens_dict_size: one for one in reversed(candidates)}
    known = rows.get(sizes["text_tokens_dict_size"])
    if known is not None:
        return known
    tokenizers = _tokenizers(folder) if tokenizer is None else [tokenizer]
    beside = tokenizer is None and any(
        (folder / one.tokenizer).is_file() for one in candidates if one.tokenizer != ENGLISH.tokenizer
    )
    names_languages = bool(tokenizers) and all(map(_marks_languages, tokenizers))
    return MULTILINGUAL if beside or names_languages else ENGLISH


def _marks_languages(tokenizer: Path) -> bool:
    """Whether a tokenizer's file has marks of languages, as ``[fr]``."""
    try:
        text = tokenizer.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return len(LANGUAGES.keys() & set(re.findall(r'"\[([a-z]{2})\]"', text))) > 1


def _find_tokenizer(folder: Path, layout: Layout) -> Path | None:
    """The layout's tokenizer file, else the only one of the folder that may be."""
    if path := find_file(folder, layout.tokenizer):
        return path
    if Path(layout.tokenizer).stem == "vocab":  # GPT-2's: several files of fixed names
        return None
    found = _tokenizers(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"checkpoint folder {folder} has several tokenizers, {names}; name one with tokenizer=")
    return found[0] if found else None


def _tokenizers(folder: Path) -> list[Path]:
    names = (path for path in _files(folder) if path.suffix == ".json" and path.name != "tokenizer_config.json")
    return [path for path in names if "tokenizer" in path.name]


def t3_shapes(path: Path) -> Shapes:
    """Shapes of a T3 file by the keys that T3 has them under. Raises CheckpointError if it is none."""
    with open_tensors(path) as (shapes, _):
        prefix = prefix_of(path, shapes, MARKS)
    shapes = without_prefix(shapes, prefix)
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
        CheckpointError: ``config.json`` is broken, names another size than a file has, or a value that cannot be.
    """
    inferred = {} if contents.t3 is None else t3_sizes(t3_shapes(contents.t3))
    files = {"t3": contents.t3, "s3gen": contents.s3gen, "voice_encoder": contents.voice_encoder}
    return model_config(contents.folder, contents.layout.config, inferred, files)
