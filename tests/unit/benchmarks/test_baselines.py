"""The comparison with peers, without them: questions to a process, turns, ratios, what an installation weighs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.baselines import client
from benchmarks.speed import baselines


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "MODULES", {"fake": "tests.support.fake_baseline"})
    with client.Baseline("fake", sys.executable, tmp_path) as process:
        yield process


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_answers_until_it_is_left(fake):
    about = fake.ask("about")
    assert about["loading_ms"] > 0 and about["loading_peak_mib"] >= about["loaded_mib"] > 0
    assert fake.ask("draw", count=5, seed=3)["drawn"] == fake.ask("draw", count=5, seed=3)["drawn"]
    assert fake.ask("draw", count=5, seed=3)["drawn"] != fake.ask("draw", count=5, seed=4)["drawn"]
    kept, held = fake.ask("keep", mib=64), fake.ask("hold", mib=128)
    assert 60 < kept["after_mib"] - kept["before_mib"] < 80
    assert 120 < held["peak_mib"] - held["before_mib"] < 150 and held["after_mib"] - held["before_mib"] < 20
    assert fake.ask("keep", mib=1)["peak_mib"] < held["peak_mib"]  # each question has a peak of its own


def test_calls_at_once_are_told_with_what_s3gen_was_given(fake):
    calls = fake.ask("speak", texts=["1", "2", "1", "no voice"])["calls"]
    assert [call["samples"] for call in calls] == [[4], [4], [4], []]
    assert [call["given"]["voice"] for call in calls] == [[1.0] * 2, [2.0] * 2, [1.0] * 2, []]
    assert [call["given"]["tokens"] for call in calls] == [[1.0] * 4] * 3 + [[]]
    assert calls[3]["error"].startswith("ValueError: could not convert")


def test_what_goes_wrong_inside_is_said_outside(fake):
    with pytest.raises(RuntimeError, match=r"(?s)fake has no answer to 'sing': .*no attribute 'sing'"):
        fake.ask("sing")
    with pytest.raises(RuntimeError, match=r"(?s)'die': it ended with code 3.*last words"):
        fake.ask("die")
    with pytest.raises(RuntimeError, match="no answer to 'about'"):
        fake.ask("about")


def test_ratios_are_to_ours_in_the_same_turns():
    turns = iter([(9.0, 9.0), (10.0, 30.0), (20.0, 40.0), (10.0, 25.0)])  # the first warms up

    def turn():
        ours, theirs = next(turns)
        yield "speaking (ms)", baselines.OURS, ours
        yield "speaking (ms)", baselines.UPSTREAM, theirs

    ours, theirs = baselines.rows_of(baselines.in_turns(3, 1, turn))
    assert (ours["measure"], ours["unit"], ours["median"], ours["turns"]) == ("speaking", "ms", 10.0, 3)
    assert (theirs["lowest"], theirs["highest"]) == (25.0, 40.0)
    assert theirs["times_ours_ratio"] == 2.5 and theirs["times_ours_range"] == [2.0, 3.0]


class Said:
    """A system of known answers, which notes what it was asked."""

    def __init__(self, samples: list[int]) -> None:
        self.samples, self.asked = samples, []

    def ask(self, name: str, **arguments):
        self.asked.append((name, arguments))
        return {"ms": 5.0, "samples": self.samples, "peak_mib": 9.0, "before_mib": 7.0}


def test_both_say_the_same_texts_in_a_voice_new_to_both():
    systems = {baselines.OURS: Said([960, 960]), baselines.UPSTREAM: Said([960, 960])}
    values = list(baselines.several(systems, baselines.QUICK, "voice.wav"))
    for system in systems.values():
        assert [name for name, _ in system.asked] == ["conditioning", "generate"]
        assert system.asked[1][1]["texts"] == baselines.TEXTS[:3] and system.asked[1][1]["reference"] is None
    assert ("3 texts in a row in one voice, peak above memory before (MiB)", baselines.OURS, 2.0) in values


def test_what_was_said_stands_beside_the_time_it_took():
    systems = {baselines.OURS: Said([960, 960]), baselines.UPSTREAM: Said([960])}
    rows = baselines.rows_of(baselines.in_turns(1, 0, lambda: baselines.several(systems, baselines.QUICK, "voice.wav")))
    said = [row for row in rows if row["measure"].endswith("audio said")]
    assert [row["median"] for row in said] == [80.0, 40.0] and said[1]["times_ours_ratio"] == 0.5


def test_cases_measured_again_replace_those_of_the_same_machine_and_size():
    here = baselines.environment()
    rows = [{"measure": "slow", "median": 9.0}, {"measure": "kept", "median": 1.0}]
    old = {"rows": rows, "failed": {"several": "it died"}, "size": {"turns": 2}, "environment": here}
    new = {"rows": [{"measure": "slow", "median": 3.0}], "failed": {}, "size": {"turns": 2}, "cases": ["several"]}
    both = baselines.merged(old, new, here)
    assert both["rows"] == [{"measure": "kept", "median": 1.0}, {"measure": "slow", "median": 3.0}]
    assert both["failed"] == {} and both["measured_again"] == [{"cases": ["several"], "commit": here["commit"]}]
    with pytest.raises(ValueError, match="another size"):
        baselines.merged({**old, "size": {"turns": 9}}, new, here)
    with pytest.raises(ValueError, match="different machines"):
        baselines.merged(old, new, {**here, "cpu": "another"})


def test_every_recording_is_another(tmp_path):
    recordings = baselines.new_recordings(tmp_path)
    first, second = next(recordings).read_bytes(), next(recordings).read_bytes()
    assert len(first) == len(second) and first != second


def test_an_installation_is_the_package_and_what_it_needs(tmp_path):
    """What an extra needs does not count, what lacks is named, and others are no part of it."""
    for name, needs in (
        ("speaker", ["engine>=1", "absent", 'unwanted; extra == "web"']),
        ("engine", ["torch"]),
        ("torch", []),
        ("unwanted", []),
    ):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (tmp_path / f"{name}.bin").write_bytes(bytes(2**20))
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
        )
        (folder / "RECORD").write_text(f"{name}.bin,,\n")
    (tmp_path / "chatterbox").mkdir()
    (tmp_path / "chatterbox" / "__init__.py").write_bytes(b"#" * 2**21)
    script = client.ROOT / "benchmarks" / "baselines" / "installed.py"
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x', 'speaker']; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "direct_dependencies": 2,
        "not_installed": ["absent"],
        "distributions": 2,
        "total_mib": 5.0,
        "without_torch_mib": 4.0,
        "package_mib": 3.0,
    }


def test_a_case_that_fails_costs_no_other(monkeypatch, tmp_path):
    """Each case is handed out when it is done, and what failed is named."""

    class Loaded:
        def __init__(self, name: str, python: str, folder: Path) -> None:
            self.name = name

        def __enter__(self) -> Loaded:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, question: str, **arguments):
            assert question == "about"
            about = {"threads": 2, "torch": "2", "transformers": "5", "numpy": "2"}
            return {**about, "loading_ms": 1.0, "loaded_mib": 1.0, "loading_peak_mib": 1.0}

    def works(systems, size, reference):
        yield "speaking (ms)", baselines.OURS, 1.0

    def fails(systems, size, reference):
        raise RuntimeError("an answer\nthat is wrong")

    def lacks_a_program(pythons):
        raise FileNotFoundError("no such python")

    monkeypatch.setattr(baselines, "Baseline", Loaded)
    monkeypatch.setattr(baselines, "new_recordings", lambda folder: iter(str(i) for i in range(1000)))
    monkeypatch.setattr(baselines, "installation", lambda name, python: {})
    for name in ("conditioning", "s3gen", "generate", "several", "several_named", "stream"):
        monkeypatch.setattr(baselines, name, works)
    monkeypatch.setattr(baselines, "t3", fails)
    monkeypatch.setattr(baselines, "imports", lacks_a_program)
    found = list(baselines.measure({baselines.OURS: "", baselines.UPSTREAM: ""}, tmp_path, baselines.QUICK, ()))
    assert [len(one["rows"]) for one in found] == [1, 1, 2, 3, 4, 5, 5]
    assert [one["failed"] for one in found[:2]] == [{}, {"t3": "that is wrong"}]
    assert found[-1]["failed"] == {"t3": "that is wrong", "imports": "no such python"}
    (only,) = baselines.measure({baselines.OURS: "", baselines.UPSTREAM: ""}, tmp_path, baselines.FULL, ["named"])
    assert only["cases"] == ["named"] and len(only["rows"]) == 1


@pytest.mark.parametrize("size", ["QUICK", "FULL"])
def test_a_size_is_the_same_when_it_is_read_back(size):
    size = getattr(baselines, size).as_json()
    baselines.require_size({"size": json.loads(json.dumps(size))}, size)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "sing"], "no such case at this size: sing; choose from conditioning, t3,"),
        (["--only", "named"], "no such case at this size: named; choose from"),  # the quick one has no turns of it
        (["--only", "t3"], "measured at another size"),
    ],
)
def test_what_cannot_be_measured_leaves_the_result_that_is_there(monkeypatch, capsys, tmp_path, arguments, error):
    result = tmp_path / "baselines.json"
    result.write_text(json.dumps({"size": baselines.FULL.as_json(), "rows": []}))
    before = result.read_text()
    monkeypatch.setattr(baselines, "full_size_folder", lambda folder: pytest.fail("something was prepared"))
    pythons = ["--peer", sys.executable, "--streaming", sys.executable]
    monkeypatch.setattr(sys, "argv", ["baselines.py", "--quick", "-o", str(result), *pythons, *arguments])
    with pytest.raises(SystemExit) as stopped:
        baselines.main()
    assert stopped.value.code == 2 and error in capsys.readouterr().err and result.read_text() == before
