"""chatterbox-streaming 0.1.2 in its environment (``make streaming-env``): what `benchmarks.speed.baselines` asks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.baselines.client import FORKED, Baseline
from benchmarks.baselines.folder import full_size_folder, new_recordings

ROOT = Path(__file__).resolve().parents[2]
TOKEN_SAMPLES = 960  # samples of a speech token at 24 kHz


@pytest.mark.peer
def test_it_loads_a_folder_of_the_published_size_and_streams(tmp_path):
    python = Path(os.environ.get("CHATTERBOX_STREAMING_PYTHON", ROOT / ".venv-streaming" / "bin" / "python"))
    assert python.is_file(), f"{python} does not exist; run make streaming-env"
    folder = full_size_folder(tmp_path)
    with Baseline(FORKED, str(python), folder) as peer:
        peer.ask("conditioning", reference=str(next(new_recordings(folder))))
        answer = peer.ask("stream", text="Hello there.", tokens=7, chunk_size=3, seed=1)
    assert len(answer["samples"]) == 2  # the seventh token is lost: a chunk that is not full is not yielded
    assert all(0 < samples <= 3 * TOKEN_SAMPLES for samples in answer["samples"])
    assert 0 < answer["arrived_ms"][0] < answer["arrived_ms"][1] <= answer["ms"]
