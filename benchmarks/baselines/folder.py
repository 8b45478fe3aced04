"""A checkpoint folder of the published size that ours and both peers can load; weights are synthetic, no model speaks.

Owns: its files, in the layout of each package. Does not know: the rule of the weights (`tools.synthetic`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file

from chatterbox.checkpoints import ENGLISH

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_SECONDS = 7.0
PICKLED = ("ve", "t3_cfg", "s3gen")  # what chatterbox-streaming 0.1.2 reads as `.pt`


def full_size_folder(folder: Path) -> Path:
    """``folder``, written if it is not there whole: 6 GiB on disk, and as much memory as its largest file meanwhile."""
    if (folder / f"{PICKLED[-1]}.pt").is_file():  # written last
        return folder
    from tests.support.folders import write_folder

    write_folder(folder, ENGLISH.config)
    for name in PICKLED:
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{name}.pt")
    return folder


def new_recordings(folder: Path) -> Iterator[Path]:
    """Recordings of voices to clone, each at a pitch of its own; one file, overwritten, at a time."""
    from tests.support.folders import recording

    for count in itertools.count():
        path = folder / "reference.wav"
        soundfile.write(path, recording(REFERENCE_SECONDS, pitch=110.0 + count), 24_000)
        yield path


def voices(folder: Path, count: int) -> list[Path]:
    """Recordings of so many voices, far apart in pitch, a file each."""
    from tests.support.folders import recording

    paths = [folder / f"voice_{index}.wav" for index in range(count)]
    for index, path in enumerate(paths):
        soundfile.write(path, recording(REFERENCE_SECONDS, pitch=100.0 * 1.3**index), 24_000)
    return paths
