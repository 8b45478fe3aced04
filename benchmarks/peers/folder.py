"""A checkpoint folder of the published size that ours and both peers can load; weights are synthetic, no model speaks.

Owns: its files, in the layout of each package. Does not know: the rule of the weights (`chatterbox.synthetic`).
"""

from __future__ import annotations

import sys
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
    reference = folder / "reference.wav"
    if reference.is_file():  # written last
        return folder
    sys.path.append(str(ROOT))
    from tests.folders import recording, write_folder

    write_folder(folder, ENGLISH.config)
    for name in PICKLED:
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{name}.pt")
    soundfile.write(reference, recording(REFERENCE_SECONDS), 24_000)
    return folder
