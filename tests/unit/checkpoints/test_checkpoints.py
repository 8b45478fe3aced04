"""Loading: what is found where, what is refused and in which words, and that nothing stays half loaded."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox.checkpoints import (
    ENGLISH,
    MULTILINGUAL,
    MULTILINGUAL_VERSIONS,
    NANO,
    PUBLISHED,
    TURBO,
    CheckpointError,
    Layout,
    find_checkpoint,
    find_model,
    find_s3gen,
    hub,
    load_models,
    load_module,
    multilingual,
    named_models,
)
from chatterbox.cli.config import SayCommandConfig
from chatterbox.cli.schema import groups_of
from chatterbox.config import to_dict
from chatterbox.models.config import ModelConfig, T3Config
from chatterbox.models.t3 import T3
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from chatterbox.voice.conditionals import Conditionals
from tests.support.folders import SMALL

CPU = torch.device("cpu")
WEIGHTS = ["t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors"]


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as error:
        load_models(folder, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def in_memory(path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is then written over."""
    return {key: value.clone() for key, value in load_file(path).items()}


def test_weights_are_the_files(small_folder):
    models = load_models(small_folder, "cpu")
    for module, name in ((models.t3, WEIGHTS[0]), (models.s3gen, WEIGHTS[1]), (models.voice_encoder, WEIGHTS[2])):
        state, stored = module.state_dict(), load_file(small_folder / name)
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[key], value) for key, value in stored.items())
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert models.config == SMALL and models.device == CPU


def test_computed_buffers_are_computed(small_folder):
    """Loading skips the initialisation of parameters, and must not skip what no file holds."""
    loaded, fresh = load_models(small_folder, "cpu"), T3(SMALL.t3)
    stored = loaded.t3.state_dict().keys()
    computed = {name: value for name, value in loaded.t3.named_buffers() if name not in stored}
    assert computed
    assert all(torch.equal(value, fresh.get_buffer(name)) for name, value in computed.items())
    assert loaded.s3gen.trim_fade[0] == 0 and loaded.s3gen.trim_fade[-1] == pytest.approx(1)


def test_half_precision_files_become_float32(own_folder):
    path = own_folder / "t3_cfg.safetensors"
    save_file({key: value.half() for key, value in in_memory(path).items()}, path)
    models = load_models(own_folder, "cpu")
    assert all(value.dtype == torch.float32 for value in models.t3.state_dict().values())
    assert models.t3(**teacher_forced(models)).speech_logits.isfinite().all()


def teacher_forced(models) -> dict:
    text = torch.tensor([[255, 40, 41, 0]])
    speech = torch.tensor([[6561, 5, 6]])
    lens = {"text_token_lens": torch.tensor([4]), "speech_token_lens": torch.tensor([3])}
    return {"t3_cond": models.conds.t3, "text_tokens": text, "speech_tokens": speech, **lens}


def test_the_tolerated_keys_may_be_missing(own_folder):
    path = own_folder / "s3gen.safetensors"
    tensors = in_memory(path)
    for key in ("tokenizer._mel_filters", "tokenizer.window"):
        tensors.pop(key, None)
    save_file(tensors, path)
    state = load_models(own_folder, "cpu").s3gen.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("name", [*WEIGHTS, "tokenizer.json"])
def test_missing_file(own_folder, name):
    (own_folder / name).unlink()
    message = refused(own_folder)
    assert f"has no {name}; it needs ve.safetensors, t3_cfg.safetensors, s3gen.safetensors, tokenizer.json" in message


def test_missing_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "absent")


@pytest.mark.parametrize("name", WEIGHTS)
def test_wrong_shape_names_key_and_shapes(own_folder, name):
    tensors = in_memory(own_folder / name)
    key = next(key for key, value in sorted(tensors.items()) if value.dim() == 2)
    good = tuple(tensors[key].shape)
    tensors[key] = torch.zeros(3, 5)
    save_file(tensors, own_folder / name)
    assert f"{name}: {key} has shape (3, 5), this model needs {good}" in refused(own_folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_missing_and_unknown_keys(own_folder, name):
    tensors = in_memory(own_folder / name)
    key = sorted(tensors)[0]
    value = tensors.pop(key)
    save_file(tensors, own_folder / name)
    assert f"{name} lacks tensors: {key} (1)" in refused(own_folder)
    save_file({**tensors, key: value, "surprise.weight": torch.zeros(1)}, own_folder / name)
    assert f"{name} has unknown tensors: surprise.weight (1)" in refused(own_folder)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kept", [0.9, 0.001, 0.0])
def test_truncated(own_folder, name, kept):
    content = (own_folder / name).read_bytes()
    (own_folder / name).write_bytes(content[: int(len(content) * kept)])
    assert f"{name} is not a whole safetensors file" in refused(own_folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_pickle_where_none_belongs(own_folder, name):
    torch.save({"weight": torch.zeros(2)}, own_folder / name)
    assert "it is a pickle" in refused(own_folder)


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


def test_conditionals_never_run_code(own_folder):
    (own_folder / "conds.pt").write_bytes(pickle.dumps(Explosive(), protocol=2))
    assert "conds.pt holds no conditionals of a voice" in refused(own_folder)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_broken_conditionals(own_folder, content):
    (own_folder / "conds.pt").write_bytes(content)
    assert "conds.pt holds no conditionals of a voice" in refused(own_folder)


def test_safetensors_conditionals_come_first(own_folder):
    conds = Conditionals.load(own_folder / "conds.pt").with_exaggeration(0.25)
    conds.save(own_folder / "conds.safetensors")
    assert float(load_models(own_folder, "cpu").conds.t3.emotion_adv) == 0.25


def test_voice_is_optional(own_folder, reference_wav):
    (own_folder / "conds.pt").unlink()
    tts = ChatterboxTTS.from_local(own_folder, "cpu")
    assert tts.conds is None
    assert tts.generate("Hi.", audio_prompt_path=reference_wav, watermark=False).isfinite().all()
    assert ChatterboxVC.from_local(own_folder, "cpu").ref_dict is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: "),
        ('{"t3": {}, "t4": {}}', "config has no setting 't4'"),
        ('{"t3": {"learning_rate": 1}}', "config.t3 has no setting 'learning_rate'"),
        ("[" * 100_000, "config.json is nested too deep"),
        ('{"t3": {"backbone": {"num_layers": "two"}}}', "config.t3.backbone.num_layers must be int, got 'two'"),
        ('{"sampling": {"temperature": -1}}', "temperature must be a number from 0 to 10"),
    ],
)
def test_bad_config(own_folder, content, message):
    (own_folder / "config.json").write_text(content)
    assert message in refused(own_folder)


def test_config_of_another_model(own_folder):
    (own_folder / "config.json").write_text(json.dumps(to_dict(ModelConfig(t3=T3Config(text_tokens_dict_size=10)))))
    assert "config.json says t3.text_tokens_dict_size is 10, " in (said := refused(own_folder))
    assert said.endswith("has 256; leave it out, or take the file's own config.json")


def test_without_config_it_is_the_published_model(own_folder):
    (own_folder / "config.json").unlink()
    assert "t3_cfg.safetensors" in refused(own_folder)


def test_failure_leaves_no_module(own_folder):
    """Keys and shapes are compared before anything is allocated."""
    path = own_folder / "t3_cfg.safetensors"
    tensors = in_memory(path)
    tensors["text_pos_emb.emb.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    built = []

    def build() -> T3:
        built.append(T3(SMALL.t3))
        return built[0]

    with pytest.raises(CheckpointError):
        load_module(build, path, CPU)
    assert len(built) == 1 and built[0].speech_head.weight.is_meta  # and nothing was allocated


FACADES = {"ChatterboxTTS": ChatterboxTTS, "ChatterboxMultilingualTTS": ChatterboxMultilingualTTS}
FACADES |= {"ChatterboxTurboTTS": ChatterboxTurboTTS}
VERSIONS = [ENGLISH, *map(multilingual, MULTILINGUAL_VERSIONS), TURBO, NANO]
PACK_NAMES = ["zh-cmn", "es-mx-latam", "es-es", "pt-br", "pt-pt", "hi"]
NAMES = ["tiny", "chatterbox", "multilingual", "turbo", "nano", *PACK_NAMES]


@pytest.mark.parametrize("model", ["nope", "/no/such/folder", "", None, 3, ["tiny"]])
@pytest.mark.parametrize("find", [find_checkpoint, find_model, find_s3gen])
def test_unknown_model(find, model):
    with pytest.raises(CheckpointError) as error:
        find(model)
    names = ", ".join(map(repr, NAMES))
    assert str(error.value) == f"no model {str(model)!r}: use {names} or a checkpoint folder that exists"


def test_one_set_of_names():
    assert list(named_models()) == NAMES
    assert {one.name for one in groups_of(SayCommandConfig)["model"]} == {*NAMES, "folder"}
    assert named_models().items() >= PUBLISHED.items() and named_models()["tiny"] == ENGLISH


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, set[str]]]:
    """Repositories and files that the hub was asked for; it has none."""
    asked: list[tuple[str, set[str]]] = []

    def fetch(repo: str, files: tuple[str, ...], local_files_only: bool) -> None:
        asked.append((repo, set(files)))
        raise CheckpointError("offline")

    monkeypatch.setattr(hub, "_download", fetch)
    return asked


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_names_are_fetched(asked, model):
    """By the class that speaks the model all of it, by voice conversion its S3Gen."""
    layout = PUBLISHED[model]
    of_conversion = (layout.s3gen,) if layout.base else (layout.s3gen, "conds.pt")
    for facade, files in ((FACADES[layout.facade], layout.own), (ChatterboxVC, of_conversion)):
        asked.clear()
        with pytest.raises(CheckpointError, match="offline"):
            facade.from_pretrained("cpu", model=model)
        assert asked == [(layout.repo, set(files))]


def test_the_embedded_name_needs_no_hub(asked):
    for facade in (ChatterboxTTS, ChatterboxVC):
        assert facade.from_pretrained("cpu", model="tiny").sr == 24_000
    assert not asked


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("facade", FACADES)
def test_a_name_of_another_class_says_which_class_speaks_it(asked, facade, model):
    speaker = named_models()[model].facade
    if facade == speaker:
        return
    packs = ", ".join(("multilingual", *PACK_NAMES))
    own = {"ChatterboxTTS": "tiny, chatterbox", "ChatterboxMultilingualTTS": packs}.get(facade, "turbo, nano")
    with pytest.raises(CheckpointError) as error:
        FACADES[facade].from_pretrained("cpu", model=model)
    assert str(error.value) == (
        f"model {model!r} is spoken by {speaker}.from_pretrained(device, model={model!r}); "
        f"{facade} speaks {own} or a folder"
    )
    assert not asked


def test_a_model_and_a_flag_that_contradict_it():
    with pytest.raises(ValueError, match="nano=True is model 'nano', not 'turbo'; give one of the two"):
        ChatterboxTurboTTS.from_pretrained("cpu", nano=True, model="turbo")


@pytest.mark.parametrize("found", VERSIONS, ids=lambda layout: layout.t3)
@pytest.mark.parametrize("facade", FACADES)
def test_a_folder_of_another_model_says_which_class_loads_it(tmp_path, facade, found: Layout):
    (tmp_path / found.t3).touch()
    wanted = {"ChatterboxTTS": ENGLISH, "ChatterboxMultilingualTTS": MULTILINGUAL, "ChatterboxTurboTTS": TURBO}[facade]
    call = {NANO.t3: ", nano=True", "t3_mtl23ls_v3.safetensors": ", t3_model='v3'"}.get(found.t3, "")
    if found.facade == wanted.facade:  # what a class speaks it loads, whichever of its models it is
        return
    for load in (
        lambda: FACADES[facade].from_local(tmp_path, "cpu"),
        lambda: FACADES[facade].from_pretrained("cpu", model=tmp_path),
    ):
        with pytest.raises(CheckpointError) as error:
            load()
        assert str(error.value) == (
            f"checkpoint folder {tmp_path} has no {wanted.t3} but {found.t3}, "
            f"which {found.facade}.from_local(folder, device{call}) loads"
        )


def test_folder_as_model(small_folder):
    assert find_checkpoint(small_folder) == find_checkpoint(str(small_folder)) == small_folder
    assert ChatterboxTTS.from_pretrained("cpu", model=small_folder).sr == 24_000


@pytest.mark.parametrize("layout", VERSIONS, ids=lambda layout: layout.t3)
def test_a_folder_says_what_it_is_by_its_files(tmp_path, layout):
    (tmp_path / layout.t3).touch()
    assert find_model(tmp_path) == (tmp_path, layout)
    with pytest.raises(CheckpointError, match=f"has no {layout.voice_encoder}; it needs .*{layout.t3}"):
        load_models(tmp_path, "cpu", layout)


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return monkeypatch


@pytest.mark.parametrize("facade", [ChatterboxTTS, ChatterboxVC])
def test_hub_out_of_reach(empty_hub, facade):
    for offline, options in ((False, {"local_files_only": True}), (True, {})):
        empty_hub.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(CheckpointError, match=r"ResembleAI/chatterbox is .* use model='tiny', which") as error:
            facade.from_pretrained("cpu", **options)
        assert "\n" not in str(error.value)


def test_hub_cache_is_used(empty_hub, small_folder, tmp_path):
    """A folder in the hub's cache layout loads without the network."""
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--ResembleAI--chatterbox"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).symlink_to(small_folder)
    tts = ChatterboxTTS.from_pretrained("cpu", local_files_only=True)
    assert tts.conds is not None and tts.sampling == SMALL.sampling
