"""Two kinds of plot as SVG text: bars with a spread, and lines. The same numbers give the same text, byte by byte.

Owns: scales, ticks, labels, colours. Does not know: what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
WIDTH, LEFT, RIGHT, TOP = 760, 70, 230, 40
Bar = tuple[str, float, float, float]  # label, value, lowest, highest
Point = tuple[float, float]


def bars(title: str, items: Sequence[Bar], *, unit: str, mark: float | None = None) -> str:
    """Horizontal bars, one below the other, with a line from the lowest to the highest; ``mark``: where a line stands.

    Values must be positive; the axis is logarithmic where the largest is more than 20 times the smallest.
    """
    if not items or min(low for _, _, low, _ in items) <= 0:
        raise ValueError(f"bars need positive values, got {[value for _, value, _, _ in items]}")
    left, row = 300, 24
    ends = [mark or items[0][1], *(value for _, _, *spread in items for value in spread)]
    is_log = max(ends) > 20 * min(ends)
    ticks = _decades(min(ends), max(ends)) if is_log else _ticks(0.0, max(ends))

    def x(value: float) -> float:
        low, high = ticks[0], ticks[-1]
        share = math.log(value / low) / math.log(high / low) if is_log else value / high
        return left + share * (WIDTH - left - 60)

    bottom = TOP + row * len(items)
    parts = [_text(left, 20, title, size=14)]
    for tick in ticks:
        parts += [_line(x(tick), TOP, x(tick), bottom), _text(x(tick), bottom + 16, f"{tick:g}", anchor="middle")]
    for index, (label, value, low, high) in enumerate(items):
        y = TOP + row * index
        parts += [
            _text(left - 8, y + 16, label, anchor="end"),
            f'<rect x="{left}" y="{y + 4}" width="{x(value) - left:.1f}" height="16" fill="{COLORS[0]}"/>',
            _line(x(low), y + 12, x(high), y + 12, "#222", 2),
            _text(x(max(high, value)) + 6, y + 16, f"{value:.3g}"),
        ]
    if mark is not None:
        parts.append(_line(x(mark), TOP - 6, x(mark), bottom, COLORS[1], 2))
    parts.append(_text(left, bottom + 34, unit))
    return _document(bottom + 46, parts)


def lines(title: str, series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, zero: bool = True) -> str:
    """One line for each series; the vertical axis begins at 0 with ``zero``, else near the least value."""
    points = [point for one in series.values() for point in one]
    if not points:
        raise ValueError("lines need at least one point")
    height, bottom = 330, 280
    xs = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    ys = _ticks(0.0 if zero else min(y for _, y in points), max(y for _, y in points))

    def place(point: Point) -> str:
        across = LEFT + (point[0] - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{bottom - (point[1] - ys[0]) / (ys[-1] - ys[0]) * (bottom - TOP):.1f}"

    parts = [_text(LEFT, 20, title, size=14)]
    for tick in ys:
        _, y = map(float, place((xs[0], tick)).split(","))
        parts += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, f"{tick:g}", anchor="end")]
    for tick in xs:
        x, _ = map(float, place((tick, ys[0])).split(","))
        parts.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle"))
    for index, (name, one) in enumerate(series.items()):
        color, y = COLORS[index % len(COLORS)], TOP + 8 + 18 * index
        path = " ".join(map(place, one))
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>',
            _line(WIDTH - RIGHT + 12, y, WIDTH - RIGHT + 32, y, color, 3),
            _text(WIDTH - RIGHT + 38, y + 4, name),
        ]
    parts += [_text((WIDTH - RIGHT + LEFT) / 2, bottom + 36, x_label, anchor="middle"), _text(LEFT, TOP - 6, y_label)]
    return _document(height, parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart, from below ``low`` to above ``high``."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 10) for index in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd", width: int = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"/>'


def _document(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>', *parts, "</svg>", ""])
