"""Numbers, ordinals, dates, times, money and units in words.

Owns: what is such an expression in English, and how it is read. Does not know: other languages (`in_other_words`),
other forms of numbers (`number_forms`), how a number is spelt, which the library num2words does.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from chatterbox.text.in_other_words import ENDLESS, in_other_words, spaced
from chatterbox.text.number_forms import MONTHS, one_by_one, plain_numbers

logger = logging.getLogger(__name__)

EXTRA = "pip install 'chatterbox-kvcache[normalize]'"


_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS) + r"|Sept\.?"
_CURRENCIES = {  # one, several, a hundredth, several hundredths
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "USD": ("dollar", "dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("pound", "pounds", "penny", "pence"),
    "JPY": ("yen", "yen", "sen", "sen"),
}
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_UNITS = {  # one, several
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "m/s²": ("meter per second squared", "meters per second squared"),
    "m/s": ("meter per second", "meters per second"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "m²": ("square meter", "square meters"),
    "km²": ("square kilometer", "square kilometers"),
    "m": ("meter", "meters"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "g": ("gram", "grams"),
    "lbs": ("pound", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ft": ("foot", "feet"),
    "mi": ("mile", "miles"),
    "ml": ("milliliter", "milliliters"),
    "mL": ("milliliter", "milliliters"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "ms": ("millisecond", "milliseconds"),
    "s": ("second", "seconds"),
    "min": ("minute", "minutes"),
    "h": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "kB": ("kilobyte", "kilobytes"),
    "KB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "W": ("watt", "watts"),
    "kW": ("kilowatt", "kilowatts"),
    "kWh": ("kilowatt hour", "kilowatt hours"),
    "V": ("volt", "volts"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
    "¢": ("cent", "cents"),
}
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
}
_PARTS = {
    2: "half",
    3: "third",
    4: "quarter",
    5: "fifth",
    6: "sixth",
    7: "seventh",
    8: "eighth",
    9: "ninth",
    10: "tenth",
}

_NUMBER = r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d+)?|\d+(?:\.\d+)?"
_HALF = r"\s?([ap])(?:m\b|\.m\.(?=\s+(?-i:[a-z0-9(])|,)|\.m\b)"  # am, a.m.; a stop that ends the sentence stays
_FREE = r"(?<![\w.,/:-])"  # nothing that belongs to a number or a word stands before
_UNIT = "|".join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))
_SCALE = r"(?:\s?(thousand|million|billion|trillion)\b|(k|mn|m|bn|b|tn)\b)?"


def in_words(text: str, language: str = "en") -> str:
    """``text`` with its numbers and what belongs to them in words; all else stays as it is.

    As it was, with one warning, where num2words is not installed or does not know the language.
    """
    if not any(map(str.isdigit, text)) and not any(char in text for char in _FRACTIONS):
        return text
    spell = _speller(language)
    if spell is None:
        return text
    return _english(text) if language == "en" else in_other_words(text, language, spell)


@cache
def _speller(language: str) -> Callable[..., str] | None:
    """num2words for a language; None, with a warning, once a process, where there is none."""
    try:
        library: Any = importlib.import_module("num2words")
        name = "dk" if language == "da" and "dk" in library.CONVERTER_CLASSES else language  # Danish before 0.5.14
        library.num2words(1, lang=name)
    except ImportError:
        logger.warning("num2words is not installed: numbers stay in digits, which the voice reads badly; %s", EXTRA)
        return None
    except NotImplementedError:
        logger.warning("num2words does not know language %s: its numbers stay in digits; write them out", language)
        return None

    def spell(number: int | float | str, to: str = "cardinal", **options: Any) -> str:
        words: str = library.num2words(number, lang=name, to=to, **options)
        return re.sub(r"\s+", " ", words).strip()

    return spell


def _spell(number: int, to: str = "cardinal") -> str:
    spell = _speller("en")
    assert spell is not None
    return spell(number, to).replace(",", "")


def _english(text: str) -> str:
    text = ENDLESS.sub(lambda digits: spaced(digits, one_by_one(digits.group())), text)
    text = plain_numbers(re.sub("|".join(_FRACTIONS), _unicode_fraction, text))
    for rule, words in _RULES:
        text = rule.sub(words, text)
    return text


def _unicode_fraction(found: re.Match[str]) -> str:
    is_mixed = found.string[: found.start()].rstrip(" ")[-1:].isdecimal()
    return (" and " if is_mixed else "") + _fraction_words(*map(int, _FRACTIONS[found.group()].split("/")))


def _amount(written: str) -> str:
    """A number as it is counted: thousands, decimals."""
    whole, _, decimals = written.replace(",", "").partition(".")
    words = one_by_one(whole) if len(whole) > 1 and whole.startswith("0") else _spell(int(whole))
    return f"{words} point {one_by_one(decimals)}" if decimals else words


def _is_one(written: str) -> bool:
    return written == "1"


def _year(written: str) -> str:
    return _spell(int(written), "year")


def _money(found: re.Match[str]) -> str:
    minus, sign, written, scale, short = found.groups()
    words = _money_words(sign, written, scale or _SCALES.get((short or "").lower()))
    return f"minus {words}" if minus else words


def _money_behind(found: re.Match[str]) -> str:
    written, scale, short, sign = found.groups()
    return _money_words(sign, written, scale or _SCALES.get((short or "").lower()))


def _with_point(found: re.Match[str]) -> str:
    """An amount as it is written where euros are paid."""
    return found.group().replace(",", ".")


def _money_words(sign: str, written: str, scale: str | None) -> str:
    one, several, cent, cents = _CURRENCIES[sign]
    whole, _, decimals = written.partition(".")
    if scale:
        return f"{_amount(written)} {scale} {several}"
    if len(decimals) not in (0, 2):
        return f"{_amount(written)} {several}"
    hundredths = int(decimals or 0)
    part = f"{_spell(hundredths)} {cent if hundredths == 1 else cents}"
    if hundredths and not int(whole.replace(",", "")):
        return part
    words = f"{_amount(whole)} {one if _is_one(whole) else several}"
    return f"{words} and {part}" if hundredths else words


def _month_of(written: str) -> str:
    return next(month for month in MONTHS if month.startswith(written[:3]))


def _day(written: str) -> str:
    return _spell(int(written), "ordinal")


def _month_day(found: re.Match[str]) -> str:
    month, day, year = found.groups()
    return f"{_month_of(month)} {_day(day)}" + (f", {_year(year)}" if year else "")


def _day_month(found: re.Match[str]) -> str:
    article, day, month, year = found.groups()
    the = article if article else "the "
    return f"{the}{_day(day)} of {_month_of(month)}" + (f" {_year(year)}" if year else "")


def _dated(found: re.Match[str], year: str, month: str, day: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return found.group()
    return f"{MONTHS[int(month) - 1]} {_day(day)}, {_year(year)}"


def _iso_date(found: re.Match[str]) -> str:
    return _dated(found, *found.groups())


def _slash_date(found: re.Match[str]) -> str:
    """The month comes first, as in America, unless it cannot be one."""
    first, second, year = found.groups()
    return _dated(found, year, second, first) if int(first) > 12 else _dated(found, year, first, second)


def _time(found: re.Match[str]) -> str:
    hour, minute, second, half = found.groups()
    if int(hour) > 24 or int(minute) > 59 or int(second or 0) > 59:
        return found.group()
    halves = "" if not half else f" {half[0].lower()} m"
    if not int(hour) and not half:
        hour, halves = "12", " a m"
    if not int(minute) and not second:
        words = _spell(int(hour)) + ("" if halves else " o'clock" if 0 < int(hour) <= 12 else " hundred")
    else:
        words = f"{_spell(int(hour))} " + _spelled_minute(minute)
    if second:
        words += f" and {_spell(int(second))} second{'' if int(second) == 1 else 's'}"
    return words + halves


def _spelled_minute(minute: str) -> str:
    if minute == "00":
        return "o'clock"
    return f"oh {_spell(int(minute))}" if minute.startswith("0") else _spell(int(minute))


def _hour(found: re.Match[str]) -> str:
    return f"{_spell(int(found[1]))} {found[2].lower()} m"


def _percent(found: re.Match[str]) -> str:
    return f"{_amount(found[1])} percent"


def _unit(found: re.Match[str]) -> str:
    written, unit = found.groups()
    return f"{_amount(written)} {_UNITS[unit][not _is_one(written)]}"


def _ordinal(found: re.Match[str]) -> str:
    return _spell(int(found[1].replace(",", "")), "ordinal")


def _decade(found: re.Match[str]) -> str:
    century, tens = found[1] or "", found[2] or found[3]
    if tens == "00":
        return {"10": "thousands", "20": "two thousands"}.get(century, f"{_spell(int(century))} hundreds")
    word = _spell(int(century + tens), "year") if century else _spell(int(tens))
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def _fraction(found: re.Match[str]) -> str:
    mixed, top, bottom = found[1], int(found[2]), int(found[3])
    if not mixed and (top, bottom) == (24, 7):
        return "twenty-four seven"
    if bottom not in _PARTS or not 0 < top < bottom:
        return found.group() if mixed else f"{_spell(top)} slash {_spell(bottom)}"
    words = _fraction_words(top, bottom)
    return f"{_amount(mixed)} and {words}" if mixed else words


def _fraction_words(top: int, bottom: int) -> str:
    if (top, bottom) == (1, 2):
        return "a half"
    part = _PARTS[bottom]
    return f"{_spell(top)} {part if top == 1 else part + 's'}"


def _phone(found: re.Match[str]) -> str:
    groups = ", ".join(map(one_by_one, re.findall(r"\d+", found.group())))
    return f"plus {groups}" if found.group().startswith("+") else groups


def _range(found: re.Match[str]) -> str:
    first, last = found.groups()
    both_years = all(re.fullmatch("1[1-9]\\d\\d|20\\d\\d", one) for one in (first, last))
    say = _year if both_years else _amount
    return f"{say(first)} to {say(last)}"


def _range_of_quantities(found: re.Match[str]) -> str:
    return f"{found.group().rstrip(' -–')} to "


def _version(found: re.Match[str]) -> str:
    return " point ".join(_amount(part) for part in found.group().split("."))


def _number_sign(found: re.Match[str]) -> str:
    return f"number {_amount(found[1])}"


def _sum(found: re.Match[str]) -> str:
    signs = {"+": "plus", "=": "equals", "×": "times", "*": "times", "−": "minus", "÷": "divided by"}
    signs["^"] = "to the power of"
    return f" {signs[found[1]]} "


def _lone_year(found: re.Match[str]) -> str:
    return spaced(found, _year(found.group()))


def _joined(found: re.Match[str]) -> str:
    """A number whose thousands are apart."""
    return found.group().replace(" ", "")


def _hours_minutes(found: re.Match[str]) -> str:
    hours, minutes = map(int, found.groups())
    words = f"{_spell(hours)} hour{'' if hours == 1 else 's'}"
    return f"{words} {_spell(minutes)} minute{'' if minutes == 1 else 's'}" if minutes else words


def _height(found: re.Match[str]) -> str:
    return f"{_amount(found[1])} foot {_amount(found[2])}"


def _power(found: re.Match[str]) -> str:
    return " squared" if found.group() == "²" else " cubed"


def _number(found: re.Match[str]) -> str:
    return spaced(found, _amount(found.group()))


def _rule(pattern: str, words: Callable[[re.Match[str]], str], flags: int = 0) -> tuple[Any, Any]:
    return re.compile(pattern, flags), words


def _say(words: str) -> Callable[[re.Match[str]], str]:
    return lambda found: words


_I = re.IGNORECASE
_YEAR = r"(?:,?\s(\d{4})\b)?"
_TIME = r"\d{1,2}:\d{2}"
_BEHIND = rf"%|[€£¥₹]|[ap]m\b|[ap]\.m\.|(?:{_UNIT})(?!\w)"  # a number, which is then more than a number
_QUANTITY = rf"(?:[$€£¥₹]\s?(?:{_NUMBER})|(?:{_TIME}|{_NUMBER})\s?(?:{_BEHIND})|{_TIME})"
_RULES = (
    _rule(r"(?<![\w.,])\d{1,3}(?: \d{3})*(?: 000)+(?![\d.,]*\d)", _joined),
    _rule(r"(?<![\w.,])\.(?=\d)", _say("0.")),
    _rule(r"(?<![^\s(])[-−](?=\d)", _say("minus ")),
    _rule(rf"{_FREE}{_QUANTITY}(?:-|\s?–\s?)(?=[$€£¥₹]?\d)", _range_of_quantities, _I),
    _rule(rf"{_FREE}(?:{_NUMBER})(?:-|\s?–\s?)(?={_QUANTITY})", _range_of_quantities, _I),
    _rule(rf"(?<![\w.,])([-−])?([$€£¥₹])\s?({_NUMBER}){_SCALE}", _money, _I),
    _rule(r"(?<![\w.,])\d+,\d\d(?=\s?€)", _with_point),
    _rule(rf"{_FREE}({_NUMBER}){_SCALE}\s?([€£¥₹]|USD\b|EUR\b|GBP\b|JPY\b)", _money_behind),
    _rule(r"(?<![\w./-])(\d{4})[-/](\d{2})[-/](\d{2})(?![\w/-])", _iso_date),
    _rule(r"(?<![\w./])(\d{1,2})/(\d{1,2})/(\d{4})(?![\w/])", _slash_date),
    _rule(rf"\b({_MONTH})\s(\d{{1,2}})(?:st|nd|rd|th)?\b(?![:.,]\d|\s?%){_YEAR}", _month_day),
    _rule(rf"\b([Tt]he\s)?(?<![\d.,:])(\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?({_MONTH})\b{_YEAR}", _day_month),
    _rule(rf"(?<![\w:.])(\d{{1,2}}):(\d{{2}})(?::(\d{{2}}))?(?:{_HALF})?(?![\w:])", _time, _I),
    _rule(rf"(?<![\w:.])(\d{{1,2}}){_HALF}", _hour, _I),
    _rule(rf"({_NUMBER})\s?%", _percent),
    _rule(r"\+\d{1,3}(?:[ -]\d{2,}){2,5}|(?<![\w.-])(?:1[- ])?(?:\(\d{3}\) |\d{3}-)(?:\d{3}-)?\d{4}(?![\w-])", _phone),
    _rule(r"(?<![\w.,])['’]?(?:(1\d|20)(\d0)|([1-9]0))['’]?s\b", _decade),
    _rule(rf"{_FREE}(\d{{1,3}})\s?h\s?(\d{{1,2}})(?:\s?m(?:in)?)?(?!\w)", _hours_minutes),
    _rule(rf"{_FREE}(\d{{1,2}})'\s?(\d{{1,2}})(?:\"|''|”)", _height),
    _rule(rf"{_FREE}({_NUMBER})\s?({_UNIT})(?!\w|\.\w)", _unit),
    _rule(r"\b(\d{1,3}(?:,\d{3}){1,4}|\d+)(?:st|nd|rd|th)\b", _ordinal, _I),
    _rule(r"(?<![\w./])(?:(\d+)\s)?(\d{1,4})/(\d{1,4})(?![\w/])", _fraction),
    _rule(r"(?<![\w.])\d+(?:\.\d+){2,5}(?![\w.]*\d)", _version),
    _rule(rf"(?<![\w.,/-])({_NUMBER})(?:-|\s?–\s?)({_NUMBER})(?![\w/-])", _range),
    _rule(rf"(?:\bNo\.\s?|№\s?|#)({_NUMBER})", _number_sign),
    _rule(r"(?<=\d)\s?([+=×*−÷^])\s?(?=\d)", _sum),
    _rule(r"(?<=\d):(?=\d)", _say(" to ")),
    _rule(r"(?<=\d)[²³]", _power),
    _rule(r"(?<!\S)\+(?=\d)", _say("plus ")),
    _rule(r"(?<![\w.,-])(?<!minus )(?:1[1-9]\d\d|20\d\d)(?![\w-]|[.,]\d)", _lone_year),
    _rule(_NUMBER, _number),
)
