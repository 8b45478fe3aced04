"""Forms of numbers in English that become ones which `in_words` reads.

Owns: which digits are said one by one, and what a numeral, a date, a sum or a range of another form is in plain
digits. Does not know: how a number is spelt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unicodedata import normalize


def words_of(text: str) -> tuple[str, ...]:
    """The words of ``text`` apart."""
    return tuple(text.split())


MONTHS = words_of("January February March April May June July August September October November December")

_DIGITS = words_of("zero one two three four five six seven eight nine")
_FIRST_DAY_NOT_MONTH = 13
_DAY_NAMES = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|Mon|Tue|Tues|Wed|Thu|Thurs|Fri|Sat|Sun"
_COUNTED_PARTS = ("16", "20", "32", "64")  # denominators that are seldom days
_NO_LETTER_CODES = ("AD", "BC", "CE", "FY")  # stand beside years
_CENTURY_SPLIT = 50  # two digits of a year below it are of this century
_LARGEST_BYTE = 255
_MIN_PHONE, _MAX_PHONE = 7, 15  # digits
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", "⁺")
_POWERS = {"2": " squared", "3": " cubed"}


def one_by_one(digits: str) -> str:
    """The digits of ``digits`` in words; what else is in it goes."""
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit.isdecimal())


def plain_numbers(text: str) -> str:
    """``text`` with its numbers of other forms in those that `in_words` reads, or in words where it has digits read."""
    for rule, words in _RULES:
        text = rule.sub(words, text)
    return text


def _groups(written: str) -> str:
    return ", ".join(map(one_by_one, re.findall(r"\d+", written)))


def _apart(found: re.Match[str], words: str) -> str:
    """``words`` with a space to letters and digits that stand beside the match."""
    before, after = found.string[found.start() - 1 : found.start()], found.string[found.end() : found.end() + 1]
    return " " * before.isalnum() + words + " " * after.isalnum()


def _circled(found: re.Match[str]) -> str:
    return _apart(found, normalize("NFKC", found.group()))


def _iso_time(found: re.Match[str]) -> str:
    date, time, second, zone = found.groups()
    seconds = f":{second}" if second and second != "00" else ""
    shift = "" if zone is None else " UTC"
    if zone and zone != "Z":
        sign, hours, minutes = zone[0], int(zone[1:3]), zone[-2:]
        shift += f" {'plus' if sign == '+' else 'minus'} {hours}" + (f":{minutes}" if minutes != "00" else "")
    return f"{date} at {time}{seconds}{shift}"


def _date(found: re.Match[str], month: str, day: str, year: str = "") -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return found.group()
    if len(year) == 2:
        year = ("20" if int(year) < _CENTURY_SPLIT else "19") + year
    return f"{MONTHS[int(month) - 1]} {int(day)}" + (f", {year}" if year else "")


def _american_or_not(found: re.Match[str]) -> str:
    """The month comes first, as in America, unless it cannot be one."""
    first, second, year = found.groups()
    return _date(found, second, first, year) if int(first) > 12 else _date(found, first, second, year)


def _day_first(found: re.Match[str]) -> str:
    """The day comes first, as where dates have points, unless it stands where only one can."""
    first, second, year = found.groups()
    return _date(found, first, second, year) if int(second) > 12 else _date(found, second, first, year)


def _month_and_day(found: re.Match[str]) -> str:
    """Two numbers that can hardly be a share: the second is no month, and no common part of an inch or a score."""
    month, day = found.groups()
    if int(day) < _FIRST_DAY_NOT_MONTH or day in _COUNTED_PARTS:
        return found.group()
    return _date(found, month, day)


def _behind_day_name(found: re.Match[str]) -> str:
    name, month, day = found.groups()
    date = _date(found, month, day)
    return date if date == found.group() else f"{name}{date}"


def _long_phone(found: re.Match[str]) -> str:
    num_digits = sum(map(str.isdecimal, found.group()))
    return _groups(found.group()) if _MIN_PHONE <= num_digits <= _MAX_PHONE else found.group()


def _word_phone(found: re.Match[str]) -> str:
    return f"{_groups(found[1])}, {found[2].replace('-', ' ').lower()}"


def _dialled(found: re.Match[str]) -> str:
    return f"{found[1]}{one_by_one(found[2])}"


def _ip_address(found: re.Match[str]) -> str:
    parts = found.group().split(".")
    if max(map(int, parts)) > _LARGEST_BYTE or max(map(len, parts)) < 3:
        return found.group()
    return " point ".join(map(one_by_one, parts))


def _long_version(found: re.Match[str]) -> str:
    """A version with a part of many digits, which is read by digits."""
    parts = found.group().split(".")
    is_date, is_amount = len(parts[-1]) == 4 and len(parts) == 3, all(len(part) == 3 for part in parts[1:])
    if max(map(len, parts)) < 3 or is_date or is_amount:
        return found.group()
    return " point ".join(one_by_one(part) if len(part) > 2 else part for part in parts)


def _flight(found: re.Match[str]) -> str:
    letters, digits = found.groups()
    return found.group() if letters in _NO_LETTER_CODES else f"{letters} {one_by_one(digits)}"


def _difference(found: re.Match[str]) -> str:
    return " minus ".join(re.split(r"\s?[-−–]\s?", found.group()))


def _raised(found: re.Match[str]) -> str:
    power = found.group().translate(_SUPERSCRIPTS)
    if power in _POWERS:
        return _POWERS[power]
    return f" to the power of {power.replace('-', 'minus ')}" if power.strip("-") else found.group()


def _rule(pattern: str, words: str | Callable[[re.Match[str]], str], flags: int = 0) -> tuple[Any, Any]:
    return re.compile(pattern, flags), words


_I = re.IGNORECASE
_AMOUNT = r"\d{1,3}(?:,\d{3}){1,4}(?:\.\d+)?|\d+(?:\.\d+)?"
_ALONE, _END = r"(?<![\w.,/:-])", r"(?![\w/-]|[.,:]\d)"
_RULES = (
    _rule(r"[\u2460-\u2473\u24ea]", _circled),
    _rule(r"(?<![\w/-])(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::(\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:?\d\d)?(?!\w)", _iso_time),
    _rule(r"(?<![\w./-])(\d{1,2})/(\d{1,2})/(\d\d)(?![\w/])", _american_or_not),
    _rule(r"(?<![\w.,-])(\d{1,2})\.(\d{1,2})\.((?:1\d|20)\d\d)(?!\.?\w|[-/])", _day_first),
    _rule(rf"\b((?:{_DAY_NAMES})\.?,?\s)(\d{{1,2}})/(\d{{1,2}}){_END}", _behind_day_name),
    _rule(
        rf"{_ALONE}(?<!\d\s)(1[0-2]|0?[1-9])/(\d\d){_END}(?!\s?(?:of|in|inch|inches|\"|points?|correct|cups?)\b)",
        _month_and_day,
    ),
    _rule(r"(?<![\w.,-])(1-8(?:00|33|44|55|66|77|88))-([A-Z]{2,}(?:-[A-Z]{2,})*)(?![\w-])", _word_phone),
    _rule(r"(?<![\w.,/:-])0\d{2,4}(?:[ -]\d{2,8}){1,4}(?![\w/:-]|[.,]\d)", _long_phone),
    _rule(r"(?<![\w.,/:-])0\d(?: \d\d){4}(?![\w/:-]|[.,]\d)", _long_phone),
    _rule(r"\b(dial(?:s|ed|led|ing|ling)?\s)(\d{3,6})\b(?![.,:/-]\d|-)", _dialled, _I),
    _rule(r"\b(call(?:s|ed|ing)?\s)(911|999|112|000|[2-8]11|988)\b(?![.,:/-]\d|-|\s?%)", _dialled, _I),
    _rule(r"\b((?:an?|the)\s)(911)(?=\s(?:call|operator|dispatch|emergency))", _dialled, _I),
    _rule(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w/]|\.\d)", _ip_address),
    _rule(r"(?<![\w.,])\d{1,5}(?:\.\d{1,6}){2,3}(?![\w/]|[.,]\d)", _long_version),
    _rule(r"\b[vV]\.?\s?(?=\d+\.\d)", "version "),
    _rule(r"\b([A-Z]{2})(\d{3,4})(?![\w-]|[.,]\d)", _flight),
    _rule(r"(?<=flight\s)([A-Z]{2})\s(\d{1,4})(?![\w-]|[.,]\d)", _flight, 0),
    _rule(r"(\d)(\s?(?:ft|feet|foot)\.?\s\d{1,2}(?:\.\d+)?)\s?in(?:ches|\b\.(?=\s[a-z])|\b)", r"\1\2 inches"),
    _rule(r"(\d\s?(?:ft|feet|foot)\.?\s1) inches\b", r"\1 inch"),
    _rule(rf"(?<![\w.,])([$€£¥₹])\s?({_AMOUNT})(?:-|\s?–\s?)(?=\d)", r"\2 to \1"),
    _rule(r"(?<![\w.,/:-])\d+(?:\.\d+)?(?:\s?[-−]\s?\d+(?:\.\d+)?)+(?=\s?=)", _difference),
    _rule(r"(?:(?<=\d)|(?<=[)\]])|(?<=\b[A-Za-z])|(?<=\bmc))(?<!\dm)(?<!\d m)(?<!/s)[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", _raised),
)
