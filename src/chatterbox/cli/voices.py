"""``chatterbox voices``: recordings that were listened to once, kept under a name for ``--voice``.

Owns: its actions and what they print. Does not know: the folder and its files (`voice.library`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatterbox.cli.errors import UsageError
from chatterbox.cli.options import Parser, add_command, add_settings, add_speaker, configuration
from chatterbox.cli.output import progress, say_line, table
from chatterbox.voice.library import BUILT_IN, VoiceLibrary, default_folder, describe, family


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "voices",
        run_list,
        help="list, add, show and remove voices by name",
        description="Voices by name: a recording is listened to once, and --voice NAME speaks in its voice.",
        epilog=f"They are kept in {default_folder() or '--folder: this user has no home'} (XDG_DATA_HOME moves it).",
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


def _library(arguments: argparse.Namespace) -> VoiceLibrary:
    folder = default_folder() if arguments.folder is None else Path(arguments.folder)
    if folder is None:
        raise UsageError("this user has no home folder: set HOME or XDG_DATA_HOME, or give --folder")
    return VoiceLibrary(folder)


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
    from chatterbox.audio.recordings import LIBRARY
    from chatterbox.cli.speaker import checked, models_of
    from chatterbox.voice.conditionals import Hearing, prepare_conditionals

    library, recording = _library(arguments), Path(arguments.recording)
    library.free(arguments.name, force=arguments.force)
    if not recording.exists():  # a pipe is one too
        raise FileNotFoundError(f"recording {str(recording)!r} does not exist")
    config = checked(configuration(arguments, overrides, "say"))
    with progress() as report:
        models = models_of(config, report, any_language=True)
        report.stage("listening to the recording")
        parts = models.s3gen, models.voice_encoder, recording
        voice = prepare_conditionals(*parts, hp=models.config.t3, hearing=Hearing(purpose=LIBRARY))
        about = {"model": config.model.source, "recording": recording.name, "family": family(models)}
        path = library.add(arguments.name, voice, about, force=arguments.force)
    say_line(
        f"{arguments.name}: {describe(path)['heard']} of {recording.name} for model {config.model.source}, in {path}"
    )
    return 0


def run_show(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    library = _library(arguments)
    if arguments.name == BUILT_IN:
        say_line(f"{BUILT_IN}: the voice that a checkpoint brings along; what speaks where no --voice is given")
        return 0
    rows = [("name", arguments.name), *library.about(arguments.name).items()]
    print("\n".join(table([*rows, ("file", str(library.path(arguments.name)))])))
    return 0


def run_remove(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.name == BUILT_IN:
        raise UsageError(f"the voice {BUILT_IN!r} is part of the checkpoints and stays")
    library = _library(arguments)
    library.remove(arguments.name)
    say_line(f"{arguments.name}: removed from {library.folder}")
    return 0
