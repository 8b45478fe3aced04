"""A small model with random weights, in a folder of upstream's layout, and a recording to clone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from chatterbox.checkpoints import MULTILINGUAL, TURBO
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import SMALL, SMALL_TURBO, recording, write_folder, write_tokenizer
from tests.thorough import is_thorough, unmatched


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_thorough(item.nodeid):
            item.add_marker("thorough")
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and (lines := unmatched([one.nodeid for one in items])):
        raise pytest.UsageError(f"tests/thorough.py has lines that fit no test: {', '.join(lines)}")


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared between tests: read only."""
    return write_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def mtl_folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small English model under the multilingual names, two files of it pickled as published. Read only."""
    folder = tmp_path_factory.mktemp("multilingual")
    for name in ("config.json", "conds.pt"):
        shutil.copy(small_folder / name, folder / name)
    shutil.copy(small_folder / "t3_cfg.safetensors", folder / MULTILINGUAL.t3)
    write_tokenizer(folder / MULTILINGUAL.tokenizer, SMALL.t3)
    for name in ("ve", "s3gen"):
        torch.save(load_file(small_folder / f"{name}.safetensors"), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="session")
def turbo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Turbo. Read only."""
    return write_folder(tmp_path_factory.mktemp("turbo"), SMALL_TURBO, layout=TURBO)


@pytest.fixture
def own_folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def small_tts(small_folder: Path) -> ChatterboxTTS:
    """Shared between tests: no test may assign to it."""
    return ChatterboxTTS.from_local(small_folder, "cpu")


@pytest.fixture(scope="session")
def turbo(turbo_folder: Path) -> ChatterboxTurboTTS:
    """Shared between tests: no test may assign to it."""
    return ChatterboxTurboTTS.from_local(turbo_folder, "cpu")


@pytest.fixture(scope="session")
def vc(small_folder: Path) -> ChatterboxVC:
    """Shared between tests: no test may assign to it."""
    return ChatterboxVC.from_local(small_folder, "cpu")


@pytest.fixture(scope="session")
def reference_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a voice unlike the built-in one."""
    path = tmp_path_factory.mktemp("reference") / "voice.wav"
    soundfile.write(path, recording(2.0, pitch=230.0), 24_000)
    return path


@pytest.fixture(scope="session")
def mtl(mtl_folder: Path) -> ChatterboxMultilingualTTS:
    return ChatterboxMultilingualTTS.from_local(mtl_folder, "cpu")


@pytest.fixture
def own_mtl_folder(mtl_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mtl_folder, tmp_path / "checkpoint"))
