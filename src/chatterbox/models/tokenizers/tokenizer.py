"""English text to T3's text tokens.

Owns: the BPE file and the marks around it (spaces, start, stop), and which punctuation rules its model was driven with;
the caller applies them. Does not know that start and stop ids are padded on later: what comes out is the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chatterbox.text.normalize import ENGLISH, PunctuationRules
from chatterbox.upstream_names import names_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__getattr__ = names_of(__name__)

SOT = "[START]"
EOT = "[STOP]"
UNK = "[UNK]"
SPACE = "[SPACE]"
SPECIAL_TOKENS = [SOT, EOT, UNK, SPACE, "[PAD]", "[SEP]", "[CLS]", "[MASK]"]


class EnTokenizer:
    """BPE over text whose spaces are written ``[SPACE]``; no lower-casing."""

    rules: PunctuationRules = ENGLISH

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

    def check_vocabset_sot_eot(self) -> None:
        vocabulary = self.tokenizer.get_vocab()
        for token in (SOT, EOT):
            if token not in vocabulary:
                raise ValueError(f"the tokenizer's vocabulary lacks {token}; it is not one of a Chatterbox model")

    @property
    def largest_id(self) -> int:
        return max(self.tokenizer.get_vocab().values())

    def text_to_tokens(self, text: str) -> Tensor:
        """(1, S) int32 ids of ``text``, without start and stop."""
        return torch.tensor([self.encode(text)], dtype=torch.int32)

    def encode(self, txt: str) -> list[int]:
        return self.tokenizer.encode(txt.replace(" ", SPACE)).ids

    def decode(self, seq: Tensor | Sequence[int]) -> str:
        """Text of (S,) ids; unknown and stop tokens vanish."""
        ids = seq.tolist() if isinstance(seq, Tensor) else list(seq)
        text = self.tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
        for token, written in ((SPACE, " "), (EOT, ""), (UNK, "")):
            text = text.replace(token, written)
        return text
