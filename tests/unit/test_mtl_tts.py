"""The multilingual façade on a small model with random weights, in a folder of the published layout."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch

from chatterbox import checkpoints
from chatterbox.checkpoints import CheckpointError, hub
from chatterbox.config import SamplingConfig, SpeechArguments
from chatterbox.models.tokenizers import MTLTokenizer
from chatterbox.mtl_tts import SUPPORTED_LANGUAGES, ChatterboxMultilingualTTS, punc_norm
from chatterbox.synthesis.token_filter import valid_speech_tokens
from tests.support.folders import SMALL
from tests.support.speaking import say_instead

TEXT = "Bonjour le monde."


def say(tts: ChatterboxMultilingualTTS, language_id: str | None = "fr", **options) -> torch.Tensor:
    return tts.generate(TEXT, language_id, **{"seed": 7, "watermark": False, **options})


def test_signature_is_upstreams():
    parameters = inspect.signature(ChatterboxMultilingualTTS.generate).parameters
    assert list(parameters)[:10] == [
        *("self", "text", "language_id", "audio_prompt_path", "exaggeration", "cfg_weight", "temperature"),
        *("repetition_penalty", "min_p", "top_p"),
    ]
    placed = [p.default for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
    assert placed == ["", None, 0.5, 0.5, 0.8, 2.0, 0.05, 1.0]
    named = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    shown = {"max_new_tokens": None, "seed": None, "use_cache": True, "watermark": True, "guard": "light"}
    shown |= {"cleaning": "full", "normalize": None, "paragraph_pause": 0.5, "sample_rate": None}
    shown |= {"speed": 1.0, "loudness": None}
    assert named.items() >= shown.items() and named.keys() == SpeechArguments.__annotations__.keys()


def test_built_from_its_parts_it_has_the_published_defaults(mtl):
    tts = ChatterboxMultilingualTTS(mtl.t3, mtl.s3gen, mtl.ve, mtl.tokenizer, "cpu", mtl.conds)
    assert tts.sampling == SamplingConfig(repetition_penalty=2.0)


def test_languages():
    languages = ChatterboxMultilingualTTS.get_supported_languages()
    assert languages == SUPPORTED_LANGUAGES and len(languages) == 23 and languages["sw"] == "Swahili"
    languages.clear()
    assert len(ChatterboxMultilingualTTS.get_supported_languages()) == 23


def test_speaks(mtl, reference_wav):
    audio = say(mtl)
    assert audio.shape == (1, SMALL.sampling.max_new_tokens * 960) and audio.isfinite().all()
    assert torch.equal(audio, say(mtl, "FR")) and torch.equal(audio, say(mtl, use_cache=False))
    assert not torch.equal(audio, say(mtl, "de")) and not torch.equal(audio, say(mtl, None))
    assert not torch.equal(audio, say(mtl, audio_prompt_path=reference_wav))
    assert torch.equal(say(mtl, cfg_weight=0.0), say(mtl, cfg_weight=0.0, use_cache=False))


def test_text_goes_through_its_own_rules_and_tokenizer(mtl, monkeypatch):
    seen = []
    monkeypatch.setattr(MTLTokenizer, "written", lambda self, *arguments, exact: seen.append(arguments) or "x")
    mtl.generate("你好！", "zh", seed=1)
    mtl.warm(["salut"], language_id="fr")
    assert list(dict.fromkeys(seen)) == [("你好！", "zh", True, True), ("Salut.", "fr", True, True)]
    assert punc_norm("你好！") == "你好！"


def test_ids_that_are_no_speech_are_left_out(mtl, monkeypatch):
    """Upstream hands them on: ids over 6562 then raise IndexError, a second start token TypeError."""
    strays = [6561, 5, 7000, 6561, 9, 8193, 3, 6562]
    say_instead(monkeypatch, lambda *_: strays)
    audio = say(mtl)
    say_instead(monkeypatch, lambda *_: [5, 9, 3, 6562])
    assert audio.shape == (1, 3 * 960) and torch.equal(audio, say(mtl))


def test_unknown_language(mtl):
    with pytest.raises(ValueError, match="language_id 'xx' is not supported; choose from ar, da"):
        say(mtl, "xx")


@pytest.mark.parametrize("name", ["v3", "t3_mtl23ls_v3", "t3_mtl23ls_v3.safetensors"])
def test_the_third_version(own_mtl_folder, mtl, name):
    with pytest.raises(ValueError, match=r"has no t3_mtl23ls_v3\.safetensors"):
        ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu", t3_model=name)
    (own_mtl_folder / "t3_mtl23ls_v2.safetensors").rename(own_mtl_folder / "t3_mtl23ls_v3.safetensors")
    assert torch.equal(say(ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu", t3_model=name)), say(mtl))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v4", r"has no v4, which t3_model names, nor is that one of v2, v3; it has .*t3_mtl23ls_v2.safetensors"),
        ("", r"t3_model must be the name of a file in the folder, got ''"),
    ],
)
def test_unknown_version(mtl_folder, name, message):
    with pytest.raises(ValueError, match=message):
        ChatterboxMultilingualTTS.from_local(mtl_folder, "cpu", t3_model=name)


def test_without_a_configuration_it_is_the_published_model():
    config = checkpoints.config_of(checkpoints.read_folder(Path("nowhere"), [checkpoints.MULTILINGUAL]))
    assert config.t3.text_tokens_dict_size == 2454 and config.sampling == SamplingConfig(repetition_penalty=2.0)


@pytest.mark.parametrize(("version", "penalty", "noise"), [("v2", 2.0, 0), ("t3_mtl23ls_v3", 1.2, 1)])
def test_each_version_is_driven_as_published(version, penalty, noise):
    """chatterbox-tts 0.1.7 for v2; v3 has a lighter penalty, and the audio of its last token is noise."""
    config = checkpoints.multilingual(version).config
    assert config.sampling == SamplingConfig(repetition_penalty=penalty)
    assert valid_speech_tokens(torch.tensor([5, 9, 3, 6562]), config.t3).tolist() == [5, 9, 3][: 3 - noise]
    assert valid_speech_tokens(torch.tensor([5, 6562]), config.t3).tolist() == [5]


def test_a_configuration_wins_over_the_published_defaults(own_mtl_folder, mtl):
    config = json.loads((own_mtl_folder / "config.json").read_text())
    config["sampling"]["max_new_tokens"] = SMALL.sampling.max_new_tokens - 2
    (own_mtl_folder / "config.json").write_text(json.dumps(config))
    tts = ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu")
    assert tts.sampling == dataclasses.replace(mtl.sampling, max_new_tokens=SMALL.sampling.max_new_tokens - 2)
    assert say(tts).shape[1] == say(mtl).shape[1] - 2 * 960


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmful"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ve.pt is not a whole file of weights"),
        (b"PK\x03\x04 cut", "ve.pt is not a whole file of weights"),
        ({"a": 1}, "ve.pt holds no state dict"),
        ([1], "ve.pt holds no state dict"),
        ({"a": torch.zeros(2)}, "ve.pt lacks tensors"),
        (Harmful(), "ve.pt holds a getattr beside weights or in their place, .*save the state dict alone"),
    ],
)
def test_damaged_pickles(own_mtl_folder, content, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = own_mtl_folder / "ve.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as raised:
        ChatterboxMultilingualTTS.from_local(own_mtl_folder, "cpu")
    assert "\n" not in str(raised.value) and not Path("harmful").exists()


def test_the_hub_is_asked_for_the_files_of_the_version(monkeypatch):
    asked = []

    def fetch(repo, files, local_files_only):
        assert repo == "ResembleAI/chatterbox"
        asked.append((files, local_files_only))
        raise CheckpointError("offline")

    monkeypatch.setattr(hub, "_download", fetch)
    with pytest.raises(CheckpointError, match="offline"):
        ChatterboxMultilingualTTS.from_pretrained("cpu", "v3", local_files_only=True)
    files = {"ve.pt", "s3gen.pt", "grapheme_mtl_merged_expanded_v1.json", "conds.pt", "Cangjie5_TC.json"}
    assert [(set(names), local) for names, local in asked] == [({*files, "t3_mtl23ls_v3.safetensors"}, True)]
