"""Voices by name: what was made of a recording, kept in a folder.

Owns: the folder, its files and names, which model a voice fits. Does not know: how a voice is made of a recording, the
command line.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox.models.config import T3Config
from chatterbox.runtime.files import PART, left_overs, remove_left_over, whole
from chatterbox.values import shown

if TYPE_CHECKING:
    from chatterbox.checkpoints import LoadedModels
    from chatterbox.voice.conditionals import Conditionals

BUILT_IN = "built-in"
FORMAT = "chatterbox-voice-1"
SUFFIX = ".safetensors"
KIBIBYTE = 1024
FRAMES_PER_SECOND = 50  # of a recording's mel

MAX_NAME_LEN = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_RECORDING = re.compile(r"\.(wav|mp3|flac|m4a|ogg|opus|aac|webm)\Z", re.IGNORECASE)  # how the name of one ends


class VoiceError(ValueError):
    """A name that no voice has or can have, or a voice of another model."""


def default_folder() -> Path | None:
    """Where voices are kept: ``chatterbox/voices`` in the user's data folder (XDG); None: this user has no home."""
    try:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:
        return None
    return Path(data) / "chatterbox" / "voices"


def name_of(title: str) -> str:
    """What a voice is called of this title, or of a recording of this name: what no name may hold is a dash in it.

    Letters lose their accents; "" where there are others than those of a to z, as two titles must not become one name.
    """
    written = unicodedata.normalize("NFKD", _RECORDING.sub("", title.strip()))
    plain = "".join(one for one in written if not unicodedata.combining(one))
    if any(one.isalnum() and not one.isascii() for one in plain):
        return ""
    return _NOT_IN_NAMES.sub("-", plain).strip("-_")


@dataclass(frozen=True)
class VoiceLibrary:
    """Voices in a folder, one file each."""

    folder: Path

    def names(self) -> list[str]:
        """Of all files here that may be voices, broken ones too; a folder is none."""
        paths = self.folder.glob("*" + SUFFIX)
        return sorted(path.stem for path in paths if _NAME.fullmatch(path.stem) and not path.is_dir())

    def path(self, name: str) -> Path:
        """The file of a voice that is here. Raises VoiceError if it is not."""
        if name not in self.names():
            there = f"there are {', '.join(self.names())}" if self.names() else "none was added yet"
            raise VoiceError(f"no voice {name!r} in {self.folder}; {there}")
        return self.folder / f"{name}{SUFFIX}"

    def free(self, name: str, *, force: bool = False) -> Path:
        """Where a new voice would be. Raises VoiceError if it cannot have this name."""
        if not _NAME.fullmatch(name) or name == BUILT_IN:
            raise VoiceError(f"a voice cannot be called {name!r}; use letters, digits, - and _, but not {BUILT_IN!r}")
        if len(name) > MAX_NAME_LEN:
            raise VoiceError(f"a voice's name has at most {MAX_NAME_LEN} characters, {shown(name)} has {len(name)}")
        if name in self.names() and not force:
            raise VoiceError(f"there is a voice {name!r} already; choose another name, or --force replaces it")
        return self.folder / f"{name}{SUFFIX}"

    def add(self, name: str, voice: Conditionals, about: Mapping[str, str], *, force: bool = False) -> Path:
        """Write a voice, whole or not at all."""
        from safetensors.torch import save_file

        path = self.free(name, force=force)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():  # a pipe, or a link to nothing: what is written is a file
            path.unlink(missing_ok=True)
        with whole(path) as part:
            save_file(voice.as_tensors(), str(part), metadata={"format": FORMAT, **about})
        return path

    def sweep(self) -> None:
        """Remove the files of voices whose writers were killed."""
        for left in left_overs(self.folder, PART):
            remove_left_over(left)

    def about(self, name: str) -> dict[str, str]:
        """What was noted when a voice was added, and what its file says. Raises VoiceError, ValueError if broken."""
        return describe(self.path(name))

    def rename(self, name: str, new: str) -> None:
        """Raises VoiceError: there is no such voice, or none can have the new name."""
        self.path(name).rename(self.free(new))

    def remove(self, name: str) -> None:
        """Raises VoiceError if it is not here, or gone meanwhile."""
        try:
            self.path(name).unlink()
        except FileNotFoundError:
            raise VoiceError(f"no voice {name!r} in {self.folder}") from None


def describe(path: Path) -> dict[str, str]:
    """The notes in a voice's file and its tensors' sizes, of `VoiceLibrary.add` or `Conditionals.save`."""
    from safetensors import SafetensorError, safe_open

    try:
        size = _size(path)
        with safe_open(str(path), "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            about = dict(file.metadata() or {})
        _, num_frames, _ = shapes.get("gen.prompt_feat", (1, 0, 0))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is no whole voice ({error}); remove it and add it again") from None
    about.pop("format", None)
    return {**about, "heard": f"{num_frames / FRAMES_PER_SECOND:.1f} s", "size": f"{size / KIBIBYTE:.0f} KiB"}


def _size(path: Path) -> int:
    """Bytes of a file; raises OSError for a pipe, which would be waited for."""
    if not path.is_file():
        raise FileNotFoundError("it is no file")
    return path.stat().st_size


def family(models: LoadedModels) -> str:
    """What voices of a model have in common, as a short hash: who reads recordings, how much of them T3 is given."""
    from chatterbox.kvcache.prefix.keys import content_hash, weights_fingerprint

    hp = models.config.t3
    return content_hash(weights_fingerprint(models.voice_encoder), f"{hp.speech_cond_prompt_len} {hp.norm_loudness}")


def find_voice(voice: str) -> Path:
    """The file that ``--voice`` means: a voice of the library by name, or a recording or prepared voice by path.

    Raises:
        FileNotFoundError: neither.
    """
    folder = default_folder()
    library = None if folder is None else VoiceLibrary(folder)
    if library is not None and _NAME.fullmatch(voice) and voice in library.names():
        return library.path(voice)
    if not voice or not os.path.exists(voice) or os.path.isdir(voice):  # a pipe is a recording too
        names = ", ".join([BUILT_IN, *(library.names() if library is not None else ())])
        raise FileNotFoundError(f"voice {voice!r} does not exist: give a recording, or a name: {names}")
    return Path(voice)


def load_prepared(path: Path, models: LoadedModels) -> Conditionals:
    """A prepared voice for a model. Raises VoiceError if it was made for another, ValueError if the file is broken."""
    from chatterbox.voice.conditionals import Conditionals

    about = describe(path) if path.suffix == SUFFIX else {}
    voice = Conditionals.load(path, map_location=models.device)
    fits = about.get("family", family(models)) == family(models) and _sizes_fit(voice, models.config.t3)
    if not fits:
        made_for = f" (it was made for {about['model']})" if "model" in about else ""
        raise VoiceError(f"voice {str(path.stem)!r} does not fit this model{made_for}; add it again with --model")
    return voice


def _sizes_fit(voice: Conditionals, hp: T3Config) -> bool:
    return voice.t3.speaker_emb.shape[-1] == hp.speaker_embed_size
