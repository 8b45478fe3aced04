"""Sentences of many languages, utterances of bounded length, and text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox.text import SentenceFeed, split_sentences, split_text
from chatterbox.text import utterances as paused_utterances
from chatterbox.text.incremental import EARLY_LEN

# What decides where a text is divided, in pieces that hypothesis strings together.
ATOMS = st.sampled_from(
    [
        *"aIZé7 \n.,!?…:;—-\"'»)“」。！？、，।؟我行かカ😀\u0301\u200d",
        "\n\n",
        ". ",
        "... ",
        "Dr. ",
        "U.S. ",
        "The ",
        "3. Mai ",
        " and ",
        "word ",
        "Hm. ",
        "supercalifragilistic",
        "He said. ",
        "They went, ",
    ]
)
TEXTS = st.lists(ATOMS, max_size=80).map("".join)
LENGTHS = st.sampled_from(
    [len, lambda text: 2 * len(text) + 3, lambda text: len(text.split()), lambda text: len(text) // 3]
)


def utterances(*arguments, **options) -> Iterator[str]:
    return (one.text for one in paused_utterances(*arguments, **options))


class Counting:
    """Half the characters, rounded up; counts what it is asked."""

    def __init__(self) -> None:
        self.calls = self.characters = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        self.characters += len(text)
        return (len(text) + 1) // 2


def spoken(parts: list[str] | str) -> str:
    """Letters and digits in order."""
    return "".join(char for part in parts for char in part if char.isalnum())


def fed(text: str, max_len: int, cuts: list[int] | None = None) -> list[str]:
    """What a feed makes of ``text`` cut at ``cuts``; by default after every character."""
    edges = [0, *sorted(cuts), len(text)] if cuts is not None else range(len(text) + 1)
    feed = SentenceFeed(max_len, len)
    done = [utterance for a, b in pairwise(edges) for utterance in feed.push(text[a:b])]
    return done + feed.finish()


@pytest.mark.parametrize(
    "sentences",
    [
        ["One."],
        ["no end at all"],
        ["a"],
        ["One.", "Two!", "Three?", "Four?!", "Five!!!"],
        ["Dr. Who met Mr. Smith and Mrs. Jones vs. St. John.", "Fine."],
        ["J. R. R. Tolkien wrote it.", "So did I.", "George W. Bush did not."],
        ["It is big in the U.S. Army.", "It is small in the U.S.", "The end."],
        ["We met at 5 p.m. on Monday.", "He left at 6 a.m.", "Then it rained."],
        ["Fruit, e.g. apples, i.e. food.", "No. 5 is alive.", "I said no.", "See Fig. 3 on p. 12.", "Done."],
        ["Apples, pears etc. are fruit.", "We sell apples, pears, etc.", "Come in."],
        ["It costs 3.50 today.", "Version 2.10.1 is out.", "In 1990.", "Up 1,000.5%!"],
        ["I am 5.", "You are 61.", "Louis XIV.", "Vitamin C.", "It helps."],
        ["Wait... what?", "Fine...", "Well… maybe.", "Hm…", "Then he left."],
        ['He said "go!"', "Then he left."],
        ['"Stop!" he said.', "“Why?” she asked.", "(Yes.)", "[No.]", "**Bold.**", "Then."],
        ["Look at https://x.org/?q=a.b!c and main.py.", "Mail me@x.org.", "Or www.x.org."],
        ["Line one.", "Line two"],
        ["A title", "A paragraph that is\nwrapped.", "Another"],
        ["1. First of all.", "2. Second.", "3. Third."],
        ["i went home.", "then i slept."],
        ["Hello .", "World !"],
        ["Wait . . . what?", "He [...] left (he said?) early.", "He (no!) came...", "1.) One.", "2.) Two."],
        ["See N°. 7 and pág. 3.", "It is 3. 5. 2024 today.", "They meet in Sept. 2024."],
        ["I watch the BBC.", "Hmm.", "Yes."],
        ["Dr.  Spaced   out.", "Yahoo it."],
        ["Great 😀 work.", "😀 Yes."],
        ["Das ist z.B. gut, d.h. nicht schlecht.", "Am 3. Mai kam Hr. Dr. Müller.", "Er kam bzw. ging."],
        ["Im 19. Jahrhundert war das so.", "Er sagte „Nein.“", "Dann ging er.", "»Gut.«", "Ende usw.", "Ja."],
        ["Il dit « Non ! » et part.", "M. Dupont vient.", "Quoi ?", "Oui !"],
        ["Это т.е. верно.", "А. С. Пушкин, проф. Иванов и т.д. и т.п.", "Да."],
        ["네.", "알겠습니다.", "안녕!"],
    ],
)
def test_sentences_with_spaces(sentences):
    separator = "\n\n" if "A title" in sentences else " "
    assert split_sentences(f"  {separator.join(sentences)} \n") == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["第一。", "第二！", "第三？", "完了"],
        ["他说：“你好。”", "“再见！”", "然后走了……", "真的吗？！", "是。"],
        ["「行こう。」と彼は言った。", "「はい！」", "でも、行かなかった。"],
        ["版本3.5很好。", "价格是1,000元！", "看《摔跤吧！爸爸》好吗？", "好吗?", "好!", "再见"],
        ["यह एक है।", "वह दो हैं।", "तीन"],
    ],
)
def test_sentences_without_spaces(sentences):
    assert split_sentences("".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["डॉ. शर्मा आए।", "क्या वे बैठे?", "हाँ।"],
        ["هل أنت هنا؟", "نعم، أنا هنا.", "د. أحمد هنا!", "شكرا"],
        ["کیا آپ ہیں؟", "جی ہاں۔", "ٹھیک"],
    ],
)
def test_sentences_of_other_scripts(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("text", ["", "  \n\n\t ", "\n" * 500])
def test_whitespace_has_no_sentences(text):
    assert split_sentences(text) == []


@given(TEXTS)
def test_sentences_lose_nothing_and_part_no_word(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    starts = [at for at in range(1, len(text)) if re.fullmatch(r"[a-z]{2}", text[at - 1 : at + 1])]
    inside = {text[:at].replace(" ", "").replace("\n", "") for at in starts}
    heads = {"".join("".join(sentences[:n]).split()) for n in range(1, len(sentences))}
    assert heads.isdisjoint(inside)


@pytest.mark.parametrize("text", ["", " \n", "...", "?! --", "😀", "😀" * 10_000, "* * *\n\n---", "。！？"])
@pytest.mark.parametrize("by_sentence", [False, True])
def test_nothing_to_speak(text, by_sentence):
    assert split_text(text, 20, len, by_sentence=by_sentence) == []
    assert fed(text, 20) == []


@pytest.mark.parametrize("text", ["a", "7", "我", "One. Two! Three?", "Dr. Who?\n\nYes.", "Well, 😀 yes 😀"])
def test_a_text_that_fits_is_one_utterance(text):
    assert split_text(f" {text}\n", 30, len) == [text]


def test_sentences_fill_utterances_evenly():
    sentences = [f"This is sentence {n}." for n in "abcdefg"]  # 19 tokens each, 20 with the space
    assert [len(part) for part in split_text(" ".join(sentences), 120, len)] == [59, 79]  # not 119 and 19
    assert [len(part) for part in split_text(" ".join(sentences), 45, len)] == [19, 39, 39, 39]
    assert split_text(" ".join(sentences), 19, len) == sentences


@given(st.lists(st.integers(1, 12), min_size=1, max_size=14), st.integers(14, 60))
def test_utterances_are_as_few_as_can_be(word_counts, max_len):
    sentences = ["W" + "w" * count + "." for count in word_counts]
    greedy, room = 0, -1
    for sentence in sentences:  # filling each in turn is the fewest
        room -= len(sentence) + 1
        if room < 0:
            greedy, room = greedy + 1, max_len - len(sentence)
    assert len(split_text(" ".join(sentences), max_len, len)) == greedy


def test_one_sentence_an_utterance_but_for_fragments():
    text = "Hm. This is a sentence. Well now. Yes! And this is another one. Over and out now. Ok."
    parts = ["Hm. This is a sentence.", "Well now. Yes!", "And this is another one.", "Over and out now.", "Ok."]
    assert split_text(text, 100, len, by_sentence=True) == parts
    assert split_text("Hm. This is it, really.", 20, len, by_sentence=True) == ["Hm.", "This is it, really."]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("we went to the old town; then we all came back", ["we went to the old town;", "then we all came back"]),
        ("we went to the old town, then we all came back", ["we went to the old town,", "then we all came back"]),
        ("we went to the town – then we all came back", ["we went to the town –", "then we all came back"]),
        ("we went to the town—then we all came back", ["we went to the town—", "then we all came back"]),
        ("we went to the old town (it is far) on foot", ["we went to the old town", "(it is far) on foot"]),
        ("we all went to town and then we came back", ["we all went to town", "and then we came back"]),
        ("wir gingen in die Stadt weil es dort schön war", ["wir gingen in die Stadt", "weil es dort schön war"]),
        ("one two three four five six seven eight", ["one two three four", "five six seven eight"]),
        ("we asked Dr. Smith and Mr. Brown the way", ["we asked Dr. Smith", "and Mr. Brown the way"]),
        ("pay 1,000,000 or 2,000,000 at 10:30:00", ["pay 1,000,000", "or 2,000,000 at 10:30:00"]),
        (
            "我们昨天去了老城里面，然后我们一起走回来了再睡觉的",
            ["我们昨天去了老城里面，", "然后我们一起走回来了再睡觉的"],
        ),
        (
            "私は昨日友達と一緒に古い町へ行きましたが雨が降りました",
            ["私は昨日友達と一緒に古い町へ", "行きましたが雨が降りました"],
        ),
        ("incomprehensibilitiesandotherwords", ["incomprehensibili", "tiesandotherwords"]),
    ],
)
def test_a_long_sentence_is_cut_at_its_best_boundary(text, parts):
    max_len = max(map(len, parts)) + 2
    assert len(text) > max_len
    assert split_text(text, max_len, len) == parts


def test_marks_stay_with_their_letters():
    parts = split_text("e\u0301" * 99, 20, len)
    assert "".join(parts) == "e\u0301" * 99 and all(part.startswith("e") for part in parts)
    family = "a👩\u200d👩\u200d👧"
    parts = split_text(family * 30, 17, len)
    assert "".join(parts) == family * 30 and not any("\u200d" in (part[0], part[-1]) for part in parts)


@given(TEXTS, st.integers(5, 60), LENGTHS, st.booleans())
def test_utterances_are_bounded_and_lose_no_word(text, max_len, length, by_sentence):
    parts = split_text(text, max_len, length, by_sentence=by_sentence)
    assert spoken(parts) == spoken(text)
    assert all(part == part.strip() and spoken(part) and length(part) <= max_len for part in parts)
    words = [word for word in text.split() if spoken(word)]
    if all(length(word) <= max_len and word.isascii() for word in words):
        assert [word for part in parts for word in part.split() if spoken(word)] == words


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000,
        "word " * 2000,
        "漢字かなカナ" * 1700,
        "One. " * 2000,
        "a, " * 3334,
        "Dr. " * 2500,
        "あ。" * 5000,
        "1. " * 3333,
        "! " * 5000 + "a",
        '." ' * 3333 + "a",
        "x" + "\n" * 10_000 + "y",
    ],
    ids=lambda text: f"{text[:6]!r}",
)
def test_ten_thousand_characters_are_measured_a_few_times(text):
    whole, pieces = Counting(), Counting()
    parts, from_pieces = split_text(text, 100, whole), list(utterances(iter(text), 100, pieces))
    assert spoken(parts) == spoken(from_pieces) == spoken(text)
    assert all(length <= 100 for length in map(Counting(), parts + from_pieces))
    num_sentences = len(split_sentences(text))
    assert whole.calls <= 2 * (num_sentences + len(parts)) + 20 and whole.characters <= 12 * len(text)
    assert pieces.calls <= 10 * len(from_pieces) + 2 and pieces.characters <= 12 * len(text)


@given(TEXTS, st.integers(1, 50), st.data())
def test_pieces_give_the_same_utterances_however_they_are_cut(text, max_len, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    utterances_of = fed(text, max_len)
    assert fed(text, max_len, cuts) == fed(text, max_len, []) == utterances_of
    assert spoken(utterances_of) == spoken(text)
    assert all(part == part.strip() and spoken(part) and len(part) <= max_len for part in utterances_of)


@pytest.mark.parametrize(
    "steps",
    [
        [("Hello there, world.", []), (" ", ["Hello there, world."])],
        [
            ("Hi. ", ["Hi."]),
            ("Hm. ", []),
            ("Well. ", []),
            ("Let us go. ", ["Hm. Well. Let us go."]),
            ("Ok. ", []),
            (None, ["Ok."]),
        ],
        [("Dr. Who is in the U.S. ", []), ("The", []), (" ", ["Dr. Who is in the U.S."]), (None, ["The"])],
        [("He went home at 5 p.m. ", []), ("Bob ", []), ("saw. ", ["He went home at 5 p.m. Bob saw."])],
        [("We met on 3. ", []), ("Mai", []), (" and left. ", ["We met on 3. Mai and left."])],
        [("A long title", []), ("\n", []), ("\n", ["A long title"]), ("Text of it\n\n", ["Text of it"])],
        [
            ("你好。", []),
            ("我", ["你好。"]),
            ("们都很好！”", []),
            ("他们都说再见", ["我们都很好！”"]),
            (None, ["他们都说再见"]),
        ],
        [('"Stop it now!" ', []), ("he said. ", ['"Stop it now!" he said.'])],
        [("... ", []), ("😀! ", []), ("Yes. ", ["... 😀! Yes."]), ("😀", []), (None, [])],
        [("", []), ("  ", []), ("x", []), ("", []), (None, ["x"])],
    ],
)
def test_an_utterance_comes_as_soon_as_it_is_certain(steps):
    feed = SentenceFeed(200, len)
    for piece, complete in steps:
        assert (feed.finish() if piece is None else feed.push(piece)) == complete


def test_a_long_clause_is_spoken_before_its_sentence_ends():
    clause = "they all went down to the old harbour by the sea"
    assert EARLY_LEN < len(f"Now, then, {clause},") < 2 * EARLY_LEN < len(f"and, {clause}, {clause},")
    feed = SentenceFeed(400, len)
    assert feed.push("Now, then, ") == []
    assert feed.push(clause) == [] and feed.push(",") == []
    assert feed.push(" ") == [f"Now, then, {clause},"]
    assert feed.push(f"and, {clause}, ") == []  # the first is being spoken
    assert feed.push(f"{clause}, ") == [f"and, {clause}, {clause},"]
    assert feed.push("and back. ") == []  # a fragment
    assert feed.push("It was late. ") == ["and back. It was late."]


def test_a_sentence_without_end_is_handed_out_in_parts():
    feed = SentenceFeed(50, len)
    done = [utterance for _ in range(300) for utterance in feed.push("word ")]
    assert len(done) >= 30 and {word for part in done for word in part.split()} == {"word"}
    assert len("".join(done).split()) and sum(len(part.split()) for part in [*done, *feed.finish()]) == 300


def test_a_finished_feed_is_as_new():
    feed = SentenceFeed(50, len)
    for _ in range(2):
        assert feed.push("Hm. And") == ["Hm."] and feed.finish() == ["And"] and feed.finish() == []


def test_utterances_come_before_the_next_piece_is_asked_for():
    asked = []

    def pieces():
        for piece in ("One is", " here. Two", "", " are here. Three"):
            asked.append(piece)
            yield piece

    spoken_parts = utterances(pieces(), 100, len)
    assert asked == []
    assert next(spoken_parts) == "One is here." and len(asked) == 2
    assert next(spoken_parts) == "Two are here." and len(asked) == 4
    assert list(spoken_parts) == ["Three"]


def test_a_long_piece_is_read_as_far_as_its_first_utterance():
    length = Counting()
    assert next(utterances(["Here is one of many sentences. " * 1000], 100, length)) == "Here is one of many sentences."
    assert length.calls == 1


def test_utterances_of_a_text_are_those_of_split_text():
    text = "This is one. This is two."
    assert list(utterances(text, 100, len)) == [text]
    assert list(utterances(text, 100, len, by_sentence=True)) == ["This is one.", "This is two."]
    assert list(utterances([], 100, len)) == list(utterances(["", " "], 100, len)) == []


@pytest.mark.parametrize(("piece", "name"), [(None, "NoneType"), (7, "int"), (b"bytes", "bytes")])
def test_pieces_must_be_strings(piece, name):
    parts = utterances(["Hello there, you. ", piece], 100, len)
    assert next(parts) == "Hello there, you."
    with pytest.raises(TypeError, match=f"must be strings, got {name}; decode or join"):
        next(parts)


@pytest.mark.parametrize(("text", "name"), [(None, "NoneType"), (7, "int"), (b"bytes", "bytes")])
def test_text_must_be_text_or_pieces(text, name):
    with pytest.raises(TypeError, match=f"string or an iterable of strings, got {name}"):
        utterances(text, 100, len)


@pytest.mark.parametrize("max_len", [0, -3, 2.5, True, None])
def test_max_len_must_be_a_positive_whole_number(max_len):
    for call in (split_text, utterances, lambda _, max_len, length: SentenceFeed(max_len, length)):
        with pytest.raises(ValueError, match=f"whole number from 1, got {max_len!r}"):
            call("text", max_len, len)


def test_a_character_must_fit():
    with pytest.raises(ValueError, match="max_len=2 is less than the 4 tokens of 'a'; give more"):
        split_text("abc", 2, lambda text: 4 * len(text))
    with pytest.raises(ValueError, match="give more"):
        SentenceFeed(2, lambda text: 4 * len(text)).push("abc. ")
