"""Which model a folder or a name is, how it is driven, and what callers may say of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox.checkpoints import (
    MULTILINGUAL,
    PACKS,
    REPO_ID,
    CheckpointError,
    Files,
    config_of,
    hub,
    read_folder,
)
from chatterbox.config import to_dict
from chatterbox.mtl_tts import SUPPORTED_LANGUAGES, ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import SMALL, write_tokenizer

TEXT = "Oi."
V2, V3 = (2.0, 0), (1.2, 1)  # repetition penalty, speech tokens of noise


def how(folder, **files) -> tuple[float, int]:
    """How a multilingual folder is driven."""
    config = config_of(read_folder(folder, given=Files(**files)))
    return config.sampling.repetition_penalty, config.t3.num_trailing_noise


@pytest.fixture
def undriven(own_mtl_folder):
    """A multilingual folder whose config.json has sizes alone, and so says nothing of how it is driven."""
    stored = to_dict(SMALL)
    del stored["sampling"], stored["t3"]["num_trailing_noise"]
    (own_mtl_folder / "config.json").write_text(json.dumps(stored))
    return own_mtl_folder


def renamed(folder, name: str):
    (folder / MULTILINGUAL.t3).rename(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "driven"),
    [
        ("t3_mtl23ls_v2.safetensors", V2),
        ("t3_mtl23ls_v3.safetensors", V3),
        ("t3_mtl23ls_v3_fa.safetensors", V3),
        ("t3_mtl_v3.safetensors", V3),
        ("t3_V3-fa.safetensors", V3),
        ("t3_mtl_v30.safetensors", V2),
        ("t3_fa.safetensors", V2),
        ("t3_23lang.safetensors", V2),
    ],
)
def test_a_name_says_how_a_multilingual_model_is_driven(undriven, name, driven):
    assert how(renamed(undriven, name)) == driven
    assert how(undriven, t3_model=name) == driven


@pytest.mark.parametrize("name", ["t3_mtl23ls_v2.safetensors", "t3_fa.safetensors", "t3_23lang.safetensors"])
def test_so_does_a_decoder_of_v3_alone(undriven, name):
    renamed(undriven, name)
    shutil.copy(undriven / "s3gen.pt", undriven / "s3gen_v3.pt")
    assert how(undriven) == V2
    (undriven / "s3gen.pt").unlink()
    assert how(undriven) == V3


def test_a_configuration_wins_over_the_name(undriven):
    stored = {**json.loads((undriven / "config.json").read_text()), "sampling": {"repetition_penalty": 1.5}}
    stored["t3"]["num_trailing_noise"] = 0
    (undriven / "config.json").write_text(json.dumps(stored))
    assert how(renamed(undriven, "t3_mtl_v3.safetensors")) == (1.5, 0)


def test_two_packs_in_a_folder_are_named(own_mtl_folder):
    one, other = PACKS["es-es"].t3, PACKS["pt-br"].t3
    shutil.copy(own_mtl_folder / MULTILINGUAL.t3, own_mtl_folder / one)
    renamed(own_mtl_folder, other)
    for load in (ChatterboxMultilingualTTS.from_local, lambda folder, _: read_folder(folder)):
        with pytest.raises(CheckpointError, match=f"several Single Language Packs, {one}, {other}; name one with t3_m"):
            load(own_mtl_folder, "cpu")
    assert read_folder(own_mtl_folder, given=Files(t3_model="t3_pt_br")).layout.language == "pt"


@pytest.fixture
def grown(own_mtl_folder):
    """A multilingual fine-tune: another name, a larger vocabulary, a mark of its language, no config.json's size."""
    size = SMALL.t3.text_tokens_dict_size + 8
    tensors = {key: value.clone() for key, value in load_file(own_mtl_folder / MULTILINGUAL.t3).items()}
    for key in ("text_emb.weight", "text_head.weight"):
        tensors[key] = torch.cat([tensors[key], tensors[key][:8]])
    save_file(tensors, own_mtl_folder / "t3_fa.safetensors")
    for name in (MULTILINGUAL.t3, MULTILINGUAL.tokenizer):
        (own_mtl_folder / name).unlink()
    write_tokenizer(own_mtl_folder / "tokenizer_fa.json", SMALL.t3, ("fr", "de", "fa"))
    stored = to_dict(SMALL)
    stored["t3"] = {"backbone": stored["t3"]["backbone"], "perceiver_heads": 2, "speech_cond_prompt_len": 20}
    (own_mtl_folder / "config.json").write_text(json.dumps(stored))
    assert size != 2454
    return own_mtl_folder


def test_marks_of_languages_tell_a_multilingual_model(grown):
    contents = read_folder(grown)
    assert contents.layout.facade == "ChatterboxMultilingualTTS" and contents.tokenizer.name == "tokenizer_fa.json"
    assert config_of(contents).t3.names_language
    write_tokenizer(grown / "tokenizer_fa.json", SMALL.t3, ())
    assert read_folder(grown).layout.facade == "ChatterboxTTS"


def test_a_language_that_the_vocabulary_marks_is_spoken(grown, mtl):
    tts = ChatterboxMultilingualTTS.from_local(grown, "cpu")
    ids = tts.tokenizer.encode("salam", "FA")
    assert ids[0] == tts.tokenizer.tokenizer.token_to_id("[fa]")
    assert tts.generate(TEXT, "fa", seed=3).isfinite().all()
    with pytest.raises(
        ValueError, match=r"'fa' is not supported; choose from ar, .*SUPPORTED_LANGUAGES\[code\] = name"
    ):
        mtl.generate(TEXT, "fa")


def test_a_language_that_a_program_adds_is_spoken(mtl, monkeypatch):
    monkeypatch.setitem(SUPPORTED_LANGUAGES, "fa", "Persian")
    assert mtl.get_supported_languages()["fa"] == "Persian"
    assert mtl.tokenizer.written("salam", "fa") == "[fa]salam"
    assert mtl.generate(TEXT, "fa", seed=3).isfinite().all()


@pytest.mark.parametrize("name", ["t3_fa", "t3_fa.safetensors", "t3_fa.pt", "t3_23lang", Path("t3_fa.safetensors")])
def test_from_pretrained_takes_the_names_of_a_folder(own_mtl_folder, mtl, name):
    for new in ("t3_fa.safetensors", "t3_23lang.safetensors"):
        shutil.copy(own_mtl_folder / MULTILINGUAL.t3, own_mtl_folder / new)
    torch.save(load_file(own_mtl_folder / MULTILINGUAL.t3), own_mtl_folder / "t3_fa.pt")
    shutil.copy(own_mtl_folder / MULTILINGUAL.tokenizer, own_mtl_folder / "mtl_tokenizer.json")
    tts = ChatterboxMultilingualTTS.from_pretrained("cpu", name, model=own_mtl_folder)
    assert tts.layout.t3.startswith(str(name)) and tts.generate(TEXT, "fr").isfinite().all()
    with pytest.raises(CheckpointError, match=r"has no t3_gone, which t3_model names"):
        ChatterboxMultilingualTTS.from_pretrained("cpu", "t3_gone", model=own_mtl_folder)


@pytest.mark.parametrize("argument", ["t3_model", "s3gen_model", "tokenizer"])
def test_names_of_files_are_strings_or_paths(small_folder, argument):
    for load in (
        lambda **names: ChatterboxTTS.from_local(small_folder, "cpu", **names),
        lambda **names: ChatterboxTTS.from_pretrained("cpu", model=small_folder, **names),
        lambda **names: ChatterboxMultilingualTTS.from_pretrained("cpu", **names),
    ):
        for wrong in (["t3_cfg"], 0, b"t3_cfg", {}):
            with pytest.raises(TypeError) as error:
                load(**{argument: wrong})
            assert str(error.value) == f"{argument} must be the name of a file in the folder, got {wrong!r}"
        with pytest.raises(CheckpointError, match=f"{argument} must be the name of a file in the folder, got ''"):
            load(**{argument: ""})
    name = {"t3_model": "t3_cfg.safetensors", "s3gen_model": "s3gen.safetensors", "tokenizer": "tokenizer.json"}
    for path in (Path(name[argument]), small_folder / name[argument]):
        assert ChatterboxTTS.from_pretrained("cpu", model=small_folder, **{argument: path}).sr == 24_000


@pytest.mark.parametrize("argument", ["t3_model", "s3gen_model"])
def test_so_they_are_for_turbo_and_conversion(turbo_folder, argument):
    loads = [lambda **names: ChatterboxTurboTTS.from_local(turbo_folder, "cpu", **names)]
    if argument == "s3gen_model":
        loads.append(lambda **names: ChatterboxVC.from_local(turbo_folder, "cpu", **names))
        loads.append(lambda **names: ChatterboxVC.from_pretrained("cpu", model=turbo_folder, **names))
    for load in loads:
        with pytest.raises(TypeError, match=f"{argument} must be the name of a file in the folder, got 0"):
            load(**{argument: 0})
        with pytest.raises(CheckpointError, match=f"{argument} must be the name of a file in the folder, got ''"):
            load(**{argument: ""})


@pytest.mark.parametrize("facade", [ChatterboxTTS, ChatterboxMultilingualTTS, ChatterboxTurboTTS, ChatterboxVC])
def test_a_folder_is_a_path(facade):
    for wrong in (None, 3, ["folder"]):
        with pytest.raises(TypeError) as error:
            facade.from_local(wrong, "cpu")
        assert str(error.value) == f"ckpt_dir must be the path of a checkpoint folder, got {wrong!r}"


def test_a_call_may_leave_the_language_out_where_the_model_has_one(mtl, monkeypatch):
    for call in (mtl.generate, mtl.generate_stream, lambda text: mtl.generate_batch([text])):
        with pytest.raises(TypeError) as error:
            call(TEXT)
        said = str(error.value)
        assert said.startswith("language_id is missing, and this model has none of its own: give one of ar, da")
        assert said.endswith("None names no language to the model")
    other = ChatterboxMultilingualTTS(mtl.t3, mtl.s3gen, mtl.ve, mtl.tokenizer, "cpu", mtl.conds, sampling=mtl.sampling)
    other.layout = dataclasses.replace(mtl.layout, language="pt")
    expected = mtl.generate(TEXT, "pt", seed=3, watermark=False)
    assert torch.equal(other.generate(TEXT, seed=3, watermark=False), expected)
    assert torch.equal(other.generate_batch([TEXT], seed=3, watermark=False)[0], expected)
    warmed = []
    monkeypatch.setattr(other.synthesizer, "warm", lambda requests, pin: warmed.extend(requests))
    other.warm([TEXT])
    assert [request.language_id for request in warmed] == ["pt"]
    chunks = other.generate_stream(TEXT, print_metrics=False)
    assert all(chunk.isfinite().all() for chunk, _ in chunks)
    for call in (other.generate, other.generate_stream, other.generate_batch):
        with pytest.raises(
            ValueError, match=r"speaks 'pt' alone, got language_id 'fr'; leave it out, or load model 'mul"
        ):
            call(TEXT, "fr")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, tuple[str, ...]]]:
    """What the hub was asked for, and folders of repositories that it has, set by a test."""
    asked = []
    monkeypatch.setattr(hub, "_folders", {}, raising=False)

    def fetch(repo, files, local_files_only):
        asked.append((repo, tuple(files)))
        if repo not in hub._folders:
            raise CheckpointError(f"{repo} is out of reach")
        return hub._folders[repo]

    monkeypatch.setattr(hub, "_download", fetch)
    return asked


@pytest.fixture
def pack(own_mtl_folder, tmp_path):
    """A Single Language Pack alone, and the base repository with another S3Gen, as folders."""
    layout, folder, base = PACKS["pt-br"], tmp_path / "pack", tmp_path / "base"
    folder.mkdir()
    base.mkdir()
    tensors = torch.load(own_mtl_folder / "s3gen.pt", weights_only=True)
    torch.save(tensors | {"mel2wav.conv_post.bias": tensors["mel2wav.conv_post.bias"] + 0.5}, base / "s3gen.pt")
    for old, new in (
        (MULTILINGUAL.t3, folder / layout.t3),
        ("s3gen.pt", folder / layout.s3gen),
        (MULTILINGUAL.tokenizer, folder / layout.tokenizer),
        ("config.json", folder / "config.json"),
        ("ve.pt", base / "ve.pt"),
        ("conds.pt", base / "conds.pt"),
    ):
        shutil.move(own_mtl_folder / old, new)
    shutil.copy(folder / "config.json", base / "config.json")
    return folder, base


def test_the_repository_that_a_program_sets_for_conversion(asked, small_folder, monkeypatch):
    monkeypatch.setattr("chatterbox.vc.REPO_ID", "someone/finetune")
    hub._folders["someone/finetune"] = small_folder
    assert ChatterboxVC.from_pretrained("cpu").ref_dict is not None
    assert ChatterboxVC.from_pretrained("cpu", model="multilingual").sr == 24_000
    with pytest.raises(CheckpointError, match="chatterbox-turbo is out of reach"):
        ChatterboxVC.from_pretrained("cpu", model="turbo")
    assert [repo for repo, _ in asked] == ["someone/finetune"] * 2 + ["ResembleAI/chatterbox-turbo"]


def test_a_t3_that_a_pack_does_not_have_is_refused(asked, pack):
    hub._folders[PACKS["pt-br"].repo], hub._folders[REPO_ID] = pack
    for name in ("t3_nonsense.safetensors", "t3_nonsense", "v3"):
        with pytest.raises(CheckpointError, match=r"has no t3_(nonsense|mtl23ls_v3)\S*, which t3_model names") as error:
            ChatterboxMultilingualTTS.from_pretrained("cpu", name, model="pt-br")
        assert ("nor is that one of v2, v3" in str(error.value)) == (name != "v3")
    tts = ChatterboxMultilingualTTS.from_pretrained("cpu", "t3_pt_br", model="pt-br")
    assert tts.layout.language == "pt"


def bias(model) -> torch.Tensor:
    return dict(model.s3gen.named_parameters())["mel2wav.conv_post.bias"]


def test_a_pack_with_the_s3gen_of_the_base(asked, pack):
    folder, base = pack
    hub._folders[PACKS["pt-br"].repo], hub._folders[REPO_ID] = folder, base
    speak, convert = ChatterboxMultilingualTTS, ChatterboxVC
    own = bias(speak.from_pretrained("cpu", model="pt-br"))
    assert torch.equal(bias(convert.from_pretrained("cpu", model="pt-br")), own)
    for model in (
        speak.from_pretrained("cpu", model="pt-br", s3gen_model="v1"),
        speak.from_local(folder, "cpu", s3gen_model="v1"),
        convert.from_pretrained("cpu", model="pt-br", s3gen_model="v1"),
    ):
        assert torch.equal(bias(model), own + 0.5)
    assert (REPO_ID, (*PACKS["pt-br"].base, "s3gen.pt")) in asked
    (base / "s3gen.pt").unlink()
    with pytest.raises(CheckpointError, match=r"is a Single Language Pack, t3_pt_br\S*, and has no s3gen.pt, nor has"):
        speak.from_local(folder, "cpu", s3gen_model="v1")


def test_conversion_by_a_pack_has_the_voice_of_the_base_if_that_is_in_reach(asked, pack, caplog):
    folder, base = pack
    hub._folders[PACKS["pt-br"].repo] = folder
    assert ChatterboxVC.from_pretrained("cpu", model="pt-br").ref_dict is None
    assert "there is no target voice yet" in caplog.text
    hub._folders[REPO_ID] = base
    assert ChatterboxVC.from_pretrained("cpu", model="pt-br").ref_dict is not None
    assert asked[-2:] == [(PACKS["pt-br"].repo, ("s3gen_v3.pt",)), (REPO_ID, ("conds.pt",))]


def test_a_pack_without_its_base_says_what_it_is_and_lacks(asked, pack):
    folder, base = pack
    with pytest.raises(CheckpointError) as error:
        ChatterboxMultilingualTTS.from_local(folder, "cpu")
    assert str(error.value) == (
        f"checkpoint folder {folder} is a Single Language Pack, t3_pt_br.safetensors, without ve.pt, and {REPO_ID} is "
        f"out of reach; or copy what it lacks from {REPO_ID}"
    )
    hub._folders[REPO_ID] = base
    (base / "ve.pt").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"is a Single Language Pack, t3_pt_br.safetensors, and has no ve.pt, nor has .*base; copy it",
    ):
        ChatterboxMultilingualTTS.from_local(folder, "cpu")


def test_conversion_looks_at_no_other_part(own_folder):
    (own_folder / "t3_cfg.safetensors").rename(own_folder / "t3_a.safetensors")
    (own_folder / "t3_b.safetensors").write_bytes(b"damaged")
    (own_folder / "ve.safetensors").write_bytes(b"damaged")
    for name in ("tokenizer_a.json", "tokenizer_b.json"):
        (own_folder / name).write_text("{")
    converter = ChatterboxVC.from_local(own_folder, "cpu")
    assert converter.ref_dict is not None
    (own_folder / "s3gen.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no s3gen.safetensors, which voice conversion needs"):
        ChatterboxVC.from_local(own_folder, "cpu")
