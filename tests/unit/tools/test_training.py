"""The embedded voice's training: speech tokens, layouts, tables and the loop, on made-up utterances (no flite)."""

from __future__ import annotations

import copy
import signal
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from chatterbox.checkpoints.loading import load_module
from chatterbox.evaluation.recognition import edit_distance, words_of
from chatterbox.models.config import FlowConfig, LlamaConfig, T3Config
from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
from chatterbox.models.tokenizers import EnTokenizer
from tools.tiny_voice import speech_tokens
from tools.tiny_voice.export import compact, tokenizer_file, warm_start
from tools.tiny_voice.flow import FlowStage, resynthesize
from tools.tiny_voice.loop import Schedule, Stage, averaged_weights, held_out_figures, train
from tools.tiny_voice.recordings import (
    CHARACTER_IDS,
    PitchScale,
    Recordings,
    SpeakerBank,
    Utterance,
    Utterances,
    encode_text,
    trimmed_symbols,
)
from tools.tiny_voice.speech import PHONES
from tools.tiny_voice.tables import SymbolTable, compact_state, factorize, fit
from tools.tiny_voice.teacher import VOICES
from tools.tiny_voice.text_to_speech import (
    EVEN_EMOTION,
    IGNORE,
    NEUTRAL_EMOTION,
    Sequence,
    T3Recipe,
    TextToSpeechStage,
    add_segment,
    spoken_character,
    spread_of,
    stretch_of,
)
from tools.tiny_voice.tiny import CHARACTERS, JUDGING_FLOW, NATURAL_SPEED, TINY
from tools.tiny_voice.vocoder import VocoderStage

SMALL = replace(
    TINY.t3, backbone=LlamaConfig(num_layers=4, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48)
)


def utterance(voice: int, text: str = "a bad cab", seed: int = 0) -> Utterance:
    rng = np.random.default_rng(seed)
    phones = ["pau", "b", "ae", "d", "k", "ae", "b", "pau"]
    ends = np.cumsum(rng.uniform(0.05, 0.2, len(phones)))
    pitch = np.where([p in speech_tokens.VOWELS for p in phones], rng.normal(5, 0.1, len(phones)), np.nan)
    return Utterance(text, voice, phones, ends, pitch, None)


@pytest.fixture
def utterances() -> Utterances:
    items = [utterance(v, seed=10 * v + s) for v in range(len(VOICES)) for s in range(6)]
    return Utterances(items, PitchScale.of(items))


def test_every_phone_has_its_own_symbols() -> None:
    assert {phone for phone, _ in speech_tokens.SYMBOLS} == set(PHONES)
    phones_of = {}
    for (phone, _), symbol in speech_tokens.SYMBOLS.items():
        phones_of.setdefault(symbol, set()).add(phone)
    assert all(len(phones) == 1 for phones in phones_of.values())
    assert max(phones_of) < speech_tokens.NUM_SYMBOLS
    assert (
        len(
            {speech_tokens.SYMBOLS["ae", level] for level in (speech_tokens.LOW, speech_tokens.MID, speech_tokens.HIGH)}
        )
        == 3
    )


def test_speech_tokens_and_symbols_are_inverse() -> None:
    symbols = np.random.default_rng(0).choice(speech_tokens.SYMBOL_IDS, 40)
    made = speech_tokens.to_speech_tokens(symbols)
    assert made.shape == (20,) and made.max() < 6561
    assert np.array_equal(speech_tokens.to_symbols(made), symbols)
    assert np.array_equal((speech_tokens.digits(made) * 3 ** np.arange(8)).sum(-1), made)


def test_frames_follow_the_alignment() -> None:
    frames = speech_tokens.frame_symbols(
        ["pau", "ae", "b"], np.array([0.04, 0.1, 0.14]), np.array([np.nan, 2.0, np.nan])
    )
    names = [speech_tokens.SYMBOL_NAMES[s] for s in frames]
    assert names == ["pau"] * 2 + ["ae"] * 3 + ["b"] * 3  # seven frames and the last one again
    assert frames[2] == speech_tokens.SYMBOLS["ae", speech_tokens.HIGH]


@pytest.mark.parametrize(("z", "spread", "level"), [(1, 1, 2), (0.3, 1, 1), (-1, 1, 0), (0.3, 2, 2), (np.nan, 1, 1)])
def test_pitch_levels(z: float, spread: float, level: int) -> None:
    assert speech_tokens.pitch_level(z, spread) == level


def test_emotion_makes_speech_faster_and_livelier() -> None:
    assert stretch_of(NEUTRAL_EMOTION) == spread_of(NEUTRAL_EMOTION) == 1.0
    assert stretch_of(1.0) < 1.0 < spread_of(1.0)


def test_even_phones_are_one_speech_token_long(utterances: Utterances) -> None:
    spoken, scale = utterance(0), PitchScale(np.zeros(len(VOICES)), np.ones(len(VOICES)))
    names = [speech_tokens.SYMBOL_NAMES[s] for s in trimmed_symbols(spoken, scale, even=True)]
    assert names == [phone for phone in spoken.phones for _ in range(2)]
    assert utterances.approximate_len(0, even=True) == len("a bad cab") + len(spoken.phones) + 10
    speakers = SpeakerBank(torch.randn(len(VOICES), 5, 2, SMALL.speaker_embed_size))
    recipe = T3Recipe(even_share=1.0, single_only_steps=100, max_even_batch=7)
    stage = TextToSpeechStage(SMALL, utterances, utterances, speakers, Schedule(1, 0.0), recipe)
    batch = stage.draw(np.random.default_rng(0), 0)
    assert len(batch.ids) == 7 and torch.equal(batch.emotions, torch.full((7,), EVEN_EMOTION))
    wanted = batch.targets[batch.targets != IGNORE]
    spoken_tokens = wanted[wanted < 6561]
    assert len(spoken_tokens) == 7 * len(spoken.phones)  # and a stop token each
    assert torch.equal(spoken_tokens % speech_tokens.NUM_SYMBOLS, spoken_tokens // speech_tokens.NUM_SYMBOLS)
    assert "even_" in {label for label, _ in stage.held_out()}


def test_a_drawn_rhythm_keeps_phones_and_length() -> None:
    spoken, scale = utterance(0), PitchScale(np.zeros(len(VOICES)), np.ones(len(VOICES)))
    plain = trimmed_symbols(spoken, scale)
    drawn = [trimmed_symbols(spoken, scale, rhythm=0.3, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    for symbols in drawn:
        assert abs(len(symbols) - len(plain)) <= 2 and not np.array_equal(symbols, plain)
        assert set(symbols) == set(plain)
    half = trimmed_symbols(spoken, scale, stretch=0.5, rhythm=0.3, rng=np.random.default_rng(1))
    assert len(half) == pytest.approx(len(plain) / 2, abs=2)


def test_segment_layout() -> None:
    spoken = np.array([11, 12, 13])
    sequence = Sequence([], [], [], [], [])
    for _ in range(2):
        add_segment(sequence, SMALL, [7, 8], spoken, heard=np.array([11, 99, 13]))
    half = len(sequence) // 2
    start, stop = SMALL.start_text_token, SMALL.stop_text_token
    assert sequence.ids[:half] == [start, 7, 8, stop, 6561, 6561, 11, 99, 13] == sequence.ids[half:]
    assert sequence.positions[:half] == [0, 1, 2, 3, 0, 0, 1, 2, 3] == sequence.positions[half:]
    assert sequence.targets[:half] == [IGNORE] * 5 + [11, 12, 13, 6562] == sequence.targets[half:]
    assert sequence.is_text[:half] == [True] * 4 + [False] * 5
    assert len(sequence.guide) == len(sequence)


def test_guide_moves_through_the_text() -> None:
    spoken = speech_tokens.to_speech_tokens(
        np.repeat([speech_tokens.SYMBOLS[p, speech_tokens.MID] for p in ("pau", "b", "ae", "d")], 2)
    )
    positions = spoken_character(spoken, num_characters=7)
    assert np.isnan(positions[0])
    assert positions[1:].tolist() == [2.0, 4.0, 6.0]


def test_the_shipped_tokenizer_agrees_with_training(tmp_path: Path) -> None:
    import json

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_file()))
    tokenizer = EnTokenizer(path)
    text = "Well, it's 12 o'clock - isn't it? ~"
    assert tokenizer.encode(text) == encode_text(text)
    assert encode_text("~") == [CHARACTER_IDS["[UNK]"]]
    assert tokenizer.largest_id + 1 == TINY.t3.text_tokens_dict_size == 4 + len(CHARACTERS)


def test_tables_export_what_they_compute(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6564, 8), nn.Linear(8, 6564, bias=False))
    for module in model:
        factorize(module, std=0.5)
        nn.init.normal_(module.parametrizations.weight[0].mix, std=0.1)
    ids = torch.tensor([0, 1, 81, 6560, 6561, 6563])
    save_file(compact(model), str(tmp_path / "tables.safetensors"))
    assert (tmp_path / "tables.safetensors").stat().st_size < 0.5 * 2 * 2 * 6564 * 8
    plain = nn.Sequential(nn.Embedding(6564, 8), nn.Linear(8, 6564, bias=False))
    load_module(lambda: plain, tmp_path / "tables.safetensors", torch.device("cpu"))
    torch.testing.assert_close(plain(ids), model(ids), atol=0.05, rtol=0.01)
    table = model[0].parametrizations.weight[0]
    table.mix.data.zero_()
    shared = model[0].weight[1] - model[0].weight[0]  # symbols (1, 0) and (0, 0)
    torch.testing.assert_close(model[0].weight[82] - model[0].weight[81], shared)


def test_a_dense_table_is_fitted() -> None:
    torch.manual_seed(0)
    module, other = nn.Embedding(6564, 8), nn.Embedding(6564, 8)
    for one in (module, other):
        factorize(one, std=0.5)
    table, made = (one.parametrizations.weight[0] for one in (module, other))
    assert fit(made, module.weight.detach(), sweeps=1) < 1e-6  # of two symbols that are no more than their sum
    table.mix.data.normal_(std=0.2)
    at_first, later = (fit(made, module.weight.detach(), sweeps=sweeps) for sweeps in (1, 8))
    assert later < 0.5 * at_first and later < 0.2
    small = SymbolTable(8, 0.5, rank=4)
    assert later < fit(small, module.weight.detach(), sweeps=8) < 1.0


def test_compact_halves_all_but_running_statistics() -> None:
    state = compact(nn.BatchNorm1d(3))
    assert {k: v.dtype for k, v in state.items()} == {
        "weight": torch.float16,
        "bias": torch.float16,
        "running_mean": torch.float32,
        "running_var": torch.float32,
        "num_batches_tracked": torch.int64,
    }


@pytest.mark.parametrize("layout", ["single", "history", "append"])
def test_text_to_speech_learns(utterances: Utterances, layout: str) -> None:
    torch.manual_seed(0)
    speakers = SpeakerBank(torch.randn(len(VOICES), 5, 2, SMALL.speaker_embed_size))
    schedule = Schedule(steps=100, learning_rate=1e-3)
    stage = TextToSpeechStage(SMALL, utterances, utterances, speakers, schedule, T3Recipe(max_batch=3))
    optimizer = torch.optim.Adam(stage.module.parameters(), 3e-3)
    losses = []
    for step in range(25):
        batch = stage._draw(utterances, np.random.default_rng(step), layout, guide_weight=0.5)
        loss, figures = stage.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(figures["cross_entropy"])
    assert losses[-1] < 0.7 * losses[0]
    unused = {"tfmr.embed_tokens.weight", "text_head.weight"}
    assert {name for name, p in stage.module.named_parameters() if p.grad is None} == unused
    assert 0.0 <= held_out_figures(stage)[f"held_out_{layout}_accuracy"] <= 1.0


def test_training_goes_on_from_an_export(utterances: Utterances, tmp_path: Path) -> None:
    torch.manual_seed(0)
    speakers = SpeakerBank(torch.randn(len(VOICES), 5, 2, SMALL.speaker_embed_size))
    first, second = (
        TextToSpeechStage(SMALL, utterances, utterances, speakers, Schedule(10, 1e-3), T3Recipe(max_batch=3))
        for _ in range(2)
    )
    assert not torch.equal(first.module.speech_emb.weight, second.module.speech_emb.weight)
    stored = {key: value.contiguous() for key, value in compact_state(first.module).items()}
    save_file(stored, str(tmp_path / "t3_cfg.safetensors"))
    warm_start(second, tmp_path)
    assert held_out_figures(first) == held_out_figures(second)
    # Tables of another rank become what comes nearest.
    rank = stored["speech_emb.code_table.mix"].shape[0]
    padding = {"mix": (0, 0, 0, 3), "left": (0, 3), "right": (0, 3)}
    for part, added in padding.items():
        stored[f"speech_emb.code_table.{part}"] = F.pad(stored[f"speech_emb.code_table.{part}"], added)
    save_file(stored, str(tmp_path / "t3_cfg.safetensors"))
    third = copy.deepcopy(second)
    third.module.speech_emb.parametrizations.weight[0].mix.data.zero_()
    warm_start(third, tmp_path)
    assert third.module.speech_emb.parametrizations.weight[0].mix.shape[0] == rank
    torch.testing.assert_close(third.module.speech_emb.weight, first.module.speech_emb.weight, rtol=0, atol=0.02)


class _Points(NamedTuple):
    x: torch.Tensor
    step: int


class _Line(Stage[_Points]):
    name = "line"
    schedule = Schedule(steps=6, learning_rate=0.1, warmup_steps=1)

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(1, 1)

    def draw(self, rng: np.random.Generator, step: int) -> _Points:
        return _Points(torch.from_numpy(rng.standard_normal((4, 1), dtype=np.float32)), step)

    def loss(self, batch: _Points) -> tuple[torch.Tensor, dict[str, float]]:
        return (self.module(batch.x) - 3 * batch.x).square().mean(), {"step_seen": float(batch.step)}


def test_interrupted_training_equals_uninterrupted(tmp_path: Path) -> None:
    whole = _Line()
    train(whole, tmp_path / "whole", report_every=1)
    first = _Line()
    train(first, tmp_path / "parts", minutes=0.0)  # stops before the first step, but leaves a checkpoint
    resumed = _Line()
    train(resumed, tmp_path / "parts", report_every=1, save_every=2)
    assert torch.equal(whole.module.weight, resumed.module.weight)
    averages = [averaged_weights(tmp_path / d, "line")["weight"] for d in ("whole", "parts")]
    assert torch.equal(*averages)
    lines = (tmp_path / "parts" / "line.jsonl").read_text().splitlines()
    assert len(lines) == 6


def test_batches_drawn_ahead_are_the_same(tmp_path: Path) -> None:
    here, ahead = _Line(), _Line()
    train(here, tmp_path / "here")
    train(ahead, tmp_path / "ahead", workers=2)
    assert torch.equal(here.module.weight, ahead.module.weight)


def test_a_stopped_run_keeps_its_steps(tmp_path: Path) -> None:
    class Stopping(_Line):
        def loss(self, batch: _Points) -> tuple[torch.Tensor, dict[str, float]]:
            if batch.step == 3:
                signal.raise_signal(signal.SIGTERM)
            return super().loss(batch)

    train(Stopping(), tmp_path)
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 4


def test_an_untrained_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run `python -m tools\.tiny_voice flow` first"):
        averaged_weights(tmp_path, "flow")


def test_schedule_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.2)
    factors = [schedule.factor(s) for s in range(101)]
    assert factors[0] == 0.1 and factors[50] == 1.0 and factors[90] == pytest.approx(0.5) and factors[100] == 0.0


@pytest.mark.parametrize(
    ("wanted", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b", "a x b", 1), ("a b", "c d", 2), ("a", "", 1), ("", "a b", 2)],
)
def test_edit_distance(wanted: str, heard: str, errors: int) -> None:
    assert edit_distance(words_of(wanted), words_of(heard)) == errors


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("Don't stop, Anna!") == ["don't", "stop", "anna"]


@pytest.fixture
def recordings() -> Recordings:
    items = [utterance(v, seed=10 * v + s) for v in range(len(VOICES)) for s in range(2)]
    for item in items:
        seconds = np.arange(int(16000 * item.ends[-1])) / 16000
        item.audio = (8000 * np.sin(2 * np.pi * 150 * seconds)).astype(np.int16)
    return Recordings(items, PitchScale.of(items))


def test_resynthesis_has_the_frames_of_the_speech_tokens(recordings: Recordings) -> None:
    torch.manual_seed(0)
    speakers = SpeakerBank(torch.randn(len(VOICES), 5, 3, TINY.s3gen.flow.speaker_embed_size))
    made = resynthesize(CausalMaskedDiffWithXvec(TINY.s3gen.flow).eval(), recordings, speakers, (0, 2, 1))
    lengths = [2 * len(recordings.speech_tokens(i, NATURAL_SPEED)) for i in range(3)]
    assert {i: m.shape for i, m in made.items()} == {i: (80, n) for i, n in enumerate(lengths)}
    assert all(m.isfinite().all() for m in made.values())


@pytest.mark.parametrize(("config", "guided"), [(TINY.s3gen.flow, False), (JUDGING_FLOW, True)])
def test_a_flow_of_many_steps_learns_all_times_from_noise(
    recordings: Recordings, config: FlowConfig, guided: bool
) -> None:
    torch.manual_seed(0)
    speakers = SpeakerBank(torch.randn(len(VOICES), 5, 3, config.speaker_embed_size))
    schedule = Schedule(steps=1, learning_rate=0.0)
    stage = FlowStage(config, recordings, recordings, speakers, schedule, name="one", batch=40, crop_tokens=10)
    batch = stage.draw(np.random.default_rng(0), 0)
    assert stage.name == "one" and bool((batch.time == 0).sum() > 20) is not guided
    assert batch.noise.std().item() == pytest.approx(float(guided), abs=0.05)
    assert bool((batch.keep == 0).any()) is guided
    loss, figures = stage.loss(batch)
    assert loss.isfinite() and figures["velocity"] > 0


def test_vocoder_hears_the_flows_mels_at_the_recordings_loudness(recordings: Recordings) -> None:
    lengths = [2 * len(recordings.speech_tokens(i, NATURAL_SPEED)) for i in range(len(recordings))]
    made = {i: torch.full((80, length), 7.0) for i, length in enumerate(lengths)}
    schedule = Schedule(steps=1, learning_rate=0.0)
    stage = VocoderStage(TINY.s3gen.vocoder, recordings, recordings, schedule, made_mels=made, batch=24, crop_frames=8)
    wavs, mels, f0s, whole_mels, whole_f0s = stage.draw(np.random.default_rng(0), 0)
    assert wavs.shape == (24, 8 * 480) and mels.shape == (24, 80, 8) and f0s.shape == (24, 8)
    assert whole_mels.shape[1:] == (80, whole_f0s.shape[1]) and not whole_f0s[:, :8].isnan().any()
    from_flow = (mels > 6).all(dim=(1, 2))
    assert 0 < from_flow.sum() < 24
    gains = mels[from_flow, 0, 0].sub(7.0).exp()
    peaks = wavs[from_flow].abs().amax(1)
    torch.testing.assert_close(peaks / gains, torch.full_like(peaks, 8000 / 32768), rtol=0.02, atol=0)


def test_small_configs_hold_the_speech_tokens() -> None:
    assert isinstance(TINY.t3, T3Config)
    assert TINY.t3.speech_tokens_dict_size >= 6563
    assert TINY.s3gen.vocoder.hop_len == 480


def test_speech_keeps_its_own_rhythm_in_the_last_steps() -> None:
    recipe = T3Recipe(settled_from=100, emotional_rhythm=0.5, even_share=1.0)
    assert recipe.at(99) is recipe
    settled = recipe.at(100)
    assert settled.emotional_rhythm < 0.1 and settled.even_share < 0.5 and settled.max_batch == recipe.max_batch
