"""Silence that a text asks for, exact to the sample: whole, streamed, in a batch, from pieces."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from chatterbox.tts import ChatterboxTTS
from chatterbox.voice.conditionals import Conditionals

RATE = 24_000
PARTS = ("Hello there.", "How are you?")


@pytest.fixture(scope="module")
def tiny() -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("cpu", model="tiny")


def streamed(tts: ChatterboxTTS, text, **options) -> list[Tensor]:
    return [audio for audio, _ in tts.generate_stream(text, seed=1, watermark=False, print_metrics=False, **options)]


def whole(tts: ChatterboxTTS, text: str, **options) -> Tensor:
    return tts.generate(text, seed=1, watermark=False, **options)


@pytest.mark.parametrize(
    ("between", "seconds"),
    [(" [pause:2s] ", 2.0), ('<break time="250ms"/>', 0.25), ("\n\n", 0.5), ("[pause:1ms]", 0.001)],
)
def test_the_first_part_the_pause_and_then_the_rest(tiny, between, seconds):
    first, audio = whole(tiny, PARTS[0]), whole(tiny, between.join(PARTS))
    length, begin = round(seconds * RATE), first.shape[1]
    assert torch.equal(audio[:, :begin], first)
    fade = RATE // 100
    assert not audio[0, begin + min(fade, length) : begin + length].any()
    rest = audio.shape[1] - begin - length
    without_pause = whole(tiny, " [pause:0s] ".join(PARTS))
    assert without_pause.shape[1] == begin + rest, "nothing but the silence was added"


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_a_stream_has_it_as_a_chunk(tiny, continuity):
    chunks = streamed(tiny, "[pause:2s]".join(PARTS), continuity=continuity)
    silent = [chunk for chunk in chunks if chunk.shape[1] == 2 * RATE]
    assert len(silent) == 1 and not silent[0][0, RATE // 100 :].any()
    if continuity == "isolated":
        assert sum(chunk.shape[1] for chunk in chunks) == whole(tiny, "[pause:2s]".join(PARTS)).shape[1]


def test_pieces_of_a_text_have_it(tiny):
    text = "[pause:2s]".join(PARTS)
    lengths = [chunk.shape[1] for chunk in streamed(tiny, iter(text))]
    assert 2 * RATE in lengths and sum(lengths) == whole(tiny, text).shape[1]


def test_a_batch_has_it(tiny):
    texts = ["[pause:1s]".join(PARTS), "***", PARTS[0]]
    audios = tiny.generate_batch(texts, seed=1, watermark=False)
    assert torch.equal(audios[0], whole(tiny, texts[0]))
    assert not audios[1].any() and audios[1].shape[1] == RATE // 4 and audios[2].any()


def test_a_replaced_inference_has_it(tiny, monkeypatch):
    text, own = "[pause:1s]" + "[pause:2s]".join(PARTS) + "[pause:3s]", tiny.t3.inference
    expected = whole(tiny, text)
    calls: list[int] = []

    def inference(*arguments, **options):
        calls.append(1)
        return own(*arguments, **options)

    monkeypatch.setattr(tiny.t3, "inference", inference)
    assert torch.equal(whole(tiny, text), expected) and len(calls) == 2
    assert whole(tiny, "?!").shape[1] == RATE // 4 and len(calls) == 2


def test_the_watermark_leaves_it_silent_and_as_long(tiny):
    text = "[pause:2s]".join(PARTS)
    marked, plain = tiny.generate(text, seed=1), whole(tiny, text)
    assert marked.shape == plain.shape and not torch.equal(marked, plain)
    begin = whole(tiny, PARTS[0]).shape[1]
    assert not marked[0, begin + RATE // 100 : begin + 2 * RATE].any()


@pytest.mark.parametrize("text", ["***", "* * *", "---", '"', "😀", "...", "?", "♪ ♪", "—", " \n\n "])
def test_nothing_to_speak_is_a_short_silence(tiny, text, caplog):
    caplog.set_level(logging.WARNING)
    audio = whole(tiny, text)
    assert audio.shape == (1, RATE // 4) and not audio.any()
    assert [record.message for record in caplog.records] == [
        "the text has nothing that can be spoken; 0.25 s of silence stand for it"
    ]
    caplog.clear()
    assert streamed(tiny, text) == streamed(tiny, iter([text])) == []
    assert [record.message for record in caplog.records] == [
        "the text ended before it said anything; nothing is spoken"
    ] * 2


def test_a_pause_alone_is_silence_without_a_warning(tiny, caplog):
    caplog.set_level(logging.WARNING)
    assert whole(tiny, "[pause:1s]").shape[1] == RATE and not caplog.records
    assert [chunk.shape[1] for chunk in streamed(tiny, ["[pause", ":1s]"])] == [RATE] and not caplog.records


def test_only_the_empty_text_asks_for_some(tiny):
    assert torch.equal(whole(tiny, ""), whole(tiny, "You need to add some text for me to talk."))


def test_paragraphs_are_joined_where_that_is_wanted(tiny):
    joined = whole(tiny, "\n\n".join(PARTS), paragraph_pause=0)
    assert torch.equal(joined, whole(tiny, " ".join(PARTS)))


@pytest.mark.parametrize("seconds", [-1, 61, "long"])
def test_a_pause_between_paragraphs_is_a_number(tiny, seconds):
    with pytest.raises(ValueError, match="paragraph_pause must be a number from 0 to 60"):
        whole(tiny, "Hello.", paragraph_pause=seconds)


def test_seeds_of_utterances_do_not_count_pauses(tiny):
    """A pause takes no seed: what is said behind it is what is said without one."""
    voice = tiny.conds
    assert isinstance(voice, Conditionals)
    with_pauses = whole(tiny, "[pause:1s]" + "[pause:1s]".join(PARTS))
    without = whole(tiny, "[pause:0s]".join(PARTS))
    assert with_pauses.shape[1] == without.shape[1] + 2 * RATE
