"""Text tokenizers."""

from chatterbox.models.tokenizers.multilingual import MTLTokenizer
from chatterbox.models.tokenizers.tokenizer import EnTokenizer

__all__ = ["EnTokenizer", "MTLTokenizer"]
