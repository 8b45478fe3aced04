"""Numbers, shares and the common currencies of languages other than English, in words.

Owns: how a language writes a number, and the words that num2words lacks or has wrong. Does not know: how a number is
spelt (``spell``), dates, times, units.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from chatterbox.text.sentences import is_cjk

MAX_DIGITS = 15  # longer ones are no amounts, and are read digit by digit
ENDLESS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")

# Languages with a decimal comma and points between thousands; the others of num2words have it the English way.
_COMMA_LANGUAGES = frozenset(("da", "de", "el", "es", "fi", "fr", "it", "nl", "no", "pl", "pt", "ru", "sv", "tr"))
_POINTS = {"ar": "فاصلة", "tr": "virgül"}  # where the library has two decimals at most
_SHARE = {
    **{"da": "procent", "de": "Prozent", "es": "por ciento", "fi": "prosenttia", "fr": "pour cent", "it": "per cento"},
    **{"nl": "procent", "no": "prosent", "pl": "procent", "pt": "por cento", "ru": "процентов", "sv": "procent"},
    **{"ar": "بالمئة", "he": "אחוז", "ja": "パーセント", "ko": "퍼센트"},
}
_MINUS = {
    **{"ar": "سالب", "da": "minus", "de": "minus", "es": "menos", "fi": "miinus", "fr": "moins", "he": "מינוס"},
    **{"it": "meno", "ja": "マイナス", "ko": "마이너스", "nl": "min", "no": "minus", "pl": "minus", "pt": "menos"},
    **{"ru": "минус", "sv": "minus", "tr": "eksi"},
}
_CODES = {"$": "USD", "€": "EUR", "£": "GBP"}
_CURRENCIES = {  # that the library does not know, or takes for another
    "ar": {"$": "دولار", "€": "يورو", "£": "جنيه"},
    "da": {"$": "dollar", "€": "euro", "£": "pund"},
    "he": {"£": "לירות שטרלינג"},
    "ja": {"$": "ドル", "€": "ユーロ", "£": "ポンド"},
    "ko": {"$": "달러", "€": "유로", "£": "파운드"},
    "no": {"$": "dollar", "€": "euro", "£": "pund"},
    "pl": {"£": "funtów"},
    "ru": {"£": "фунтов"},
    "sv": {"$": "dollar", "€": "euro", "£": "pund"},
    "tr": {"$": "dolar", "€": "avro", "£": "sterlin"},
}
_NO_CENTS = re.compile(r",?(?: (?:and|con|e|en|et|i|ja|og|och|und|ve|y|и))? \S+ \S+\Z")  # and zero cents


def in_other_words(text: str, language: str, spell: Callable[..., str]) -> str:
    """Numbers, shares and money of a language by what num2words, ``spell``, knows of it."""
    point = "," if language in _COMMA_LANGUAGES else "."
    between = r"[.\u00a0\u202f ]" if point == "," else ","
    number = rf"\d{{1,3}}(?:{between}\d{{3}}){{1,4}}(?!\d)(?:\{point}\d+)?|\d+(?:\{point}\d+)?"
    amount = rf"\d+[.,]\d\d(?![\d.,]\d|\d)|{number}"  # of money: 3.50 is no thousand anywhere

    def parted(written: str) -> tuple[str, str]:
        if re.fullmatch(r"\d+[.,]\d\d", written):
            return written[:-3], written[-2:]
        whole, _, decimals = re.sub(between, "", written).partition(point)
        return whole, decimals

    def words(written: str) -> str:
        whole, decimals = parted(written)
        if len(whole) > 1 and whole.startswith("0"):
            return one_by_one(whole + decimals)
        if decimals and language in _POINTS:
            return f"{spell(int(whole))} {_POINTS[language]} {one_by_one(decimals)}"
        return spell(float(f"{whole}.{decimals}")) if decimals else spell(int(whole))

    def one_by_one(digits: str) -> str:
        return " ".join(spell(int(digit)) for digit in digits)

    def money(found: re.Match[str]) -> str:
        sign, written = found[1] or found[4], found[2] or found[3]
        if name := _CURRENCIES.get(language, {}).get(sign):
            return f"{words(written)} {name}"
        whole, decimals = parted(written)
        try:
            said = spell(float(f"{whole}.{decimals or 0}"), "currency", currency=_CODES[sign])
        except Exception:  # of several classes, by the language; its versions differ in what they know
            return f"{words(written)} {sign}"
        return said.replace(",", "") if decimals else _NO_CENTS.sub("", said)

    def share(found: re.Match[str]) -> str:
        name = _SHARE[language] if language != "ru" else _russian_share(*parted(found[1]))
        return f"{words(found[1])} {name}"

    def alone(found: re.Match[str]) -> str:
        return spaced(found, words(found[1])) + " " * bool(found[2])

    text = ENDLESS.sub(lambda digits: spaced(digits, one_by_one(digits.group())), text)
    if language == "tr":
        text = re.sub(rf"%\s?({number})|({number})\s?%", lambda found: f"yüzde {words(found[1] or found[2])}", text)
    elif language in _SHARE:
        text = re.sub(rf"({number})\s?%", share, text)
    text = re.sub(rf"([$€£])\s?({amount})|({amount})\s?([$€£])", money, text)
    if language in _MINUS:
        text = re.sub(r"(?<!\S)[-−](?=\d)", f"{_MINUS[language]} ", text)
    return re.sub(rf"({number})([:.](?=\d))?", alone, text)  # 12:30 is two numbers


def _russian_share(whole: str, decimals: str) -> str:
    is_teen, last = 10 < int(whole) % 100 < 15, int(whole) % 10
    if decimals or (2 <= last <= 4 and not is_teen):
        return "процента"
    return "процент" if last == 1 and not is_teen else _SHARE["ru"]


def spaced(found: re.Match[str], words: str) -> str:
    """``words`` apart from letters that the number stood beside: B2B."""
    before, after = found.string[found.start() - 1 : found.start()], found.string[found.end() : found.end() + 1]
    return " " * _is_letter(before) + words + " " * _is_letter(after)


def _is_letter(char: str) -> bool:
    return char.isalpha() and not is_cjk(char)
