"""Values from outside to plain Python ones: numbers, switches, names, seeds.

Owns: what is taken for the number that it is (a numpy or 0-d torch scalar, a float without a fraction, digits in a
string), how seeds fold, the one-line errors. Does not know: torch, numpy, which settings there are.
"""

from __future__ import annotations

import dataclasses
import numbers
import operator
import re
from typing import Any

MOST = 2**31 - 1  # of a count, a length, a size in MiB or a time in ms
NUM_SEEDS = 2**63
DRAWN = -1  # the seed that asks for any, as other interfaces mean it
_DIGITS = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_MAX_SHOWN = 60  # characters


def number_of(value: object) -> int | float | None:
    """The number that ``value`` is; None: it is none. A bool is none, nor is an array, be it of one number."""
    plain = _plain(value)
    return None if isinstance(plain, bool) else plain


def whole_of(value: object) -> int | None:
    """The whole number that ``value`` is; None: it is none, as 1.5, True and infinity are."""
    number = number_of(value)
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number


def shown(value: object) -> str:
    """``repr`` for an error: on one line, and short."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of whatever class; ints of thousands of digits are among them
        text = f"a value of {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def number(name: str, value: object, low: float, high: float, remedy: str) -> float:
    """``value`` as a float. Raises ValueError, with the remedy, unless it is a number from ``low`` to ``high``."""
    found = number_of(value)
    if found is None or not low <= found <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}; {remedy}")
    return float(found)


def whole(name: str, value: object, low: int, remedy: str = "", *, high: int = MOST, unit: str = "") -> int:
    """``value`` as an int. Raises ValueError, with the remedy, unless it is whole and from ``low`` to ``high``."""
    found = whole_of(value)
    if found is not None and low <= found <= high:
        return found
    highest = "" if found is None or found < low else f" to {high if high != MOST else '2**31 - 1'}"
    kind = f"whole number{unit and f' of {unit}'} from {low}{highest}"
    raise ValueError(f"{name} must be a {kind}, got {shown(value)}{remedy and f'; {remedy}'}")


def switch(name: str, value: object, default: bool | None = None) -> bool:
    """``value`` as a bool, ``default`` for None where there is one. Raises ValueError for anything else, 0 too."""
    plain = default if value is None else _plain(value)
    if not isinstance(plain, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return plain


def word(name: str, value: object, remedy: str) -> str:
    """``value`` as a string. Raises ValueError, with the remedy, unless it is one that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a name, got {shown(value)}; {remedy}")
    return str.__str__(value)


def seed_of(value: object) -> int | None:
    """A seed from 0 to 2**63 - 1, or None, which draws one.

    A whole number beyond them is folded, by its remainder: the same number is always the same seed. -1 draws one.

    Raises:
        ValueError: neither a whole number nor None.
    """
    if value is None:
        return None
    found = whole_of(value)
    if found is None:
        raise ValueError(f"seed must be a whole number or None, got {shown(value)}; None and -1 draw one")
    return None if found == DRAWN else found % NUM_SEEDS


class Fields:
    """Fields of a frozen dataclass in its ``__post_init__``: each is checked and put back as a plain value."""

    def __init__(self, config: Any, *, none_is_default: bool = False) -> None:
        """``none_is_default``: a field that is None gets its default; else it is an error, where it has no meaning."""
        self._config, self._none_is_default = config, none_is_default

    def number(self, name: str, low: float, high: float, remedy: str) -> None:
        self.put(name, number(name, self._value(name), low, high, remedy))

    def whole(self, name: str, low: int, remedy: str = "", *, high: int = MOST, unit: str = "") -> None:
        self.put(name, whole(name, self._value(name), low, remedy, high=high, unit=unit))

    def whole_or_none(self, name: str, low: int, remedy: str = "", *, high: int = MOST) -> None:
        if getattr(self._config, name) is not None:
            self.whole(name, low, remedy, high=high)

    def switch(self, name: str) -> None:
        self.put(name, switch(name, self._value(name)))

    def word(self, name: str, remedy: str) -> None:
        self.put(name, word(name, self._value(name), remedy))

    def word_or_none(self, name: str, remedy: str) -> None:
        if getattr(self._config, name) is not None:
            self.word(name, remedy)

    def table(self, name: str, kind: type) -> None:
        """The field is settings of a class of their own."""
        value = getattr(self._config, name)
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be of {kind.__name__}, got {shown(value)}")

    def put(self, name: str, value: object) -> None:
        object.__setattr__(self._config, name, value)

    def _value(self, name: str) -> Any:
        value = getattr(self._config, name)
        if value is None and self._none_is_default:
            return next(one.default for one in dataclasses.fields(self._config) if one.name == name)
        return value


def _plain(value: object) -> int | float | bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip()
        if not _DIGITS.fullmatch(text):
            return None
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    if getattr(value, "ndim", 0):  # an array, of one number too
        return None
    try:
        return _scalar(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # NaN of Decimal, a tensor without memory
        return None


def _scalar(value: Any) -> int | float | bool | None:
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "ndim") and isinstance(item := value.item(), bool | int | float):  # numpy's and torch's
        return item
    if hasattr(value, "__index__"):
        return operator.index(value)
    if isinstance(value, numbers.Number):  # Fraction, Decimal, numpy's long double
        whole = int(value)  # type: ignore[call-overload]
        return whole if whole == value else float(value)  # type: ignore[arg-type]
    return None
