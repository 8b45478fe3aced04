"""What the text of a language needs before the multilingual BPE.

Owns: the languages, and per language the step between plain text and BPE. Does not know: the BPE, punctuation, speech.

Some steps need a package that is no dependency: `HELPERS` says how to get each. Without it the text goes on as it is,
which is what the published models' own package does, with one warning.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

logger = logging.getLogger(__name__)

# A program may add some: `chatterbox.mtl_tts.SUPPORTED_LANGUAGES` is this.
LANGUAGES = {
    "ar": "Arabic",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "tr": "Turkish",
    "zh": "Chinese",
}

CANGJIE_FILE = "Cangjie5_TC.json"
EXTRA = "pip install 'chatterbox-kvcache[multilingual]'"

# package -> what it does, and how to get it
HELPERS = {
    "spacy_pkuseg": ("Chinese words are not separated", EXTRA),
    "pykakasi": ("Japanese kanji are not read as hiragana", EXTRA),
    "dicta_onnx": ("Hebrew gets no vowel marks", "pip install dicta-onnx"),
    "russian_text_stresser": ("Russian gets no stress marks", "install russian-text-stresser from its repository"),
}

# Other codes that people use for these languages: those with three letters, old ones, and the two kinds of Norwegian.
OTHER_CODES = {
    **{"ara": "ar", "arb": "ar", "dan": "da", "deu": "de", "ger": "de", "ell": "el", "gre": "el", "eng": "en"},
    **{"spa": "es", "fin": "fi", "fra": "fr", "fre": "fr", "heb": "he", "iw": "he", "hin": "hi", "ita": "it"},
    **{"jpn": "ja", "kor": "ko", "msa": "ms", "may": "ms", "zsm": "ms", "nld": "nl", "dut": "nl", "nor": "no"},
    **{"nb": "no", "nn": "no", "nob": "no", "nno": "no", "pol": "pl", "por": "pt", "rus": "ru", "swe": "sv"},
    **{"swa": "sw", "swh": "sw", "tur": "tr", "zho": "zh", "chi": "zh", "cmn": "zh"},
}

KANJI = range(0x4E00, 0xA000)
HANGUL = range(0xAC00, 0xD7B0)
PARTICLES = ("は", "へ")  # read differently at the start of a word, so a space goes before them


def base_language(language_id: str) -> str | None:
    """The code in `LANGUAGES` of a language that is given in any case, with or without a region ("pt-BR"), or None."""
    code, *subtags = language_id.lower().replace("_", "-").split("-")
    if not all(tag.isalnum() and len(tag) <= 8 for tag in subtags):
        return None
    code = OTHER_CODES.get(code, code)
    return code if code in LANGUAGES else None


def check_language(language_id: str | None, is_marked: Callable[[str], bool] | None = None) -> str | None:
    """The language's code, of "pt-BR" or "NB" the one that the model knows; None stays None.

    ``is_marked``: whether a model's tokenizer has the mark of a code, which makes it a language of that model.

    Raises:
        ValueError: no such language; the message lists them.
    """
    if language_id is None:
        return None
    given = language_id if isinstance(language_id, str) else ""
    language = given if given in LANGUAGES else base_language(given)
    if language is not None:
        return language
    if given and is_marked is not None and is_marked(given.lower()):
        return given.lower()
    raise ValueError(
        f"language_id {language_id!r} is not supported; choose from {', '.join(LANGUAGES)}, or add what a model of "
        "your own knows: chatterbox.mtl_tts.SUPPORTED_LANGUAGES[code] = name"
    )


def lowered(text: str, language: str | None) -> str:
    """``text`` in small letters, as its language writes them: Turkish has an i with a dot and one without."""
    if language == "tr":
        return text.replace("İ", "i").replace("I", "ı").lower()
    return text.replace("İ", "I").lower()


def begun(text: str, language: str | None) -> str:
    """``text`` with the capital that its first letter has in its language, where others' rules give another one."""
    return "İ" + text[1:] if language == "tr" and text.startswith("i") else text


def preparer(language_id: str | None, folder: Path) -> Callable[[str], str]:
    """The step of a language; ``folder`` is the checkpoint's, where Chinese has its table."""
    if language_id == "zh":
        return cangjie(folder / CANGJIE_FILE)
    steps: dict[str | None, Callable[[str], str]] = {"ja": japanese, "ko": korean, "he": hebrew, "ru": russian}
    return steps.get(language_id, str)


class Cangjie:
    """Chinese characters as Cangjie codes, which the BPE has tokens for."""

    def __init__(self, codes: dict[str, str]) -> None:
        """``codes``: letters of each character, and a number where it is not the first with these letters."""
        self.codes = codes

    @classmethod
    def read(cls, path: Path) -> Cangjie:
        """Read the checkpoint's table, a JSON list of "character<tab>letters".

        Raises:
            OSError, ValueError: the file is missing or no such table.
        """
        letters: dict[str, str] = {}
        sharing: dict[str, list[str]] = {}
        for entry in json.loads(path.read_text(encoding="utf-8")):
            character, code = entry.split("\t")[:2]
            letters[character] = code
            sharing.setdefault(code, []).append(character)
        places = {character: sharing[code].index(character) for character, code in letters.items()}
        return cls({character: code + str(places[character] or "") for character, code in letters.items()})

    def __call__(self, text: str) -> str:
        words = _helper("spacy_pkuseg", "pkuseg")
        text = text if words is None else " ".join(words.cut(text))
        return "".join(self._spelled(character) for character in text)

    def _spelled(self, character: str) -> str:
        code = self.codes.get(character) if category(character) == "Lo" else None
        return character if code is None else "".join(f"[cj_{sign}]" for sign in (*code, "."))


@cache
def cangjie(path: Path) -> Cangjie:
    """The table at ``path``, read once; an empty one, with a warning, if it cannot be read."""
    try:
        return Cangjie.read(path)
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): Chinese characters go to the tokenizer as they are", path, error)
        return Cangjie({})


def japanese(text: str) -> str:
    """Kanji as hiragana, compatibility forms taken apart."""
    kakasi = _helper("pykakasi", "kakasi")
    return text if kakasi is None else normalize("NFKD", "".join(map(_read, kakasi.convert(text))))


def _read(part: dict[str, str]) -> str:
    written, reading = part["orig"], part["hira"]
    if not any(ord(character) in KANJI for character in written):
        return written
    return " " + reading if reading.startswith(PARTICLES) else reading


def korean(text: str) -> str:
    """Syllables as their letters (jamo)."""
    return "".join(normalize("NFD", c) if ord(c) in HANGUL else c for c in text).strip()


def hebrew(text: str) -> str:
    """Vowel marks added."""
    dicta = _helper("dicta_onnx", "Dicta")
    return text if dicta is None else _tried("dicta_onnx", dicta.add_diacritics, text)


def russian(text: str) -> str:
    """Stress marks added."""
    stresser = _helper("russian_text_stresser.text_stresser", "RussianTextStresser")
    return text if stresser is None else _tried("russian_text_stresser", stresser.stress_text, text)


def _tried(package: str, add_marks: Callable[[str], str], text: str) -> str:
    """With the marks of a package that may fail on a text: it goes on without them then."""
    try:
        return add_marks(text)
    except Exception as error:  # whatever such a package raises
        logger.warning("%s failed (%s): %s", package, type(error).__name__, HELPERS[package][0])  # no words of the text
        return text


@cache
def _helper(module: str, factory: str) -> Any:
    """What an optional package makes, once a process; None, with a warning, where it is not there or fails."""
    package = module.partition(".")[0]
    lack, remedy = HELPERS[package]
    try:
        return getattr(importlib.import_module(module), factory)()
    except ImportError:
        logger.warning("%s is not installed: %s; %s", package, lack, remedy)
    except Exception as error:  # whatever such a package raises
        logger.warning("%s failed (%s): %s", package, error, lack)
    return None
