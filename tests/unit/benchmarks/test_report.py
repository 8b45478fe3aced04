"""docs/benchmarks.md is what `make report` makes of the results, and says what was not reached or not measured."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.lib import plots, report

ROOT = Path(__file__).resolve().parents[3]


def peer_result(ratio: float, failed: dict[str, str] | None = None) -> dict:
    """A comparison of one measure, as `benchmarks.speed.baselines` writes it."""
    measure = {"measure": "3 texts in a row in one voice", "unit": "ms", "turns": 2}
    ours = {**measure, "system": "chatterbox-kvcache", "median": 1000.0}
    theirs = {**measure, "system": "chatterbox-tts 0.1.7", "median": 1000.0 * ratio}
    theirs |= {"times_ours_ratio": ratio, "times_ours_range": [ratio - 0.05, ratio + 0.05]}
    weight = {"direct_dependencies": 12, "not_installed": ["gradio"], "distributions": 61, "total_mib": 1500.0}
    return {
        "rows": [ours, theirs],
        "failed": failed or {},
        "loading": {"chatterbox-kvcache": {"loading_ms": 9000.0, "loaded_mib": 3300.0, "loading_peak_mib": 3400.0}},
        "installed": {"chatterbox-kvcache": {**weight, "without_torch_mib": 800.0}},
        "environment": {"cpu": "Some CPU", "device": "x86_64", "cores": 2, "threads": 2},
        "command": "python -m benchmarks.speed.baselines --quick",
    }


def target(results: dict, name: str) -> str:
    return next(line for line in report.targets(results) if name in line)


def test_the_page_is_what_the_command_makes_of_the_results():
    made = report.page(report.load())
    assert (ROOT / "docs" / "benchmarks.md").read_text() == made, "run make report, and commit what it changes"


def test_every_result_is_on_the_page_and_every_picture_of_the_page_is_there():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    results = report.load()
    assert len(results) >= 13
    assert {name for name in results if f"`benchmarks/results/{name}.json`" not in text} == set()
    pictures = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(pictures) >= 2 and all((ROOT / "docs" / picture).is_file() for picture in pictures)


def test_results_are_those_that_git_knows_or_without_git_all(tmp_path):
    for name in ("known", "new"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert report.load(tmp_path).keys() == {"known", "new"}
    for command in (["init", "-q"], ["add", "known.json"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert report.load(tmp_path).keys() == {"known"}


def test_without_results_all_that_is_missing_is_named():
    text = report.page({})
    assert text.count("Not measured yet:") == len(report.SECTIONS)
    assert "reached" not in "".join(report.targets({}))
    assert "`streaming.json`" in text and "`peer.json`" in text


@pytest.mark.parametrize(("ratio", "word"), [(1.5, "| reached |"), (1.1, "| **not reached** |"), (0.8, "not reached")])
def test_a_target_is_reached_or_not_by_the_measured_ratio(ratio, word):
    line = target({"peer_quick": peer_result(ratio)}, "multi-chunk text")
    assert word in line and "`peer_quick.json`" in line and f"{100 * (1 - 1 / ratio):.0f}% less" in line


def test_a_figure_that_the_long_comparison_lacks_is_of_the_quick_one():
    lacking = {**peer_result(2.0), "rows": []}
    line = target({"peer": lacking, "peer_quick": peer_result(1.25)}, "multi-chunk text")
    assert "20% less" in line and "`peer_quick.json`" in line


def test_the_long_comparison_stands_before_the_quick_one():
    line = target({"peer": peer_result(2.0), "peer_quick": peer_result(1.0)}, "multi-chunk text")
    assert "50% less" in line and "`peer.json`" in line


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        ({"hit_rate": 0.93, "t3_gap_ms": 40.0, "less_time_than_nothing_kept": 0.16}, "| reached |"),
        ({"hit_rate": 0.8, "t3_gap_ms": 70.0, "less_time_than_nothing_kept": 0.14}, "| **not reached** |"),
    ],
)
def test_targets_of_streaming_are_read_once_it_was_measured(measured, word):
    for name in ("cache hits", "between chunks", "caches on against off"):
        assert "not measured yet" in target({}, name)
        assert "not measured yet" in target({"streaming": {"rows": []}}, name)
        assert word in target({"streaming": {"targets": measured}}, name)


def test_a_failed_case_and_its_machine_are_on_the_page():
    text = report.page({"peer": peer_result(1.2, {"stream": "it ended with code 1"})})
    assert "Not measured: stream: it ended with code 1." in text
    assert (
        "| 3 texts in a row in one voice, ms | 1,000 | chatterbox-tts 0.1.7 | 1,200 | 1.2 | 1.15 to 1.25 | 2 |" in text
    )
    assert "`python -m benchmarks.speed.baselines --quick`: Some CPU, 2 cores, 2 threads." in text
    assert "benchmark_peer" in report.images({"peer": peer_result(1.2)})


def test_an_hour_of_streaming_is_shown_by_its_figures():
    text = report.page({"streaming_hour": {"append_minutes": 60, "append_t3_ms_per_token_last_over_first": 1.02}})
    assert "| append minutes | 60 |" in text and "| append t3 ms per token last over first | 1.02 |" in text


def streams_result() -> dict:
    """Of a few tables, as `speed/streams.py` writes it."""
    case = {"table": "published", "streams": 4, "way": "at once"}
    times = {"value": 2.104, "interval": [2.05, 2.16]}
    rows = [
        {"table": "threads of generate", "way": "threads at once", "times_one_after_another": times, "reached": "yes"},
        {**case, "system": "chatterbox-kvcache", "audio_per_second": 0.6, "failed": ""},
        {**case, "system": "chatterbox-tts 0.1.7", "audio_per_second": 0.0, "failed": "it says something else"},
        {**case, "system": "chatterbox-tts 0.1.7", "way": "one after another", "audio_per_second": 0.1, "failed": ""},
    ]
    return {"rows": rows, "failed": {"one": "no package"}, "command": "python -m benchmarks.speed.streams"}


def test_streams_at_once_are_shown_table_by_table():
    text = report.page({"streams": streams_result()})
    assert "| threads at once | 2.1 (2.05 to 2.16) | yes |" in text
    assert "| 4 | at once | chatterbox-tts 0.1.7 | 0 | it says something else |" in text
    assert "Not measured: one: no package." in text and "## Others" not in text
    assert "`benchmarks/results/streams.json`, `python -m benchmarks.speed.streams`" in text


def test_whole_streams_are_compared_with_the_better_way_of_each_baseline():
    decoded = {"policy": "static", "rows": 16, "position": 500, "tokens_per_second": 40.0}
    alone = {**decoded, "policy": "chatterbox-tts 0.1.7", "rows": 2, "tokens_per_second": 5.0}
    t3 = {"rows": [decoded, alone], "static_step_at_last_over_first_position": {"2": 1.2}}
    name = "concurrent streams"
    assert "whole streams not measured yet" in target({"t3_decode": t3}, name)
    line = target({"t3_decode": t3, "streams": streams_result()}, name)
    assert "at 4: 6.0 times the audio a second of chatterbox-tts 0.1.7" in line and "`streams.json`" in line


def test_results_that_no_section_is_of_are_shown_as_they_are():
    text = report.page({"novelty": {"rows": [{"case": "one", "median_ms": 1234.5, "quartiles_ms": [1, 2]}]}})
    assert "## Others" in text and "| one | 1,234 |" in text and "`benchmarks/results/novelty.json`" in text


def test_bars_are_as_long_as_their_values(tmp_path):
    items = [("one", 1.0, 0.9, 1.1), ("two", 2.0, 1.9, 2.1)]
    figure = plots.bars("A < B", items, unit="x", mark=1.0)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert axes.get_xlabel() == "x" and axes.get_xscale() == "linear"
    (wide,) = plots.bars("Wide", [("least", 0.1, 0.1, 0.1), ("most", 9.0, 8.0, 10.0)], unit="x").axes
    assert wide.get_xscale() == "log"


def test_lines_go_through_their_points():
    points = [(0, 0), (10, 50), (20, 100)]
    (axes,) = plots.lines("Growth", {"a": points}, x_label="n", y_label="ms").axes
    (line,) = axes.get_lines()
    assert [tuple(one) for one in line.get_xydata().tolist()] == points and line.get_label() == "a"


def test_the_same_numbers_give_the_same_picture(tmp_path):
    for name in ("one", "two"):
        figure = plots.lines("Growth", {"a": [(0, 0), (1, 2)]}, x_label="n", y_label="ms")
        plots.save(figure, tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one point"):
        plots.lines("Growth", {"a": []}, x_label="n", y_label="ms")
    with pytest.raises(ValueError, match="positive"):
        plots.bars("Ratios", [("one", 0.0, 0.0, 0.0)], unit="x")
