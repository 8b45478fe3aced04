"""What ``config.json`` of a folder says, over what was published and what tensors tell, and whether that can be.

Owns: whose a ``config.json`` is, what it may say beside the tensors. Does not know: which file is which part
(`contents`), how weights get into models.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatterbox.checkpoints.layouts import CheckpointError
from chatterbox.checkpoints.tensors import open_tensors
from chatterbox.config import from_dict, to_dict
from chatterbox.models.config import GPT2Config, LlamaConfig, ModelConfig, S3GenConfig, T3Config
from chatterbox.models.config_checks import check_config

logger = logging.getLogger(__name__)

OURS = frozenset(("t3", "s3gen", "voice_encoder", "sampling"))  # tables of a config.json of this package
TOOLS = frozenset(("architectures", "model_type", "_name_or_path", "transformers_version", "torch_dtype", "auto_map"))
SIZES = frozenset(
    ("text_tokens_dict_size", "speech_tokens_dict_size", "max_text_tokens", "max_speech_tokens", "speaker_embed_size")
) | frozenset(("perceiver_queries", "num_layers", "hidden_size", "intermediate_size", "max_positions"))
PARTS = ("t3", "s3gen", "voice_encoder")
HEADS = frozenset(("num_heads", "head_dim", "perceiver_heads"))
COUNTS = frozenset(("num_layers", "num_up_layers", "num_mid_blocks", "num_transformers", "block_layers"))
LONGEST_ERROR = 400  # characters: a file may hold a value of any length


def model_config(
    folder: Path, published: ModelConfig, inferred: Mapping[str, Any], files: Mapping[str, Path | None]
) -> ModelConfig:
    """Sizes and defaults of a folder.

    Args:
        inferred: the sizes that T3's tensors show, nested as ``config.json`` has it.
        files: those of the parts, by name.

    Raises:
        CheckpointError: ``config.json`` is broken, names another size than a file has, or a value that cannot be.
    """
    stored = _stored_config(folder)
    mine = stored.get("t3", {})
    if isinstance(mine, dict):
        _require_sizes(folder, files["t3"], mine, inferred)
        stored["t3"] = T3Config.completed(mine)
    try:
        values = _merged(_merged(to_dict(published), {"t3": inferred} if inferred else {}), stored)
        config: ModelConfig = from_dict(ModelConfig, values)
        for part in PARTS:
            check_config(getattr(config, part), part)
    except ValueError as error:
        raise _config_error(folder, error) from None
    for part in PARTS if stored else ():
        _require_heads(folder, stored, part, getattr(config, part), getattr(published, part))
        if part != "t3" and (path := files[part]):
            _require_counts(folder, path, part, getattr(config, part))
    return config


def s3gen_config(folder: Path, file: Path) -> S3GenConfig:
    """Sizes of a folder's S3Gen, ``file``; nothing else that ``config.json`` says is looked at.

    Raises:
        CheckpointError: as `model_config`.
    """
    stored = _stored_config(folder)
    try:
        values = _merged(to_dict(S3GenConfig()), _table(stored, "s3gen"))
        config: S3GenConfig = from_dict(S3GenConfig, values, "config.s3gen")
        check_config(config, "s3gen")
    except ValueError as error:
        raise _config_error(folder, error) from None
    if stored:
        _require_heads(folder, stored, "s3gen", config, S3GenConfig())
        _require_counts(folder, file, "s3gen", config)
    return config


def _config_error(folder: Path, error: Exception) -> CheckpointError:
    said = str(error)
    shown = said if len(said) <= LONGEST_ERROR else f"{said[: LONGEST_ERROR // 2]} ... {said[-LONGEST_ERROR // 2 :]}"
    return CheckpointError(f"{folder / 'config.json'}: {shown}")


def _table(stored: Mapping[str, Any], part: str) -> dict[str, Any]:
    table = stored.get(part, {})
    if not isinstance(table, dict):
        raise ValueError(f"config.{part} must be a table of settings, got {table!r}")
    return table


def _stored_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says; nothing where there is none, or where it is another tool's."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        stored = json.loads(text) if text.strip() else None
    except ValueError as error:
        raise _config_error(folder, error) from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deep to be a configuration; leave it out") from None
    if not isinstance(stored, dict) or not any(isinstance(stored.get(name), dict) for name in OURS):
        logger.warning(
            "%s has none of the tables %s: it is not of this package and is not read", path, ", ".join(sorted(OURS))
        )
        return {}
    if tools := stored.keys() & TOOLS:
        logger.info("%s: %s are another tool's and are not read", path, ", ".join(sorted(tools)))
    return {key: value for key, value in stored.items() if key not in TOOLS}


def _require_sizes(folder: Path, t3: Path | None, mine: Mapping[str, Any], inferred: Mapping[str, Any]) -> None:
    """Raise CheckpointError where ``config.json`` names another size than the T3 file has, before anything is built."""
    for where, table, found in (
        ("t3.", mine, inferred),
        ("t3.backbone.", mine.get("backbone"), inferred.get("backbone")),
    ):
        if not isinstance(table, dict) or not isinstance(found, dict):
            continue
        for name, value in found.items():
            if name in SIZES and isinstance(table.get(name), int) and table[name] != value:
                stated = f"{folder / 'config.json'} says {where}{name} is {table[name]!r}"
                raise CheckpointError(f"{stated}, {t3} has {value}; leave it out, or take the file's own config.json")


def _require_heads(folder: Path, stored: Mapping[str, Any], where: str, config: Any, published: Any) -> None:
    """Raise CheckpointError for heads that ``config.json`` states, no tensor shows, and that cannot be right.

    Those of a backbone multiply to its width; where a width is the published one, so are the heads.

    Args:
        stored: the table of ``config.json`` that has the table ``where``.
    """
    table = stored.get(where.rpartition(".")[2])
    if not isinstance(table, dict) or type(config) is not type(published):
        return
    for one in dataclasses.fields(config):
        value, usual = getattr(config, one.name), getattr(published, one.name)
        if dataclasses.is_dataclass(value):
            _require_heads(folder, table, f"{where}.{one.name}", value, usual)
        elif one.name in HEADS and one.name in table:
            right = ""
            if value != usual and _width(config) == _width(published):
                right = f"{usual}, as every published model of this width has"
            elif isinstance(config, LlamaConfig | GPT2Config) and config.num_heads * config.head_dim != _width(config):
                right = (
                    f"such that num_heads, {config.num_heads}, times head_dim, {config.head_dim}, is {_width(config)}"
                )
            if right:
                raise CheckpointError(
                    f"{folder / 'config.json'} says {where}.{one.name} is {value}, it must be {right}"
                )


def _width(config: Any) -> int:
    """Channels of a network, by what its configuration calls them."""
    names = ("hidden_size", "channels", "n_channels")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 0)


def _require_counts(folder: Path, file: Path, where: str, config: Any) -> None:
    """Raise CheckpointError where ``config.json`` asks for more layers than a file has tensors to fill."""
    with open_tensors(file) as (shapes, _):
        most = len(shapes)
    waiting = [(where, config)]
    while waiting:
        where, table = waiting.pop()
        for one in dataclasses.fields(table):
            value, name = getattr(table, one.name), f"{where}.{one.name}"
            if dataclasses.is_dataclass(value):
                waiting.append((name, value))
            counts = (value if isinstance(value, tuple) else (value,)) if one.name in COUNTS else ()
            if any(count > most for count in counts):
                raise CheckpointError(
                    f"{folder / 'config.json'} says {name} is {value}, {file} has {most} tensors in all; "
                    "leave it out, or take the file's own config.json"
                )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with what ``above`` says, table by table; a table of another kind replaces the whole."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if (
            isinstance(under, dict)
            and isinstance(value, dict)
            and value.get("kind", under.get("kind")) == under.get("kind")
        ):
            value = _merged(under, value)
        merged[key] = value
    return merged
