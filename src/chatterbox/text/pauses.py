"""Silence that a text asks for: pause tags, and the breaks between its paragraphs.

Owns: what a pause looks like in a text, whole or in pieces. Does not know: sentences, samples.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MAX_SECONDS = 60.0  # of one pause; a longer one is cut with a warning

_TIME = r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>ms|s)"
_PAUSE = re.compile(rf"\[pause\s*:\s*{_TIME}\s*\]", re.IGNORECASE)
_BREAK = re.compile(
    rf"""<break(?=[\s/>])(?:\s+time\s*=\s*(?P<quote>["']?){_TIME}(?P=quote)(?=[\s/>])"""
    r"""|\s+strength\s*=\s*(?P<quote2>["']?)(?P<strength>[a-z-]+)(?P=quote2)(?=[\s/>])){0,2}\s*/?>""",
    re.IGNORECASE,
)
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.75, "x-strong": 1.0}
_TAGS = {"[": ("[pause", "]", _PAUSE), "<": ("<break", ">", _BREAK)}
_MAX_TAG_LEN = 64


@dataclass(frozen=True)
class Pause:
    """Silence between words: of ``seconds``; None is a paragraph's end."""

    seconds: float | None


PARAGRAPH = Pause(None)


class PauseScanner:
    """Takes a text in pieces of any size and hands out what is to be spoken, and the pauses between.

    A tag is ``[pause:2s]``, ``[pause:500ms]``, or SSML's ``<break time="2s"/>``, ``<break strength="weak"/>``; of both
    attributes the time counts. What only looks like one is text. A paragraph's end is an empty line.
    """

    def __init__(self) -> None:
        self._held = ""  # what may become a tag
        self._line_is_empty = False  # nothing but spaces since the last line's end

    def read(self, piece: str) -> Iterator[str | Pause]:
        """What ``piece`` completes, in order: strings, not stripped, and pauses."""
        run: list[str] = []
        for char in piece:
            for found in self._take(char):
                if isinstance(found, str):
                    run.append(found)
                    continue
                if run:
                    yield "".join(run)
                    run.clear()
                yield found
        if run:
            yield "".join(run)

    def finish(self) -> str:
        """What was held back; the scanner is then as new."""
        held, self._held, self._line_is_empty = self._held, "", False
        return held

    def _take(self, char: str) -> Iterator[str | Pause]:
        if self._held:
            held = self._held + char
            name, end, tag = _TAGS[held[0]]
            lowered = held.lower()
            if char == end and (match := tag.fullmatch(held)):
                self._held, self._line_is_empty = "", False
                yield Pause(_seconds(match))
                return
            goes_on = len(held) <= _MAX_TAG_LEN and char not in (end, "\n", *_TAGS)
            if goes_on and (name.startswith(lowered) or lowered.startswith(name)):
                self._held = held
                return
            yield self.finish()
        if char in _TAGS:
            self._held = char
        elif char != "\n":
            self._line_is_empty = self._line_is_empty and char.isspace()
            yield char
        elif self._line_is_empty:
            yield PARAGRAPH
        else:
            self._line_is_empty = True
            yield char


def bounded_pause(seconds: float) -> float:
    """``seconds``, or the longest pause there is, with a warning."""
    if seconds > MAX_SECONDS:
        logger.warning("a pause of %g s is cut to %g s, the longest there is", seconds, MAX_SECONDS)
    return min(seconds, MAX_SECONDS)


def _seconds(match: re.Match[str]) -> float:
    groups = match.groupdict()
    if groups["number"] is None:
        return _STRENGTHS.get((groups["strength"] or "").lower(), _STRENGTHS["medium"])
    return float(groups["number"]) / (1000 if groups["unit"].lower() == "ms" else 1)
