"""`T3Config` under upstream's import path, as programs build and change it there.

Owns: a configuration whose fields can be assigned, and whose backbone is looked up by name. Does not know: networks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chatterbox.models import config
from chatterbox.models.t3.llama_configs import PUBLISHED, backbone_named


class T3Config(config.T3Config):
    """As `chatterbox.models.config.T3Config`, but its fields can be assigned, and so can other names, for programs."""

    encoder_type = "voice_encoder"
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__
    __hash__ = config.T3Config.__hash__
    _name: str | None  # of the backbone in LLAMA_CONFIGS; None: `_sizes` are its own
    _sizes: config.LlamaConfig | config.GPT2Config

    def __eq__(self, other: object) -> bool:
        """By the fields, with a configuration that cannot be assigned to as well."""
        if not isinstance(other, config.T3Config):
            return NotImplemented
        return _values_of(self) == _values_of(other)

    @property
    def backbone(self) -> config.LlamaConfig | config.GPT2Config:
        """Sizes of the backbone; of one that has a name what LLAMA_CONFIGS says now."""
        return self._sizes if self._name is None else backbone_named(self._name)

    @backbone.setter
    def backbone(self, sizes: config.LlamaConfig | config.GPT2Config) -> None:
        self._name = next((name for name, published in PUBLISHED.items() if published == sizes), None)
        self._sizes = sizes

    @property
    def llama_config_name(self) -> str:
        """Upstream's name of the backbone. Assigning one takes that backbone, driven as models of its kind are."""
        return super().llama_config_name if self._name is None else self._name

    @llama_config_name.setter
    def llama_config_name(self, name: str) -> None:
        sizes = backbone_named(name)
        published = config.T3Config.turbo() if isinstance(sizes, config.GPT2Config) else config.T3Config()
        for one in config.TURBO_DRIVING:
            setattr(self, one, getattr(published, one))
        self._name, self._sizes = name, sizes


def assignable(hp: config.T3Config) -> T3Config:
    """``hp`` itself if its fields can be assigned, else a copy whose can."""
    return hp if isinstance(hp, T3Config) else T3Config(**_values_of(hp))


def _values_of(hp: config.T3Config) -> dict[str, Any]:
    return {one.name: getattr(hp, one.name) for one in dataclasses.fields(config.T3Config)}


__all__ = ["T3Config"]
