"""Text as people and language models write it becomes text that can be spoken.

Owns: invisible and look-alike characters, halves of characters, markup, separators; for a whole text and for one that
is still being written. Does not know: languages but for their marks, tokens, where sentences end.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable, Iterator
from functools import cache
from unicodedata import category, normalize

logger = logging.getLogger(__name__)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SURROGATE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_ALIKE = {
    **dict.fromkeys(_SPACES, " "),
    "\u2028": "\n",
    "\u2029": "\n\n",
    **dict.fromkeys("\v\f\x1c\x1d\x1e\u0085", "\n"),  # ends of lines, pages, records
    "\x1f": " ",
    **dict.fromkeys("´′ʹʼˈ‵＇", "'"),
    **dict.fromkeys("″‶＂", '"'),
    **dict.fromkeys("‐‑﹣－−⁃", "-"),
    "‒": "–",
    "―": "—",
    "\u037e": "?",  # the Greek question mark
}
# Letters and digits in other dress: full width, ligatures, of mathematics, in circles, Roman numerals.
_DRESSED = (
    (0x2100, 0x2109),
    (0x2160, 0x2180),
    (0x2460, 0x24F0),
    (0xFB00, 0xFB07),
    (0xFF10, 0xFF1A),
    (0xFF21, 0xFF3B),
    (0xFF41, 0xFF5B),
    (0x1D400, 0x1D800),
)
_KEPT_MARKS = "\u200c\u200d"  # joiners, which some scripts are spelt with
_INVISIBLE_RANGES = ((0xFE00, 0xFE10), (0xE0000, 0xE0200))  # variation selectors, tags
_PLAIN = re.compile(r"[\t\n\r -~\u00a1-\u00ac\u00ae-\u00b3\u00b5-\u02b8\u2013\u2014\u2018-\u201f\u2026]*\Z")
_LONE_JOINER = re.compile(
    r"(?<![\u0600-\u08ff\u0900-\u0dff\u0e00-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefe])[\u200c\u200d]"
)
# Marks of a language that mean something else in others, by what they mean.
_LANGUAGE_MARKS = {
    "el": (
        (re.compile(r"(?<=[\u0370-\u03ff\u1f00-\u1fff»”\"')]);"), "?"),
        (re.compile("(?<=[\u0370-\u03ff\u1f00-\u1fff])[·\u0387]"), ","),
    ),
    "hi": ((re.compile(r"(?<=[\u0900-\u0963\u0966-\u097f ])\|"), "।"),),
    "ar": ((re.compile("\u0640"), ""),),  # tatweel, which only stretches a word
}

_MARKERS = re.compile(r"[ \t\r>#*+\-_=~•‣▪◦●–—⁂`]*")  # what a line may begin with before its words
_SEPARATOR = re.compile(r"\s*(?:([*\-_=~#+•–—])(?:[ \t]*\1){2,}|⁂)\s*\Z")
_PREFIX = re.compile(r"[ \t]*(?:>[ \t]?|#{1,6}[ \t]+|[-*•‣▪◦●][ \t]+|\+[ \t]+(?!\d))")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_TABLE_RULE = re.compile(r"[\s|:-]+\Z")

_HINT = re.compile(r"[*_~`<\[&\\]|^[ \t]*[>#+•‣▪◦●|⁂=–—-]", re.MULTILINE)
_STARS = re.compile(r"(?:(?<=\s)|\A)(?:\*[ \t]*){3,}(?=\s|\Z)")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_COMMENT = re.compile(r"<!--(?:(?!-->|<!--).){0,500}-->|<\?xml[^<>]{0,200}\?>", re.DOTALL)
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9-]{0,15})(\s[^<>]{0,500})?/?>")
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w.-]{1,255})>")
_LINK = re.compile(
    r"!?\[([^\[\]\n]{0,500})\]\((?:[^()\s]|\([^()\s]{0,200}\)){0,2000}(?:[ \t]+[\"'][^\"'\n]{0,200}[\"'])?\)"
)
_CHECKBOX = re.compile(r"(?<!\S)\[[ xX]\][ \t]+")
_ESCAPE = re.compile(r"\\(?=[!-/:-@\[-`{-~])")  # before a sign that is meant as it is
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])`(?=[^\W\d_])")
_EMPHASIS = re.compile(r"\*+|_+|~~+|`+")
_TAGS_IN_LINE = _names(
    """a abbr audio b big center cite code del dfn em emphasis font i img input ins kbd label lang mark phoneme prosody
    q s samp say-as small span speak strike strong sub sup tt u var video voice"""
)
_TAGS_OF_LINES = _names(
    """article aside blockquote body button caption dd details div dl dt figcaption figure footer form h1 h2 h3 h4 h5
    h6 head header hr html iframe li link main meta nav ol p pre section sentence summary table tbody td tfoot th thead
    title tr ul"""
)
_PASSES = 8  # so often markup may stand within markup
_ALL_MARKUP = str.maketrans("", "", "*_~`<>[]&|#")


def clean(text: str, cleaning: str = "full", *, language: str | None = None) -> str:
    """``text`` as it is spoken. Ordinary prose stays as it is; cleaning twice changes nothing more.

    A line of ``***``, ``---`` or the like becomes an empty one: the end of a paragraph.

    Args:
        cleaning: "full"; "characters" leaves markup; "none" only joins halves of characters.
        language: code of the text's language, whose own marks are then understood.
    """
    text = _joined(text)
    if cleaning == "none":
        return text
    text = _characters(text, language)
    return _settled(text, language, whole=True) if cleaning == "full" else text


def clean_utterance(text: str, language: str | None = None) -> str:
    """What is left of the markup in an utterance of a text that went through `clean_pieces`."""
    return _settled(text, language, whole=False)


def clean_pieces(pieces: Iterable[str], cleaning: str = "full", *, language: str | None = None) -> Iterator[str]:
    """Pieces of a text as `clean` makes the text, but for markup within lines, which is `clean_utterance`'s.

    One for each piece, without what cannot be told before more of the text is there: the start of a line that may be
    a separator, half a character. The text that they make together does not depend on how it was cut.
    """
    lines, half, previous = _Lines(), "", ""
    at, is_told = 0, False  # characters before the piece; whether halves were told of
    for piece in pieces:
        if not isinstance(piece, str):
            yield piece  # whoever reads says what is wrong with it
            continue
        piece = half + piece
        half = piece[-1:] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        written = piece[: len(piece) - len(half)]
        text = _joined(written, None if is_told else at)
        at, is_told = at + len(written), is_told or len(text) < len(_paired(written))
        if cleaning != "none":
            text = _characters(previous + text, language)[len(previous) :]
            read = previous + text
            previous = read[-2:] if read[-1:] in _KEPT_MARKS else read[-1:]  # a joiner counts with its letter alone
        yield lines.push(text) if cleaning == "full" else text
    rest = _joined(half, None if is_told else at)
    yield lines.finish() if cleaning == "full" else rest


def _joined(text: str, at: int | None = 0) -> str:
    """Halves of characters joined where they meet; others are left out, with a warning.

    ``at``: where the text stands in all of it, for the warning; None: it was given before.
    """
    joined = _paired(text)
    lone = [found.start() for found in _SURROGATE.finditer(joined)]
    if lone and at is not None:
        message = "%d bytes or halves of characters that are no text were left out of %d characters, the first at %d"
        logger.warning(message, len(lone), at + len(joined), at + lone[0])
    return _SURROGATE.sub("", joined)


def _paired(text: str) -> str:
    return _PAIR.sub(lambda pair: pair.group().encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _characters(text: str, language: str | None) -> str:
    """Without invisible characters, with the plain form of look-alikes."""
    if not _PLAIN.match(text):
        text = _LONE_JOINER.sub("", text.translate(_Table.of()))
    for mark, meant in _LANGUAGE_MARKS.get(language or "", ()):
        text = mark.sub(meant, text)
    return text


class _Table(dict[int, str | None]):
    """For `str.translate`: what a character becomes, looked up once."""

    @classmethod
    @cache
    def of(cls) -> _Table:
        return cls()

    def __missing__(self, code: int) -> str | None:
        self[code] = _plain(code)
        return self[code]


def _plain(code: int) -> str | None:
    char = chr(code)
    if char in _ALIKE:
        return _ALIKE[char]
    if any(low <= code < high for low, high in _DRESSED):
        return normalize("NFKC", char)
    kind = category(char)
    is_control = kind == "Cc" and not char.isspace()
    is_invisible = kind == "Cf" and char not in _KEPT_MARKS and not "\u0600" <= char <= "\u0605"
    if is_control or is_invisible or code == 0x34F or any(low <= code < high for low, high in _INVISIBLE_RANGES):
        return None
    return char


class _Lines:
    """Takes a text in pieces and gives it back without the markup that lines begin with or consist of.

    Only the start of a line is held back, until its first word says what it is; fences and rows of tables to their end.
    """

    def __init__(self) -> None:
        self._held: list[str] | None = []  # the start of a line; None: within one
        self._to_end = False  # the line is held to its end
        self._is_title, self._is_first = False, True

    def push(self, text: str) -> str:
        *lines, rest = text.split("\n")
        return "".join([*(self._take(line, is_over=True) for line in lines), self._take(rest, is_over=False)])

    def finish(self) -> str:
        """What is held back; there is no more."""
        return self._line("".join(self._held), is_over=True) if self._held else ""

    def _take(self, words: str, *, is_over: bool) -> str:
        done = ""
        if self._held is None:
            done = words
        elif is_over or not self._stays_open(words):
            done = self._line("".join([*self._held, words]), is_over=is_over)
            self._held = None
        else:
            self._held.append(words)
        if not is_over:
            return done
        done += "\n\n" if self._is_title else "\n"
        self._held, self._to_end, self._is_title, self._is_first = [], False, False, False
        return done

    def _stays_open(self, words: str) -> bool:
        if self._to_end:
            return True
        start = _MARKERS.match(words)
        assert start is not None and self._held is not None
        if start.end() == len(words):
            return True
        head = "".join(self._held) + words
        self._to_end = _FENCE.match(head) is not None or head.lstrip().startswith("|")
        return self._to_end

    def _line(self, line: str, *, is_over: bool) -> str:
        """A line, or as much of it as is there once its first word is."""
        if is_over and (_SEPARATOR.match(line) or _FENCE.match(line)):
            return ""
        if is_over and line.lstrip().startswith("|"):
            return "" if _TABLE_RULE.match(line) else ", ".join(filter(None, map(str.strip, line.split("|"))))
        at = 0
        while prefix := _PREFIX.match(line, at):
            self._is_title = self._is_title or "#" in prefix.group()
            at = prefix.end()
        return "\n" * (self._is_title and not self._is_first) + line[at:]


def _lines(text: str) -> str:
    lines = _Lines()
    return lines.push(text) + lines.finish()


def _settled(text: str, language: str | None, *, whole: bool) -> str:
    """Without markup, and what markup hid; what is wrapped in too much of it loses all its signs."""
    for attempt in range(2 * _PASSES):
        if not _HINT.search(text):
            return text
        if attempt == _PASSES:
            text = text.translate(_ALL_MARKUP)
        before, text = text, _within_lines(_lines(text) if whole else text)
        text = _characters(text, language)
        if text == before:
            break
    return text


def _within_lines(text: str) -> str:
    text = _STARS.sub("\n\n", _ESCAPE.sub("", text))
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found.group()), text)
    if "<" in text:
        text = _AUTOLINK.sub(r"\1", _TAG.sub(_without_tag, _COMMENT.sub("", text)))
    if "[" in text:
        text = _CHECKBOX.sub("", _LINK.sub(r"\1", text))
    return _EMPHASIS.sub(_without_emphasis, _APOSTROPHE.sub("'", text))


def _without_tag(found: re.Match[str]) -> str:
    name = found[1].lower()
    if found[2] and found[2].strip(" /") and "=" not in found[2]:  # a<b and c>d
        return found.group()
    if found.group().lower() == "</break>":  # of a pause, which is where it opens
        return ""
    if name in _TAGS_OF_LINES:
        return "\n\n"
    return "\n" if name == "br" else "" if name in _TAGS_IN_LINE else found.group()


def _without_emphasis(found: re.Match[str]) -> str:
    """Signs between two words or numbers (2 * 3), or within a plain one (5*3, snake_case), are no emphasis."""
    text, start, end = found.string, found.start(), found.end()
    before, after = text[start - 1 : start], text[end : end + 1]
    is_code = found.group().startswith("`")
    if not is_code and before.isspace() and after.isspace():
        return found.group()
    if not is_code and before.isalnum() and after.isalnum() and (before + after).isascii():
        return found.group()
    if found.group().startswith("_") and before.isalnum() and after.isalnum():
        return found.group()
    return ""
