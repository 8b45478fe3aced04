"""Text that is still being written becomes utterances as soon as they are complete.

Owns: when an utterance of an unfinished text is complete.
Does not know: where the pieces come from, what a token is (``length`` counts them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from chatterbox.text.chunking import Length, best_cut, bounded, check_max_len, has_words, is_fragment, split_text
from chatterbox.text.sentences import CLOSERS, SentenceScanner, is_cjk

# Tokens from which a clause of an unfinished sentence is spoken by itself, if it is the first utterance; twice as many
# later, when there is something to listen to. With a token a character this is ten words or three seconds, with
# longer tokens more: enough for a melody, and longer to hear than a language model takes to write the next clause.
EARLY_LEN = 50

_CLOSE = f"[{re.escape(CLOSERS)}]*"
_CLAUSE_END = re.compile(rf"(?:[,;:،؛]{_CLOSE}|\s[—–-]+|[)\]}}])\s\Z|\n\Z")
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
            TypeError: the piece is not a string.
            ValueError: a single character has more than ``max_len`` tokens.
        """
        if not isinstance(piece, str):
            raise TypeError(f"pieces of text must be strings, got {type(piece).__name__}; decode or join them first")
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


def utterances(text: str | Iterable[str], max_len: int, length: Length, *, by_sentence: bool = False) -> Iterator[str]:
    """Utterances of a text, or of one that arrives in pieces; each is yielded before the next piece is asked for.

    Args:
        by_sentence: as for `split_text`; a text in pieces is always spoken by sentences.

    Raises:
        TypeError: the text, or a piece of it, is not a string.
        ValueError: as for `split_text`.
    """
    check_max_len(max_len)
    if isinstance(text, str):
        return iter(split_text(text, max_len, length, by_sentence=by_sentence))
    if not isinstance(text, Iterable) or isinstance(text, bytes | bytearray):
        raise TypeError(f"text must be a string or an iterable of strings, got {type(text).__name__}; pass the words")
    return _from_pieces(text, SentenceFeed(max_len, length))


def _from_pieces(pieces: Iterable[str], feed: SentenceFeed) -> Iterator[str]:
    for piece in pieces:
        yield from feed.read(piece)
    yield from feed.finish()
