"""What a checkpoint folder holds: files of the published models, and which class speaks them.

Owns: the names of models, the embedded voices, the layout of a folder, names that a caller gives. Does not know: the
hub, how weights are read.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatterbox.config import SamplingConfig
from chatterbox.models.config import ModelConfig, T3Config
from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer, TextTokenizer, TurboTokenizer
from chatterbox.models.tokenizers.languages import CANGJIE_FILE

REPO_ID = "ResembleAI/chatterbox"
EMBEDDED_VOICES = Path(__file__).parents[1] / "voices"


class CheckpointError(ValueError):
    """A checkpoint cannot be found or does not fit; the message is one line and names the remedy."""


class DefaultName(str):
    """A default that stands for what a folder holds: "v2" where it holds several."""


@dataclass(frozen=True)
class Files:
    """Names that a caller gives for parts of a folder: a file of it, with or without its ending; None finds it.

    t3_model: also "v2", "v3" and their long names. s3gen_model: also "v1" and "v3". tokenizer: a file. Paths become
    strings.

    Raises:
        TypeError: one is no name.
        CheckpointError: one is empty.
    """

    t3_model: str | None = None
    s3gen_model: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for argument, given in vars(self).items():
            name = os.fspath(given) if isinstance(given, os.PathLike) else given
            error = f"{argument} must be the name of a file in the folder, got {given!r}"
            if not isinstance(name, str | None):
                raise TypeError(error)
            if name == "":
                raise CheckpointError(error)
            object.__setattr__(self, argument, name)

    @property
    def explicit_t3_model(self) -> str | None:
        """``t3_model``, if it is not a default."""
        return None if isinstance(self.t3_model, DefaultName) else self.t3_model


NONE_GIVEN = Files()


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
    base: tuple[str, ...] = ()  # files of another repository, `REPO_ID`, that this one lacks
    language: str | None = None  # that a text is in where a call names none

    @property
    def own(self) -> tuple[str, ...]:
        """Files that the model's own repository has."""
        return tuple(name for name in self.files if name not in self.base)

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.voice_encoder, self.t3, self.s3gen, self.tokenizer)

    @property
    def files(self) -> tuple[str, ...]:
        """All that is fetched from the hub."""
        return (*self.needed, *self.extras, "conds.pt")

    def check_language(self, language_id: str | None) -> None:
        """Raise ValueError if the model is for another language alone."""
        if self.language is not None and language_id not in (None, self.language):
            raise ValueError(
                f"{self.t3} speaks {self.language!r} alone, got language_id {language_id!r}; leave it out, or load "
                "model 'multilingual'"
            )


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
S3GEN_VERSIONS = {"v1": "s3gen", "v3": "s3gen_v3"}
BASE_S3GEN = ("v1", "s3gen", "s3gen.pt")  # what a pack has in the base repository alone
MULTILINGUAL_VERSIONS = {"v2": "t3_mtl23ls_v2", "v3": "t3_mtl23ls_v3"}
# The first release: other names, the same model.
MULTILINGUAL_V1 = dataclasses.replace(
    MULTILINGUAL, t3="t3_23lang.safetensors", tokenizer="mtl_tokenizer.json", argument="t3_model='t3_23lang'"
)
# Single Language Packs: fine-tunes of v3 for one language, each in a repository with three files.
PACKS = {
    name: dataclasses.replace(
        MULTILINGUAL_V3,
        t3=f"t3_{name.replace('-', '_')}.safetensors",
        s3gen="s3gen_v3.pt",
        repo=f"ResembleAI/Chatterbox-Multilingual-{name}",
        argument="",
        base=("ve.pt", "conds.pt", CANGJIE_FILE),
        language=language,
    )
    for name, language in {
        "zh-cmn": "zh",
        "es-mx-latam": "es",
        "es-es": "es",
        "pt-br": "pt",
        "pt-pt": "pt",
        "hi": "hi",
    }.items()
}
PUBLISHED = {"chatterbox": ENGLISH, "multilingual": MULTILINGUAL, "turbo": TURBO, "nano": NANO, **PACKS}


def multilingual(t3_model: str) -> Layout:
    """Layout of a version: "v2", "v3", their long names, "t3_23lang", or the name of a ``.safetensors`` file.

    Raises:
        ValueError: no such version; the message lists them.
    """
    name = MULTILINGUAL_VERSIONS.get(t3_model, t3_model)
    if name in MULTILINGUAL_VERSIONS.values():
        name += ".safetensors"
    if name in (MULTILINGUAL_V1.t3, Path(MULTILINGUAL_V1.t3).stem):
        return MULTILINGUAL_V1
    if not (isinstance(name, str) and name.endswith(".safetensors")):
        choices = ", ".join((*MULTILINGUAL_VERSIONS, *MULTILINGUAL_VERSIONS.values()))
        raise ValueError(f"t3_model {t3_model!r} does not exist; choose from {choices}, or name a .safetensors file")
    return dataclasses.replace(MULTILINGUAL_V3 if is_v3(name) else MULTILINGUAL, t3=name)


def is_v3(name: str) -> bool:
    """Whether a file's name says that it is of Multilingual v3."""
    return re.search(r"(?<![a-z0-9])v3(?![a-z0-9])", name.lower()) is not None


def with_files(
    layout: Layout, t3_model: str | None = None, s3gen_model: str | None = None, tokenizer: str | None = None
) -> Layout:
    """A layout with the files that a caller names in the place of its own, to be fetched from the hub.

    Raises:
        TypeError, CheckpointError: as `Files`.
    """
    names = Files(t3_model, s3gen_model, tokenizer)
    given = {
        "t3": (names.t3_model, ".safetensors"),
        "s3gen": (S3GEN_VERSIONS.get(names.s3gen_model or "", names.s3gen_model), Path(layout.s3gen).suffix),
        "tokenizer": (names.tokenizer, ""),
    }
    changed: dict[str, Any] = {
        part: name + (ending if not Path(name).suffix else "") for part, (name, ending) in given.items() if name
    }
    return dataclasses.replace(layout, **changed)


def layout_given(layout: Layout, given: Files) -> Layout:
    """A published layout with what a caller names of it: of Multilingual also the version.

    Raises:
        ValueError: no such version; the message lists them.
    """
    if layout.t3 == MULTILINGUAL.t3 and given.t3_model is not None:
        return with_files(multilingual(given.t3_model), None, given.s3gen_model, given.tokenizer)
    if layout.base and given.s3gen_model in BASE_S3GEN:
        return with_files(of_base_s3gen(layout), given.explicit_t3_model, None, given.tokenizer)
    return with_files(layout, given.explicit_t3_model, given.s3gen_model, given.tokenizer)


def of_base_s3gen(layout: Layout) -> Layout:
    """A pack's layout with the S3Gen of the base repository."""
    return dataclasses.replace(layout, s3gen=MULTILINGUAL.s3gen, base=(*layout.base, MULTILINGUAL.s3gen))


def named_models() -> dict[str, Layout]:
    """All models that have a name, which ``--model`` and every ``from_pretrained(model=...)`` know."""
    return {**dict.fromkeys(embedded_voices(), ENGLISH), **PUBLISHED}


def embedded_voices() -> list[str]:
    """Names of the models that are part of this package."""
    return sorted(path.parent.name for path in EMBEDDED_VOICES.glob("*/config.json"))


def all_layouts() -> tuple[Layout, ...]:
    """Every layout that is known, the likeliest first."""
    return (ENGLISH, *map(multilingual, MULTILINGUAL_VERSIONS), TURBO, NANO, MULTILINGUAL_V1, *PACKS.values())


def layouts_of(facade: str) -> tuple[Layout, ...]:
    """The layouts that a class speaks."""
    return tuple(one for one in all_layouts() if one.facade == facade)


def layout_named(stem: str) -> Layout | None:
    """The layout whose T3 file has this name, without its ending."""
    return next((one for one in all_layouts() if Path(one.t3).stem == stem), None)
