"""``chatterbox bench``: the same texts by one configuration or, with ``-m``, by each of a sweep.

Owns: the order of the jobs, a job's line, the table, the folder. Does not know: what is measured (`measure`), how it is
drawn (`plots`), how overrides become jobs (`chatterbox.cli.hydra_config`).
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chatterbox.cli.config import BenchmarkCommandConfig, ModelChoice
from chatterbox.cli.errors import UsageError, as_usage
from chatterbox.cli.measure import MIB, SpeechTokens, agreement, environment, measure
from chatterbox.cli.options import add_command, add_settings
from chatterbox.cli.output import Progress, progress, table
from chatterbox.cli.plots import can_plot, plot
from chatterbox.cli.speaker import checked, make_speaker, models_of
from chatterbox.config import to_dict
from chatterbox.runtime.files import whole

if TYPE_CHECKING:
    from chatterbox.checkpoints import LoadedModels

COLUMNS = {  # of the table: what a job's line calls it, and how it is written
    "tokens_per_s": ("tokens/s", "{:.1f}"),
    "ms_per_token": ("ms/token", "{:.2f}"),
    "first_token_ms": ("first token ms", "{:.1f}"),
    "first_audio_ms": ("first audio ms", "{:.0f}"),
    "rtf": ("RTF", "{:.2f}"),
    "cache_mib": ("cache MiB", "{:.2f}"),
    "prefix_hits": ("prefix hits", "{:.0%}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "token_agreement": ("same tokens", "{:.1%}"),
}
EXAMPLES = """
    examples:
      chatterbox bench
      chatterbox bench -m kvcache=none,static,sliding,compressed model=tiny -o sweep
      chatterbox bench -m kvcache=sliding kvcache.max_cache_size=512 'kvcache.window_size=range(64,257,64)'
      chatterbox bench -m 'kvcache=glob(*)' benchmark=quick
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        run,
        help="measure a configuration, or a sweep of several",
        description="Say the same texts by one configuration, or by each of a sweep, and measure. Hydra's grammar: "
        "a=1,2, range(), choice(), glob().",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="a setting may have several values: a=1,2")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where jobs.jsonl, table.md and plots.png go")
    add_settings(parser, "benchmark", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    jobs = _jobs(arguments, overrides)
    folder = None if arguments.output is None else _folder(Path(arguments.output))
    rows = []
    with nullcontext() if folder is None else (folder / "jobs.jsonl").open("w", encoding="utf-8") as lines:
        for row in _rows(jobs, _labels(jobs)):
            line = json.dumps(row)
            print(line, file=lines, flush=True)  # standard output where there is no folder
            rows.append(row)
    cells, failed = _cells(rows), [row for row in rows if "error" in row]
    print("\n".join(table(cells)))
    for row in failed:
        print(f"{row['job']} failed: {row['error']}")
    if folder is not None:
        _write(folder, rows, cells)
    return int(bool(failed))


def _jobs(
    arguments: argparse.Namespace, overrides: Sequence[str]
) -> list[tuple[list[str], BenchmarkCommandConfig | str]]:
    """Overrides and configuration of each job, or why it has none. Raises UsageError if no job has any."""
    from chatterbox.cli.hydra_config import ConfigError, compose_config, split_sweep

    with as_usage():
        options = {"config_dir": arguments.config_dir}
        sweep = split_sweep("benchmark", overrides, **options) if arguments.multirun else [list(overrides)]
        jobs: list[tuple[list[str], BenchmarkCommandConfig | str]] = []
        for given in sweep:
            try:
                jobs.append(
                    (given, checked(cast(BenchmarkCommandConfig, compose_config("benchmark", given, **options))))
                )
            except (ConfigError, UsageError) as error:
                jobs.append((given, str(error)))
        if all(isinstance(job, str) for _, job in jobs):
            raise UsageError(jobs[0][1] if jobs else "this sweep has no job: a list of values is empty")
    return jobs


def _labels(jobs: Sequence[tuple[list[str], object]]) -> list[str]:
    """What tells each job from the others: its overrides that not all have."""
    common = set.intersection(*(set(given) for given, _ in jobs))
    return [" ".join(one for one in given if one not in common) or " ".join(given) or "defaults" for given, _ in jobs]


def _rows(
    jobs: Sequence[tuple[list[str], BenchmarkCommandConfig | str]], labels: Sequence[str]
) -> Iterator[dict[str, object]]:
    """A line for each job as it ends; one that fails has an error, and the next follows."""
    loaded = _Loaded()
    reference: SpeechTokens | None = None
    with progress() as report:
        for number, ((given, config), label) in enumerate(zip(jobs, labels, strict=True)):
            row: dict[str, object] = {"job": label, "overrides": given}
            report.bar(number, len(jobs), label)
            try:
                if isinstance(config, str):
                    raise UsageError(config)
                row["config"] = to_dict(config)
                figures, speech_tokens = _measured(config, loaded, report, f"{number + 1} of {len(jobs)}: {label}")
                reference = speech_tokens if reference is None else reference
                row |= {**figures, "token_agreement": agreement(speech_tokens, reference)}
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            report.clear()
            yield {**row, "environment": environment()}


def _measured(
    config: BenchmarkCommandConfig, loaded: _Loaded, report: Progress, label: str
) -> tuple[dict[str, Any], SpeechTokens]:
    turns = config.benchmark.warmup + config.benchmark.repeats
    with closing(make_speaker(loaded.models(config, report), config, report)) as speaker:
        measured = measure(speaker, config.benchmark, lambda turn: report.bar(turn, turns, f"job {label}"))
    return {**measured.figures, "cache_mib": (measured.figures["cache_bytes"] or 0) / MIB}, measured.speech_tokens


class _Loaded:
    """The weights of the last job, which the next one may need too."""

    def __init__(self) -> None:
        self._choice: tuple[ModelChoice, bool] | None = None
        self._models: LoadedModels | None = None

    def models(self, config: BenchmarkCommandConfig, report: Progress) -> LoadedModels:
        choice = config.model, config.language is None
        if self._models is None or self._choice != choice:
            self._models = None  # before the next weights are read
            gc.collect()
            self._models, self._choice = models_of(config, report), choice
        return self._models


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table: a heading, and a line for each job."""
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    cells = [["job", *(COLUMNS[name][0] for name in columns)]]
    for row in rows:
        values = [COLUMNS[name][1].format(row[name]) if row.get(name) is not None else "" for name in columns]
        cells.append([f"{row['job']} (failed)" if "error" in row else row["job"], *values])
    return cells


def _folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write to {str(folder)!r}: it is a file")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(folder: Path, rows: Sequence[dict[str, Any]], cells: Sequence[Sequence[str]]) -> None:
    """The table and, where matplotlib is installed, the plots, beside the lines that are there already."""
    heading, *lines = ("| " + " | ".join(row) + " |" for row in cells)
    with whole(folder / "table.md") as part:
        part.write_text("\n".join([heading, "|" + " --- |" * len(cells[0]), *lines]) + "\n", encoding="utf-8")
    written = "jobs.jsonl, table.md"
    if all("error" in row for row in rows):
        pass
    elif can_plot():
        plot(rows, folder / "plots.png")
        written += ", plots.png"
    else:
        print("no plots: pip install 'chatterbox-kvcache[bench]' brings matplotlib")
    print(f"{folder}: {written}")
