"""Lines of the quality benchmark as figures: what is paired with what, what is a share, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.quality import summary as report

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def line(config: str, text: str, voice: str, **values: object) -> dict:
    """Of a run that is as the exact one."""
    return {
        "config": config,
        "text": text,
        "voice": voice,
        "sentences": 1,
        "drawn": [1, 2, 3, 4],
        "num_exact": 4,
        "leading": 1.0,
        "positions": 1.0,
        "ran_on": False,
        "step_seconds": 2.0,
        "bytes": 4096,
        "fitted_bytes": 2048,
        "trims": 0,
        "forgotten": 0,
        "seconds": 2.0,
        "exact_seconds": 2.0,
        "errors": {"phone_errors": [1, 40], "whisper": [0, 10], "pocketsphinx": [1, 10]},
        "log_mel_db": 0.0,
        "f0_semitones": 0.0,
        "speaker_similarity": 0.9,
        "profile_distance": 10.0,
        "right_speaker": True,
    } | values


def cases(config: str, **values: object) -> list[dict]:
    return [line(config, text, voice, **values) for text in ("one", "two", "three") for voice in ("a", "b")]


def test_the_exact_run_is_at_distance_zero_of_itself():
    (row,) = report.summarize(cases("static"))
    assert row["cases"] == 6 and row["share_of_static_bytes"] == row["same_tokens"] == 1.0
    assert row["kib_per_second"] == 1.0 and row["kib_allocated"] == 4
    assert row["tokens_per_second"] == {"ratio": 1.0, "quartiles": [1.0, 1.0], "median": 2.0}
    rates = {meter: errors["rate"] for meter, errors in row["errors"].items()}
    wanted = {"phone_errors": 0.025, "whisper": 0.0, "pocketsphinx": 0.1}
    assert rates == {meter: {"value": rate, "interval": [rate, rate]} for meter, rate in wanted.items()}
    assert row["errors"]["whisper"]["over_exact"]["value"] == row["log_mel_db"]["value"] == 0.0


def test_a_lossy_run_is_paired_with_the_exact_one_of_its_case():
    other = cases("sliding 16", step_seconds=1.0, fitted_bytes=1024, trims=2, forgotten=7)
    other[0]["errors"] = {"phone_errors": [9, 40], "whisper": [0, 10], "pocketsphinx": [5, 10]}
    other[0] |= {"drawn": [1, 2, 9, 9, 9, 9], "ran_on": True, "seconds": 3.0, "step_seconds": 1.5}
    first, second = report.summarize([*other, *cases("static")])
    assert (first["name"], second["name"]) == ("sliding 16", "static")
    assert first["share_of_static_bytes"] == 0.5 and first["tokens_per_second"]["ratio"] == 2.0
    more = {meter: errors["over_exact"]["value"] for meter, errors in first["errors"].items()}
    assert more == pytest.approx({"phone_errors": 8 / 240, "whisper": 0, "pocketsphinx": 4 / 60}, abs=1e-4)
    assert first["same_tokens"] == pytest.approx(5 / 6, abs=1e-3) and first["ran_on"] == pytest.approx(1 / 6, abs=1e-3)
    assert first["duration_ratio"]["value"] == pytest.approx((5 + 1.5) / 6, abs=1e-4)
    assert (first["trimmed"], first["trims"], first["forgotten"]) == (1.0, 2.0, 7.0)


def test_the_interval_is_over_texts():
    other = [dict(one, log_mel_db=6.0 if one["text"] == "one" else 0.0) for one in cases("sliding 16")]
    row = report.summarize([*cases("static"), *other])[1]
    low, high = row["log_mel_db"]["interval"]
    assert row["log_mel_db"]["value"] == 2.0 and low == 0.0 and high > 3.0


def test_a_case_without_a_voiced_frame_is_left_out_of_the_melody():
    other = cases("sliding 16", f0_semitones=2.0)
    other[0]["f0_semitones"] = math.nan
    assert report.summarize([*cases("static"), *other])[1]["f0_semitones"]["value"] == 2.0


def test_pairs_of_sentences_have_errors_of_their_own():
    more = {"phone_errors": [4, 40], "whisper": [0, 10], "pocketsphinx": [3, 10]}
    both = [dict(one, sentences=2, errors=more) if one["text"] == "two" else one for one in cases("static")]
    (row,) = report.summarize(both)
    assert (row["errors"]["pocketsphinx"]["single"], row["errors"]["pocketsphinx"]["pair"]) == (0.1, 0.3)


def test_missing_cases_are_refused():
    with pytest.raises(ValueError, match="no lines"):
        report.summarize([])
    with pytest.raises(ValueError, match="'sliding 16' has 5 cases and 'static' 6"):
        report.summarize([*cases("static"), *cases("sliding 16")[1:]])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("static", "static"),
        ("static, another seed", "static, another seed"),
        ("sliding 16", "sliding"),
        ("evicting silence*2+attention 48", "evicting silence*2+attention"),
        ("headwindow 0.125 16", "headwindow 0.125"),
        ("compressed int8, groups of 8", "compressed int8"),
    ],
)
def test_what_a_line_of_the_plot_joins(name, family):
    assert report.family(name) == family


def test_the_page_shows_the_figures_of_the_committed_run():
    result = json.loads((BENCHMARKS / "results" / "quality.json").read_text())
    docs = BENCHMARKS.parent / "docs"
    page = (docs / "benchmarks.md").read_text()
    assert (
        result["texts"] >= 12
        and len(result["rows"]) > 20
        and {row["cases"] for row in result["rows"]} == {4 * result["texts"]}
    )
    assert report.table(result["rows"]) in page, "run make report"
    assert "(images/quality_vs_bytes.svg)" in page and (docs / "images" / "quality_vs_bytes.svg").is_file()
