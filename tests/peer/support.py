"""Shared by the comparisons with chatterbox-tts 0.1.7: its run in a process of its own, conditionals side by side."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from chatterbox.checkpoints import ENGLISH, Layout
from chatterbox.voice.conditionals import Conditionals
from tests.parity.support import tolerance
from tests.support.folders import recording, write_folder

ROOT = Path(__file__).resolve().parents[2]
SEED = 11
MAX_NEW_TOKENS = 40
# The source's phase sum turns f0 noise of 1e-4 Hz into 1e-3 in the waveform (docs of the goldens: s3gen_e2e).
WAV_ATOL = 5e-3


def write_full_size(folder: Path, layout: Layout = ENGLISH) -> Path:
    """A checkpoint folder of the published size with synthetic weights, and recordings to clone and to convert."""
    sampling = dataclasses.replace(layout.config.sampling, max_new_tokens=MAX_NEW_TOKENS)
    write_folder(folder, dataclasses.replace(layout.config, sampling=sampling), layout=layout)
    soundfile.write(folder / "reference.wav", recording(7.0), 24_000)
    soundfile.write(folder / "source.wav", recording(1.0, 16_000, pitch=200.0), 16_000)
    return folder


def run_upstream(folder: Path, model: str, text: str, *options: str) -> dict[str, Tensor]:
    """What chatterbox-tts makes of it; it has ended, and freed its memory, when this returns."""
    python = Path(os.environ.get("CHATTERBOX_PEER_PYTHON", ROOT / ".venv-peer" / "bin" / "python"))
    assert python.is_file(), f"{python} does not exist; run make peer-env"
    result = folder / "result"
    recordings = (folder / "reference.wav", folder / "source.wav")
    arguments = (model, folder, *recordings, text, SEED, MAX_NEW_TOKENS, result, *options)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = ROOT / "tests" / "peer" / "run_upstream.py"
    done = subprocess.run(
        [str(python), str(script), *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(result)


def compare_conditionals(ours: Conditionals, upstream: dict[str, Tensor]) -> None:
    for name, value in (*vars(ours.t3).items(), *ours.gen.items()):
        expected = upstream.get(f"t3.{name}", upstream.get(f"gen.{name}"))
        if name == "cond_prompt_speech_emb":  # upstream writes its working values back into the conditionals
            continue
        assert (value is None) == (expected is None), name
        if value is not None and value.is_floating_point():
            rtol, atol = tolerance("conditionals", f"out.english.gen.{name}")
            torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        elif value is not None:
            assert torch.equal(value.long(), expected.long()), name
