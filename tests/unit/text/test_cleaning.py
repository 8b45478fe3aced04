"""Text as people and language models write it, as it is spoken; whole, and in pieces cut anywhere."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox.text.cleaning import clean, clean_pieces, clean_utterance

PROSE = (
    "Dr. Smith (who is 61) said: “It’s 5:30 — or later… isn't it?” I'd say 3.5% of AT&T's 2 * 3 files, at $5; "
    "a well-known café in Zürich, snake_case, a < b, x > y, [sic], #1, f**k, e-mail me@x.org.\n\n"
    "It was; they went - both. 你好，世界！ 「はい。」 Привет? नमस्ते। می\u200cشود"
)
ATOMS = st.sampled_from(
    [
        *"*_~`<>[]&|#-+ \nabI5.;()!/\r\u200b\u200dक=•'\"",
        "�",
        "�",
        "😀",
        "**",
        "amp;",
        "&amp;",
        "&#42;",
        "<b>",
        "</b>",
        "<p>",
        "](",
        "](x)",
        "[a](b)",
        "# ",
        "- ",
        "* * *",
        "---",
        "```",
        "<!--",
        "-->",
        "[x] ",
        "&nbsp;",
    ]
)
TEXTS = st.lists(ATOMS, max_size=40).map("".join)


def pieced(pieces: list[str], **options: str) -> str:
    return "".join(clean_pieces(pieces, **options))


def test_ordinary_prose_stays_as_it_is():
    assert clean(PROSE) == PROSE
    assert pieced(list(PROSE)) == PROSE
    assert clean_utterance(PROSE) == PROSE


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("zero\u200bwidth \ufefftext so\u00adft\u200e \u2066here\u2069\x00\ufe0f", "zerowidth text soft here"),
        ("don´t, 5′ 6″, ＡＢＣ１２, ﬁne, 𝐛𝐨𝐥𝐝, Ⅳ, ①", "don't, 5' 6\", ABC12, fine, bold, IV, 1"),
        ("a\u00a0b\u2009c\u3000d", "a b c d"),
        ("a\vb\fc\x1cd\x1fe\u2028f", "a\nb\nc\nd e\nf"),
        ("non\u2011breaking, −5", "non-breaking, -5"),
        ("a\u200db می\u200cشود क्\u200dष 👩\u200d💻", "ab می\u200cشود क्\u200dष 👩💻"),
        ("Τι κάνεις\u037e", "Τι κάνεις?"),
    ],
)
def test_invisible_characters_and_look_alikes(written, spoken):
    assert clean(written) == clean(written, "characters") == spoken
    assert pieced(list(written)) == spoken


@pytest.mark.parametrize("line", ["***", "* * *", "---", "- - -", "___", "=====", "~~~", "⁂", "  ***  ", "—————"])
def test_a_separator_is_the_end_of_a_paragraph(line):
    assert clean(f"It ended.\n{line}\nIt began.") == "It ended.\n\nIt began."
    assert pieced(list(f"It ended.\n{line}\nIt began.")) == "It ended.\n\nIt began."
    assert clean(line).strip() == ""


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**bold**, *it*, ***both***, __under__, _line_, ~~gone~~", "bold, it, both, under, line, gone"),
        ("这是**重点**内容。", "这是重点内容。"),
        ("# Title\nText", "Title\n\nText"),
        ("Text.\n## Title\nMore", "Text.\n\nTitle\n\nMore"),
        ("- item\n* other\n+ third\n• fourth", "item\nother\nthird\nfourth"),
        ("> - quoted", "quoted"),
        (r"\*so\* it is, 1\. C:\home, \$5", r"so it is, 1. C:\home, $5"),
        ("- [x] done\n- [ ] open", "done\nopen"),
        ("`code` and don`t", "code and don't"),
        ("See [the text](https://x.org/a_(b)) ![a picture](y.png).", "See the text a picture."),
        ("<p>One <b>two</b></p><br/>AT&amp;T &lt; 5", "\n\nOne two\n\n\nAT&T < 5"),
        ("Mail <me@x.org> or <https://x.org>.", "Mail me@x.org or https://x.org."),
        ("```python\nx\n```\nend", "\nx\n\nend"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b\n\n1, 2"),
        ("It ended. * * * It began.", "It ended. \n\n It began."),
        (
            '<?xml version="1.0"?><speak xml:lang="en">Hi <break time="2s"></break>you</speak>',
            'Hi <break time="2s">you',
        ),
    ],
)
def test_markup_is_dropped(written, spoken):
    assert clean(written) == spoken
    assert clean(written, "characters") == clean(written, "none") == written


def test_what_is_no_markup_stays():
    for text in (
        '[pause:2s] <break time="2s"/>',
        "[laugh] Hi",
        "Enter <name> here",
        "5*3, 2**10",
        "<haha> yes",
        "a<b and c>d",
    ):
        assert clean(text) == text


def test_marks_of_a_language():
    assert clean("Τι κάνεις; Καλά· ναι.", language="el") == "Τι κάνεις? Καλά, ναι."
    assert clean("one; two", language="el") == "one; two"
    assert clean("यह है|", language="hi") == "यह है।"
    assert clean("مـــرحبا", language="ar") == "مرحبا"
    assert pieced(list("Τι κάνεις; Καλά."), language="el") == "Τι κάνεις? Καλά."


def test_halves_of_a_character_are_joined(caplog):
    assert clean("\ud83d\ude00", "none") == clean("\ud83d\ude00") == "😀"
    assert pieced(["Hi \ud83d", "\ude00."]) == "Hi 😀."
    assert not caplog.records


@pytest.mark.parametrize("cleaning", ["full", "characters", "none"])
def test_a_lone_half_is_left_out_with_a_warning_that_says_where(cleaning, caplog):
    with caplog.at_level(logging.WARNING, logger="chatterbox"):
        assert clean("caf\udce9 secret", cleaning) == "caf secret"
    (record,) = caplog.records
    assert "1 bytes or halves" in record.getMessage() and "the first at 3" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert pieced(["a\ud83d", "b"], cleaning=cleaning) == "ab"


@pytest.mark.parametrize("cleaning", ["full", "none"])
def test_lone_halves_in_pieces_are_told_of_once(cleaning, caplog):
    assert pieced(["ab", "c\udce9", "\udce9d", "\ud83d"], cleaning=cleaning) == "abcd"
    (record,) = caplog.records
    assert "the first at 3" in record.getMessage()


@given(TEXTS)
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    assert clean(once) == once


@given(TEXTS, st.lists(st.integers(0, 200), max_size=6))
def test_pieces_do_not_depend_on_where_they_were_cut(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert pieced(pieces) == pieced([text]) == pieced(list(text))


def test_only_the_start_of_a_line_is_held_back():
    assert list(clean_pieces(["Hello", " world", ".\n*", " *", " *\n", "**B", "old**"])) == [
        *("Hello", " world", ".\n", "", "\n", "**B", "old**"),
        "",
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("*" * 200_000, "<b" * 100_000, "[a](" * 50_000, "&amp;" + "amp;" * 50_000, "[[" * 40_000 + "a](b)" * 40_000),
        *("<!--" * 50_000, "- " * 100_000, "`a" * 100_000, "=\n" * 100_000, "\u200d" * 200_000),
    ],
    ids=lambda text: text[:5],
)
def test_time_grows_with_the_length_alone(text):
    started = time.perf_counter()
    assert clean(clean(text)) == clean(text)
    assert time.perf_counter() - started < 30  # some hundredths of a second; were it quadratic, minutes
