"""The word list of the training corpus and its inflection.

Owns the reading of the word files under `data/` and the English spelling rules that turn some four thousand base words
into more than ten thousand word forms. Knows nothing of sentences, of speech or of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

NOUNS = (
    "person", "animal", "food", "mass", "thing", "place", "nature", "body", "clothing", "vehicle", "abstract", "time",
)  # fmt: skip
VERBS = ("transitive", "intransitive", "motion", "that", "helper")
ADJECTIVES = ("short", "adverb", "other")
_VOWELS = "aeiou"


def read_lines(name: str) -> list[str]:
    """The lines of the data file `name`, without blank lines and # comments."""
    text = (resources.files("tools.tiny_voice") / "data" / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def read_sections(name: str) -> dict[str, list[str]]:
    """`[section]` → its lines, in file order."""
    sections: dict[str, list[str]] = {}
    for line in read_lines(name):
        if line.startswith("["):
            current = sections.setdefault(line[1:-1], [])
        else:
            current.append(line)
    return sections


def _words(name: str) -> dict[str, list[str]]:
    return {key: list(dict.fromkeys(" ".join(lines).split())) for key, lines in read_sections(name).items()}


def _y_after_consonant(word: str) -> bool:
    return word.endswith("y") and word[-2] not in _VOWELS


def _doubles(word: str) -> bool:
    """One-syllable words that end in consonant, vowel, consonant double the last letter: stop, stopped."""
    groups = sum(a in _VOWELS + "y" and (i == 0 or word[i - 1] not in _VOWELS + "y") for i, a in enumerate(word))
    tail = len(word) > 2 and word[-1] not in _VOWELS + "wxy" and word[-2] in _VOWELS and word[-3] not in _VOWELS
    return groups == 1 and (tail or (word[-4:-2] == "qu" and word[-1] not in _VOWELS))


def plural(noun: str) -> str:
    """The regular plural, which is the third person of a verb too."""
    if noun.endswith(("s", "x", "z", "ch", "sh")) or noun in ("go", "do", "undo", "redo", "echo", "veto"):
        return noun + ("zes" if noun in ("quiz",) else "es")
    return noun[:-1] + "ies" if _y_after_consonant(noun) else noun + "s"


def add_vowel_suffix(base: str, suffix: str) -> str:
    """`base` + ed, er, est, ing, able or y with the last letter dropped, changed or doubled. `base*` doubles."""
    word = base.rstrip("*")
    if base.endswith("*"):
        return word + word[-1] + suffix
    if suffix == "ing":
        if word.endswith("ie"):
            return word[:-2] + "ying"
        return word[:-1] + "ing" if word.endswith("e") and not word.endswith(("ee", "oe", "ye")) else word + "ing"
    if _y_after_consonant(word) and word != "shy":
        return word[:-1] + "i" + suffix
    keeps_e = suffix == "able" and word.endswith(("ce", "ge"))
    return word[:-1] + suffix if word.endswith("e") and not keeps_e else word + suffix


def add_consonant_suffix(base: str, suffix: str) -> str:
    """`base` + ness, less, ful, ment, ship, hood: happiness, judgment."""
    if _y_after_consonant(base) and base != "shy":
        return base[:-1] + "i" + suffix
    return base[:-1] + suffix if suffix == "ment" and base.endswith("dge") else base + suffix


def adverb(adjective: str) -> str:
    """quick → quickly, happy → happily, simple → simply, basic → basically."""
    if _y_after_consonant(adjective) and adjective not in ("shy", "dry"):
        return adjective[:-1] + "ily"
    if adjective.endswith("le") and adjective[-3] not in _VOWELS:
        return adjective[:-1] + "y"
    if adjective.endswith("ic") and adjective != "public":
        return adjective + "ally"
    if adjective in ("true", "due", "whole"):
        return adjective[:-1] + "ly"
    return adjective + ("y" if adjective.endswith("ll") else "ly")


@dataclass(frozen=True)
class Lexicon:
    """Word class → words in `forms`: "person", "person:s", "transitive:ing", …; `vocabulary` is all of them, sorted."""

    forms: dict[str, list[str]]
    vocabulary: list[str]
    num_bases: int


def _verb(entry: str) -> dict[str, str]:
    """Forms of one verb entry: `stop`, `admit*` or `go/went/gone`."""
    base, *irregular = entry.split("/")
    mark = "*" if base.endswith("*") or _doubles(base) else ""
    word = base.rstrip("*")
    past, participle = irregular if irregular else [add_vowel_suffix(word + mark, "ed")] * 2
    ing = add_vowel_suffix(word + mark, "ing")
    return {"": word, ":s": plural(word), ":ing": ing, ":ed": past, ":en": participle}


def _add(forms: dict[str, list[str]], key: str, words: list[str]) -> None:
    forms[key] = list(dict.fromkeys(forms.get(key, []) + words))


def _derive(forms: dict[str, list[str]], verbs: dict[str, dict[str, str]], derived: dict[str, list[str]]) -> None:
    """Joins the words of derived.txt to the classes they belong to."""
    for prefix, section in (("re", "re"), ("un", "un_verb"), ("dis", "dis"), ("in", "in"), ("un", "un")):
        bases = derived[section]
        if section in ("in", "un"):
            _add(forms, "adj", [prefix + word for word in bases])
            continue
        for ending in ("", ":s", ":ing", ":ed", ":en"):
            _add(forms, "transitive" + ending, [prefix + (verbs.get(w) or _verb(w))[ending] for w in bases])
    for suffix in ("less", "ful", "y", "able"):
        join = add_consonant_suffix if suffix in ("less", "ful") else add_vowel_suffix
        _add(forms, "adj", [join(word, suffix) for word in derived[suffix]])
    agents = [add_vowel_suffix(w + "*" * (w in verbs and _doubles(w)), "er") for w in derived["agent"]]
    agents += [add_vowel_suffix(word, "or") for word in derived["or"]]
    _add(forms, "person", agents)
    _add(forms, "person:s", [plural(word) for word in agents])
    for suffix in ("ness", "ment", "ship", "hood"):
        nouns = [add_consonant_suffix(word, suffix) for word in derived[suffix]]
        _add(forms, "derived", nouns)
        _add(forms, "derived:s", [plural(word) for word in nouns if suffix != "ness"])
    _add(forms, "derived", derived["compound"])
    _add(forms, "derived:s", [plural(word) for word in derived["compound"] if not word.endswith("s")])
    _add(forms, "adverb:ly", [adverb(word) for word in derived["ly"]])


@cache
def lexicon() -> Lexicon:
    """The whole word list, read and inflected once."""
    nouns, verb_entries, adjectives = _words("nouns.txt"), _words("verbs.txt"), _words("adjectives.txt")
    others, derived = _words("others.txt"), _words("derived.txt")
    forms: dict[str, list[str]] = dict(others)
    for name in NOUNS:
        pairs = [entry.split("/") for entry in nouns[name]]
        forms[name] = [pair[0] for pair in pairs]
        if name != "mass":
            forms[name + ":s"] = list(dict.fromkeys(pair[1] if len(pair) > 1 else plural(pair[0]) for pair in pairs))
    verbs: dict[str, dict[str, str]] = {}
    for name in VERBS:
        for entry in verb_entries[name]:
            verb = _verb(entry)
            verbs.setdefault(verb[""], verb)
            for ending, word in verb.items():
                _add(forms, name + ending, [word])
    bare = {name: [word.rstrip("*") for word in adjectives[name]] for name in ADJECTIVES}
    _add(forms, "adj", bare["short"] + bare["adverb"] + bare["other"])
    for ending in ("er", "est"):
        forms[f"short:{ending}"] = [add_vowel_suffix(word, ending) for word in adjectives["short"]]
    _add(forms, "adverb:ly", [adverb(word) for word in bare["adverb"] if not word.endswith("ly")])
    _derive(forms, verbs, derived)
    bases = set(verbs).union(*bare.values(), others and set().union(*others.values()), derived["compound"])
    bases = bases.union(*(forms[name] for name in NOUNS))
    vocabulary = sorted(set().union(*forms.values()))
    return Lexicon(forms, vocabulary, len({word.lower() for word in bases}))
