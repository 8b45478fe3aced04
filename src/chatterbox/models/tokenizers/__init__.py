"""Text tokenizers."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from chatterbox.models.config import T3Config
from chatterbox.models.tokenizers.multilingual import MTLTokenizer
from chatterbox.models.tokenizers.tokenizer import EnTokenizer
from chatterbox.models.tokenizers.turbo import TurboTokenizer
from chatterbox.runtime.replaceable import call
from chatterbox.text.normalize import ENGLISH, MULTILINGUAL, TURBO, PunctuationRules

__all__ = ["EnTokenizer", "MTLTokenizer", "TextTokenizer", "TurboTokenizer", "rules_of", "tokens_by"]


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


def rules_of(hp: T3Config) -> PunctuationRules:
    """What a model of this kind was driven with."""
    if not hp.mark_text:
        return TURBO
    return MULTILINGUAL if hp.names_language else ENGLISH


def tokens_by(tokenizer: TextTokenizer, text: str, language: Mapping[str, str], *, exact: bool) -> Tensor:
    """(1, S) ids of ``text``. One of transformers, or what stands in its place, is called as upstream's Turbo calls it.

    ``language``: the argument that names it, where there is one. ``exact``: as upstream's tokenizers.

    Raises:
        TypeError: ``tokenizer`` is no tokenizer.
    """
    if callable(tokenizer) and not isinstance(tokenizer, TurboTokenizer):
        of_transformers = cast(Callable[..., Any], tokenizer)
        found: Tensor = of_transformers(text, return_tensors="pt")["input_ids"]
        return found
    if not hasattr(tokenizer, "text_to_tokens"):
        raise TypeError(
            f"the tokenizer, {type(tokenizer).__name__}, can neither be called nor has text_to_tokens; "
            "assign one of chatterbox.models.tokenizers or of transformers"
        )
    tokens: Tensor = call(tokenizer.text_to_tokens, language, {"exact": exact}, text)
    return tokens
