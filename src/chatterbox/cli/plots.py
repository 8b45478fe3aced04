"""Bars of a sweep's figures, one picture. The only module that imports matplotlib, when it is called.

Owns: which figures are drawn. Does not know: where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS = {
    "ms_per_token": "milliseconds per token",
    "first_audio_ms": "milliseconds to the first audio",
    "rtf": "real-time factor",
    "cache_mib": "MiB of the rows' cache",
    "peak_mib": "MiB at the peak",
    "token_agreement": "share of the first job's tokens",
}


def can_plot() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def plot(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Draw the rows that have figures, one bar a job; ``path`` ends in .png or .svg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if "error" not in row]
    panels = [name for name in PANELS if any(row.get(name) is not None for row in rows)]
    labels = [str(row["job"]) for row in rows]
    height = 1.0 + 0.35 * len(rows)
    figure = Figure(figsize=(10, height * ((len(panels) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False, sharey=True)
    for axis, name in zip(axes.flat, panels, strict=False):
        values = [row.get(name) or 0.0 for row in rows]
        bars = axis.barh(range(len(rows)), values, color="tab:blue")
        axis.bar_label(bars, fmt="%.3g", padding=2)
        axis.set_yticks(range(len(rows)), labels)
        axis.set_xlabel(PANELS[name])
        axis.margins(x=0.15)
    axes.flat[0].invert_yaxis()
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=120)
