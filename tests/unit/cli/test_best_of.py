"""`say --best-of N`: what is spoken, which is kept, and that it can be had again."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from chatterbox.cli import folder, say
from chatterbox.cli.best_of import Take, best
from tests.support.command import Run, command

RATE = 24_000


class Speaker:
    """Each seed has seconds of its own, and what is warned of while it speaks; None fails."""

    def __init__(self, takes: dict[int, tuple[float | None, str]]) -> None:
        self.takes, self.seeds = takes, []

    def speak(self, text, on_token=None, *, seed=None):
        self.seeds.append(seed)
        seconds, warning = self.takes.get(seed, (1.0, ""))
        if seconds is None:
            raise RuntimeError("the model computed NaN")
        if warning:
            logging.getLogger("chatterbox.synthesis.utterances").warning(warning)
        audio = np.full(round(seconds * RATE), 0.1, np.float32)
        return SimpleNamespace(
            audio=[SimpleNamespace(numpy=lambda: audio)],
            sample_rate=RATE,
            duration=seconds,
            tokens_time=1.0,
            audio_time=1.0,
        )

    def close(self) -> None: ...


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Run:
    monkeypatch.chdir(tmp_path)
    return command(capsys, "say")


def spoken_by(monkeypatch, takes) -> Speaker:
    speaker = Speaker(takes)
    for module in (say, folder):
        monkeypatch.setattr(module, "load_speaker", lambda *_: speaker)
    return speaker


def take(seed: int, seconds: float, *faults: str) -> Take:
    return Take(seed, SimpleNamespace(duration=seconds), faults)


def test_the_length_nearest_to_the_median_of_what_has_the_fewest_warnings():
    takes = [take(0, 2.0, "cut off"), take(1, 0.5), take(2, 2.2), take(3, 2.0), take(4, 9.0)]
    assert best(takes) == (takes[2], 2.1)  # nearer than 2.0 as a ratio
    assert best(takes[:1]) == (takes[0], 2.0)
    assert best([take(5, 1.0), take(6, 1.0)])[0].seed == 5


def test_seeds_follow_the_first_and_one_is_kept_for_a_reason_that_is_told(run, monkeypatch):
    speaker = spoken_by(monkeypatch, {7: (5.0, "utterance 1 was cut off"), 8: (1.5, ""), 9: (1.0, ""), 10: (1.4, "")})
    code, out, err = run("Hello.", "-o", "x.wav", "--best-of", "4", "--seed", "7")
    assert code == 0 and speaker.seeds == [7, 8, 9, 10] and len(soundfile.read("x.wav")[0]) == 1.4 * RATE
    assert "seed 7: 5.00 s; utterance 1 was cut off" in err
    assert "kept seed 10: 0 warnings, 1.40 s, median 1.40 s" in err and "x.wav: 1.40 s" in out


def test_a_warning_of_something_else_is_not_the_seeds_fault(run, monkeypatch):
    speaker = spoken_by(monkeypatch, {})
    speak = speaker.speak

    def warns(*arguments, **options):
        logging.getLogger("chatterbox.text").warning("once")
        return speak(*arguments, **options)

    monkeypatch.setattr(speaker, "speak", warns)
    assert "kept seed 3: 0 warnings" in run("Hello.", "-o", "x.wav", "--best-of", "2", "--seed", "3")[2]


def test_without_a_seed_one_is_drawn_and_told(run, monkeypatch):
    first = spoken_by(monkeypatch, {})
    _, _, err = run("Hello.", "-o", "x.wav", "--best-of", "2")
    assert first.seeds[1] == first.seeds[0] + 1 and f"kept seed {first.seeds[0]}:" in err


def test_one_that_fails_is_left_out_and_all_that_fail_are_an_error(run, monkeypatch):
    spoken_by(monkeypatch, {1: (None, ""), 2: (1.0, "")})
    code, _, err = run("Hello.", "-o", "x.wav", "--best-of", "2", "--seed", "1")
    assert code == 0 and "seed 1: the model computed NaN" in err and "kept seed 2" in err
    spoken_by(monkeypatch, {1: (None, ""), 2: (None, "")})
    code, _, err = run("Hello.", "-o", "y.wav", "--best-of", "2", "--seed", "1")
    assert code == 1 and "error: the model computed NaN" in err and not Path("y.wav").exists()


def test_of_each_text_of_a_folder(run, monkeypatch):
    Path("texts").mkdir()
    for name in "ab":
        Path(f"texts/{name}.txt").write_text("Hello.")
    speaker = spoken_by(monkeypatch, {})
    assert run("--file", "texts", "-o", "audio", "--best-of", "2", "--seed", "5")[0] == 0
    assert speaker.seeds == [5, 6, 5, 6]


@pytest.mark.parametrize("num", ["0", "-1", "x", "2.5", "101"])
def test_a_number_that_is_none_is_one_line(run, monkeypatch, num):
    speaker = spoken_by(monkeypatch, {})
    code, _, err = run("Hello.", "-o", "x.wav", f"--best-of={num}")
    assert code == 2 and "--best-of must be a whole number from 1" in err and speaker.seeds == []


def test_help_states_the_check(run):
    out = " ".join(run("--help")[1].split())
    assert "fewest warnings (cut off, ended by a guard, silent), then the length nearest to the N's median" in out


def test_the_seed_that_won_says_it_again(run):
    """With the embedded voice."""
    _, _, err = run("Yes.", "-o", "best.wav", "--best-of", "2", "--seed", "3")
    [kept] = [line for line in err.splitlines() if line.startswith("kept seed ")]
    assert run("Yes.", "-o", "again.wav", "--seed", kept.split()[2].rstrip(":"))[0] == 0
    assert np.array_equal(soundfile.read("best.wav")[0], soundfile.read("again.wav")[0])
