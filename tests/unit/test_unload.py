"""`unload` of the façades: memory and threads are gone, and the next use loads the same model again."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatterbox.config import EngineConfig
from chatterbox.engine.scheduler import EngineClosedError
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.synthesis.synthesizer import Synthesizer
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from tests.support.folders import recording

TEXT = "Hello there."
OPTIONS = {"seed": 7, "watermark": False}
FACADES = {
    "english": (ChatterboxTTS, "small_folder", {}),
    "multilingual": (ChatterboxMultilingualTTS, "mtl_folder", {"language_id": "en"}),
    "turbo": (ChatterboxTurboTTS, "turbo_folder", {}),
}


@pytest.fixture
def tts(small_folder: Path) -> ChatterboxTTS:
    return ChatterboxTTS.from_local(small_folder, "cpu")


@pytest.mark.parametrize("facade", FACADES)
def test_weights_rows_and_threads_are_gone_and_the_next_call_says_the_same(facade, request):
    kind, folder, own = FACADES[facade]
    tts = kind.from_local(request.getfixturevalue(folder), "cpu", engine=EngineConfig(idle_seconds=1e6))
    others = set(threading.enumerate())
    said = tts.generate(TEXT, **own, **OPTIONS)
    threads = set(threading.enumerate()) - others
    assert any(one.name == "chatterbox-engine" for one in threads)
    held = [weakref.ref(one) for one in (tts.synthesizer, tts.synthesizer.scheduler, tts.synthesizer.prefixes.manager)]
    for part in (tts.t3, tts.s3gen, tts.ve):
        held += [weakref.ref(part), *(weakref.ref(weight) for weight in part.parameters())]
    [rows] = tts.synthesizer.scheduler._engines.values()
    assert rows.engine.decoder.nbytes > 0
    held.append(weakref.ref(rows.engine.decoder))
    del rows, part
    tts.unload()
    assert [one() for one in held if one() is not None] == [] and not any(one.is_alive() for one in threads)
    tts.unload()
    assert torch.equal(said, tts.generate(TEXT, **own, **OPTIONS))
    assert tts.synthesizer.config.engine.idle_seconds == 1e6


def test_of_conversion_too(small_folder):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    audio, target = recording(1.0), vc.ref_dict
    said = vc.generate((24_000, audio), **OPTIONS)
    held = [weakref.ref(vc.s3gen), *(weakref.ref(weight) for weight in vc.s3gen.parameters())]
    vc.unload()
    assert [one for one in held if one() is not None] == []
    assert vc.ref_dict is target and torch.equal(said, vc.generate((24_000, audio), **OPTIONS))


def test_what_the_user_assigned_is_kept(tts, reference_wav):
    class Marks:
        def apply_watermark(self, wav, sample_rate):
            return wav * 0

    tts.watermarker = marks = Marks()
    tts.prepare_conditionals(reference_wav)
    voice, said = tts.conds, tts.generate(TEXT, **OPTIONS)
    tts.unload()
    assert torch.equal(said, tts.generate(TEXT, **OPTIONS)) and tts.conds is voice
    assert tts.watermarker is marks and not tts.generate(TEXT, seed=7).any()
    tts.conds = None
    tts.unload()
    with pytest.raises(ValueError, match="no voice yet"):
        tts.generate(TEXT)


def test_a_folder_is_found_again_from_another_one(small_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(small_folder.parent)
    tts = ChatterboxTTS.from_local(small_folder.name, "cpu")
    vc = ChatterboxVC.from_local(small_folder.name, "cpu")
    for model in (tts, vc):
        model.unload()
    monkeypatch.chdir(tmp_path)
    assert tts.generate(TEXT).isfinite().all() and vc.s3gen is vc.s3gen


def test_the_embedded_voice_is_loaded_from_the_package():
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    said = tts.generate("Yes.", **OPTIONS)
    tts.unload()
    assert torch.equal(said, tts.generate("Yes.", **OPTIONS))


def test_a_folder_that_is_gone_is_one_line_and_one_that_is_back_is_loaded(own_folder, tmp_path):
    tts = ChatterboxTTS.from_local(own_folder, "cpu")
    tts.unload()
    shutil.move(own_folder, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=str(own_folder)) as error:
        tts.generate(TEXT)
    assert "\n" not in str(error.value)
    shutil.move(tmp_path / "elsewhere", own_folder)
    assert tts.generate(TEXT).isfinite().all()


def test_a_model_built_from_parts_says_that_it_cannot_be_reloaded(tts):
    parts = (tts.t3, tts.s3gen, tts.ve, tts.tokenizer, "cpu", tts.conds)
    for model in (ChatterboxTTS(*parts), ChatterboxVC(tts.s3gen, "cpu"), copy.deepcopy(tts), copy.copy(tts)):
        with pytest.raises(RuntimeError, match=r"^this model was built from parts and cannot be reloaded: keep it"):
            model.unload()
    with pytest.raises(RuntimeError, match="built from parts"):
        pickle.loads(pickle.dumps(ChatterboxVC(tts.s3gen, "cpu"))).unload()
    assert ChatterboxTTS(*parts).generate(TEXT).isfinite().all()


def _assigned(tts):
    tts.ve = copy.deepcopy(tts.ve)


def _fine_tuned(tts):
    with torch.no_grad():
        tts.t3.speech_head.weight.mul_(0.5)


def _hooked(tts):
    tts.s3gen.flow.register_forward_hook(lambda *_: None)


def _replaced(tts):
    tts.t3.inference = lambda **_: torch.zeros(1, 1)


def _halved(tts):
    tts.s3gen.half()


@pytest.mark.parametrize("change", [_assigned, _fine_tuned, _hooked, _replaced, _halved])
def test_what_reloading_would_lose_is_not_given_up(change, tts):
    tts.generate(TEXT)
    change(tts)
    t3 = tts.t3
    with pytest.raises(RuntimeError, match=r"^this model was changed since it was loaded, which reloading would lose"):
        tts.unload()
    assert tts.t3 is t3


def test_a_replaced_network_of_conversion_is_not_given_up(small_folder):
    vc = ChatterboxVC.from_local(small_folder, "cpu")
    vc.s3gen = copy.deepcopy(vc.s3gen)
    with pytest.raises(RuntimeError, match="built from parts"):
        vc.unload()


def test_requests_under_way_end_with_one_line(tts):
    stream = tts.generate_stream(["Hello there. ", "And then."], **OPTIONS)
    next(stream)
    tts.unload()
    with pytest.raises(EngineClosedError) as error:
        list(stream)
    assert "\n" not in str(error.value)
    assert tts.generate(TEXT).isfinite().all()


def test_who_speaks_while_it_ends_gets_a_new_one(tts, monkeypatch):
    said, close, heard = tts.generate(TEXT, **OPTIONS), Synthesizer.close, []

    def speak_and_close(synthesizer: Synthesizer) -> None:
        if not heard:
            with ThreadPoolExecutor(1) as other:  # which ending waits for
                heard.append(other.submit(tts.generate, TEXT, **OPTIONS).result(60))
        close(synthesizer)

    monkeypatch.setattr(Synthesizer, "close", speak_and_close)
    tts.unload()
    assert torch.equal(heard[0], said) and torch.equal(tts.generate(TEXT, **OPTIONS), said)


def test_a_stream_that_was_not_begun_loads_the_model(tts):
    stream = tts.generate_stream(TEXT, print_metrics=False, **OPTIONS)
    tts.unload()
    assert sum(audio.shape[1] for audio, _ in stream) > 0


def test_of_many_threads_one_loads(tts, monkeypatch):
    said, loads, load = tts.generate(TEXT, **OPTIONS), [], tts._model._load
    monkeypatch.setattr(tts._model, "_load", lambda kept: loads.append(1) or load(kept))
    for _ in range(3):
        tts.unload()
        with ThreadPoolExecutor(4) as pool:
            audios = list(pool.map(lambda _: tts.generate(TEXT, **OPTIONS), range(4)))
        assert all(torch.equal(audio, said) for audio in audios)
    assert len(loads) == 3


@pytest.mark.parametrize("steps", [("close", "unload"), ("unload", "close"), ("unload", "close", "unload")])
def test_a_closed_model_speaks_no_more_unloaded_or_not(steps, tts):
    for step in steps:
        getattr(tts, step)()
    with pytest.raises(EngineClosedError, match="the model was closed; load it anew"):
        tts.generate(TEXT)
