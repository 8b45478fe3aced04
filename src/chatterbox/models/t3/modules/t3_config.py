"""`T3Config` under upstream's import path, as programs build and change it there."""

from __future__ import annotations

from chatterbox.models import config


class T3Config(config.T3Config):
    """As `chatterbox.models.config.T3Config`, but its fields can be assigned until a T3 is built of it."""

    encoder_type = "voice_encoder"
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    @property
    def llama_config_name(self) -> str:
        """Upstream's name of the backbone. Assigning one takes that backbone, driven as its published model is."""
        return super().llama_config_name

    @llama_config_name.setter
    def llama_config_name(self, name: str) -> None:
        published = {"Llama_520M": config.T3Config(), "GPT2_medium": config.T3Config.turbo()}
        if name not in published:
            raise ValueError(f"llama_config_name must be one of {', '.join(published)}, got {name!r}")
        for one in ("backbone", *config.TURBO_DRIVING):
            setattr(self, one, getattr(published[name], one))


__all__ = ["T3Config"]
