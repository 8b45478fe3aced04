"""Text tokenizers."""

from typing import Protocol

from torch import Tensor

from chatterbox.models.tokenizers.multilingual import MTLTokenizer
from chatterbox.models.tokenizers.tokenizer import EnTokenizer
from chatterbox.models.tokenizers.turbo import TurboTokenizer
from chatterbox.text.normalize import PunctuationRules

__all__ = ["EnTokenizer", "MTLTokenizer", "TextTokenizer", "TurboTokenizer"]


class TextTokenizer(Protocol):
    """What a pipeline asks of a tokenizer. That of several languages takes a ``language_id`` behind the text.

    One that has an argument ``exact`` gets False where the text was cleaned; ``spells_numbers``, where there is one,
    says that numbers are to be given in words.
    """

    rules: PunctuationRules

    @property
    def largest_id(self) -> int: ...

    def text_to_tokens(self, text: str) -> Tensor:
        """(1, S) ids of ``text``, without start and stop."""
