"""Text to the text tokens of Turbo and Nano: the GPT-2 tokenizer of the checkpoint folder.

Owns: how it is read, offline, what is checked of it, and which marks in a text act. Does not know: punctuation rules'
application, length limits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox.models.tokenizers.tokenizer import SEAM, SPECIAL_TOKENS, part_marks
from chatterbox.runtime.replaceable import call
from chatterbox.text.normalize import TURBO, PunctuationRules


class TurboTokenizer:
    """transformers' own tokenizer, as ``tokenizer``; no marks around the text.

    ``exact=False`` spells the tokenizer's own marks (``<|endoftext|>``) that stand in a text. Those that the model
    speaks, [laugh] and its like, always act.
    """

    rules: PunctuationRules = TURBO
    spells_numbers = False  # whether the model was trained on numbers in words alone

    def __init__(self, vocab_file_path: str | Path) -> None:
        """Read the tokenizer files beside ``vocab_file_path`` (``vocab.json``, ``merges.txt``, settings if any).

        Raises:
            ValueError: a file is missing or is no tokenizer's.
        """
        from transformers import AutoTokenizer

        folder = Path(vocab_file_path).parent
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises what its parsers raise
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{folder} holds no readable tokenizer ({reason}); download it again") from None
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' call, for programs that tokenize by themselves."""
        return self.tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        """Whatever else transformers' tokenizer has."""
        if name.startswith("__") or "tokenizer" not in self.__dict__:  # of copies and pickles that are being made
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    @property
    def largest_id(self) -> int:
        return max(self.tokenizer.get_vocab().values())

    def text_to_tokens(self, text: str, *, exact: bool = True) -> Tensor:
        """(1, S) int32 ids of ``text``; none is cut off, however long it is."""
        return torch.tensor([call(self.encode, {}, {"exact": exact}, text)], dtype=torch.int32)

    def encode(self, txt: str, *, exact: bool = True) -> list[int]:
        text = txt if exact else part_marks(txt, filter(_is_control, self.tokenizer.get_added_vocab()))
        parts = [text] if exact else text.split(SEAM)
        return [one for part in parts for one in self.tokenizer.encode(part, truncation=False, verbose=False)]

    def decode(self, seq: Tensor | Sequence[int]) -> str:
        """Text of (S,) ids."""
        text = self.tokenizer.decode(torch.as_tensor(seq).tolist(), skip_special_tokens=True)
        assert isinstance(text, str)  # a list only of a batch
        return text


def _is_control(token: str) -> bool:
    return token in SPECIAL_TOKENS or re.fullmatch(r"\[.+\]", token) is None
