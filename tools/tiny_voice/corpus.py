"""Training text for the embedded voice: natural-looking English sentences, made from a grammar and a word list.

Owns the sentence generator and the two fixed evaluation sets. Knows nothing of speech, phones or models. All text is
a pure function of (count, seed); a larger count extends a smaller one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from chatterbox.text.in_words import in_words

from .lexicon import Lexicon, lexicon, read_lines, read_sections

MAX_CHARS = 110
EVALUATION_SETS = ("everyday", "names", "unusual", "numbers", "long", "known", "unseen")
RANDOM_SHARE = 0.2  # of the sentences: unrelated words, so that every word form occurs
RARE_SHARE = 0.7  # of the words of a word list
DICTIONARY = Path("/usr/share/dict/american-english-large")  # Debian's wamerican-large, of the SCOWL lists
_SPELLABLE = re.compile(r"[A-Za-z][a-z]{1,15}")
_SLOT = re.compile(r"\{([^}]+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=([A-Za-z']+|\d+))")
_LIKE_CONSONANT = re.compile(r"(?i)(uni(?!m|n)|use|usual|util|euro|one\b|once\b|ewe)")
_LIKE_VOWEL = re.compile(r"(?i)(hour|honest|honor|heir|herb)")
_NAME, _FIGURE = re.compile("<name>"), re.compile(r"<([a-z ]+)>")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")


def evaluation_set(name: str) -> list[str]:
    """Held-out texts: one of EVALUATION_SETS.

    Forty of each of the first five; `known` are 60 sentences of words in the word list, `unseen` 20 with 1 to 3 words
    in each that no training text has.
    """
    if name not in EVALUATION_SETS:
        raise ValueError(f"evaluation set {name!r} does not exist: use one of {', '.join(EVALUATION_SETS)}")
    return read_lines(f"eval_{name}.txt")


@cache
def held_out() -> frozenset[str]:
    """The texts of all evaluation sets: none is ever made."""
    return frozenset(text for name in EVALUATION_SETS for text in evaluation_set(name))


def words_of(sentence: str) -> list[str]:
    """The lower-case words of a sentence, without numbers; contractions stay whole, a possessive 's is dropped."""
    words = [word.lower() for word in _WORD.findall(sentence)]
    whole = _contractions()
    return [word if word in whole else word.removesuffix("'s") for word in words]


def sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences of at most MAX_CHARS characters, none of them in an evaluation set.

    One in five is three to nine unrelated words. Every slot draws from a shuffled pack of its words which is
    reshuffled only when empty, so rare words occur as often as common ones.
    """
    return _distinct(count, "sentences", _Writer(random.Random(seed), lexicon()).sentence)


def word_lists(count: int, seed: int) -> list[str]:
    """`count` distinct texts of three to seven unrelated words, most of them words that no sentence uses.

    They teach spelling beyond the vocabulary of the sentences; none of them holds a word of the `unseen` set.
    """
    return _distinct(count, "word lists", _Writer(random.Random(seed), lexicon()).word_list)


def dictionary_lists(count: int, seed: int) -> list[str]:
    """`count` distinct texts of three to seven unrelated words of the dictionary, names among them.

    Every word occurs before any occurs again; none of the `unseen` set does.

    Raises RuntimeError without the dictionary.
    """
    return _distinct(count, "word lists", _Writer(random.Random(seed), lexicon()).dictionary_list)


def name_sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences about people and places, with names of the dictionary; errors as above."""
    return _distinct(count, "sentences", _Writer(random.Random(seed), lexicon()).name_sentence)


def number_sentences(count: int, seed: int) -> list[str]:
    """`count` distinct sentences with years, dates, times, telephone numbers, money and amounts, all in words."""
    return _distinct(count, "sentences", _Writer(random.Random(seed), lexicon()).number_sentence)


def short_texts(count: int, seed: int) -> list[str]:
    """`count` distinct texts of one to three words, as people type them to try a voice."""
    return _distinct(count, "texts", _Writer(random.Random(seed), lexicon()).short_text)


def _distinct(count: int, name: str, make: Callable[[], str]) -> list[str]:
    """`count` different texts that fit and are in no evaluation set, in the order they are made."""
    if count < 0:
        raise ValueError(f"count is {count}: ask for 0 or more {name}")
    made: dict[str, None] = {}
    while len(made) < count:
        text = make()
        if len(text) <= MAX_CHARS and text not in held_out():
            made[text] = None
    return list(made)


@cache
def rare_words() -> list[str]:
    """Less common words and names, none of them in the lexicon."""
    return " ".join(read_sections("rare.txt")["rare"]).split()


@cache
def dictionary() -> list[str]:
    """Words and names that a character tokenizer spells, without those of the `unseen` set that no sentence has."""
    try:
        lines = DICTIONARY.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise RuntimeError(f"{DICTIONARY} does not exist: apt-get install wamerican-large") from error
    known = {word.lower() for word in lexicon().vocabulary}
    unseen = {word for sentence in evaluation_set("unseen") for word in words_of(sentence)} - known
    stems = tuple(word[: max(4, len(word) - 3)] for word in sorted(unseen))
    return [word for word in lines if _SPELLABLE.fullmatch(word) and not word.lower().startswith(stems)]


@cache
def names() -> list[str]:
    """Those of the dictionary."""
    return [word for word in dictionary() if word[0].isupper()]


@cache
def _grammar() -> dict[str, list[str]]:
    return read_sections("grammar.txt")


@cache
def _contractions() -> frozenset[str]:
    return frozenset(word.lower() for word in lexicon().vocabulary if "'" in word)


class _Writer:
    """One stream of sentences: the generator, the grammar, and what is left of each shuffled pack."""

    def __init__(self, rng: random.Random, words: Lexicon):
        self.rng = rng
        self.forms = words.forms
        self.vocabulary = words.vocabulary
        self.packs: dict[str, list[str]] = {}

    def sentence(self) -> str:
        if self.rng.random() < RANDOM_SHARE:
            return self._random_words()
        text = self._expand(self._draw("sentence", _grammar()["sentence"]))
        text = _ARTICLE.sub(lambda m: m[1] + ("n " if _starts_with_vowel(m[2]) else " "), text)
        return text[0].upper() + text[1:]

    def _draw(self, key: str, options: list[str]) -> str:
        pack = self.packs.get(key)
        if not pack:
            pack = self.packs[key] = self.rng.sample(options, len(options))
        return pack.pop()

    def _expand(self, text: str) -> str:
        return _SLOT.sub(lambda slot: self._fill(slot[1]), text)

    def _fill(self, slot: str) -> str:
        """A word or phrase for {slot}; {Slot} capitalises it."""
        key = slot[0].lower() + slot[1:]
        number = self._number(key)
        if number:
            return number
        grammar = _grammar()
        text = self._expand(self.rng.choice(grammar[key])) if key in grammar else self._draw(key, self.forms[key])
        return text[0].upper() + text[1:] if key != slot else text

    def _number(self, key: str) -> str:
        rng = self.rng
        if key == "digits":
            return str(rng.randint(2, 30) if rng.random() < 0.6 else rng.randint(31, 999))
        if key == "clocks":
            return f"{rng.randint(1, 12)}:{5 * rng.randrange(11):02d}"
        if key == "dates":
            return str(rng.randint(1, 31))
        return str(rng.randint(1801, 1999)) if key == "years" else ""

    def word_list(self) -> str:
        rng, rare = self.rng, rare_words()
        return self._unrelated(
            [
                self._draw("rare", rare) if rng.random() < RARE_SHARE else self._draw("vocabulary", self.vocabulary)
                for _ in range(rng.randint(3, 7))
            ]
        )

    def dictionary_list(self) -> str:
        return self._unrelated([self._draw("dictionary", dictionary()) for _ in range(self.rng.randint(3, 7))])

    def name_sentence(self) -> str:
        return _NAME.sub(lambda _: self._draw("name", names()), self._filled("named"))

    def number_sentence(self) -> str:
        return in_words(_FIGURE.sub(lambda slot: self._figure(slot[1]), self._filled("counted")))

    def short_text(self) -> str:
        rng = self.rng
        if rng.random() < 0.4:
            return self._filled("short")
        words = [self._draw("vocabulary", self.vocabulary) for _ in range(rng.randint(1, 3))]
        return self._unrelated(words)

    def _filled(self, section: str) -> str:
        text = self._expand(self._draw(section, _grammar()[section]))
        return text[0].upper() + text[1:]

    def _figure(self, kind: str) -> str:
        rng = self.rng
        month = rng.choice(_MONTHS)
        amount = rng.choice((rng.randint(1, 99), rng.randint(100, 999), rng.randint(1000, 99_999)))
        return {
            "year": lambda: str(rng.choice((rng.randint(1700, 1999), rng.randint(2000, 2039)))),
            "date": lambda: f"{month} {rng.randint(1, 31)}",
            "full date": lambda: f"{month} {rng.randint(1, 31)}, {rng.randint(1900, 2030)}",
            "clock": lambda: f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d}",
            "phone": lambda: f"{rng.randint(200, 999)}-{rng.randint(200, 999)}-{rng.randint(0, 9999):04d}",
            "digits": lambda: " ".join(rng.choices("0123456789", k=rng.randint(3, 6))),
            "money": lambda: f"${amount}" if rng.random() < 0.5 else f"${rng.randint(1, 99)}.{rng.randint(1, 99):02d}",
            "amount": lambda: f"{amount:,}",
            "decimal": lambda: f"{rng.randint(0, 99)}.{rng.randint(1, 9)}",
            "percent": lambda: f"{rng.randint(1, 100)}%",
            "ordinal": lambda: f"{rng.randint(1, 99)}th",
            "measure": lambda: f"{rng.randint(2, 900)} {rng.choice(('km', 'kg', 'cm', 'mph', 'miles', 'ml'))}",
        }[kind]()

    def _random_words(self) -> str:
        return self._unrelated([self._draw("vocabulary", self.vocabulary) for _ in range(self.rng.randint(3, 9))])

    def _unrelated(self, words: list[str]) -> str:
        """The words as a sentence, with a comma here and there."""
        rng, last = self.rng, len(words) - 1
        text = " ".join(word + ("," if i < last and rng.random() < 0.08 else "") for i, word in enumerate(words))
        return text[0].upper() + text[1:] + rng.choices(".?!", (8, 1, 1))[0]


def _starts_with_vowel(word: str) -> bool:
    if word[0].isdigit():
        return word[0] == "8" or word in ("11", "18")
    if _LIKE_VOWEL.match(word):
        return True
    return word[0].lower() in "aeiou" and not _LIKE_CONSONANT.match(word)
