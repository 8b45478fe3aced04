"""Where weights come from, and how they get into models.

Owns: layouts, names, downloads, strict loading. Must not import: `engine`, `synthesis`, `cli`.
"""

from chatterbox.checkpoints.hub import find_checkpoint, find_model, find_s3gen
from chatterbox.checkpoints.layouts import (
    EMBEDDED_VOICES,
    ENGLISH,
    MULTILINGUAL,
    MULTILINGUAL_VERSIONS,
    NANO,
    PUBLISHED,
    REPO_ID,
    TURBO,
    CheckpointError,
    Layout,
    embedded_voices,
    layout_of,
    multilingual,
    named_models,
    s3gen_layout,
)
from chatterbox.checkpoints.loading import (
    LoadedModels,
    load_conditionals,
    load_config,
    load_models,
    load_module,
    load_s3gen,
    resolve_device,
)

__all__ = [
    "EMBEDDED_VOICES",
    "ENGLISH",
    "MULTILINGUAL",
    "MULTILINGUAL_VERSIONS",
    "NANO",
    "PUBLISHED",
    "REPO_ID",
    "TURBO",
    "CheckpointError",
    "Layout",
    "LoadedModels",
    "embedded_voices",
    "find_checkpoint",
    "find_model",
    "find_s3gen",
    "layout_of",
    "load_conditionals",
    "load_config",
    "load_models",
    "load_module",
    "load_s3gen",
    "multilingual",
    "named_models",
    "resolve_device",
    "s3gen_layout",
]
