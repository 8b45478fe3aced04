"""Text of any length, whole or in pieces, becomes utterances: what one call of the model speaks.

Owns: where sentences end (`sentences`), how they fill utterances (`packing`), and when an utterance of a text that is
still being written is complete (`feed`).
Does not know: a tokenizer (``length`` gives the number of text tokens of a string), voices, audio.
"""

from chatterbox.splitting.feed import SentenceFeed, utterances
from chatterbox.splitting.packing import split_text
from chatterbox.splitting.sentences import split_sentences

__all__ = ["SentenceFeed", "split_sentences", "split_text", "utterances"]
