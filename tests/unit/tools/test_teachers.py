"""What teachers' programs report becomes phones, ends and pitch (no programs are run)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tools.tiny_voice import festival, kokoro, teacher
from tools.tiny_voice.festival import Segment
from tools.tiny_voice.speech import PHONES, Speech

REPORT = "=\npau\t0.2\t0\t\nhh\t0.25\t0\tHello\nax\t0.3\t0\tHello\nl\t0.4\t1\tHello\now\t0.6\t1\tHello\npau\t0.8\t0\t\n"
SEGMENTS = [
    Segment("pau", 0.0, False, ""),
    Segment("dh", 0.0, True, "The"),
    Segment("ax", 0.0, True, "The"),
    Segment("b", 0.0, True, "burner"),
    Segment("er", 0.0, True, "burner"),
    Segment("n", 0.0, False, "burner"),
    Segment("er", 0.0, False, "burner"),
    Segment("pau", 0.0, False, ""),
    Segment("iy", 0.0, True, "eats"),
    Segment("pau", 0.0, False, ""),
]


def answer(monkeypatch: pytest.MonkeyPatch, stdout: str, code: int = 0) -> None:
    done = subprocess.CompletedProcess([], code, stdout, "SIOD ERROR: no such voice")
    monkeypatch.setattr(festival.subprocess, "run", lambda *_, **__: done)


def test_what_the_front_end_reports(monkeypatch):
    answer(monkeypatch, REPORT + REPORT)
    first, second = festival.read(["Hello.", "Hello."])
    assert first == second and [s.phone for s in first] == ["pau", "hh", "ax", "l", "ow", "pau"]
    assert first[3] == Segment("l", 0.4, True, "Hello") and first[0].word == ""


@pytest.mark.parametrize(("stdout", "code"), [("", 255), (REPORT, 255), (REPORT, 0)])
def test_a_text_that_fails_is_named(monkeypatch, stdout, code):
    answer(monkeypatch, stdout, code)
    with pytest.raises(RuntimeError, match=rf"festival ended with {code} at '(One|Two)\.': SIOD ERROR"):
        festival.read(["One.", "Two."])


def test_many_texts_are_read_by_several_processes(monkeypatch):
    """One that reads a thousand dies."""
    monkeypatch.setattr(festival, "MOST_TEXTS", 2)
    asked: list[int] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(Path(command[-1]).read_text().count('(chatterbox_read "'))
        return subprocess.CompletedProcess(command, 0, asked[-1] * REPORT, "")

    monkeypatch.setattr(festival.subprocess, "run", run)
    assert len(festival.read(["Hello."] * 5)) == 5 and asked == [2, 2, 1]


def test_without_the_program_the_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="apt-get install festival festvox-us-slt-hts"):
        festival.read(["One."])


def test_the_network_is_given_phones_stress_and_pauses():
    symbols, owners = kokoro._spelt(SEGMENTS, "The burner eats?")
    assert "".join(symbols) == "ðə bˈɜɹnəɹ, ˈi?"  # a word that nobody stresses has no mark
    assert len(owners) == len(symbols) and owners[:4] == [1, 2, None, 3]
    assert owners[4:7] == [4, 4, 4] and owners[-1] == len(SEGMENTS) - 1
    assert kokoro._spelt(SEGMENTS, "The burner eats")[0][-1] == "."
    assert set(kokoro._SYMBOLS) <= set(PHONES) and set(PHONES) >= kokoro._VOWELS


def test_durations_become_ends():
    symbols, owners = kokoro._spelt(SEGMENTS, "The burner eats.")
    durations = np.full(len(symbols) + 2, 4.0)  # 0.1 s each
    seconds = 0.1 * len(durations)
    ends = kokoro._ends(durations, owners, len(SEGMENTS), seconds)
    assert len(ends) == len(SEGMENTS) and ends[-1] == pytest.approx(seconds) and (np.diff(ends) >= 0).all()
    assert ends[0] == pytest.approx(0.1 - kokoro.LATE)
    assert ends[2] == pytest.approx(0.35 - kokoro.LATE)  # half of the gap between the words
    assert ends[4] - ends[3] == pytest.approx(0.3)  # the mark of stress belongs to the vowel


def test_pitch_of_phones_from_the_curve():
    ends = np.array([0.5, 1.0, 1.5], np.float32)
    f0 = np.where(np.arange(60) < 24, 3.0, 120.0)
    pitch = kokoro._phone_pitch(f0, ends)
    assert np.isnan(pitch[0]) and np.exp(pitch[1:]) == pytest.approx([120, 120])


def test_a_graph_keeps_what_leads_to_its_outputs():
    def node(inputs: str, output: str) -> SimpleNamespace:
        return SimpleNamespace(input=inputs.split(), output=[output])

    graph = SimpleNamespace(
        node=[node("tokens w", "a"), node("a", "durations"), node("a v", "audio")],
        initializer=[SimpleNamespace(name="w"), SimpleNamespace(name="v")],
    )
    kokoro._keep_nodes(graph, ["durations"])
    assert [one.output for one in graph.node] == [["a"], ["durations"]]
    assert [one.name for one in graph.initializer] == ["w"]


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"kokoro_no_voice is not installed: .* make teachers-env"):
        kokoro._package("kokoro_no_voice")


def test_a_program_gets_all_texts_of_its_voice_at_once(monkeypatch):
    asked = []

    def say(texts, voice, *, aloud):
        asked.append((voice, list(texts)))
        return [Speech(["pau", "pau"], np.array([0.1, 0.2], np.float32), None, 24_000) for _ in texts]

    monkeypatch.setattr(teacher, "say", say)
    assert len(teacher._in_order([("a", "slt"), ("b", "rms"), ("c", "slt")], aloud=False)) == 3
    assert asked == [("slt", ["a", "c"]), ("rms", ["b"])]
