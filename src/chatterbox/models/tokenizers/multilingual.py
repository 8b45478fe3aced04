"""Text of 23 languages to T3's text tokens.

Owns: case, compatibility forms, the language mark. Does not know: what a language needs (`languages`), the BPE's own
marks (`tokenizer`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import torch
from torch import Tensor

from chatterbox.models.tokenizers.languages import check_language, lowered, preparer
from chatterbox.models.tokenizers.tokenizer import EnTokenizer, part_marks
from chatterbox.runtime.replaceable import call, replaceable, replacement
from chatterbox.text.normalize import MULTILINGUAL


class MTLTokenizer(EnTokenizer):
    """BPE over lower-case text with compatibility forms taken apart and the language in front, as ``[en]``."""

    rules = MULTILINGUAL
    num_published = 2454

    def __init__(self, vocab_file_path: str | Path) -> None:
        """Read the BPE file; the Chinese table is looked for beside it when Chinese first comes.

        Raises:
            ValueError: as `EnTokenizer`.
        """
        super().__init__(vocab_file_path)
        self.table_folder = Path(vocab_file_path).parent  # where the Chinese table is

    def has_language(self, code: str) -> bool:
        """Whether the vocabulary has the mark of a language."""
        return self.tokenizer.token_to_id(f"[{code}]") is not None

    @replaceable
    def preprocess_text(
        self, raw_text: str, language_id: str | None = None, lowercase: bool = True, nfkd_normalize: bool = True
    ) -> str:
        """What all languages have in common; ``language_id`` is accepted as upstream and changes nothing."""
        text = raw_text.lower() if lowercase else raw_text
        return normalize("NFKD", text) if nfkd_normalize else text

    def written(
        self,
        txt: str,
        language_id: str | None = None,
        lowercase: bool = True,
        nfkd_normalize: bool = True,
        *,
        exact: bool = True,
    ) -> str:
        """The text as the BPE sees it, but for its spaces. Not ``exact``: marks in the text are parted.

        Raises:
            ValueError: ``language_id`` is neither one of `languages.LANGUAGES` nor has the vocabulary its mark.
        """
        language = check_language(language_id, self.has_language)
        prepare = preparer(language, self.table_folder)
        if exact or replacement(self, "preprocess_text") is not None:
            text = prepare(self.preprocess_text(txt, language, lowercase, nfkd_normalize))
        else:
            text = self._in_order(txt, language, prepare)
        return text if language is None else f"[{language}]{text}"

    def _in_order(self, txt: str, language: str | None, prepare: Callable[[str], str]) -> str:
        """Case as the language has it; readings and marks of whole characters; then these taken apart."""
        text = lowered(normalize("NFKC", txt), language)
        if language == "he":  # its package was trained on characters taken apart, and orders the marks it adds
            return prepare(part_marks(normalize("NFKD", text), self._marks()))
        return normalize("NFKD", prepare(part_marks(text, self._marks())))

    def text_to_tokens(
        self,
        text: str,
        language_id: str | None = None,
        lowercase: bool = True,
        nfkd_normalize: bool = True,
        *,
        exact: bool = True,
    ) -> Tensor:
        """(1, S) int32 ids of ``text``, without start and stop; ``language_id`` None writes no language."""
        named = {"language_id": language_id, "lowercase": lowercase, "nfkd_normalize": nfkd_normalize}
        ids = call(self.encode, named, {"exact": exact}, text)
        return torch.tensor([ids], dtype=torch.int32)

    def encode(
        self,
        txt: str,
        language_id: str | None = None,
        lowercase: bool = True,
        nfkd_normalize: bool = True,
        *,
        exact: bool = True,
    ) -> list[int]:
        text = self.written(txt, language_id, lowercase, nfkd_normalize, exact=exact)
        return self._ids(text) if exact else self._ids_of_parts(text)
