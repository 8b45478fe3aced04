"""What `quality` measured, line by line, as figures of each configuration, and as a plot of quality against bytes.

Owns: means, shares and their confidence intervals, the plot. Does not know: models, how a line came to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.lib.measures import interval

KIB = 1024
EXACT, OTHER_SEED = "static", "static, another seed"
# Figures that are means over cases and get an interval: by name, of which field, and decimals.
MEANS = {
    "log_mel_db": ("log_mel_db", 3),
    "f0_semitones": ("f0_semitones", 3),
    "speaker_similarity": ("speaker_similarity", 4),
    "duration_ratio": ("duration_ratio", 4),
}
# Meters of `chatterbox.evaluation.meters` that count errors, and what each is called in table and plot.
ERRORS = {"phone_errors": "phones", "whisper": "words, whisper", "pocketsphinx": "words, pocketsphinx"}
COLORS = {"sliding": "tab:blue", "evicting": "tab:red", "headwindow": "tab:green", "compressed": "tab:purple"}
SHARES = ("leading", "positions", "ran_on", "right_speaker")
Line = Mapping[str, Any]
Case = tuple[str, str]


def summarize(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row of figures for each configuration, in the order of the first case.

    Raises:
        ValueError: no lines, or a configuration lacks cases that another one has.
    """
    if not lines:
        raise ValueError("there are no lines to summarize; run without --summarize first")
    by_name: dict[str, dict[Case, Line]] = {}
    for line in lines:
        by_name.setdefault(line["config"], {})[line["text"], line["voice"]] = line
    exact = by_name[EXACT]
    for name, cases in by_name.items():
        if cases.keys() != exact.keys():
            raise ValueError(f"{name!r} has {len(cases)} cases and {EXACT!r} {len(exact)}; measure the missing ones")
    return [_row(name, cases, exact) for name, cases in by_name.items()]


def _row(name: str, cases: Mapping[Case, Line], exact: Mapping[Case, Line]) -> dict[str, Any]:
    pairs = [(line, exact[case]) for case, line in cases.items()]
    own = [line for line, _ in pairs]
    static_bytes = sum(line["fitted_bytes"] for _, line in pairs)
    row: dict[str, Any] = {
        "name": name,
        "cases": len(own),
        "kib_per_second": _mean(own, lambda x: x["fitted_bytes"] / KIB / x["exact_seconds"], 1),
        "share_of_static_bytes": round(sum(line["fitted_bytes"] for line in own) / static_bytes, 3),
        "kib_allocated": _mean(own, lambda x: x["bytes"] / KIB, 0),
        "tokens_per_second": _speed(pairs),
        "same_tokens": _mean(pairs, lambda x: x[0]["drawn"] == x[1]["drawn"], 3),
        **{share: _mean(own, lambda x, share=share: x[share], 3) for share in SHARES},
        "profile_distance": _mean(own, lambda x: x["profile_distance"], 2),
        "trimmed": _mean(own, lambda x: x["trims"] > 0, 3),
        "trims": _mean(own, lambda x: x["trims"], 1),
        "forgotten": _mean(own, lambda x: x["forgotten"], 1),
    }
    row["errors"] = {meter: _errors(pairs, meter) for meter in ERRORS}
    for figure, (field, digits) in MEANS.items():
        values = _groups(pairs, lambda x, _, field=field: (_value(x, field),))
        row[figure] = _figure(values, lambda rows: np.nanmean(rows[:, 0]), digits)
    return row


def _errors(pairs: Sequence[tuple[Line, Line]], meter: str) -> dict[str, Any]:
    """Errors of ``meter``, and how many more than of the exact run, over what could be right; and by kind of text."""

    def counts(line: Line, static: Line) -> tuple[float, ...]:
        (errors, size), (exact, _) = line["errors"][meter], static["errors"][meter]
        return errors, errors - exact, size

    groups = _groups(pairs, counts)
    result: dict[str, Any] = {
        figure: _figure(groups, lambda rows, column=column: rows[:, column].sum() / rows[:, 2].sum(), 4)
        for column, figure in enumerate(("rate", "over_exact"))
    }
    for number, kind in ((1, "single"), (2, "pair")):
        part = np.array([line["errors"][meter] for line, _ in pairs if line["sentences"] == number])
        if len(part):
            result[kind] = round(float(part[:, 0].sum() / part[:, 1].sum()), 4)
    return result


def _speed(pairs: Sequence[tuple[Line, Line]]) -> dict[str, Any]:
    """Tokens per second of steps over those of `static` in the same case, its median and quartiles."""
    rates = [[len(line["drawn"]) / line["step_seconds"] for line in pair] for pair in pairs]
    low, ratio, high = np.percentile([own / static for own, static in rates], (25, 50, 75))
    return {
        "ratio": round(float(ratio), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "median": round(float(np.median([own for own, _ in rates])), 1),
    }


def _value(line: Line, field: str) -> float:
    return line["seconds"] / line["exact_seconds"] if field == "duration_ratio" else line[field]


def _groups(pairs: Sequence[tuple[Line, Line]], values: Callable[[Line, Line], tuple[float, ...]]) -> list[np.ndarray]:
    """``values`` of each case, one array (voices, values) for each text."""
    by_text: dict[str, list[tuple[float, ...]]] = {}
    for line, static in pairs:
        by_text.setdefault(line["text"], []).append(values(line, static))
    return [np.array(rows, dtype=float) for rows in by_text.values()]


def _figure(groups: list[np.ndarray], figure: Callable[[np.ndarray], float], digits: int) -> dict[str, Any]:
    bounds = interval(groups, figure)
    value = figure(np.concatenate(groups))
    return {"value": round(float(value), digits), "interval": [round(bound, digits) for bound in bounds]}


def _mean(items: Sequence[Any], value: Callable[[Any], float], digits: int) -> float:
    return round(float(np.mean([value(item) for item in items])), digits)


def family(name: str) -> str:
    """The configurations that a line of the plot joins: one policy at several budgets."""
    if name in (EXACT, OTHER_SEED, "dynamic"):
        return name
    kind, _, rest = name.partition(" ")
    return f"{kind} {rest.split(',')[0]}" if kind == "compressed" else name.rpartition(" ")[0]


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Phone errors and log-mel distance against bytes, with 95% intervals."""
    figure = Figure(figsize=(11, 4.8))
    panels = figure.subplots(1, 2, sharex=True)
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(family(row["name"]), []).append(row)
    other_seed = families.pop(OTHER_SEED, [])
    labels: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
        "phone errors of speech tokens": lambda row: row["errors"]["phone_errors"]["rate"],
        "log-mel distance to the exact output, dB": lambda row: row["log_mel_db"],
    }
    for axes, (label, figure_of) in zip(panels, labels.items(), strict=True):
        for row in other_seed:
            axes.axhline(figure_of(row)["value"], color="grey", linestyle=":", label="exact, with another seed")
        counts: Counter[str] = Counter()
        for name, members in families.items():
            kind = name.partition(" ")[0]
            style = {"color": COLORS.get(kind, "black"), "marker": "osD^v<>"[counts[kind] % 7], "label": name}
            counts[kind] += 1
            ordered = sorted(members, key=lambda row: row["share_of_static_bytes"])
            y = np.array([figure_of(row)["value"] for row in ordered])
            bounds = np.array([figure_of(row)["interval"] for row in ordered])
            spread = np.maximum(0, [y - bounds[:, 0], bounds[:, 1] - y])
            x = [100 * row["share_of_static_bytes"] for row in ordered]
            axes.errorbar(x, y, yerr=spread, capsize=2, linewidth=1, elinewidth=0.6, markersize=5, alpha=0.8, **style)
        axes.set_xlabel("bytes of the cache, % of static's")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="center right", fontsize="small", frameon=False)
    figure.subplots_adjust(left=0.06, right=0.79, bottom=0.12, top=0.96, wspace=0.22)
    return figure


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures that docs/kvcache.md shows, as Markdown."""
    head = (
        "", "bytes", "KiB/s", "tokens/s", "same", "leading", "places", "ran on",
        *(column for name in ERRORS.values() for column in (name, "more than exact")),
        "log-mel", "F0", "speaker", "duration",
    )  # fmt: skip
    cells = [head, ("---",) * len(head), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"`{row['name']}`" if row["name"] != OTHER_SEED else row["name"],
        f"{row['share_of_static_bytes']:.2f}",
        f"{row['kib_per_second']:.0f}",
        f"{row['tokens_per_second']['ratio']:.2f}",
        *(f"{row[share]:.2f}" for share in ("same_tokens", "leading", "positions", "ran_on")),
        *(cell for meter in ERRORS for cell in _error_cells(row["errors"][meter])),
        *(f"{row[figure]['value']:.2f}" for figure in ("log_mel_db", "f0_semitones")),
        f"{row['speaker_similarity']['value']:.3f}",
        f"{row['duration_ratio']['value']:.2f}",
    )


def _error_cells(errors: Mapping[str, Any]) -> tuple[str, str]:
    more = errors["over_exact"]
    signed = [f"{round(value, 3) + 0.0:+.3f}" for value in (more["value"], *more["interval"])]
    return f"{errors['rate']['value']:.3f}", "{} ({} to {})".format(*signed)
