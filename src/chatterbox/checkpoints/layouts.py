"""What a checkpoint folder holds: files of the published models, and which class speaks them.

Owns: the names of models, the embedded voices, the layout of a folder. Does not know: the hub, how weights are read.
"""

from __future__ import annotations

import dataclasses
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
S3GEN_VERSIONS = {"v1": "s3gen", "v3": "s3gen_v3"}
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


class Unsaid(str):
    """A default that stands for what a folder holds: "v2" where it holds several."""


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


def with_files(
    layout: Layout, t3_model: str | None = None, s3gen_model: str | None = None, tokenizer: str | None = None
) -> Layout:
    """A layout with the files that a caller names in the place of its own, to be fetched from the hub."""
    s3gen = S3GEN_VERSIONS.get(s3gen_model or "", s3gen_model)
    given = {
        "t3": (t3_model, ".safetensors"),
        "s3gen": (s3gen, Path(layout.s3gen).suffix),
        "tokenizer": (tokenizer, ""),
    }
    names = {part: name + (ending if not Path(name).suffix else "") for part, (name, ending) in given.items() if name}
    changed: dict[str, Any] = names
    return dataclasses.replace(layout, **changed)


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
