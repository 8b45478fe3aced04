"""Text before the tokenizer: what is spoken for an empty text, and punctuation.

Owns: the punctuation tables of the published models (data, one `PunctuationRules` each).
Does not know: tokens, languages, sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chatterbox.runtime.replaceable import replaceable

EMPTY_TEXT = "You need to add some text for me to talk."


@dataclass(frozen=True)
class PunctuationRules:
    """Replacements, applied one after the other in this order, and the endings that need no full stop."""

    replacements: tuple[tuple[str, str], ...]
    sentence_enders: tuple[str, ...]


_STRAIGHT_QUOTES = (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"))
ENGLISH = PunctuationRules(
    replacements=(
        ("...", ", "),
        ("…", ", "),
        (":", ","),
        (" - ", ", "),
        (";", ", "),
        ("—", "-"),
        ("–", "-"),
        (" ,", ","),
        *_STRAIGHT_QUOTES,
    ),
    sentence_enders=(".", "!", "?", "-", ","),
)
OTHER_ENDERS = ("、", "，", "。", "．", "｡", "？", "！", "।", "॥", "؟", "۔", "،", "؛")  # of scripts
MULTILINGUAL = PunctuationRules(ENGLISH.replacements, (*ENGLISH.sentence_enders, "、", "，", "。", "？", "！"))
TURBO = PunctuationRules(
    tuple(pair for pair in ENGLISH.replacements if pair[0] not in ("...", " - ", ";")), ENGLISH.sentence_enders
)


@replaceable
def punc_norm(text: str, rules: PunctuationRules = ENGLISH) -> str:
    """Normalise punctuation the way the published models were driven.

    A leading space keeps the first letter lower-case, replacements may leave double spaces, and text of spaces alone
    becomes a full stop: upstream's behaviour.
    """
    if not text:
        return EMPTY_TEXT
    text = " ".join((text[0].upper() + text[1:] if text[0].islower() else text).split())
    for written, spoken in rules.replacements:
        text = text.replace(written, spoken)
    text = text.rstrip(" ")
    return text if text.endswith(rules.sentence_enders) else text + "."


def speakable(text: str, rules: PunctuationRules = ENGLISH) -> str:
    """Validated, normalised text; the empty string is upstream's sentence that asks for some text.

    Raises:
        TypeError: ``text`` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}; pass the words to speak")
    return punc_norm(text, rules)


def with_all_enders(rules: PunctuationRules) -> PunctuationRules:
    """``rules`` that put no full stop behind the ends of sentences of other scripts."""
    return replace(rules, sentence_enders=(*rules.sentence_enders, *OTHER_ENDERS))
