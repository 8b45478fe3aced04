"""Command-line overrides to configuration dataclasses. The only module that imports Hydra.

Owns: the search path (the package's folder of YAML, then the user's), sweeps, one-line errors; Hydra's process-wide
state is afterwards what it was before. Does not know: what a configuration is for.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from chatterbox.cli.config import SayCommandConfig
from chatterbox.cli.schema import PRIMARY, configs_folder, groups_of, settings_of
from chatterbox.config import SamplingConfig, from_dict, to_dict

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_LOCKS: dict[int, threading.Lock] = {}  # by process: a forked child does not wait for threads of its parent


class ConfigError(ValueError):
    """An override names no setting, or gives it a value of the wrong kind."""


def compose_config(
    name: str, overrides: Sequence[str] = (), *, config_dir: str | Path | None = None
) -> SayCommandConfig:
    """A primary configuration from Hydra overrides (``sampling.temperature=0.5``, ``model=chatterbox``).

    ``sampling`` of the result holds the overridden fields alone: the rest is the checkpoint's.

    Args:
        name: "say", "stream" or "benchmark": a `SayCommandConfig`, or the subclass of it that has this name.
        config_dir: a folder of the user's own YAML, ``kvcache/mine.yaml`` in it is the choice ``kvcache=mine``.

    Raises:
        ConfigError: an unknown setting or choice, or a value that does not fit; one line.
    """
    folders = _user_folders(config_dir)
    with _hydra():
        _check(name, _parsed(overrides), folders)
        values = _composed(name, [*overrides, *_searchpath(folders)])
    try:
        config = from_dict(PRIMARY[name], values, name)
        from_dict(SamplingConfig, config.sampling, "sampling")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def compose_say(overrides: Sequence[str] = ()) -> SayCommandConfig:
    """Configuration of ``chatterbox say``; see `compose_config`."""
    return compose_config("say", overrides)


def split_sweep(name: str, overrides: Sequence[str], *, config_dir: str | Path | None = None) -> list[list[str]]:
    """Overrides of each job of a sweep, in Hydra's order: ``a=1,2 b=range(0,2)`` are four jobs.

    Grammar and order are Hydra's own. Of a setting that is given twice the last value counts.

    Raises:
        ConfigError: no such setting or group, or a sweep that is no list (``interval``); one line.
    """
    from hydra.errors import HydraException

    folders = _user_folders(config_dir)
    groups = groups_of(PRIMARY[name], folders)
    choices: Any = SimpleNamespace(
        get_group_options=lambda group, results_filter: [one.name for one in groups.get(group, ())]
    )
    with _hydra():
        parsed = _parsed(overrides)
        _check(name, parsed, folders, sweep=True)
        for override in parsed:
            override.config_loader = choices  # glob(*) asks it for what there is
        try:
            values = {override.get_key_element(): _values(override) for override in parsed}
        except (HydraException, ValueError) as error:
            raise ConfigError(_first_line(error)) from None
    one_each = itertools.product(*([f"{key}={value}" for value in some] for key, some in values.items()))
    return [list(job) for job in one_each]


def _values(override: Override) -> list[str]:
    """The values that an override gives its setting, one after the other."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ValueError(f"{override.input_line} is no list of values; give some, as {override.key_or_group}=1,2")
    return list(override.sweep_string_iterator())


def to_yaml(config: Any) -> str:
    """A configuration as YAML, every key with its value."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


@contextmanager
def _hydra() -> Iterator[None]:
    """Room for a Hydra of our own: what the program around us has initialised is put away, and put back."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    with _LOCKS.setdefault(os.getpid(), threading.Lock()):
        hydra, version, job = GlobalHydra.instance(), VersionBase.instance(), JobRuntime.instance()
        theirs = hydra.hydra, version.version_base, job.conf
        hydra.clear()
        job.conf = job.conf.copy()
        try:
            yield
        finally:
            hydra.hydra, version.version_base, job.conf = theirs
            GlobalHydra.set_instance(hydra)  # `initialize_config_dir` leaves a copy


def _composed(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The composed YAML as plain dictionaries, nulls (defaults of the dataclasses) left out."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        with initialize_config_dir(str(configs_folder()), version_base="1.3"):
            config = compose(name, overrides=list(overrides))
            return _without_nulls(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{_first_line(error)}; give {error.full_key}=VALUE") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # a group that is no name is a ValueError
        raise ConfigError(_first_line(error)) from None


def _parsed(overrides: Sequence[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            key = override.partition("=")[0].lstrip("+~")
            raise ConfigError(f"cannot read {override!r}: {_first_line(error)}; {_quoted(key)}") from None
    return parsed


def _quoted(key: str) -> str:
    """How a shell hands on a value that Hydra's grammar takes as it is."""
    return f"""as it stands a value is taken in quotes: '{key}="VALUE"'"""


def _check(name: str, overrides: Sequence[Override], folders: Sequence[Path], *, sweep: bool = False) -> None:
    """Raise ConfigError for keys and choices that do not exist, with those that do.

    In a ``sweep`` keys alone: a choice that does not exist is one job's error.
    """
    keys, groups = [one.key for one in settings_of(PRIMARY[name])], groups_of(PRIMARY[name], folders)
    for override in overrides:
        key = override.key_or_group
        if key not in groups and key not in keys and not any(one.startswith(key + ".") for one in keys):
            raise ConfigError(_unknown(name, key, keys, list(groups)))
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise ConfigError(
                f"{override.input_line}: settings are neither added (+) nor deleted (~); write {key}=VALUE"
            )
        if sweep:
            continue
        if override.is_sweep_override():
            remedy = f"chatterbox bench -m runs one after the other, {_quoted(key)}"
            raise ConfigError(f"{override.input_line} is several values; {remedy}")
        if key in groups:
            choice, names = override.value(), [one.name for one in groups[key]]
            if choice not in names:
                raise ConfigError(f"{key} has no choice {choice!r}; it has {', '.join(names)}")


def _unknown(name: str, key: str, keys: Sequence[str], groups: Sequence[str]) -> str:
    table, _, last = key.rpartition(".")
    beside = [one.removeprefix(table + ".") for one in keys if table and one.startswith(table + ".")]
    there = beside or [*groups, *(one for one in keys if "." not in one)]
    return f"{table if beside else name} has no setting {(last if beside else key)!r}; it has {', '.join(there)}"


def _user_folders(config_dir: str | Path | None) -> list[Path]:
    if config_dir is None:
        return []
    folder = Path(config_dir).absolute()
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"config folder {str(config_dir)!r} {fault}")
    return [folder]


def _searchpath(folders: Sequence[Path]) -> list[str]:
    escaped = [str(folder).replace("\\", "\\\\").replace('"', '\\"') for folder in folders]
    return [f'hydra.searchpath=["file://{folder}"]' for folder in escaped]


def _first_line(error: Exception) -> str:
    reason, key = str(error).partition("\n")[0].strip(), getattr(error, "full_key", None)
    return f"{key}: {reason}" if key else reason


def _without_nulls(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_nulls(value) for key, value in values.items() if value is not None}
