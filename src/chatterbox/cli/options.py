"""What commands share on the command line: flags, settings, their help, and the configuration they make.

Owns: flags that stand for settings, the text of help. Does not know: what the settings do (`schema` lists them),
Hydra (`hydra_config`).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from chatterbox.cli.config import SayCommandConfig
from chatterbox.cli.errors import as_usage
from chatterbox.cli.schema import PRIMARY, Choice, Setting, groups_of, settings_of, shown
from chatterbox.cli.text_argument import take_text

MAX_WIDTH = 100

Config = TypeVar("Config", bound=SayCommandConfig)


class Parser(argparse.ArgumentParser):
    """Its epilog may be a function, which is called when help is asked for.

    ``text_of``: the primary configuration of a command that takes a TEXT; None: it takes none. ``may_lack_text``: it
    does without.
    """

    text_of: str | None = None
    may_lack_text = False

    def __init__(self, *args: Any, epilog: str | Callable[[], str] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._make_epilog = epilog

    def format_help(self) -> str:
        self.epilog = self._make_epilog() if callable(self._make_epilog) else self._make_epilog
        return super().format_help()


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace, Sequence[str]], int],
    *,
    within: bool = False,
    **texts: Any,
) -> Parser:
    """A parser for a command, which `run` carries out, given the arguments and the settings.

    ``within``: of another command, whose own flags hold where these are not given.
    """
    parser: Parser = commands.add_parser(name, **texts)
    default = argparse.SUPPRESS if within else False
    parser.add_argument("--debug", action="store_true", default=default, help="show a traceback when something fails")
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_settings(parser: Parser, primary: str, *, examples: str = "", only: Sequence[str] = ()) -> None:
    """``key=value`` of a primary configuration, the user's folder of YAML, and help for both.

    ``only``: the groups that help lists; none given lists all that there is.
    """
    parser.add_argument("--config-dir", metavar="FOLDER", help="your own YAML: kvcache/mine.yaml is kvcache=mine")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings and choices, listed below")
    parser._make_epilog = partial(settings_help, PRIMARY[primary], examples, only)


def add_text(parser: Parser, primary: str, *, may_lack: bool, help: str) -> None:
    """The word to speak (`chatterbox.cli.text_argument`), before the settings of ``primary``."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help=help)
    parser.text_of, parser.may_lack_text = primary, may_lack


def parse(parser: Parser, commands: dict[str, Parser], words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Arguments, and the words that are none. ``commands``: the parser of each, whose name is the first word."""
    command = commands.get(words[0]) if words else None
    if command is None or command.text_of is None:
        return parser.parse_known_args(words)
    text, rest = take_text(command, words[1:], command.text_of, may_lack=command.may_lack_text)
    arguments, unknown = parser.parse_known_args([words[0], "TEXT", *rest])  # a word that no option looks like
    arguments.text = text
    return arguments, unknown


def add_speaker(parser: argparse.ArgumentParser, *, voice: bool = True) -> None:
    """Flags for the settings that are wanted most; without ``voice``, those of the model alone."""
    parser.add_argument("--model", metavar="MODEL", help="a choice of model, listed below, or a checkpoint folder")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps or auto (default)")
    if voice:
        parser.add_argument("--voice", metavar="VOICE", help="recording to clone, or a name of `chatterbox voices`")
        parser.add_argument("--language", metavar="CODE", help="of the text, for a multilingual model: fr, zh, ...")
        parser.add_argument("--seed", metavar="N", help="the same seed says it the same way; -1 draws one")


def configuration(arguments: argparse.Namespace, overrides: Sequence[str], primary: str) -> SayCommandConfig:
    """What flags and settings ask for; flags win. Raises UsageError."""
    from chatterbox.cli.hydra_config import compose_config

    with as_usage():
        config = compose_config(primary, overrides, config_dir=arguments.config_dir)
        return with_flags(config, arguments)


def with_flags(config: Config, arguments: argparse.Namespace) -> Config:
    """``config`` with the flags of `add_speaker` that were given."""
    flags = vars(arguments)
    model = {"source": flags.get("model"), "device": flags.get("device")}
    given = {name: flags.get(name) for name in ("voice", "seed", "language")}
    model, given = ({key: value for key, value in part.items() if value is not None} for part in (model, given))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model), **given)


def settings_help(config: type, examples: str = "", only: Sequence[str] = ()) -> str:
    """Choices and settings of a primary configuration, as the epilog of help."""
    lines = ["choices, as GROUP=CHOICE:"]
    for group, choices in groups_of(config).items():
        if not only or group in only:
            lines += ["", f"  {group}", *_table([_choice(one) for one in choices], "    ")]
    settings = [one for one in settings_of(config) if not only or one.key.partition(".")[0] in only]
    own = "" if only and "sampling" not in only else " (of sampling a checkpoint may have its own)"
    lines += ["", f"settings, as KEY=VALUE, with their defaults{own}:", *_table([_setting(s) for s in settings], "  ")]
    return "\n".join([*lines, *(["", textwrap.dedent(examples).strip()] if examples else [])])


def _choice(one: Choice) -> tuple[str, str]:
    return one.name, one.about


def _setting(one: Setting) -> tuple[str, str]:
    default = one.default if not isinstance(one.default, tuple) else "[...]"
    return f"{one.key}={shown(default)}", one.about


def _table(rows: Sequence[tuple[str, str]], indent: str) -> list[str]:
    """Two columns, the second wrapped."""
    width, lines = max(len(name) for name, _ in rows) + 2, []
    columns = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    for name, about in rows:
        space = indent + " " * width
        first, *others = textwrap.wrap(about, max(30, columns - len(space))) or [""]
        lines += [f"{indent}{name:<{width}}{first}".rstrip(), *(space + other for other in others)]
    return lines
