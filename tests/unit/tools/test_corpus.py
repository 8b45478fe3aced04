"""The training text: reproducible, varied, within its limits, and apart from the evaluation sets; its teacher."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.tiny_voice import corpus, teacher
from tools.tiny_voice.lexicon import adverb, lexicon, plural
from tools.tiny_voice.speech import PHONES


@pytest.fixture(scope="module")
def large() -> list[str]:
    return corpus.sentences(24_000, seed=1)


def test_same_seed_same_text_and_a_larger_count_extends() -> None:
    assert corpus.sentences(300, seed=5) == corpus.sentences(500, seed=5)[:300]
    assert corpus.sentences(300, seed=5) != corpus.sentences(300, seed=6)


def test_sentences_are_distinct_and_within_limits(large: list[str]) -> None:
    assert len(large) == len(set(large)) == 24_000
    assert max(map(len, large)) <= corpus.MAX_CHARS
    lengths = np.array([len(sentence.split()) for sentence in large])
    assert 6 <= lengths.mean() <= 9
    assert np.mean((lengths >= 3) & (lengths <= 14)) > 0.9
    assert not any("{" in sentence or "  " in sentence for sentence in large)
    assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in large)
    assert {sentence[-1] for sentence in large} == {".", "?", "!"}
    assert not any(mark in sentence[:-1] for sentence in large for mark in ".?!")


def test_the_alphabet_is_small(large: list[str]) -> None:
    assert set("".join(large)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!':")


def test_every_word_form_occurs(large: list[str]) -> None:
    assert lexicon().num_bases >= 3_000
    occurring = {word for sentence in large for word in corpus.words_of(sentence)}
    assert len(occurring) >= 8_000
    assert not {word for form in lexicon().vocabulary for word in corpus.words_of(form)} - occurring


def test_evaluation_sets_are_held_out(large: list[str]) -> None:
    known, unseen = corpus.evaluation_set("known"), corpus.evaluation_set("unseen")
    assert (len(set(known)), len(set(unseen))) == (60, 20)
    assert not {*known, *unseen} & set(large)
    occurring = {word for sentence in large for word in corpus.words_of(sentence)}
    assert not {word for sentence in known for word in corpus.words_of(sentence)} - occurring
    for sentence in unseen:
        assert 1 <= len(set(corpus.words_of(sentence)) - occurring) <= 3, sentence
    for name in corpus.EVALUATION_SETS[:5]:
        texts = corpus.evaluation_set(name)
        assert len(texts) == len(set(texts)) == 40 and not set(texts) & set(large), name
    with pytest.raises(ValueError, match="use one of everyday, names, "):
        corpus.evaluation_set("train")


def test_word_lists_bring_rare_words_and_none_of_the_unseen(large: list[str]) -> None:
    lists = corpus.word_lists(3_000, seed=13)
    assert len(lists) == len(set(lists)) == 3_000
    assert corpus.word_lists(50, seed=13) == lists[:50]
    assert max(map(len, lists)) <= corpus.MAX_CHARS
    occurring = {word for text in lists for word in corpus.words_of(text)}
    rare = {word.lower() for word in corpus.rare_words()}
    assert len(rare) >= 3_000
    assert rare <= occurring
    sentences = {word for sentence in large for word in corpus.words_of(sentence)}
    assert not rare & sentences
    for sentence in corpus.evaluation_set("unseen"):
        assert set(corpus.words_of(sentence)) - sentences - occurring, sentence
        assert not rare & set(corpus.words_of(sentence)), sentence


def test_an_evaluation_sentence_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    first = corpus.sentences(10, seed=3)
    monkeypatch.setattr(corpus, "held_out", lambda: frozenset(first[:1]))
    assert corpus.sentences(9, seed=3) == first[1:]


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A small one, with what must not be taken from it."""
    unseen = {word for text in corpus.evaluation_set("unseen") for word in corpus.words_of(text)}
    rarest = max(unseen - {word.lower() for word in lexicon().vocabulary}, key=len)
    words = ["aardvark", "aardvark's", "zygote", "Xenia", "Lübeck", "Oslo", "x"]
    path = tmp_path / "words"
    path.write_text("\n".join([*words, rarest, f"{rarest}s"]), encoding="utf-8")
    monkeypatch.setattr(corpus, "DICTIONARY", path)
    for function in (corpus.dictionary, corpus.names):
        function.cache_clear()
    yield
    for function in (corpus.dictionary, corpus.names):
        function.cache_clear()


def test_the_dictionary_has_neither_possessives_nor_what_is_held_out(dictionary: None) -> None:
    assert corpus.dictionary() == ["aardvark", "zygote", "Xenia", "Oslo"]
    assert corpus.names() == ["Xenia", "Oslo"]
    assert {word.lower() for text in corpus.dictionary_lists(3, seed=1) for word in corpus.words_of(text)} == {
        "aardvark", "zygote", "xenia", "oslo",
    }  # fmt: skip
    assert any(name in text for text in corpus.name_sentences(5, seed=1) for name in corpus.names())


def test_without_a_dictionary_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DICTIONARY", Path("/nowhere/words"))
    corpus.dictionary.cache_clear()
    with pytest.raises(RuntimeError, match="apt-get install wamerican-large"):
        corpus.dictionary()


def test_numbers_are_in_words_and_short_texts_are_short() -> None:
    texts = corpus.number_sentences(300, seed=2)
    assert not any(char.isdigit() or char in "$%<>" for char in "".join(texts))
    assert {"nineteen", "dollars", "percent", "o'clock", "point", "March"} <= set(
        re.findall(r"[\w']+", " ".join(texts))
    )
    short = corpus.short_texts(200, seed=2)
    assert all(1 <= len(text.split()) <= 4 for text in short) and "Thanks." in short


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("person:s", "children wives heroes bosses ladies"),
        ("transitive:ing", "stopping carrying tying admitting taking rebuilding undoing"),
        ("transitive:ed", "stopped carried tied admitted took rebuilt undid equipped"),
        ("transitive:en", "taken rewritten chosen"),
        ("intransitive:s", "wishes cries buzzes sits"),
        ("short:er", "bigger happier larger quicker"),
        ("adverb:ly", "happily terribly basically fully truly usefully"),
        ("adj", "unhappy useless beautiful washable forgettable incorrect sunny"),
        ("person", "winner builder consumer director"),
        ("derived", "happiness judgment friendship childhood snowman"),
    ],
)
def test_inflection(key: str, words: str) -> None:
    assert set(words.split()) <= set(lexicon().forms[key])


def test_spelling_rules() -> None:
    assert [plural(word) for word in ("box", "day", "city", "church")] == ["boxes", "days", "cities", "churches"]
    assert [adverb(word) for word in ("public", "whole", "unique")] == ["publicly", "wholly", "uniquely"]


def test_pitch_of_a_known_tone() -> None:
    seconds = np.arange(teacher.SAMPLE_RATE) / teacher.SAMPLE_RATE
    for f0 in (75.0, 120.0, 233.0, 390.0):
        tone = sum(np.sin(2 * np.pi * f0 * k * seconds) / k for k in range(1, 8)).astype(np.float32)
        tone[8000:] = np.random.default_rng(0).normal(size=8000)
        pitch = teacher.phone_pitch(tone / 8, np.array([0.48, 0.52, 1.0], dtype=np.float32))
        assert abs(np.exp(pitch[0]) - f0) < 0.01 * f0
        assert np.isnan(pitch[2])


def test_rotation_uses_all_groups_of_voices_equally() -> None:
    pairs = teacher.rotate([str(i) for i in range(12)], 2, teacher.VOICES[:4])
    assert len(pairs) == len(set(pairs)) == 24
    assert {sum(voice == name for _, voice in pairs) for name in teacher.VOICES[:4]} == {6}


def test_unknown_voice_is_named() -> None:
    with pytest.raises(ValueError, match=r"'kal' is unknown.*slt"):
        teacher.speak("Hello.", "kal")


def test_missing_program_gives_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="apt-get install flite"):
        teacher.speak("Hello.", "slt")


@pytest.mark.flite
def test_shards_resume_and_read_back(tmp_path) -> None:
    pairs = teacher.rotate(["Hello there.", "Did you?", "At 3:30 we left."], 4, teacher.VOICES[:4])
    paths = teacher.build(tmp_path, pairs, with_audio=True, num_processes=1, shard_size=5)
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    teacher.build(tmp_path, pairs, with_audio=True, num_processes=1, shard_size=5)
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(paths, stamps, strict=True)] == [True, False, True]
    utterances = [utterance for path in paths for utterance in teacher.read_shard(path)]
    assert [(u.text, teacher.VOICES[u.voice]) for u in utterances] == pairs
    for utterance in utterances:
        wav, phones, ends = teacher.speak(utterance.text, teacher.VOICES[utterance.voice])
        assert [PHONES[i] for i in utterance.phones] == phones
        assert np.array_equal(utterance.ends, ends)
        assert np.array_equal(utterance.audio, np.round(wav * 32768).astype(np.int16))
        assert utterance.num_samples == len(wav)
        assert ends[-1] == pytest.approx(len(wav) / teacher.SAMPLE_RATE)
        assert (np.diff(ends) >= 0).all()
        assert len(utterance.pitch) == len(phones)
    with pytest.raises(ValueError, match="another plan"):
        teacher.build(tmp_path, pairs[:2])
