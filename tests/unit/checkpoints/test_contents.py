"""A folder is understood by what is in it: containers, wrappers, names, sizes, packs; nothing is built before that."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatterbox import checkpoints
from chatterbox.checkpoints import (
    ENGLISH,
    MULTILINGUAL,
    NANO,
    PACKS,
    REPO_ID,
    TURBO,
    CheckpointError,
    Files,
    all_layouts,
    config_of,
    load_models,
    read_folder,
)
from chatterbox.checkpoints.contents import t3_sizes
from chatterbox.config import to_dict
from chatterbox.models.t3 import T3
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.tts import ChatterboxTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import SMALL, SMALL_TURBO

TEXT = "Hi."


def spoken(tts) -> torch.Tensor:
    language = ("fr",) if isinstance(tts, ChatterboxMultilingualTTS) else ()
    return tts.generate(TEXT, *language, seed=3, watermark=False)


def rewrite(folder, old: str, new: str, change=lambda tensors: tensors) -> None:
    """The file ``old`` as ``new``, in that container, its tensors or what they are wrapped in changed."""
    path = folder / old
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    path.unlink()
    changed = change(tensors)
    torch.save(changed, folder / new) if new.endswith(".pt") else save_file(changed, folder / new)


@pytest.mark.parametrize("name", ["t3_cfg", "s3gen", "ve"])
def test_english_of_either_container(own_folder, small_tts, name):
    rewrite(own_folder, f"{name}.safetensors", f"{name}.pt")
    assert torch.equal(spoken(ChatterboxTTS.from_local(own_folder, "cpu")), spoken(small_tts))


def test_multilingual_of_either_container(own_mtl_folder, mtl):
    for name in ("s3gen", "ve"):
        rewrite(own_mtl_folder, f"{name}.pt", f"{name}.safetensors")
    rewrite(own_mtl_folder, "t3_mtl23ls_v2.safetensors", "t3_mtl23ls_v2.pt")
    assert torch.equal(spoken(ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu")), spoken(mtl))


@pytest.mark.parametrize("prefix", ["t3.", "module.", "model.", "module.t3.", "_orig_mod."])
def test_keys_behind_a_prefix(own_folder, small_tts, prefix):
    rewrite(own_folder, "t3_cfg.safetensors", "t3_cfg.safetensors", lambda t: {prefix + key: t[key] for key in t})
    assert torch.equal(spoken(ChatterboxTTS.from_local(own_folder, "cpu")), spoken(small_tts))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t},
        lambda t: {"model": [t]},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {"state_dict": {f"t3.{key}": t[key] for key in t}}, "step": torch.tensor(5)},
    ],
)
def test_a_wrapped_state_dict(own_folder, small_tts, wrap):
    rewrite(own_folder, "t3_cfg.safetensors", "t3_cfg.pt", wrap)
    assert torch.equal(spoken(ChatterboxTTS.from_local(own_folder, "cpu")), spoken(small_tts))


def test_an_adapter_that_is_not_merged_is_named(own_folder):
    def adapted(tensors):
        name = "tfmr.layers.0.self_attn.q_proj"
        tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
        return tensors | {f"{name}.lora_A.default.weight": torch.zeros(2, 32)}

    rewrite(own_folder, "t3_cfg.safetensors", "t3_cfg.safetensors", adapted)
    with pytest.raises(CheckpointError, match="holds a LoRA adapter beside its weights; merge it before") as error:
        load_models(own_folder, "cpu")
    assert "\n" not in str(error.value)


def test_a_t3_of_another_name(own_folder, small_tts):
    (own_folder / "t3_cfg.safetensors").rename(own_folder / "t3_kartoffel.safetensors")
    for name in (None, "t3_kartoffel", "t3_kartoffel.safetensors", str(own_folder / "t3_kartoffel.safetensors")):
        tts = ChatterboxTTS.from_local(own_folder, "cpu", t3_model=name)
        assert torch.equal(spoken(tts), spoken(small_tts))
    shutil.copy(own_folder / "t3_kartoffel.safetensors", own_folder / "t3_other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"several such files, t3_kartoffel.*, t3_other.*; name one with t3_model="
    ):
        load_models(own_folder, "cpu")
    assert ChatterboxTTS.from_pretrained("cpu", model=own_folder, t3_model="t3_other").sr == 24_000
    with pytest.raises(CheckpointError, match=r"has no t3_gone, which t3_model names.*; it has .*t3_kartoffel"):
        ChatterboxTTS.from_local(own_folder, "cpu", t3_model="t3_gone")


def test_a_config_that_leaves_out_most_is_the_layouts(own_mtl_folder, turbo_folder, tmp_path):
    """Of a multilingual folder the multilingual model's, of Turbo's Turbo's, never the English one's."""
    (own_mtl_folder / "config.json").write_text(json.dumps({"sampling": {"temperature": 0.5}}))
    config = config_of(read_folder(own_mtl_folder))
    published = MULTILINGUAL.config
    assert config.sampling == dataclasses.replace(published.sampling, temperature=0.5)
    assert config.t3.names_language and config.t3.alignment_heads == published.t3.alignment_heads
    folder = shutil.copytree(turbo_folder, tmp_path / "turbo")
    (folder / "config.json").write_text(json.dumps({"t3": {"prompt_seconds": 9}}))
    config = config_of(read_folder(folder))
    assert config.sampling == TURBO.config.sampling and config.t3.prompt_seconds == 9
    assert not config.t3.has_guidance and config.t3.backbone.kind == "gpt2"


@pytest.mark.parametrize("hp", [SMALL.t3, SMALL_TURBO.t3], ids=["llama", "gpt2"])
def test_sizes_are_told_by_tensors(hp):
    model = T3(hp)
    sizes = t3_sizes({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    backbone = sizes.pop("backbone")
    assert {name: getattr(hp, name) for name in sizes} == sizes and "text_tokens_dict_size" in sizes
    told = {name: getattr(hp.backbone, name) for name in backbone if name != "num_heads"}
    assert told == {name: value for name, value in backbone.items() if name != "num_heads"}


def test_published_sizes_are_told_by_tensors():
    for layout in all_layouts():
        with torch.device("meta"):
            shapes = {key: tuple(tensor.shape) for key, tensor in T3(layout.config.t3).state_dict().items()}
        assert layout.config == config_by_shapes(layout, shapes)


def config_by_shapes(layout, shapes):
    sizes, config = t3_sizes(shapes), layout.config
    backbone = dataclasses.replace(config.t3.backbone, **sizes.pop("backbone"))
    return dataclasses.replace(config, t3=dataclasses.replace(config.t3, backbone=backbone, **sizes))


def test_a_grown_vocabulary(own_folder):
    """Twenty rows more in the file, twenty entries more in the tokenizer, and a config.json that does not say so."""
    grown = SMALL.t3.text_tokens_dict_size + 20

    def grow(tensors):
        for key in ("text_emb.weight", "text_head.weight"):
            tensors[key] = torch.cat([tensors[key], tensors[key][:20]])
        return tensors

    rewrite(own_folder, "t3_cfg.safetensors", "t3_cfg.safetensors", grow)
    vocabulary = json.loads((own_folder / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {f"<{number}>": number for number in range(SMALL.t3.text_tokens_dict_size, grown)}
    (own_folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    stored = to_dict(SMALL)
    del stored["t3"]["text_tokens_dict_size"]
    (own_folder / "config.json").write_text(json.dumps(stored))
    tts = ChatterboxTTS.from_local(own_folder, "cpu")
    assert tts.t3.hp.text_tokens_dict_size == grown == tts.t3.text_head.weight.shape[0]
    assert spoken(tts).isfinite().all()


def test_a_multilingual_model_with_a_grown_vocabulary_stays_multilingual(own_mtl_folder):
    assert config_of(read_folder(own_mtl_folder)).t3.text_tokens_dict_size == 256
    (own_mtl_folder / "t3_mtl23ls_v2.safetensors").rename(own_mtl_folder / "t3_persian.safetensors")
    (own_mtl_folder / "config.json").unlink()
    contents = read_folder(own_mtl_folder)
    assert contents.layout.facade == "ChatterboxMultilingualTTS" and config_of(contents).t3.is_multilingual


def test_the_first_multilingual_release(own_mtl_folder, mtl):
    (own_mtl_folder / "t3_mtl23ls_v2.safetensors").rename(own_mtl_folder / "t3_23lang.safetensors")
    (own_mtl_folder / MULTILINGUAL.tokenizer).rename(own_mtl_folder / "mtl_tokenizer.json")
    assert torch.equal(spoken(ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu")), spoken(mtl))


def test_the_decoder_of_v3_and_a_tokenizer_of_another_name(own_mtl_folder, mtl):
    """Beside v1's, without the two buffers that it computes."""
    decoder = own_mtl_folder / "s3gen_v3.pt"
    tensors = torch.load(own_mtl_folder / "s3gen.pt", weights_only=True)
    changed = {
        key: value for key, value in tensors.items() if key not in ("tokenizer._mel_filters", "tokenizer.window")
    }
    bias = "mel2wav.conv_post.bias"
    torch.save(changed | {bias: changed[bias] + 0.5}, decoder)
    (own_mtl_folder / MULTILINGUAL.tokenizer).rename(own_mtl_folder / "tokenizer_fa.json")
    plain = ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu")
    assert torch.equal(spoken(plain), spoken(mtl))
    for name in ("v3", "s3gen_v3", "s3gen_v3.pt"):
        tts = ChatterboxMultilingualTTS.from_local(
            own_mtl_folder, "cpu", s3gen_model=name, tokenizer="tokenizer_fa.json"
        )
        assert torch.equal(dict(tts.s3gen.named_parameters())[bias], changed[bias] + 0.5)
    converter = ChatterboxVC.from_local(own_mtl_folder, "cpu", s3gen_model="v3")
    assert torch.equal(dict(converter.s3gen.named_parameters())[bias], changed[bias] + 0.5)
    (own_mtl_folder / "s3gen.pt").unlink()
    assert read_folder(own_mtl_folder).s3gen == decoder


@pytest.mark.parametrize(
    "content", [{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, {"torch_dtype": "x"}]
)
def test_a_config_of_a_hub_tool_is_not_read(own_folder, content):
    (own_folder / "config.json").write_text(json.dumps(content))
    assert config_of(read_folder(own_folder)).sampling == ENGLISH.config.sampling


@pytest.mark.parametrize(
    "table",
    [
        {"t3": {"backbone": {"num_layers": 10**9}}},
        {"t3": {"text_tokens_dict_size": 10**12}},
        {"s3gen": {"flow": {"estimator": {"num_mid_blocks": 10**9}}}},
        {"s3gen": {"tokenizer": {"num_layers": 10**9}}},
        {"voice_encoder": {"hidden_size": 10**9}},
    ],
)
def test_sizes_are_compared_before_anything_is_built(own_folder, table):
    stored = to_dict(SMALL)
    merge(stored, table)
    (own_folder / "config.json").write_text(json.dumps(stored))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            load_models(own_folder, "cpu")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and peak < 2**25


def merge(below: dict, above: dict) -> None:
    for key, value in above.items():
        merge(below[key], value) if isinstance(value, dict) else below.update({key: value})


@pytest.fixture
def pack(own_mtl_folder, tmp_path):
    """A Single Language Pack alone, and the base repository, as folders."""
    layout = PACKS["pt-br"]
    folder, base = tmp_path / "pack", tmp_path / "base"
    folder.mkdir()
    base.mkdir()
    for old, new in (("t3_mtl23ls_v2.safetensors", layout.t3), ("s3gen.pt", layout.s3gen)):
        shutil.move(own_mtl_folder / old, folder / new)
    shutil.move(own_mtl_folder / MULTILINGUAL.tokenizer, folder / layout.tokenizer)
    shutil.move(own_mtl_folder / "config.json", folder / "config.json")
    for name in ("ve.pt", "conds.pt"):
        shutil.move(own_mtl_folder / name, base / name)
    return folder, base


def in_hub(root, repo: str, folder, *, with_ref: bool = True) -> None:
    """``folder`` as the only snapshot of a repository in the hub's cache."""
    kept, commit = root / f"models--{repo.replace('/', '--')}", "0" * 40
    (kept / "snapshots").mkdir(parents=True)
    (kept / "snapshots" / commit).symlink_to(folder)
    if with_ref:
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text(commit)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_single_language_pack(pack, hub_cache, mtl):
    """By name or as a folder alone, of two repositories in the cache, offline; driven as v3, in its language."""
    folder, base = pack
    in_hub(hub_cache, PACKS["pt-br"].repo, folder)
    with pytest.raises(CheckpointError, match=f"{REPO_ID} is neither in the local cache nor"):
        ChatterboxMultilingualTTS.from_local(folder, "cpu")
    in_hub(hub_cache, REPO_ID, base)
    expected = mtl.generate(TEXT, "pt", seed=3, watermark=False)
    for tts in (
        ChatterboxMultilingualTTS.from_local(folder, "cpu"),
        ChatterboxMultilingualTTS.from_pretrained("cpu", model="pt-br", local_files_only=True),
    ):
        assert tts.conds is not None and tts.layout == dataclasses.replace(PACKS["pt-br"], t3=tts.layout.t3)
        assert torch.equal(tts.generate(TEXT, None, seed=3, watermark=False), expected)
        assert torch.equal(tts.generate(TEXT, seed=3, watermark=False), expected)
        with pytest.raises(ValueError, match=r"t3_pt_br.safetensors speaks 'pt' alone, got language_id 'fr'; leave"):
            tts.generate(TEXT, "fr")


def test_packs_are_driven_as_v3():
    for name, layout in PACKS.items():
        assert layout.repo == f"ResembleAI/Chatterbox-Multilingual-{name}" and layout.language in name
        assert layout.config.t3.num_trailing_noise == 1 and layout.config.sampling.repetition_penalty == 1.2
        assert layout.own == (layout.t3, "s3gen_v3.pt", MULTILINGUAL.tokenizer)


def test_a_hub_cache_without_its_ref(hub_cache, small_folder, small_tts):
    in_hub(hub_cache, REPO_ID, small_folder, with_ref=False)
    assert torch.equal(spoken(ChatterboxTTS.from_pretrained("cpu")), spoken(small_tts))


def test_the_repository_that_a_program_sets(hub_cache, small_folder, monkeypatch):
    monkeypatch.setattr("chatterbox.tts.REPO_ID", "someone/finetune")
    in_hub(hub_cache, "someone/finetune", small_folder)
    assert ChatterboxTTS.from_pretrained("cpu").sr == 24_000


def test_nano_is_told_by_its_width(tmp_path):
    for layout in (TURBO, NANO):
        with torch.device("meta"):
            shapes = T3(layout.config.t3).state_dict()
        tensors = {key: torch.zeros(1).expand(tensor.shape) for key, tensor in shapes.items()}
        torch.save(tensors, tmp_path / "t3_mine.pt")
        assert read_folder(tmp_path).layout.repo == layout.repo


def test_files_that_a_caller_names_are_of_the_right_kind(small_folder):
    with pytest.raises(CheckpointError, match=r"ve.safetensors is no T3: it has no text_emb.weight"):
        checkpoints.config_of(read_folder(small_folder, given=Files(t3_model="ve")))
