"""Command-line overrides to configuration dataclasses. The only module that imports Hydra.

Owns: the search path (`chatterbox.configs`), and one-line errors. Does not know: what a configuration is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatterbox.config import SamplingConfig, SayConfig, from_dict


class ConfigError(ValueError):
    """An override names no setting, or gives it a value of the wrong kind."""


def compose_say(overrides: Sequence[str] = ()) -> SayConfig:
    """Configuration of ``chatterbox say`` from Hydra overrides (``sampling.temperature=0.5``, ``model=chatterbox``).

    ``sampling`` of the result holds the overridden fields alone: the rest is the checkpoint's.

    Raises:
        ConfigError: an unknown setting or choice, or a value that does not fit; one line.
    """
    values = _compose("say", overrides)
    try:
        config = from_dict(SayConfig, values, "say")
        from_dict(SamplingConfig, config.sampling, "sampling")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def _compose(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The composed YAML as plain dictionaries, nulls (defaults of the dataclasses) left out."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_module("chatterbox.configs", version_base="1.3"):
            config = compose(name, overrides=list(overrides))
            return _without_nulls(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0].strip()
        raise ConfigError(f"{reason}; chatterbox {name} --help lists the settings") from None


def _without_nulls(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_nulls(value) for key, value in values.items() if value is not None}
