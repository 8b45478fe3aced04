"""English text to T3's text tokens.

Owns: the BPE file and the marks around it (spaces, start, stop), that a text cannot name these marks, and which
punctuation rules its model was driven with; the caller applies them. Does not know that start and stop ids are padded
on later: what comes out is the text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chatterbox.runtime.notice import Notice
from chatterbox.runtime.replaceable import call
from chatterbox.text.normalize import ENGLISH, PunctuationRules
from chatterbox.text.spelling import fitted
from chatterbox.upstream_names import names_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__getattr__ = names_of(__name__)

SOT = "[START]"
EOT = "[STOP]"
UNK = "[UNK]"
SPACE = "[SPACE]"
SPECIAL_TOKENS = [SOT, EOT, UNK, SPACE, "[PAD]", "[SEP]", "[CLS]", "[MASK]"]

_MARK = re.compile(r"\[\S+\]|<\|.*\|>")
LACKING = (
    "a text has letters that this model's vocabulary lacks, and what it says for them is noise; write them in its "
    "letters, or speak them with a model that knows the language"
)
SEAM = "\ue000"  # of private use: where a mark is parted, so that it is no token


def part_marks(text: str, marks: Iterable[str]) -> str:
    """``text`` with a `SEAM` behind the first signs of each of ``marks`` that stands in it."""
    text = text.replace(SEAM, "")
    found = [mark for mark in marks if mark in text]
    if not found:
        return text
    return _any_of(found).sub(lambda mark: _parted(mark.group()), text)


def _parted(mark: str) -> str:
    at = max(1, len(mark) - len(mark.lstrip("[<|")))
    return mark[:at] + SEAM + mark[at:]


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Matches each of ``marks``, as a group, so that `split` keeps them."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(marks, key=len, reverse=True)))})")


class EnTokenizer:
    """BPE over text whose spaces are written ``[SPACE]``; no lower-casing.

    Called with the text alone, it does what upstream's does. ``exact=False`` spells marks that stand in the text, and
    what the vocabulary lacks in characters that it has.
    """

    rules: PunctuationRules = ENGLISH
    num_published = 704  # ids; a fine-tune's own marks have others
    spells_numbers = False  # whether the model was trained on numbers in words alone

    def __init__(self, vocab_file_path: str | Path) -> None:
        """Read ``tokenizer.json``.

        Raises:
            ValueError: the file is missing, is no tokenizer, or lacks the start or stop token.
        """
        from tokenizers import Tokenizer

        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(vocab_file_path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{vocab_file_path} is not a readable tokenizer file ({error})") from None
        self.check_vocabset_sot_eot()
        self._known: dict[str, bool] = {}  # characters that were looked up
        self._lacking = Notice(LACKING)

    def check_vocabset_sot_eot(self) -> None:
        vocabulary = self.tokenizer.get_vocab()
        for token in (SOT, EOT):
            if token not in vocabulary:
                raise ValueError(f"the tokenizer's vocabulary lacks {token}; it is not one of a Chatterbox model")

    @property
    def largest_id(self) -> int:
        return max(self.tokenizer.get_vocab().values())

    def text_to_tokens(self, text: str, *, exact: bool = True) -> Tensor:
        """(1, S) int32 ids of ``text``, without start and stop."""
        return torch.tensor([call(self.encode, {}, {"exact": exact}, text)], dtype=torch.int32)

    def encode(self, txt: str, *, exact: bool = True) -> list[int]:
        return self._ids(txt) if exact else self._ids_of_parts(part_marks(txt, self._marks()))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.replace(" ", SPACE)).ids

    def _ids_of_parts(self, text: str) -> list[int]:
        """Ids of a text with its marks parted; all but marks in characters that the vocabulary has."""
        pieces = _any_of(mark.content for mark in self._added().values()).split(text)
        pieces[::2] = (self._fitted(words) for words in pieces[::2])
        return [one for part in "".join(pieces).split(SEAM) for one in self._ids(part)]

    def _fitted(self, words: str) -> str:
        text = fitted(words, self._lacks)
        self._lacking.is_due = any(map(self._lacks, set(text)))
        self._lacking.tell()
        return text

    def _added(self) -> dict[int, Any]:
        return self.tokenizer.get_added_tokens_decoder()

    def _marks(self) -> list[str]:
        """Tokens that no text may name: the published ones; what a fine-tune has added are its own."""
        marks = (mark.content for id_, mark in self._added().items() if id_ < self.num_published)
        return [mark for mark in marks if _MARK.fullmatch(mark)]

    def _lacks(self, char: str) -> bool:
        """Whether the vocabulary has no token for a character."""
        if char not in self._known:
            unknown = self.tokenizer.token_to_id(UNK)
            self._known[char] = char == SEAM or unknown is None or unknown not in self._ids(char)
        return not self._known[char]

    def decode(self, seq: Tensor | Sequence[int]) -> str:
        """Text of (S,) ids; unknown and stop tokens vanish."""
        ids = seq.tolist() if isinstance(seq, Tensor) else list(seq)
        text = self.tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
        for token, written in ((SPACE, " "), (EOT, ""), (UNK, "")):
            text = text.replace(token, written)
        return text
