"""The kinds of plot that the report shows, by matplotlib: bars with a spread, and lines.

Owns: scales, marks, labels, how a picture is saved. Does not know: what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Bar = tuple[str, float, float, float]  # label, value, lowest, highest
Point = tuple[float, float]
# The same numbers give the same file under the same matplotlib, and text stays text.
matplotlib.rcParams |= {"svg.hashsalt": "chatterbox", "svg.fonttype": "none"}


def bars(title: str, items: Sequence[Bar], *, unit: str, mark: float | None = None) -> Figure:
    """Horizontal bars, one below the other, with a line from the lowest to the highest; ``mark``: where a line stands.

    Values must be positive; the axis is logarithmic where the largest is more than 20 times the smallest.
    """
    if not items or min(low for _, _, low, _ in items) <= 0:
        raise ValueError(f"bars need positive values, got {[value for _, value, _, _ in items]}")
    labels, values, lows, highs = zip(*items, strict=True)
    figure, axes = _axes(title, height=1.2 + 0.28 * len(items))
    spread = [
        [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
    ]
    drawn = axes.barh(range(len(items)), values, xerr=spread, color="tab:blue", ecolor="black")
    axes.bar_label(drawn, fmt="%.3g", padding=4)
    axes.set_yticks(range(len(items)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.1)
    if max(highs) > 20 * min(lows):
        axes.set_xscale("log")
    if mark is not None:
        axes.axvline(mark, color="tab:red")
    return figure


def lines(
    title: str, series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, zero: bool = True
) -> Figure:
    """One line for each series; the vertical axis begins at 0 with ``zero``, else near the least value."""
    if not any(series.values()):
        raise ValueError("lines need at least one point")
    figure, axes = _axes(title, height=3.6)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    if zero:
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def named_points(
    title: str, series: Mapping[str, Sequence[tuple[str, float, float]]], *, x_label: str, y_label: str
) -> Figure:
    """Points in a colour for each series, the first one's with their names; the horizontal axis is logarithmic."""
    if not any(series.values()):
        raise ValueError("nothing is drawn without a point")
    figure, axes = _axes(title, height=4.2)
    for name, points in series.items():
        axes.plot(*zip(*((x, y) for _, x, y in points), strict=True), "o", label=name)
    for label, x, y in next(iter(series.values())):
        axes.annotate(label, (x, y), xytext=(6, -3), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(x=0.25)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure to ``path``, whose ending says how, without the date."""
    figure.savefig(path, metadata={"Date": None})


def _axes(title: str, *, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize="medium")
    return figure, axes
