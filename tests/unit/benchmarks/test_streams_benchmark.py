"""The benchmark of many streams, without models: the player, paired turns, which calls count, and what threads hear."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks.baselines import calls
from benchmarks.lib import heard
from benchmarks.speed import decode_streams, streams
from benchmarks.speed import published_streams as published


@pytest.mark.parametrize(
    ("arrived", "lasts", "waited"),
    [
        ((1.0, 1.5, 2.0), (0.6, 0.6, 0.6), 0.0),  # each before the last one is played
        ((1.0, 2.0), (0.5, 0.5), 0.5),
        ((1.0, 2.0, 3.0), (0.5, 0.5, 0.5), 1.0),  # after a wait it goes on with what has come, at once
        ((1.0, 5.0, 5.2), (0.04, 0.5, 0.5), 0.0),  # 40 ms are too few to start, so nothing stands still
        ((1.0, 2.0, 9.0), (0.04, 0.06, 0.1), 6.9),  # it starts with both
        ((1.0,), (0.02,), 0.0),  # all there is
        ((), (), 0.0),
    ],
)
def test_a_player_waits_once_it_has_started_and_has_nothing_left(arrived, lasts, waited):
    assert heard.Heard(arrived, lasts).waited() == pytest.approx(waited)


def test_a_larger_buffer_waits_less():
    stream = heard.Heard((1.0, 2.0, 3.0), (0.5, 1.0, 0.5))
    assert stream.waited(0.1) == pytest.approx(0.5)
    assert stream.waited(1.0) == 0.0


def test_gaps_are_between_chunks_that_both_lie_within():
    stream = heard.Heard((1.0, 2.0, 4.0, 7.0), (1.0,) * 4)
    assert stream.gaps(1.5, 10.0) == [2.0, 3.0] and stream.gaps(0.0, 3.0) == [1.0] and stream.gaps(5.0, 6.0) == []


def test_what_a_stream_that_joins_costs_the_others_is_measured_while_it_speaks():
    others = [
        heard.Heard((0.0, 0.2, 0.5, 1.5, 2.5, 5.5, 8.5, 9.5), (1.0,) * 8) for _ in range(2)
    ]  # two short ones first
    assert heard.change_of_gaps([*others, heard.Heard((6.0, 9.0), (1.0, 1.0), began=2.5)]) == 3.0
    with pytest.raises(ValueError, match="0 after; say longer texts"):
        heard.change_of_gaps([*others, heard.Heard((9.9,), (1.0,), began=9.6)])


def test_a_row_counts_the_audio_of_the_calls_that_count_over_the_time_of_all():
    one, late = heard.Heard((0.2, 1.0), (0.5, 0.5)), heard.Heard((0.6,), (1.0,))
    row = heard.figures([([one, late], 2.0, 10.0), ([one], 2.0, 30.0), ([one, late], 4.0, 20.0)])
    assert row["first_audio_p50_ms"] == 200.0 and row["first_audio_p95_ms"] == pytest.approx(600.0)
    assert row["audio_per_second"] == 0.5  # the median of 1, 0.5 and 0.5
    assert row["waited_seconds"] == pytest.approx(0.3) and row["peak_mib_above_before"] == 30.0 and row["turns"] == 3


def test_where_no_call_counts_nothing_is_heard():
    row = heard.figures([([], 2.0, 10.0)])
    assert row["first_audio_p50_ms"] is None and row["waited_seconds"] is None and row["audio_per_second"] == 0.0


def test_percentiles_lie_between_the_values_around_them():
    calls = [heard.Heard((first / 1000,), (1.0,)) for first in range(1, 102)]
    row = heard.figures([(calls, 1.0, 0.0)])
    assert row["first_audio_p50_ms"] == 51.0 and row["first_audio_p95_ms"] == 96.0


def test_turns_are_paired_and_their_interval_holds_the_median():
    slow = np.linspace(1.0, 9.0, 20)  # what slows a turn slows both
    found = heard.paired(list(2.0 * slow), list(slow))
    assert found == {"value": 2.0, "interval": [2.0, 2.0]}
    noisy = heard.paired(list(slow * np.tile([1.7, 1.9, 2.1, 2.3], 5)), list(slow))
    low, high = noisy["interval"]
    assert noisy["value"] == 2.0 and 1.7 <= low < 2.0 < high <= 2.3
    with pytest.raises(ValueError, match="in every turn, got 2 and 1"):
        heard.paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("bound", "value", "shown"),
    [
        ({"at_least": 1.9}, 1.9, {"goal": "at least 1.9", "reached": "yes"}),
        ({"at_least": 1.9}, 1.899, {"goal": "at least 1.9", "reached": "no"}),
        ({"at_most": 175}, 176, {"goal": "at most 175", "reached": "no"}),
        ({"at_most": 0.0}, 0.0, {"goal": "at most 0", "reached": "yes"}),
    ],
)
def test_a_goal_stands_beside_what_was_reached(bound, value, shown):
    assert heard.goal(value, **bound) == shown


def tone(pitch: float, noise: int = 0) -> np.ndarray:
    """(N,) half a second at 24 kHz, with a breath of noise of its own."""
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(12_000) / 24_000)
    return (wave + 0.003 * np.random.default_rng(noise).standard_normal(12_000)).astype(np.float32)


def test_a_call_counts_if_it_says_what_it_says_alone():
    alone = [tone(300.0), tone(2000.0)]
    assert heard.says_the_same(alone[0], 0, alone) and heard.says_the_same(tone(300.0, noise=1), 0, alone)
    assert not heard.says_the_same(alone[1], 0, alone)  # another's voice
    assert not heard.says_the_same(tone(800.0), 0, alone)
    assert not heard.says_the_same(alone[0][:-960], 0, alone)  # a token is missing
    assert not heard.says_the_same(alone[0][:0], 0, [alone[0][:0], alone[1]])  # nothing is not the same as nothing
    assert heard.says_the_same(alone[0], 0, alone[:1])


def audio_of(counts: list[int]):
    """Chunks (1, 960) of each call; a negative number of them ends in an error."""

    def audio(index: int):
        for _ in range(abs(counts[index])):
            yield torch.full((1, 960), float(index))
        if counts[index] < 0:
            raise ValueError("broken\nin two lines")

    return audio


@pytest.mark.parametrize("concurrently", [True, False])
def test_each_call_has_its_chunks_and_its_own_error(concurrently):
    seconds, made = calls.run_calls(audio_of([2, -1, 3]), 3, concurrently=concurrently)
    told = [call.as_json() for call in made]
    assert [one["samples"] for one in told] == [[960] * 2, [960], [960] * 3]
    assert [one["error"] for one in told] == ["", "ValueError: broken", ""]
    assert all(0 <= one["began"] <= one["ended"] <= seconds for one in told)
    assert all(one["arrived"] == sorted(one["arrived"]) for one in told)
    assert made[2].audio().tolist() == [2.0] * 2880
    if not concurrently:
        assert told[0]["ended"] <= told[1]["began"] and told[1]["ended"] <= told[2]["began"]


def test_a_late_call_begins_when_the_others_are_under_way():
    _, made = calls.run_calls(audio_of([3, -1, 4, 2]), 4, concurrently=True, late_after=3)
    first, failed, long, late = (call.as_json() for call in made)
    assert late["began"] >= max(first["arrived"][2], failed["ended"], long["arrived"][2])
    assert len(late["samples"]) == 2


def test_rows_of_a_table_are_replaced_together():
    old = [{"table": "tiny", "streams": 1}, {"table": "mix", "steps": 400}, {"table": "tiny", "streams": 2}]
    new = [{"table": "tiny", "streams": 4}]
    assert streams.with_rows(old, new) == [{"table": "mix", "steps": 400}, {"table": "tiny", "streams": 4}]


class Answers:
    """A process that answers with given audio: as long as each call lasts alone, and as it sounds at once."""

    def __init__(
        self, alone: list[np.ndarray], concurrently: list[np.ndarray], name: str = "chatterbox-kvcache"
    ) -> None:
        self.alone, self.concurrently, self.name = alone, concurrently, name
        self.asked: list[dict] = []

    def ask(self, name: str, **question):
        self.asked.append(question)
        wavs = (self.concurrently if question["concurrently"] else self.alone)[: len(question["texts"])]
        torch.save([torch.from_numpy(wav) for wav in wavs], question["wavs"])
        times = [{"began": 0.0, "arrived": [1.0 + i], "ended": 1.0 + i} for i in range(len(wavs))]
        given = [{"tokens": [7], "voice": [float(np.round(wav).mean())]} for wav in wavs]  # without its noise
        calls = [
            {**time, "samples": [len(wav)], "error": "", "given": one}
            for time, wav, one in zip(times, wavs, given, strict=True)
        ]
        return {"seconds": 5.0, "calls": calls, "before_mib": 1.0, "peak_mib": 3.0}


def test_calls_that_mix_voices_at_once_are_no_audio(tmp_path):
    voices = [tone(300.0), tone(2000.0), tone(800.0)]
    process = Answers(voices, [voices[0], voices[0], voices[2]])
    asked = published.Asked(process, [tmp_path / str(i) for i in range(3)], tokens=10, chunk_size=5)
    found: dict = {}
    for count in (3, 2, 1):
        for case, turn in published._turn(asked, count, (1, 2, 3)):
            found.setdefault(case, []).append(turn)
    rows = {(row["way"], row["streams"]): row for row in published._rows(found)}
    assert [question["concurrently"] for question in process.asked] == [False, True, True]
    assert rows.keys() == {(published.ALONE, n) for n in (1, 2, 3)} | {(published.AT_ONCE, n) for n in (2, 3)}
    assert rows[published.ALONE, 2]["audio_per_second"] == 0.5  # 1 s of audio in the 2 s until the second had ended
    assert rows[published.ALONE, 3]["calls_that_count"] == 3 and rows[published.ALONE, 3]["failed"] == ""
    mixed = rows[published.AT_ONCE, 3]
    assert (mixed["calls"], mixed["calls_that_count"]) == (3, 2) and "something else" in mixed["failed"]
    assert mixed["audio_per_second"] == 0.2 and mixed["peak_mib_above_before"] == 2.0


def test_the_same_is_the_same_tokens_in_the_same_voice_but_for_the_last_bits():
    alone = {"tokens": [1, 2], "voice": [1.0, -2.0]}
    assert heard.is_given_the_same(alone, {"tokens": [1, 2], "voice": [1.0001, -2.0]})
    assert not heard.is_given_the_same(alone, {"tokens": [1, 2], "voice": [1.1, -2.0]})
    assert not heard.is_given_the_same(alone, {"tokens": [1, 3], "voice": [1.0, -2.0]})
    assert not heard.is_given_the_same(alone, {"tokens": [], "voice": []})
    assert not heard.is_given_the_same({"tokens": [], "voice": []}, {"tokens": [], "voice": []})


def test_a_call_without_a_seed_counts_if_s3gen_is_given_the_same(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 9_600)).astype(np.float32)
    process = Answers([1 + noise[0], 2 + noise[1]], [1 + noise[1], 1 + noise[0]], name="chatterbox-tts 0.1.7")
    asked = published.Asked(process, [tmp_path / "a", tmp_path / "b"], tokens=10, chunk_size=5)
    assert [call["error"] for call in asked.calls(2, concurrently=False)[0]] == ["", ""]
    first, second = asked.calls(2, concurrently=True)[0]
    assert first["error"] == "" and "something else" in second["error"]


def test_a_request_that_waits_takes_the_place_of_one_that_ended_at_the_next_step():
    assert decode_streams.steps_of((3, 1), places=2) == 3
    assert decode_streams.steps_of((3, 1, 1, 1), places=2) == 3


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--only", "published"], "absent does not exist; make peer-env streaming-env"),
        (["--only", "one"], "--against None has no package chatterbox; name the src folder"),
        (["--only", "one", "--against", "/nowhere"], "--against /nowhere has no package chatterbox"),
        (["--only", "mix"], "measured at another size"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_leaves_the_result(monkeypatch, capsys, tmp_path, given, error):
    result = tmp_path / "streams.json"
    known = {"size": streams.FULL.as_json(), "rows": [], "environment": streams.environment()}
    result.write_text(json.dumps(known))
    pythons = ["--peer", str(tmp_path / "absent"), "--streaming", sys.executable]
    monkeypatch.setattr(sys, "argv", ["streams.py", "--quick", "-o", str(result), *pythons, *given])
    monkeypatch.setattr(streams, "SECTIONS", dict.fromkeys(streams.SECTIONS, lambda *_: pytest.fail("it was measured")))
    with pytest.raises(SystemExit) as stopped:
        streams.main()
    assert stopped.value.code == 2 and error in capsys.readouterr().err and json.loads(result.read_text()) == known


def test_each_case_is_written_and_a_section_that_fails_costs_no_other(monkeypatch, capsys, tmp_path):
    result, seen = tmp_path / "streams.json", []

    def works(size, asked):
        yield [{"table": "tiny", "streams": 1}]
        seen.append(json.loads(result.read_text())["rows"])
        yield [{"table": "tiny", "streams": 1}, {"table": "tiny", "streams": 2}]

    def fails(size, asked):
        raise RuntimeError("an answer\nthat is wrong")
        yield

    monkeypatch.setattr(streams, "SECTIONS", {"fifth": fails, "tiny": works})
    monkeypatch.setattr(sys, "argv", ["streams.py", "--quick", "-o", str(result), "--only", "fifth", "tiny"])
    streams.main()
    written = json.loads(result.read_text())
    assert seen == [[{"table": "tiny", "streams": 1}]] and len(written["rows"]) == 2
    assert written["failed"] == {"fifth": "that is wrong"} and written["measured_in"].keys() == {"tiny"}
    monkeypatch.setattr(streams, "SECTIONS", {"fifth": lambda *_: iter([[{"table": "fifth"}]]), "tiny": works})
    monkeypatch.setattr(sys, "argv", ["streams.py", "--quick", "-o", str(result), "--only", "fifth"])
    streams.main()
    written = json.loads(result.read_text())
    assert written["failed"] == {} and [row["table"] for row in written["rows"]] == ["tiny", "tiny", "fifth"]
