"""Folders whose weights take fewer bits: they hold what the model does, and load as it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chatterbox.checkpoints import ENGLISH, TURBO, CheckpointError, load_models, pack_folder, read_folder
from chatterbox.checkpoints.packed_files import packed_in, with_plain_weights
from chatterbox.cli.main import main
from chatterbox.config import PRECISIONS, PrecisionConfig
from chatterbox.models.packed import LEVELS_WITHOUT_VNNI, PackedLinear, has_vnni
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS

SMALLER = PRECISIONS[2:]
KEY = "tfmr.layers.0.self_attn.q_proj.weight"


def packed(folder: Path, target: Path, precision: str = "int8") -> Path:
    pack_folder(read_folder(folder), target, precision)
    return target


def assert_same_numbers(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Codes are scaled back and forth in 24 bits; where the CPU needs coarser ones, they are rounded twice."""
    step = float(wanted.abs().max()) / LEVELS_WITHOUT_VNNI if wanted.ndim == 2 and not has_vnni() else 0.0
    torch.testing.assert_close(found, wanted, rtol=3e-7, atol=max(1e-12, 1.01 * step))
    assert (found - wanted).float().pow(2).mean().sqrt() <= 0.5 * step + 1e-6


@pytest.mark.parametrize("precision", SMALLER)
def test_it_loads_as_the_folder_does_in_that_precision(precision: str, small_folder: Path, tmp_path: Path) -> None:
    folder = packed(small_folder, tmp_path / "new" / "packed", precision)
    assert packed_in(folder / ENGLISH.t3) == packed_in(folder / ENGLISH.s3gen) == precision
    assert packed_in(small_folder / ENGLISH.t3) is None
    wanted = ChatterboxTTS.from_local(small_folder, "cpu", precision=PrecisionConfig(precision, precision))
    found = ChatterboxTTS.from_local(folder, "cpu")
    assert isinstance(found.t3.speech_head, PackedLinear)
    for part in ("t3", "s3gen", "ve"):
        states = getattr(found, part).state_dict(), getattr(wanted, part).state_dict()
        assert states[0].keys() == states[1].keys()
        for key, tensor in states[0].items():
            assert_same_numbers(tensor, states[1][key])
    assert found.generate("Hello.", seed=1).isfinite().all()
    if precision == "float16":
        assert torch.equal(found.generate("Hello.", seed=1), wanted.generate("Hello.", seed=1))


def test_int8_has_a_byte_a_weight_and_its_scales_beside(small_folder: Path, tmp_path: Path) -> None:
    folder = packed(small_folder, tmp_path / "packed")
    plain, found = load_file(small_folder / ENGLISH.t3), load_file(folder / ENGLISH.t3)
    assert found[KEY].dtype == torch.int8 and found[KEY].shape == plain[KEY].shape
    scale = found[KEY + "_scale"]
    assert scale.shape == (len(plain[KEY]), 1) and scale.dtype == torch.float32
    assert ((found[KEY] * scale - plain[KEY]).abs() <= 0.501 * scale).all()
    assert torch.equal(found["speech_emb.weight"], plain["speech_emb.weight"])


def test_a_caller_may_want_another_precision_than_the_file(small_folder: Path, tmp_path: Path) -> None:
    models = load_models(packed(small_folder, tmp_path / "packed"), "cpu", precision=PrecisionConfig("float32"))
    assert type(models.t3.speech_head) is torch.nn.Linear and models.t3.speech_head.weight.dtype == torch.float32


def test_weights_in_the_other_order_and_pickles(turbo_folder: Path, mtl_folder: Path, tmp_path: Path) -> None:
    folder = packed(turbo_folder, tmp_path / "turbo")
    found = load_file(folder / TURBO.t3)
    key = "tfmr.h.0.mlp.c_fc.weight"
    assert found[key].shape == (32, 48) and found[key + "_scale"].shape == (1, 48)
    turbo, wanted = (ChatterboxTurboTTS.from_local(one, "cpu", precision="int8") for one in (folder, turbo_folder))
    for key, tensor in turbo.t3.state_dict().items():
        assert_same_numbers(tensor, wanted.t3.state_dict()[key])
    assert turbo.generate("Hello.", seed=1).isfinite().all()
    mtl = ChatterboxMultilingualTTS.from_local(packed(mtl_folder, tmp_path / "mtl"), "cpu")
    assert isinstance(mtl.t3.speech_head, PackedLinear) and mtl.generate("Bonjour.", "fr", seed=1).isfinite().all()


def test_what_cannot_be_packed(small_folder: Path, tmp_path: Path) -> None:
    folder = packed(small_folder, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="packed exists; remove it, or name another"):
        packed(small_folder, folder)
    with pytest.raises(CheckpointError, match="packed in int8 already"):
        packed(folder, tmp_path / "twice")
    with pytest.raises(ValueError, match="precision must be one of float16, bfloat16, int8, got 'float32'"):
        packed(small_folder, tmp_path / "other", "float32")
    broken = Path(shutil.copytree(small_folder, tmp_path / "broken"))
    weights = load_file(broken / ENGLISH.t3)
    save_file({key: tensor for key, tensor in weights.items() if key != KEY}, broken / ENGLISH.t3)
    with pytest.raises(CheckpointError, match="lacks tensors"):
        packed(broken, tmp_path / "other")
    (broken / ENGLISH.t3).unlink()
    with pytest.raises(CheckpointError, match="has no t3_cfg"):
        packed(broken, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "packed"]  # nothing is left of a failure


@pytest.mark.parametrize("shape", [(1, 1), (31, 1), (32,), None])
def test_a_scale_that_does_not_fit(shape: tuple[int, ...] | None, small_folder: Path, tmp_path: Path) -> None:
    folder = packed(small_folder, tmp_path / "packed")
    with safe_open(folder / ENGLISH.t3, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if shape is None:
        del tensors[KEY]
    else:
        tensors[KEY + "_scale"] = torch.ones(shape)
    save_file(tensors, folder / ENGLISH.t3)
    with pytest.raises(CheckpointError, match="does not fit its weight"):
        ChatterboxTTS.from_local(folder, "cpu")


def test_a_file_without_scaled_weights_is_read_as_it_is() -> None:
    shapes, weight = {"a.weight": (2, 2), "b_scale": (1,)}, torch.zeros(2, 2)
    found, read = with_plain_weights(shapes, {"a.weight": weight}.__getitem__)
    assert found == shapes and read("a.weight") is weight and read.codes("a.weight") is None


def test_codes_of_other_programs_are_refused(small_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_folder, tmp_path / "copy"))
    weights = load_file(folder / ENGLISH.t3)
    weights[KEY] = weights[KEY].to(torch.int8)
    save_file(weights, folder / ENGLISH.t3)
    with pytest.raises(CheckpointError, match="quantised files of other programs"):
        ChatterboxTTS.from_local(folder, "cpu")


def test_the_command(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shutil.copytree(small_folder, tmp_path / "model")
    assert main(["pack", str(source)]) == 0
    target = tmp_path / "model-int8"
    assert capsys.readouterr().out.startswith(f"{target}: ")
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    assert json.loads((target / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert (target / ENGLISH.t3).stat().st_mode == (source / ENGLISH.t3).stat().st_mode
    assert main(["say", "Hello.", "-o", str(tmp_path / "a.wav"), "--model", str(target)]) == 0
    capsys.readouterr()
    assert main(["pack", str(source)]) == 1
    assert f"{target} exists" in capsys.readouterr().err
    assert main(["pack", str(source), "--precision", "float16", "-o", str(tmp_path / "half")]) == 0
    assert packed_in(tmp_path / "half" / ENGLISH.s3gen) == "float16"
    with pytest.raises(SystemExit, match="2"):
        main(["pack", str(source), "--precision", "float8"])
    assert main(["pack", str(tmp_path / "nowhere")]) == 1
