"""A checkpoint folder into one whose weights take fewer bits.

Owns: which files the new folder has, that it is whole or not there. Does not know: the form of a packed file
(`packed_files`), how it is loaded (`loading`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from chatterbox.checkpoints.contents import Contents, config_of
from chatterbox.checkpoints.layouts import CheckpointError
from chatterbox.checkpoints.loading import (
    CONDITIONALS_FILES,
    MAY_LACK,
    UNUSED,
    check_tensors,
    make_s3gen,
    shapes_of,
    without_memory,
)
from chatterbox.checkpoints.packed_files import packed_in, write_packed
from chatterbox.checkpoints.tensors import open_tensors
from chatterbox.config import PRECISIONS
from chatterbox.models.packed import MATRICES
from chatterbox.models.precision import BFLOAT16, ESTIMATOR, S3GEN_LAYERS, T3_LAYERS, Packing
from chatterbox.models.t3 import T3


def pack_folder(contents: Contents, target: Path, precision: str) -> None:
    """Write ``target``, a folder that loads as this one does, in ``precision`` unless its user wants another.

    T3 and S3Gen are packed; the other files of the layout are copied.

    Raises:
        CheckpointError: the folder lacks a part, one is of another model or packed already, or ``target`` exists.
        ValueError: no such precision of a file.
    """
    if precision not in MATRICES:
        raise ValueError(
            f"precision must be one of {', '.join(MATRICES)}, got {precision!r}; {PRECISIONS[1]} is as it is"
        )
    if target.exists():
        raise CheckpointError(f"{target} exists; remove it, or name another folder with -o")
    config = config_of(contents)
    t3, s3gen = contents.require("t3"), contents.require("s3gen")
    rest = [contents.require("voice_encoder"), contents.require("tokenizer")]
    names = (*contents.layout.extras, *CONDITIONALS_FILES, "config.json")
    rest += [path for name in names if (path := contents.find(name)) is not None]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:50]}.", dir=target.parent) as folder:
        part = Path(folder) / "packed"
        part.mkdir()
        for path in rest:
            shutil.copyfile(path, part / path.name)
        _pack(t3, part, precision, lambda: T3(config.t3), T3_LAYERS, ignored=UNUSED)
        layers = (f"{ESTIMATOR}.",) if precision == BFLOAT16 else S3GEN_LAYERS
        _pack(s3gen, part, precision, make_s3gen(s3gen, config.s3gen), layers, may_lack=MAY_LACK)
        part.rename(target)


def _pack(
    path: Path,
    folder: Path,
    precision: str,
    build: Callable[[], nn.Module],
    layers: tuple[str, ...],
    *,
    may_lack: frozenset[str] = frozenset(),
    ignored: frozenset[str] = frozenset(),
) -> None:
    if (found := packed_in(path)) is not None:
        raise CheckpointError(f"{path} is packed in {found} already; take the folder that it was made of")
    with open_tensors(path) as (stored, read):
        prefix, shapes = check_tensors(path, stored, shapes_of(build, path), may_lack, ignored)
        with without_memory():
            packed = Packing(layers, MATRICES[precision]).layers_of(build())
        target = folder / f"{path.stem}.safetensors"
        write_packed(target, shapes, lambda key: read(prefix + key), precision, packed)
    shutil.copymode(path, target)
