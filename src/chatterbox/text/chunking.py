"""A finished text becomes utterances of bounded length.

Owns: where an over-long sentence is cut, and how sentences fill utterances.
Does not know: what a token is (``length`` counts them), text that is still arriving.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from chatterbox.text.sentences import CJK, CLOSERS, CONJUNCTIONS, sentence_spans

Length = Callable[[str], int]
FRAGMENT_WORDS = 2  # so short that it is spoken with its neighbour

_UNSPACED = re.compile(rf"[{CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # with Thai, Lao, Burmese, Khmer
_CLOSE = f"[{re.escape(CLOSERS)}]*"
_NOT_FIRST = "、。，．！？；：」』）】》〉〕］・ー々ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ…"
_CUT = re.compile(
    rf"""
    (?P<strong> (?:[;:!?…؛]|\.\.+){_CLOSE}\s+ | [。！？；：।॥؟]+{_CLOSE}\s* | \s+[—–-]+\s+ | \s*—+\s* | \s*\n\s* )
    | (?P<clause> [,،]{_CLOSE}\s+ | [、，]{_CLOSE}\s* | (?<=[)\]}}])\s+ | \s+(?=[(\[{{]) )
    | (?P<after_stop> (?<=\.)\s+ )
    | (?P<conjunction> \s+(?=(?:{"|".join(sorted(CONJUNCTIONS))})\s) )
    | (?P<space> \s+ | (?<=[\u3041-\u3096])(?=[\u30a1-\u30fa\u4e00-\u9fff]) )
    | (?P<character> (?<=[{CJK}])(?=[{CJK}])(?![{_NOT_FIRST}]) )
    """,
    re.VERBOSE,
)
# What a cut costs, against its squared distance from the place of balance in parts. A space behind a full stop inside
# a sentence is an abbreviation's.
_COSTS = {"strong": 0.0, "clause": 0.03, "conjunction": 0.1, "space": 0.2, "character": 0.3, "after_stop": 0.5}


class Part(NamedTuple):
    """``text[start:end]``, without spaces around it, of ``num_tokens``."""

    start: int
    end: int
    num_tokens: int


def split_text(text: str, max_len: int, length: Length, *, by_sentence: bool = False) -> list[str]:
    """Utterances of at most ``max_len`` tokens; together they hold every word of ``text`` in order.

    A text that fits is one utterance. Of a longer one, sentences fill as few utterances as they can, alike in length.
    Only a sentence of more than ``max_len`` is cut: at the best boundary of a clause, else of a word, else of a
    character. What has neither letter nor digit is spoken with its neighbour or dropped; nothing speakable gives [].

    Args:
        length: number of text tokens of a string; called about twice a sentence, and for a long one twice a part.
        by_sentence: each sentence is an utterance, one of a word or two joined to the next.

    Raises:
        ValueError: ``max_len`` is not a positive whole number, or less than a single character's tokens.
    """
    check_max_len(max_len)
    text = text.strip()
    if not has_words(text):
        return []
    total = length(text)
    if total <= max_len and not by_sentence:
        return [text]
    parts = [part for start, end in _speakable_spans(text) for part in bounded(text, max_len, length, start, end)]
    if by_sentence:
        joined = _join_fragments(text, parts, max_len, length)
    else:
        joined = _pack(text, parts, max_len, length, total)
    return [text[part.start : part.end] for part in joined]


def check_max_len(max_len: int) -> None:
    if not isinstance(max_len, int) or isinstance(max_len, bool) or max_len < 1:
        raise ValueError(f"max_len must be a whole number from 1, got {max_len!r}; give the tokens of one utterance")


def has_words(text: str) -> bool:
    """Whether anything of ``text`` can be spoken."""
    return any(map(str.isalnum, text))


def is_fragment(text: str) -> bool:
    """Whether ``text`` is a word or two; scripts without spaces count two characters a word."""
    num_words = sum(map(has_words, text.split())) + len(_UNSPACED.findall(text)) // 2
    return num_words <= FRAGMENT_WORDS


def bounded(text: str, max_len: int, length: Length, start: int = 0, end: int | None = None) -> list[Part]:
    """``text[start:end]`` in as many parts as ``max_len`` asks for, alike in length, without those without a word.

    Raises:
        ValueError: a single character has more than ``max_len`` tokens.
    """
    start, end = _stripped(text, start, len(text) if end is None else end)
    if not has_words(text[start:end]):
        return []
    num_tokens = length(text[start:end])
    if num_tokens <= max_len:
        return [Part(start, end, num_tokens)]
    if end - start == 1:
        raise ValueError(f"max_len={max_len} is less than the {num_tokens} tokens of {text[start:end]!r}; give more")
    at = start + best_cut(text[start:end], -(-num_tokens // max_len))
    return bounded(text, max_len, length, start, at) + bounded(text, max_len, length, at, end)


def best_cut(text: str, num_parts: int) -> int:
    """Where to cut ``text``, of at least two characters, so that half of ``num_parts`` parts lie on each side."""
    part_len = len(text) / num_parts
    target = part_len * (num_parts // 2)

    def cost(match: re.Match[str]) -> float:
        assert match.lastgroup is not None
        return ((match.end() - target) / part_len) ** 2 + _COSTS[match.lastgroup]

    cuts = [match for match in _CUT.finditer(text) if 0 < match.end() < len(text)]
    return min(cuts, key=cost).end() if cuts else _cut_in_word(text, round(target))


def _cut_in_word(text: str, target: int) -> int:
    """The place next to ``target`` that parts no letter from its marks; 1 at least, len(text) - 1 at most."""
    target = min(max(target, 1), len(text) - 1)
    nearby = range(max(1, target - 16), min(len(text), target + 17))
    whole = [at for at in nearby if not _continues(text[at]) and text[at - 1] != "\u200d"]
    return min(whole, key=lambda at: abs(at - target), default=target)


def _continues(char: str) -> bool:
    """Combining marks, joiners and skin tones belong to the character before them."""
    return unicodedata.category(char).startswith("M") or char == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff"


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the spaces at its ends."""
    span = text[start:end]
    return start + len(span) - len(span.lstrip()), start + len(span.rstrip())


def _speakable_spans(text: str) -> list[tuple[int, int]]:
    """Sentences; what has no word belongs to the one before it, or to the first."""
    spans: list[tuple[int, int]] = []
    speakable = False  # the last span
    for start, end in sentence_spans(text):
        has = has_words(text[start:end])
        if spans and not (has and speakable):
            spans[-1] = (spans[-1][0], end)
            speakable = speakable or has
        else:
            spans.append((start, end))
            speakable = has
    return spans


def _join_fragments(text: str, parts: list[Part], max_len: int, length: Length) -> Iterator[Part]:
    """Parts of a word or two joined to the next where both fit."""
    held: Part | None = None
    for part in parts:
        if held is not None:
            num_tokens = length(text[held.start : part.end])
            if num_tokens <= max_len:
                part = Part(held.start, part.end, num_tokens)
            else:
                yield held
        held = part if is_fragment(text[part.start : part.end]) else None
        if held is None:
            yield part
    if held is not None:
        yield held


def _pack(text: str, parts: list[Part], max_len: int, length: Length, total: int) -> Iterator[Part]:
    """As few groups of neighbours as fit, and of those divisions the one with the most even lengths.

    Lengths of groups are sums, corrected by what a join costs on average (a space, a token of the start), and each
    chosen group is measured; one that turns out longer is halved.
    """
    sums = list(accumulate((part.num_tokens for part in parts), initial=0))
    per_join = min(1.0, (total - sums[-1]) / max(1, len(parts) - 1))
    best: list[tuple[int, float, int]] = [(0, 0.0, 0)]  # number of groups, sum of squares, start of the last group
    for stop in range(1, len(parts) + 1):
        choices = []
        for first in range(stop - 1, -1, -1):
            num_tokens = sums[stop] - sums[first] + per_join * (stop - first - 1)
            if num_tokens > max_len and first < stop - 1:
                break
            choices.append((best[first][0] + 1, best[first][1] + num_tokens**2, first))
        best.append(min(choices))
    stops = [len(parts)]
    while stops[-1] > 0:
        stops.append(best[stops[-1]][2])
    for first, stop in pairwise(reversed(stops)):
        yield from _measured(text, parts[first:stop], max_len, length)


def _measured(text: str, parts: list[Part], max_len: int, length: Length) -> list[Part]:
    """``parts`` as one, or halved until they fit."""
    if len(parts) == 1:
        return parts
    start, end = parts[0].start, parts[-1].end
    num_tokens = length(text[start:end])
    if num_tokens <= max_len:
        return [Part(start, end, num_tokens)]
    middle = len(parts) // 2
    return _measured(text, parts[:middle], max_len, length) + _measured(text, parts[middle:], max_len, length)
