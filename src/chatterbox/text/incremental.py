"""Text that is still being written becomes utterances as soon as they are complete.

Owns: when an utterance of an unfinished text is complete.
Does not know: where the pieces come from, what a token is (``length`` counts them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from chatterbox.text.chunking import Length, best_cut, bounded, check_max_len, has_words, is_fragment, split_text
from chatterbox.text.pauses import PARAGRAPH, Pause, PauseScanner, bounded_pause
from chatterbox.text.sentences import CLOSERS, SentenceScanner, is_cjk

# Tokens from which a clause of an unfinished sentence is spoken by itself, if it is the first utterance; twice as many
# later, when there is something to listen to. With a token a character this is ten words or three seconds, with
# longer tokens more: enough for a melody, and longer to hear than a language model takes to write the next clause.
EARLY_LEN = 50

_CLOSE = f"[{re.escape(CLOSERS)}]*"
_CLAUSE_END = re.compile(rf"(?:[,;:،؛]{_CLOSE}|\s[—–-]+|[)\]}}])\s\Z|\n\Z")
_LEFT_BY_TAG = re.compile(r"\A(?:[\s,;:!?)\]}]|\.(?!\d))+")  # of the words before it: [pause:1s], and so on
_UNSPACED_CLAUSE_END = re.compile(rf"[、，；：]{_CLOSE}\Z")


class SentenceFeed:
    """Takes a text in pieces and hands out its utterances.

    An utterance is complete at a certain sentence end, at a paragraph's end, or, from `EARLY_LEN` tokens (twice
    that after the first, half of ``max_len`` at most), at the end of a clause. One of a word or two waits for the next,
    unless it is the first. Characters are read one by one, so that the utterances depend on the text and not on how it
    was cut.
    """

    def __init__(self, max_len: int, length: Length) -> None:
        """
        Args:
            max_len: tokens of an utterance at most.
            length: number of text tokens of a string; called a few times an utterance.

        Raises:
            ValueError: ``max_len`` is not a positive whole number.
        """
        check_max_len(max_len)
        self._max_len = max_len
        self._length = length
        self._probe_step = max(8, max_len // 2)  # characters, between two looks at the length of an endless sentence
        self._reset()

    def push(self, piece: str) -> list[str]:
        """Utterances that ``piece``, of any length, completes.

        Raises: as `read`.
        """
        return list(self.read(piece))

    def read(self, piece: str) -> Iterator[str]:
        """`push`, one utterance at a time: the rest of the piece is read when the next is asked for.

        Raises:
            ValueError: a single character has more than ``max_len`` tokens.
        """
        for char in piece:
            yield from self._take(char)

    def finish(self) -> list[str]:
        """The rest of the text; the feed is then as new."""
        done = self.push("\n\n")  # a paragraph's end decides whatever was open
        done += self._hand_out(len(self._open))
        self._reset()
        return done

    def _reset(self) -> None:
        self._open = ""  # read and not handed out; begins with no space
        self._scanner = SentenceScanner()
        self._spoke = False
        self._look_again()

    def _take(self, char: str) -> list[str]:
        if not self._open and char.isspace():
            return []
        self._open += char
        end = self._scanner.see(self._open, len(self._open) - 1)
        if end is not None:
            held = self._open[:end]
            return [] if not has_words(held) or (self._spoke and is_fragment(held)) else self._hand_out(end)
        end = self._clause_end(char)
        if end is not None and self._is_early(end):
            return self._hand_out(end)
        return self._relieve() if len(self._open) >= self._probe_at else []

    def _clause_end(self, char: str) -> int | None:
        """Where a clause has ended that may be long enough, now that ``char`` has been read."""
        if self._scanner.candidate is not None or len(self._open) < self._early_at:
            return None
        if char.isspace():
            return len(self._open) if _CLAUSE_END.search(self._open[-16:]) else None
        if is_cjk(char) and _UNSPACED_CLAUSE_END.search(self._open[-16:-1]):
            return len(self._open) - 1
        return None

    def _is_early(self, end: int) -> bool:
        """Whether a clause that ends here is long enough to be spoken now."""
        missing = self._early_len - self._length(self._open[:end].rstrip())
        self._early_at = end + missing  # a character seldom has more than one token: no need to count before
        return missing <= 0

    def _relieve(self) -> list[str]:
        """Hand out half of a sentence that has outgrown ``max_len``; forget what has no word."""
        if not has_words(self._open):
            return self._hand_out(len(self._open))
        num_tokens = self._length(self._open)
        if num_tokens > self._max_len and len(self._open) > 1:
            return self._hand_out(best_cut(self._open, -(-num_tokens // self._max_len)))
        self._probe_at = len(self._open) + self._probe_step
        return []

    def _hand_out(self, end: int) -> list[str]:
        parts = bounded(self._open, self._max_len, self._length, 0, end)
        done = [self._open[part.start : part.end] for part in parts]
        rest = self._open[end:].lstrip()
        self._scanner.rebase(len(self._open) - len(rest))
        self._open = rest
        self._spoke = self._spoke or bool(done)
        self._look_again()
        return done

    def _look_again(self) -> None:
        """Lengths of the open text from which its tokens are counted: at the end of a clause, and anywhere."""
        self._early_len = min(EARLY_LEN * (2 if self._spoke else 1), self._max_len // 2)
        self._early_at = self._early_len
        self._probe_at = self._probe_step


class Utterance(NamedTuple):
    """What is spoken in one piece, behind ``pause`` seconds of silence; without words it is the silence alone."""

    text: str
    pause: float = 0.0


def utterances(
    text: str | Iterable[str],
    max_len: int,
    length: Length,
    *,
    by_sentence: bool = False,
    paragraph_pause: float | None = None,
    tidy: Callable[[str], str] | None = None,
) -> Iterator[Utterance]:
    """Utterances of a text, or of one that arrives in pieces; each is yielded before the next piece is asked for.

    Args:
        by_sentence: as for `split_text`; a text in pieces is always spoken by sentences.
        paragraph_pause: seconds between two paragraphs, 0 joins them; None also takes pause tags for words.
        tidy: of a text in pieces, what is left to do for the words of an utterance; pauses may come to light by it.

    Raises:
        TypeError: the text, or a piece of it, is not a string.
        ValueError: as for `split_text`.
    """
    check_max_len(max_len)
    breaks = _Breaks(paragraph_pause)
    if isinstance(text, str):
        return iter(_of_string(text, breaks, lambda words: split_text(words, max_len, length, by_sentence=by_sentence)))
    if not is_in_pieces(text):
        raise TypeError(f"text must be a string or an iterable of strings, got {type(text).__name__}; pass the words")
    return _from_pieces(text, breaks, SentenceFeed(max_len, length), tidy)


def is_in_pieces(text: object) -> bool:
    """Whether it may be a text's pieces; it does not tell what they are."""
    return isinstance(text, Iterable) and not isinstance(text, bytes | bytearray) and getattr(text, "ndim", 1) > 0


class _Breaks:
    """The pauses of a text, added up until words follow."""

    def __init__(self, paragraph_pause: float | None) -> None:
        self._paragraph_pause = paragraph_pause
        self._scanner = PauseScanner()
        self._is_paragraph = self._spoke = False
        self._seconds: float | None = None

    def read(self, piece: str) -> Iterator[str | Pause]:
        """Words, and pauses where they end for one; those are to be given to `add` behind the words before."""
        if self._paragraph_pause is None:
            yield piece
            return
        for found in self._scanner.read(piece):
            yield "\n" if found == PARAGRAPH and not self._paragraph_pause else found

    def finish(self) -> str:
        """Words that were held back."""
        return self._scanner.finish()

    def within(self, words: str) -> Iterator[Utterance]:
        """Utterances of words that are complete, and may hold pauses."""
        whole, run = _Breaks(self._paragraph_pause), ""
        for part in (*whole.read(words), whole.finish(), None):
            if isinstance(part, str):
                run += part
                continue
            if has_words(run):
                yield self.before(run.strip())
            run = ""
            if part is not None:
                self.add(part)

    def add(self, pause: Pause) -> None:
        if pause.seconds is None:
            self._is_paragraph = True
        else:
            self._seconds = bounded_pause((self._seconds or 0.0) + pause.seconds)

    def before(self, text: str) -> Utterance:
        """The next utterance, behind the pauses since the last one. A tag counts in place of a paragraph's end."""
        pause = self._seconds
        if pause is not None:
            text = _LEFT_BY_TAG.sub("", text) or text
        else:
            pause = (self._paragraph_pause or 0.0) if self._is_paragraph and self._spoke and text else 0.0
        self._seconds, self._is_paragraph, self._spoke = None, False, True
        return Utterance(text, pause)

    def rest(self) -> list[Utterance]:
        """The silence that ends the text, if there is some."""
        silence = self.before("")
        return [silence] if silence.pause else []


def _of_string(text: str, breaks: _Breaks, split: Callable[[str], list[str]]) -> list[Utterance]:
    found: list[Utterance] = []
    run: list[str] = []
    for part in (*breaks.read(text), breaks.finish(), PARAGRAPH):
        if isinstance(part, str):
            run.append(part)
            continue
        found += map(breaks.before, split("".join(run)))
        run.clear()
        breaks.add(part)
    found += breaks.rest()
    is_one = len(found) == 1 and found[0].text == text.strip()
    return [Utterance(text)] if is_one else found  # as it is: punctuation rules see its spaces


def _from_pieces(
    pieces: Iterable[str], breaks: _Breaks, feed: SentenceFeed, tidy: Callable[[str], str] | None
) -> Iterator[Utterance]:
    def spoken(found: Iterable[str]) -> Iterator[Utterance]:
        for words in found:
            yield from breaks.within(tidy(words)) if tidy else [breaks.before(words)]

    for piece in pieces:
        if not isinstance(piece, str):
            raise TypeError(f"pieces of text must be strings, got {type(piece).__name__}; decode or join them first")
        for part in breaks.read(piece):
            yield from spoken(feed.read(part) if isinstance(part, str) else feed.finish())
            if isinstance(part, Pause):
                breaks.add(part)
    yield from spoken(feed.read(breaks.finish()))
    yield from spoken(feed.finish())
    yield from breaks.rest()
