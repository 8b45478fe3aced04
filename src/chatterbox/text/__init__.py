"""Text of any length, whole or in pieces, becomes utterances: what one call of the model speaks.

Owns: what of it is spoken (`cleaning`, `in_words`, `in_other_words`, `normalize`, `spelling`), where sentences end
(`sentences`), how they fill utterances (`chunking`), when one of a text that is still being written is complete
(`incremental`), which silence a text asks for (`pauses`). Does not know: a tokenizer (``length`` gives the number of
text tokens of a string).
Must not import: `models`, `engine`, `audio`, `voice`, `synthesis`, `cli`.
"""

from chatterbox.text.chunking import split_text
from chatterbox.text.incremental import SentenceFeed, Utterance, utterances
from chatterbox.text.sentences import split_sentences

__all__ = ["SentenceFeed", "Utterance", "split_sentences", "split_text", "utterances"]
