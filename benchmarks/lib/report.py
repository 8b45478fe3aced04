"""docs/benchmarks.md and its plots, of the results in benchmarks/results: ``make report``.

Owns: the page's order, the targets that were set at the start, where each figure was measured. Does not know: how a
figure is measured, or how a section shows its own (`report_sections`). Reads JSON alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.lib.plots import save
from benchmarks.lib.report_sections import OURS, PEER_RESULTS, SECTIONS, Section, all_columns, number, peer_rows, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "images"
NOT_MEASURED = "not measured yet"
MB = 2**20 / 1e6  # megabytes in a MiB
Results = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """\
# Benchmarks

`make report` makes this page and its plots of the JSON in `benchmarks/results`; do not edit it. Below each table stand
its file and the command that measures it. Cases of one table ran in turn, A B A B, in one run. Times of two tables are
of two runs, often of two machines: compare ratios, not times (`comparable` in `benchmarks/lib/harness.py` refuses it).
Weights of the published size are synthetic, so these figures are of speed and memory; what is said about speech is
measured on the embedded voice.
"""


@dataclass(frozen=True)
class Finding:
    """A target beside what was reached; ``reached`` is None where nothing was measured, or no number was set."""

    reached: bool | None
    text: str
    file: str = ""


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Results by the name of their file, without its ending; in a clone, of those that git knows."""
    listed = subprocess.run(["git", "ls-files", "*.json"], cwd=folder, capture_output=True, text=True, check=False)
    names = listed.stdout.split() or [path.name for path in folder.glob("*.json")]
    paths = (folder / name for name in sorted(names) if "/" not in name)
    return {path.stem: json.loads(path.read_text()) for path in paths if path.is_file()}


def less_time(results: Results) -> Finding:
    for name in PEER_RESULTS:
        rows = peer_rows(results.get(name, {}), "texts in a row in one voice")
        times = [row for row in rows if row["unit"] == "ms" and "times_ours_ratio" in row]
        if times:
            ratio, (low, high) = times[0]["times_ours_ratio"], times[0]["times_ours_range"]
            saved, least, most = (100 * (1 - 1 / figure) for figure in (ratio, low, high))
            what = f"{times[0]['measure']}, threads: {results[name]['environment']['threads']}"
            text = f"{saved:.0f}% less than {times[0]['system']} ({least:.0f} to {most:.0f}%), {what}"
            return Finding(saved >= 15, text, name)
    return Finding(None, NOT_MEASURED)


def less_memory(results: Results) -> Finding:
    if "decode_memory" not in results:
        return Finding(None, NOT_MEASURED)
    saved = results["decode_memory"]["peak_mib_saved"] * MB
    text = f"{saved:.0f} MB less at the peak of 1,000 tokens, `static` against a cache that grows"
    return Finding(saved >= 300, text, "decode_memory")


def streamed(key: str, show: Callable[[float], str], is_reached: Callable[[float], bool]) -> Callable[..., Finding]:
    """A finding of ``key`` in what streaming.json calls its targets."""

    def find(results: Results) -> Finding:
        value = results.get("streaming", {}).get("targets", {}).get(key)
        if value is None:
            return Finding(None, NOT_MEASURED)
        return Finding(is_reached(value), show(value), "streaming")

    return find


def quality(results: Results) -> Finding:
    rows = {row["name"]: row for row in results.get("quality", {}).get("rows", ())}
    exact = rows.get("dynamic")
    if exact is None:
        return Finding(None, NOT_MEASURED)
    share = f"{100 * exact['same_tokens']:.0f}% of {exact['cases']} cases"
    text = f"`static` and `dynamic` decode the same tokens in {share}"
    return Finding(exact["same_tokens"] == 1, f"{text}; policies that forget or pack: below", "quality")


def concurrent(results: Results) -> Finding:
    rows = results.get("t3_decode", {}).get("rows", ())
    by_case = {(row["policy"], row["rows"], row["position"]): row["tokens_per_second"] for row in rows}
    one, many = by_case.get(("chatterbox-tts 0.1.7", 2, 500)), by_case.get(("static", 16, 500))
    if one is None or many is None:
        return Finding(None, NOT_MEASURED)
    times = f"{many / one:.1f} times the tokens a second of one stream of chatterbox-tts 0.1.7"
    said, files = f"T3 alone: eight requests in one batch decode {times}", "t3_decode"
    streams = whole_streams(results)
    return Finding(None, f"{said}; whole streams {streams or NOT_MEASURED}", f"{files}, streams" if streams else files)


def whole_streams(results: Results) -> str:
    """Audio a second of the most published streams at once, over that of each baseline at its better way."""
    rows = [row for row in results.get("streams", {}).get("rows", ()) if row["table"] == "published"]
    most = max((row["streams"] for row in rows), default=0)
    best: dict[str, float] = {}
    for row in rows:
        if row["streams"] == most:
            best[row["system"]] = max(best.get(row["system"], 0.0), row["audio_per_second"])
    ours = max((best.pop(name) for name in [*best] if name.startswith(OURS)), default=0.0)  # streamed, or whole
    said = [f"{ours / theirs:.1f} times the audio a second of {name}" for name, theirs in best.items() if theirs]
    return f"at {most}: {', '.join(said)}" if said else ""


def steady(results: Results) -> Finding:
    said, files = [], []
    if "t3_decode" in results:
        growth = results["t3_decode"]["static_step_at_last_over_first_position"]["2"]
        said.append(f"a step at position 1,000 takes {growth:.2f} times one at 100")
        files.append("t3_decode")
    if "soak" in results:
        said.append(
            f"{number(results['soak']['calls'])} generations end at {results['soak']['ratio']:.3f} times the memory"
        )
        files.append("soak")
    return Finding(None, f"no number was set; {'; '.join(said) or NOT_MEASURED}", ", ".join(files))


TARGETS: dict[str, Callable[[Results], Finding]] = {
    "multi-chunk text in 15% less time, hoped 25%": less_time,
    "the same, caches on against off": streamed(
        "less_time_than_nothing_kept", lambda x: f"{100 * x:.0f}% less on the embedded voice", lambda x: x >= 0.15
    ),
    "300 MB less transient memory": less_memory,
    "90% cache hits on streaming chunks": streamed("hit_rate", lambda x: f"{100 * x:.0f}%", lambda x: x >= 0.9),
    "no quality loss": quality,
    "under 50 ms between chunks (T3's share)": streamed("t3_gap_ms", lambda x: f"{x:.0f} ms", lambda x: x < 50),
    "twice as many concurrent streams": concurrent,
    "steady from short to long texts": steady,
}


def targets(results: Results) -> list[str]:
    words = {True: "reached", False: "**not reached**", None: "–"}
    rows = []
    for target, find in TARGETS.items():
        found = find(results)
        files = ", ".join(f"`{name}.json`" for name in found.file.split(", ") if name)
        rows.append({"set at the start": target, "": words[found.reached], "measured": found.text, "file": files})
    return ["## Targets", "", *table(rows)]


def source(name: str, result: Mapping[str, Any], section: Section) -> str:
    """One line: the file, the machine, the versions, the command."""
    there = result.get("environment", {})
    keys = ("cpu", "device", "cores", "threads", "vector_instructions", "python", "torch", "transformers", "commit")
    shown = {
        "cores": "{} cores",
        "threads": "{} threads",
        "python": "Python {}",
        "torch": "torch {}",
        "transformers": "transformers {}",
        "commit": "commit {}",
    }
    said = [shown.get(key, "{}").format(there[key]) for key in keys if key in there]
    if "cpu" in there and there.get("device") in ("x86_64", "arm64", "aarch64"):
        said.remove(there["device"])
    command = result.get("command") or section.command
    return f"`benchmarks/results/{name}.json`, `{command}`: {', '.join(said) or 'machine unknown'}."


def others(results: Results) -> list[Section]:
    """A section of all that no other one is of."""
    known = {name for section in SECTIONS for name in section.files}
    rest = tuple(name for name in results if name not in known)
    return [Section("Others", rest, "python benchmarks", all_columns)] if rest else []


def page(results: Results) -> str:
    """The whole page as text."""
    parts = [INTRODUCTION, *targets(results), ""]
    for section in (*SECTIONS, *others(results)):
        files = [name for name in section.files if name in results]
        parts += [f"## {section.title}", ""]
        if not files:
            parts += [f"{NOT_MEASURED.capitalize()}: {', '.join(f'`{name}.json`' for name in section.files)}.", ""]
            continue
        parts += [section.about, ""] if section.about else []
        for image, (alternative, _) in section.plots(results).items():
            parts += [f"![{alternative}](images/{image}.svg)", ""]
        for name in files:
            parts += [*section.text(name, results[name]), "", source(name, results[name], section), ""]
    return "\n".join(parts).rstrip() + "\n"


def images(results: Results) -> dict[str, Figure]:
    """Plots by name."""
    plots = (section.plots(results) for section in SECTIONS if any(name in results for name in section.files))
    return {name: figure for some in plots for name, (_, figure) in some.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    results = load()
    IMAGES.mkdir(exist_ok=True)
    PAGE.write_text(page(results))
    made = images(results)
    for name, figure in made.items():
        save(figure, IMAGES / f"{name}.svg")
    print(f"{PAGE.relative_to(ROOT)} of {len(results)} results, {len(made)} plots")


if __name__ == "__main__":
    main()
