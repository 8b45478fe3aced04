"""Characters that a vocabulary lacks become the nearest that it has.

Owns: what a character may be replaced by, and what is left out. Does not know: tokens (``lacks`` says what there is).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from unicodedata import category, decimal, normalize

_ALIKE = {
    **dict.fromkeys("“”„‟«»「」『』《》״", '"'),
    **dict.fromkeys("‘’‚‛‹›〈〉`׳", "'"),
    **dict.fromkeys("–—―־〜", "-"),
    **dict.fromkeys("([{【〔（［｛", "("),
    **dict.fromkeys(")]}】〕）］｝", ")"),
    **dict.fromkeys("。।॥۔．｡", "."),
    **dict.fromkeys("、，،", ","),
    **dict.fromkeys("؛；·", ";"),
    **{"？": "?", "؟": "?", "！": "!", "：": ":", "٪": "%", "⁄": "/", "×": "x", "；": ";", "…": ","},
    **{"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "ħ": "h", "Ħ": "H", "ı": "i"},
    **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ŋ": "ng", "Ŋ": "Ng"},
}


def fitted(text: str, lacks: Callable[[str], bool]) -> str:
    """``text`` in characters that a vocabulary has, as far as it goes.

    A letter loses its accents or becomes what looks like it, and else stays, for the tokenizer to call unknown. A sign
    that cannot be spoken, an emoji, is left out.
    """
    if not any(map(lacks, set(text))):
        return text
    text = _composed(text, lacks)
    nearest = {char: _nearest(char, lacks) for char in set(text) if lacks(char)}
    unspoken = "".join(char for char, other in nearest.items() if other is None)
    if unspoken:
        signs = f"[{re.escape(unspoken)}]+"
        text = re.sub(rf"(?<=\w){signs}(?=\w)", " ", text)
        text = re.sub(rf"(?:(?<= )|\A){signs} *|[ ]*{signs}", "", text)
    return "".join(nearest.get(char) or char for char in text)


def _composed(text: str, lacks: Callable[[str], bool]) -> str:
    """With accents that the vocabulary lacks joined to their letters, where it has these."""
    accents = "".join(char for char in set(text) if category(char).startswith("M") and lacks(char))
    if not accents:
        return text

    def joined(found: re.Match[str]) -> str:
        whole = normalize("NFC", found.group())
        return found.group() if any(map(lacks, whole)) else whole

    return re.sub(f"\\w[{re.escape(accents)}]+", joined, text)


def _nearest(char: str, lacks: Callable[[str], bool]) -> str | None:
    """What the vocabulary has in place of ``char``; the character itself if it has nothing, None to leave it out."""
    for other in _alike(char):
        if other and not any(map(lacks, set(other))):
            return other
    return char if category(char)[0] in "LN" else None


def _alike(char: str) -> Iterator[str]:
    for form in ("NFKC", "NFKD"):
        yield normalize(form, char)
    yield "".join(part for part in normalize("NFKD", char) if not category(part).startswith("M"))
    yield _ALIKE.get(char, "")
    yield "".join(_ALIKE.get(part, part) for part in normalize("NFKC", char))
    digit = decimal(char, None)
    yield "" if digit is None else str(digit)
    yield from (char.lower(), char.upper())
