"""End to end against the installed chatterbox-tts 0.1.7: one checkpoint folder, one seed, two implementations.

Needs ``make peer-env`` (``make test-peer`` does both), about 4 GB of memory and of disk, and some minutes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from chatterbox.config import ModelConfig, SamplingConfig
from chatterbox.pipeline import SpeechRequest, draw_speech_tokens
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from tests.folders import recording, write_folder
from tests.parity.support import tolerance

pytestmark = pytest.mark.peer

ROOT = Path(__file__).resolve().parents[2]
TEXT = "Hello there, this is one sentence; spoken twice."
SEED = 11
MAX_NEW_TOKENS = 40
# The source's phase sum turns f0 noise of 1e-4 Hz into 1e-3 in the waveform (docs of the goldens: s3gen_e2e).
WAV_ATOL = 5e-3


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Full-size synthetic weights, removed afterwards."""
    with tempfile.TemporaryDirectory() as name:
        config = ModelConfig(sampling=SamplingConfig(max_new_tokens=MAX_NEW_TOKENS))
        folder = write_folder(Path(name) / "checkpoint", config)
        soundfile.write(folder / "reference.wav", recording(7.0), 24_000)
        soundfile.write(folder / "source.wav", recording(1.0, 16_000, pitch=200.0), 16_000)
        yield folder


@pytest.fixture(scope="module")
def upstream(folder) -> dict[str, torch.Tensor]:
    """What chatterbox-tts makes of it; it has ended, and freed its memory, before ours starts."""
    python = Path(os.environ.get("CHATTERBOX_PEER_PYTHON", ROOT / ".venv-peer" / "bin" / "python"))
    assert python.is_file(), f"{python} does not exist; run make peer-env"
    arguments = [folder, folder / "reference.wav", folder / "source.wav", TEXT, SEED, MAX_NEW_TOKENS, folder / "result"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = ROOT / "tests" / "peer" / "run_upstream.py"
    done = subprocess.run(
        [str(python), str(script), *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "result")


@pytest.fixture(scope="module")
def ours(folder, upstream) -> ChatterboxTTS:
    tts = ChatterboxTTS.from_local(folder, "cpu")
    tts.prepare_conditionals(folder / "reference.wav")
    return tts


def test_conditionals(ours, upstream):
    for name, value in (*vars(ours.conds.t3).items(), *ours.conds.gen.items()):
        expected = upstream.get(f"t3.{name}", upstream.get(f"gen.{name}"))
        if name == "cond_prompt_speech_emb":  # upstream writes its working values back into the conditionals
            continue
        assert (value is None) == (expected is None), name
        if value is not None and value.is_floating_point():
            rtol, atol = tolerance("conditionals", f"out.english.gen.{name}")
            torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        elif value is not None:
            assert torch.equal(value.long(), expected.long()), name


def test_speech_tokens(ours, upstream):
    torch.manual_seed(SEED)
    request = SpeechRequest(TEXT, ours.conds, ours.sampling)
    tokens = draw_speech_tokens(ours.t3, ours.tokenizer, ours.conds, request)
    assert len(tokens) == MAX_NEW_TOKENS and tokens.unique().numel() > MAX_NEW_TOKENS // 2
    assert torch.equal(tokens, upstream["tokens"])


def test_waveform(ours, upstream):
    torch.manual_seed(SEED)
    wav = ours.generate(TEXT)
    assert wav.abs().max() > 0.05
    torch.testing.assert_close(wav, upstream["wav"], rtol=0, atol=WAV_ATOL)


def test_voice_conversion(ours, upstream, folder):
    torch.manual_seed(SEED)
    wav = ChatterboxVC(ours.s3gen, "cpu", ours.conds.gen).generate(folder / "source.wav")
    torch.testing.assert_close(wav, upstream["converted"], rtol=0, atol=WAV_ATOL)
