"""``chatterbox voices``: recordings that were listened to once, kept under a name for ``--voice``.

Owns: the folder of voices, their files and names. Does not know: how a voice is made of a recording, which command uses
one.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox.cli.errors import UsageError
from chatterbox.cli.options import Parser, add_command, add_settings, add_speaker, configuration
from chatterbox.cli.output import progress, table, whole
from chatterbox.config import T3Config

if TYPE_CHECKING:
    from chatterbox.checkpoints import LoadedModels
    from chatterbox.voice.conditionals import Conditionals

BUILT_IN = "built-in"
FORMAT = "chatterbox-voice-1"
SUFFIX = ".safetensors"
KIBIBYTE = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def default_folder() -> Path:
    """Where voices are kept: ``chatterbox/voices`` in the user's data folder (XDG)."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "chatterbox" / "voices"


@dataclass(frozen=True)
class Library:
    """Voices in a folder, one file each."""

    folder: Path

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*" + SUFFIX) if _NAME.fullmatch(path.stem))

    def path(self, name: str) -> Path:
        """The file of a voice that is here. Raises UsageError if it is not."""
        if name not in self.names():
            there = f"there are {', '.join(self.names())}" if self.names() else "none was added yet"
            raise UsageError(f"no voice {name!r} in {self.folder}; {there}")
        return self.folder / f"{name}{SUFFIX}"

    def free(self, name: str, *, force: bool = False) -> Path:
        """Where a new voice would be. Raises UsageError if it cannot have this name."""
        if not _NAME.fullmatch(name) or name == BUILT_IN:
            raise UsageError(f"a voice cannot be called {name!r}; use letters, digits, - and _, but not {BUILT_IN!r}")
        if name in self.names() and not force:
            raise UsageError(f"there is a voice {name!r} already; choose another name, or --force replaces it")
        return self.folder / f"{name}{SUFFIX}"

    def add(self, name: str, voice: Conditionals, about: Mapping[str, str], *, force: bool = False) -> Path:
        """Write a voice, whole or not at all."""
        from safetensors.torch import load_file, save_file

        path = self.free(name, force=force)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            plain = part.with_suffix(SUFFIX)  # the name says which form is written
            try:
                voice.save(plain)
                save_file(load_file(plain), str(part), metadata={"format": FORMAT, **about})
            finally:
                plain.unlink(missing_ok=True)
        return path

    def about(self, name: str) -> dict[str, str]:
        """What was noted when a voice was added, and what its file says. Raises UsageError, ValueError if broken."""
        return describe(self.path(name))

    def remove(self, name: str) -> None:
        self.path(name).unlink()


def describe(path: Path) -> dict[str, str]:
    """The notes in a voice's file and its tensors' sizes; for files of `Library.add` and of `Conditionals.save`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            about = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole voice ({error}); remove it and add it again") from None
    about.pop("format", None)
    seconds = shapes.get("gen.prompt_feat", [0, 0])[1] / 50  # mel frames
    return {**about, "heard": f"{seconds:.1f} s", "size": f"{path.stat().st_size / KIBIBYTE:.0f} KiB"}


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
    library = Library(default_folder())
    if _NAME.fullmatch(voice) and voice in library.names():
        return library.path(voice)
    if not Path(voice).is_file():
        names = ", ".join([BUILT_IN, *library.names()])
        raise FileNotFoundError(f"voice {voice!r} does not exist: give a recording, or a name: {names}")
    return Path(voice)


def load_prepared(path: Path, models: LoadedModels) -> Conditionals:
    """A prepared voice for a model. Raises UsageError if it was made for another, ValueError if the file is broken."""
    from chatterbox.voice.conditionals import Conditionals

    about = describe(path) if path.suffix == SUFFIX else {}
    voice = Conditionals.load(path, map_location=models.device)
    fits = about.get("family", family(models)) == family(models) and _sizes_fit(voice, models.config.t3)
    if not fits:
        made_for = f" (it was made for {about['model']})" if "model" in about else ""
        raise UsageError(f"voice {str(path.stem)!r} does not fit this model{made_for}; add it again with --model")
    return voice


def _sizes_fit(voice: Conditionals, hp: T3Config) -> bool:
    return voice.t3.speaker_emb.shape[-1] == hp.speaker_embed_size


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "voices",
        run_list,
        help="list, add, show and remove voices by name",
        description="Voices by name: a recording is listened to once, and --voice NAME speaks in its voice.",
        epilog=f"They are kept in {default_folder()} (XDG_DATA_HOME moves it).",
    )
    parser.add_argument("--folder", metavar="FOLDER", default=None, help="another folder of voices")
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    _add_action(actions, "list", run_list, "list the voices (what happens without an action)")
    add = _add_action(actions, "add", run_add, "listen to a recording and keep its voice under a name")
    add.add_argument("name", metavar="NAME")
    add.add_argument("recording", metavar="RECORDING", help="5 to 10 seconds of clear speech (Turbo, Nano: up to 15)")
    add.add_argument("--force", action="store_true", help="replace a voice of that name")
    add_speaker(add, voice=False)
    add_settings(add, "say", only=("model",))
    for name, run, about in (
        ("show", run_show, "what is known of a voice"),
        ("remove", run_remove, "forget a voice"),
    ):
        _add_action(actions, name, run, about).add_argument("name", metavar="NAME")


def _add_action(actions: Any, name: str, run: Any, about: str) -> Parser:
    texts = {"help": about, "description": about[0].upper() + about[1:] + "."}
    parser = add_command(actions, name, run, within=True, **texts)
    parser.add_argument("--folder", metavar="FOLDER", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _library(arguments: argparse.Namespace) -> Library:
    return Library(default_folder() if arguments.folder is None else Path(arguments.folder))


def run_list(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    library = _library(arguments)
    rows: list[tuple[str, ...]] = [
        ("name", "model", "heard", "size", "recording"),
        (BUILT_IN, "each model's own", "", "", ""),
    ]
    for name in library.names():
        try:
            about = library.about(name)
        except ValueError:
            rows.append((name, "broken: remove it", "", "", ""))
            continue
        rows.append((name, *(about.get(key, "") for key in ("model", "heard", "size", "recording"))))
    print("\n".join(table(rows)))
    return 0


def run_add(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from chatterbox.cli.speaker import checked, load_models
    from chatterbox.voice.conditionals import prepare_conditionals

    library, recording = _library(arguments), Path(arguments.recording)
    library.free(arguments.name, force=arguments.force)
    if not recording.is_file():
        raise FileNotFoundError(f"recording {str(recording)!r} does not exist")
    config = checked(configuration(arguments, overrides, "say"))
    with progress() as report:
        models = load_models(config, report, any_language=True)
        report.stage("listening to the recording")
        voice = prepare_conditionals(models.s3gen, models.voice_encoder, recording, hp=models.config.t3)
        about = {"model": config.model.source, "recording": recording.name, "family": family(models)}
        path = library.add(arguments.name, voice, about, force=arguments.force)
    print(f"{arguments.name}: {describe(path)['heard']} of {recording.name} for model {config.model.source}, in {path}")
    return 0


def run_show(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    library = _library(arguments)
    if arguments.name == BUILT_IN:
        print(f"{BUILT_IN}: the voice that a checkpoint brings along; what speaks where no --voice is given")
        return 0
    rows = [("name", arguments.name), *library.about(arguments.name).items()]
    print("\n".join(table([*rows, ("file", str(library.path(arguments.name)))])))
    return 0


def run_remove(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.name == BUILT_IN:
        raise UsageError(f"the voice {BUILT_IN!r} is part of the checkpoints and stays")
    library = _library(arguments)
    library.remove(arguments.name)
    print(f"{arguments.name}: removed from {library.folder}")
    return 0
