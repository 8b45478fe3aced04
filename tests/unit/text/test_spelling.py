"""Characters that a vocabulary lacks."""

from __future__ import annotations

import string

import pytest

from chatterbox.text.spelling import fitted

ASCII = set(string.ascii_letters + string.digits + " .,!?'\"-()")


def lacks(char: str) -> bool:
    return char not in ASCII


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("café, cafe\u0301, Zürich, Ørsted, Łódź, Straße, Æther", "cafe, cafe, Zurich, Orsted, Lodz, Strasse, Aether"),
        ("„Ja“ «oui» [no] ５ ٣", '"Ja" "oui" (no) 5 3'),
        ("what？ yes！ a、b。 ؟", "what? yes! a,b. ?"),
        ("Hello 😀 there 🙂.", "Hello there."),
        ("😀 Hello", "Hello"),
        ("and/or", "and or"),
        ("♪ ♪", ""),
        ("我 ok", "我 ok"),  # a letter that nothing looks like is for the tokenizer to call unknown
    ],
)
def test_the_nearest_that_there_is(text, spelled):
    assert fitted(text, lacks) == spelled


def test_what_the_vocabulary_has_stays():
    assert fitted("Ünïcode 😀", lambda char: False) == "Ünïcode 😀"
    assert fitted("cafe\u0301", lambda char: char not in ASCII | {"é"}) == "café"
    assert fitted("cafe\u0301 😀", lambda char: char not in ASCII | {"é", "\u0301"}) == "cafe\u0301"
