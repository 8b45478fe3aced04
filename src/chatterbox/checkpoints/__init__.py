"""Where weights come from, and how they get into models.

Owns: layouts, names, downloads, strict loading. Must not import: `engine`, `synthesis`, `cli`.
"""

from chatterbox.checkpoints.contents import Contents, config_of, read_folder, read_s3gen
from chatterbox.checkpoints.hub import check_name, fetch_base, find_checkpoint, find_model, find_s3gen
from chatterbox.checkpoints.layouts import (
    EMBEDDED_VOICES,
    ENGLISH,
    MULTILINGUAL,
    MULTILINGUAL_VERSIONS,
    NANO,
    PACKS,
    PUBLISHED,
    REPO_ID,
    TURBO,
    CheckpointError,
    DefaultName,
    Files,
    Layout,
    all_layouts,
    embedded_voices,
    layouts_of,
    multilingual,
    named_models,
    with_files,
)
from chatterbox.checkpoints.loading import (
    LoadedModels,
    folder_at,
    load_conditionals,
    load_models,
    load_module,
    load_s3gen,
    resolve_device,
)
from chatterbox.checkpoints.packing import pack_folder

__all__ = [
    "EMBEDDED_VOICES",
    "ENGLISH",
    "MULTILINGUAL",
    "MULTILINGUAL_VERSIONS",
    "NANO",
    "PACKS",
    "PUBLISHED",
    "REPO_ID",
    "TURBO",
    "CheckpointError",
    "Contents",
    "DefaultName",
    "Files",
    "Layout",
    "LoadedModels",
    "all_layouts",
    "check_name",
    "config_of",
    "embedded_voices",
    "fetch_base",
    "find_checkpoint",
    "find_model",
    "find_s3gen",
    "folder_at",
    "layouts_of",
    "load_conditionals",
    "load_models",
    "load_module",
    "load_s3gen",
    "multilingual",
    "named_models",
    "pack_folder",
    "read_folder",
    "read_s3gen",
    "resolve_device",
    "with_files",
]
