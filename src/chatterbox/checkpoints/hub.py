"""Where a model is: its folder, in this package, on this machine, or fetched from the hub.

Owns: names and folders to folders, downloads, the error where there is none. Does not know: what is in the files
(`contents`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from chatterbox.checkpoints.contents import read_folder
from chatterbox.checkpoints.layouts import (
    EMBEDDED_VOICES,
    ENGLISH,
    NONE_GIVEN,
    PUBLISHED,
    REPO_ID,
    CheckpointError,
    Files,
    Layout,
    embedded_voices,
    layout_given,
    named_models,
)

logger = logging.getLogger(__name__)

VOICE = "conds.pt"


def find_checkpoint(
    model: str | Path,
    layout: Layout = ENGLISH,
    given: Files = NONE_GIVEN,
    *,
    repo: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder of a model, for the class that loads ``layout``.

    Args:
        model: a name of `named_models`, or a folder. A published model comes from the hub or its local cache.
        given: files that the caller names, where ``layout`` does not have them.
        repo: the repository to fetch it from, in place of the published one.
        local_files_only: never reach for the network; HF_HUB_OFFLINE does the same.

    Raises:
        CheckpointError: no such model, another class speaks it, or the hub cannot be reached.
    """
    named = _named(model)
    if named is not None and named.facade != layout.facade:
        known = ", ".join(name for name, one in named_models().items() if one.facade == layout.facade)
        raise CheckpointError(
            f"model {model!r} is spoken by {named.facade}.from_pretrained(device, model={model!r}); "
            f"{layout.facade} speaks {known} or a folder"
        )
    if named is not None and model in PUBLISHED:
        wanted = layout_given(layout if layout.repo == named.repo else named, given)
        return _download(repo if repo and wanted.repo == layout.repo else wanted.repo, wanted.own, local_files_only)
    return _local_folder(model)


def find_model(model: str | Path, given: Files = NONE_GIVEN, *, local_files_only: bool = False) -> tuple[Path, Layout]:
    """Folder of a model of any class, and what it is; arguments and errors as `find_checkpoint`.

    ``given``: files that the caller names.
    """
    named = _named(model)
    if named is None or model in embedded_voices():
        folder = _local_folder(model)
        return folder, read_folder(folder, given=given).layout
    layout = layout_given(named, given)
    return find_checkpoint(model, layout, local_files_only=local_files_only), layout


def find_s3gen(
    model: str | Path, s3gen_model: str | None = None, *, repo: str | None = None, local_files_only: bool = False
) -> tuple[Path, Layout | None, Path]:
    """As `find_model`; of a published model the S3Gen alone is fetched, and of a folder no more is needed.

    ``repo``: in place of that of Chatterbox and Multilingual.

    Returns:
        The folder with the S3Gen, the model's layout if it has a name, and the folder with its voice.
    """
    layout = _named(model)
    if layout is None or model not in PUBLISHED:
        folder = _local_folder(model)
        return folder, None, folder
    layout = layout_given(layout, Files(s3gen_model=s3gen_model))
    repo = repo if repo and layout.repo == REPO_ID else layout.repo
    is_of_base = layout.s3gen in layout.base
    files = (layout.s3gen, VOICE) if is_of_base or not layout.base else (layout.s3gen,)
    folder = _download(REPO_ID if is_of_base else repo, files, local_files_only)
    if is_of_base or not layout.base:
        return folder, layout, folder
    try:
        return folder, layout, _download(REPO_ID, (VOICE,), local_files_only)
    except CheckpointError as error:
        logger.warning("%s has no voice of its own, and %s: there is no target voice yet", layout.repo, error)
        return folder, layout, folder


def fetch_base(layout: Layout, *, local_files_only: bool = False) -> Path:
    """Folder with what a layout's own repository lacks, of the hub or its local cache."""
    return _download(REPO_ID, layout.base, local_files_only)


def check_name(model: str | Path) -> None:
    """Raise CheckpointError if ``model`` is no name that there is, and no folder; nothing is fetched or read."""
    if _named(model) is None:
        _local_folder(model)


def _named(model: object) -> Layout | None:
    return named_models().get(model) if isinstance(model, str) else None


def _local_folder(model: str | Path) -> Path:
    if isinstance(model, str) and model in embedded_voices():
        return EMBEDDED_VOICES / model
    if isinstance(model, (str, Path)) and str(model) and Path(model).is_dir():
        return Path(model)
    names = ", ".join(map(repr, named_models()))
    raise CheckpointError(f"no model {str(model)!r}: use {names} or a checkpoint folder that exists")


def _download(repo: str, files: Sequence[str], local_files_only: bool) -> Path:
    """Fetch what a repository has of ``files``; a needed one that it lacks is reported when it is read."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(files), local_files_only=local_files_only))
    except Exception as error:  # the hub's client, its HTTP library and the file system each have their own
        logger.debug("fetching %s failed", repo, exc_info=error)
        if snapshot := _only_snapshot(repo):
            return snapshot
        raise CheckpointError(
            f"{repo} is neither in the local cache nor reachable on the hub ({type(error).__name__}); "
            "go online, pass a checkpoint folder, or use model='tiny', which works offline"
        ) from None


def _only_snapshot(repo: str) -> Path | None:
    """The snapshot of a repository in the hub's cache, where there is one and nothing says which is the newest."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    found = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    return found[0] if len(found) == 1 and not (folder / "refs" / "main").is_file() else None
