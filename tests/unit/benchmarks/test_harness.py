"""What benchmarks say about themselves: machine, turns, ratios; and that results of two machines are not compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.lib import compare, harness


def test_a_result_names_its_machine_versions_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/benchmarks/speed/baselines.py", "--quick", "--peer", "/home/me/bin/python"]
    )
    harness.report("speed", [{"case": "one", "ms": 1.5}], tmp_path / "speed.json", texts=3)
    result = json.loads((tmp_path / "speed.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["command"] == "python -m benchmarks.speed.baselines --quick --peer python"
    assert result["texts"] == 3 and result["rows"] == [{"case": "one", "ms": 1.5}]
    assert {*harness.MACHINE, "python", "torch", "transformers", "chatterbox", "commit"} <= result["environment"].keys()
    assert result["environment"]["cores"] >= 1 and result["environment"]["cpu"]


def test_a_command_names_the_folder_of_its_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed/streams.py", "--only", "tiny"])
    assert harness.command() == "python -m benchmarks.speed.streams --only tiny"


def test_results_of_one_machine_are_comparable():
    here = {"environment": harness.environment()}
    harness.comparable(here, {"environment": {**here["environment"], "commit": "another", "torch": "another"}})


@pytest.mark.parametrize("field", ["device", "cpu", "cores", "threads", "vector_instructions"])
def test_results_of_two_machines_are_not(field):
    here = {"environment": harness.environment()}
    with pytest.raises(ValueError, match=f"different machines, {field} .*'elsewhere'"):
        harness.comparable(here, {"environment": {**here["environment"], field: "elsewhere"}})


@pytest.mark.parametrize("silent", [{}, {"environment": {"device": "x86_64"}}])
def test_a_result_that_does_not_say_its_machine_is_compared_with_nothing(silent):
    with pytest.raises(ValueError, match="does not say its"):
        harness.comparable({"environment": harness.environment()}, silent)


@pytest.mark.parametrize("warm_up", [0, 1, 2])
def test_cases_take_turns_and_the_first_turns_do_not_count(warm_up):
    order = []
    times = harness.in_turns({name: lambda n=name: order.append(n) for name in "ab"}, 3, warm_up)
    assert order == list("ab" * (3 + warm_up))
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_turn_by_turn():
    slow = 4.0  # all of the second turn was
    assert harness.ratio([20.0, 20.0 * slow, 18.0], [10.0, 10.0 * slow, 10.0]) == {"ratio": 2.0, "range": [1.8, 2.0]}


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_ratio_needs_both_in_every_turn(a, b):
    with pytest.raises(ValueError, match="in every turn"):
        harness.ratio(a, b)


def written(folder: Path, name: str, rows: list[dict], benchmark: str = "speed", **machine: object) -> str:
    path = folder / name
    environment = {**harness.environment(), **machine}
    path.write_text(json.dumps({"benchmark": benchmark, "rows": rows, "environment": environment}))
    return str(path)


def test_two_results_are_compared_row_by_row(tmp_path, capsys):
    old = [{"case": "a", "rows": 2, "ms": 10.0}, {"case": "a", "rows": 4, "ms": 30.0}, {"case": "gone", "ms": 1.0}]
    new = [{"case": "a", "rows": 4, "ms": 15.0}, {"case": "a", "rows": 2, "ms": 20.0}]
    assert compare.main([written(tmp_path, "1", old), written(tmp_path, "2", new)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"case": "a", "rows": 4, "ms": 0.5},
        {"case": "a", "rows": 2, "ms": 2.0},
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cpu": "another"}, "different machines, cpu"),
        ({"benchmark": "size"}, "two benchmarks"),
        ({"rows": [{"case": "b", "ms": 1.0}]}, "no row in common"),
    ],
)
def test_what_says_nothing_about_each_other_is_refused_in_one_line(tmp_path, capsys, other, said):
    rows = [{"case": "a", "ms": 1.0}]
    files = written(tmp_path, "1", rows), written(tmp_path, "2", **{"rows": rows, **other})
    assert compare.main(files) == 2
    out, error = capsys.readouterr()
    assert not out and said in error and error.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    assert compare.main([str(tmp_path / "absent"), str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
