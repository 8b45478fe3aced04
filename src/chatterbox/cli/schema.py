"""What may be set: keys, defaults and meanings read from the dataclasses, choices from the folder of YAML.

Owns: the lists behind help, error messages and docs/configuration.md. Does not know: Hydra, the terminal, what a
setting does.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatterbox.cli.config import BenchmarkCommandConfig, SayCommandConfig, ServeCommandConfig, StreamCommandConfig

PRIMARY: dict[str, type] = {
    "say": SayCommandConfig,
    "stream": StreamCommandConfig,
    "benchmark": BenchmarkCommandConfig,
    "serve": ServeCommandConfig,
}


@dataclass(frozen=True)
class Setting:
    """One key. ``default`` as the dataclass has it; ``about`` is what it means."""

    key: str
    kind: str
    default: Any
    about: str


@dataclass(frozen=True)
class Choice:
    """One YAML file of a group; ``about`` is its first line of comment."""

    name: str
    about: str


def configs_folder() -> Path:
    """The folder of YAML: installed as `chatterbox.configs`, beside ``src`` in a clone that is not installed."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "say.yaml").is_file():
            return folder
    from importlib.resources import files  # an editable install maps the package's name to its folder

    return Path(str(files("chatterbox.configs")))


def settings_of(config: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a dataclass, those of tables within with a dot, in order."""
    hints = typing.get_type_hints(config)
    for one in dataclasses.fields(config):
        key, kind = prefix + one.name, hints[one.name]
        table: Any = one.metadata.get("of", kind)
        if isinstance(table, type) and dataclasses.is_dataclass(table):
            yield from settings_of(table, key + ".")
        else:
            yield Setting(key, kind_name(kind), one.default, one.metadata["about"])


def groups_of(config: type, folders: Sequence[Path] = ()) -> dict[str, list[Choice]]:
    """Choices by group, for the tables of ``config``; ``folders`` are the user's own, the package's comes first."""
    groups = {}
    for one in dataclasses.fields(config):
        files: dict[str, Path] = {}
        for folder in (configs_folder(), *folders):
            for path in sorted((folder / one.name).glob("*.yaml")):
                files.setdefault(path.stem, path)
        if files:
            groups[one.name] = [Choice(name, _first_comment(files[name])) for name in sorted(files)]
    return groups


def kind_name(kind: Any) -> str:
    """A type as a user would say it: "int or null", "list of str"."""
    if isinstance(kind, types.UnionType):
        return " or ".join(kind_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"list of {kind_name(typing.get_args(kind)[0])}"
    return "null" if kind is type(None) else kind.__name__


def shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, tuple) else str(value)


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        lines = (line.strip() for line in file)
        line = next((line for line in lines if not line.startswith("# @")), "")  # those are Hydra's own
    return line.removeprefix("#").strip() if line.startswith("#") else ""
