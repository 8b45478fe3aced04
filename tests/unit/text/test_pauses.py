"""Pause tags and paragraphs of a text, whole and in pieces."""

from __future__ import annotations

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox.text import Utterance, utterances
from chatterbox.text.pauses import MAX_SECONDS, Pause, PauseScanner

ATOMS = st.sampled_from(
    [
        "[pause:2s]",
        "[pause:500ms]",
        '<break time="1.5s"/>',
        "[pause",
        "<br",
        "[",
        "<",
        "]",
        ">",
        "\n",
        "\n\n",
        " ",
        "Words. ",
    ]
)


def spoken(text, *, paragraph_pause: float | None = 0.5) -> list[tuple[str, float]]:
    return [tuple(one) for one in utterances(text, 1000, len, paragraph_pause=paragraph_pause)]


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ("[pause:2s]", 2.0),
        ("[Pause: 500 ms]", 0.5),
        ("[pause:0.25s]", 0.25),
        ('<break time="2s"/>', 2.0),
        ("<break time='300ms' />", 0.3),
        ('<BREAK TIME="1s">', 1.0),
        ("<break/>", 0.5),
        ('<break strength="x-strong"/>', 1.0),
        ('<break strength="none"/>', 0.0),
        ('<break strength="weak" time="2s"/>', 2.0),
        ("<break time='.5s' strength='weak' >", 0.5),
        ("<break time=2s/>", 2.0),
        ("[pause:.5s]", 0.5),
    ],
)
def test_a_tag_is_silence(tag, seconds):
    assert spoken(f"One.{tag} Two.") == [("One.", 0.0), ("Two.", seconds)]
    assert spoken(f"{tag}One.") == [("One.", seconds)]
    assert spoken(f"One. {tag}") == [("One.", 0.0)] + [("", seconds)] * (seconds > 0)


@pytest.mark.parametrize(
    "text",
    [
        "Press [pause] now.",
        "[pause:x]",
        "[pause:2]",
        "[pause:-1s]",
        "[pause:2s",
        "a < b",
        "<breakfast>",
        '<break time="2"/>',
        '<break time="2s"x/>',
        "<break",
        "[[",
        "[",
    ],
)
def test_what_only_looks_like_a_tag_is_text(text):
    whole = f"Now: {text}"
    assert spoken(whole) == [(whole, 0.0)]
    assert spoken(list(whole)) == [(whole, 0.0)]


def test_an_opening_mark_does_not_hide_a_tag():
    assert spoken("One. [[pause:1s] Two.") == [("One. [", 0.0), ("Two.", 1.0)]


@pytest.mark.parametrize("between", ["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n"])
def test_a_paragraph_is_a_pause(between):
    assert spoken(f"One.{between}Two.") == [("One.", 0.0), ("Two.", 0.5)]
    assert [one for one, _ in spoken(f"One.{between}Two.", paragraph_pause=0.0)] == [f"One.{between}Two."]


def test_a_line_is_none_and_neither_are_the_ends_of_the_text():
    assert spoken("One.\nTwo.") == [("One.\nTwo.", 0.0)]
    assert spoken("\n\nOne.\n\n") == [("\n\nOne.\n\n", 0.0)]


def test_a_tag_counts_in_place_of_the_paragraph_and_tags_add_up():
    assert spoken("One.\n\n[pause:2s]\n\nTwo.") == [("One.", 0.0), ("Two.", 2.0)]
    assert spoken("One. [pause:2s][pause:1s] Two.") == [("One.", 0.0), ("Two.", 3.0)]


def test_signs_behind_a_tag_are_of_the_words_before_it():
    assert spoken("One [pause:1s], two.") == spoken(list("One [pause:1s], two.")) == [("One", 0.0), ("two.", 1.0)]
    assert spoken("One [pause:1s].5 two") == [("One", 0.0), (".5 two", 1.0)]


def test_without_pauses_all_of_it_is_words():
    text = "One. [pause:2s]\n\nTwo."
    assert spoken(text, paragraph_pause=None) == [(text, 0.0)]


def test_nothing_but_a_pause():
    assert spoken("[pause:1s]") == spoken(["[pau", "se:1s]"]) == [("", 1.0)]
    assert spoken("***") == spoken(["***"]) == []


@pytest.mark.parametrize("text", ["One. [pause:3600s] Two.", "One. [pause:40s][pause:40s] Two."])
def test_a_pause_without_end_is_cut_with_a_warning(text, caplog):
    caplog.set_level(logging.WARNING)
    assert spoken(text)[1] == ("Two.", MAX_SECONDS)
    assert "is cut to 60 s" in caplog.text


@given(st.lists(ATOMS, max_size=20), st.integers(1, 9))
def test_pieces_of_any_size_give_the_same(atoms, size):
    text = "".join(atoms)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    def scanned(pieces: list[str]) -> list[str | Pause]:
        scanner = PauseScanner()
        found = [one for piece in pieces for one in scanner.read(piece)] + [scanner.finish()]
        joined: list[str | Pause] = [""]
        for one in found:
            if isinstance(one, str) and isinstance(joined[-1], str):
                joined[-1] += one
            else:
                joined.append(one)
        return joined

    assert scanned(pieces) == scanned([text])
    assert all(one.text == one.text.strip() for one in utterances(pieces, 1000, len, paragraph_pause=0.5))


def test_a_pause_is_handed_out_before_the_next_piece_is_asked_for():
    asked: list[str] = []

    def pieces():
        for piece in ("Now one", " [pause:1s]", "Then two.", " And"):
            asked.append(piece)
            yield piece

    found = utterances(pieces(), 1000, len, paragraph_pause=0.5)
    assert next(found) == Utterance("Now one") and asked[-1] == " [pause:1s]"


def test_brackets_without_end_take_no_time():
    begin = time.perf_counter()
    assert len(spoken("Word [pause <break " * 20_000)) > 1
    assert time.perf_counter() - begin < 60
