"""Health: a word is spoken to find out, where a request has failed."""

from __future__ import annotations

import pytest

from chatterbox.serve.errors import ApiError
from chatterbox.serve.health import PAUSE, Health


class Voice:
    """Speaks, or does not."""

    def __init__(self) -> None:
        self.works, self.num_words, self.now = True, 0, 0.0

    def __call__(self) -> None:
        self.num_words += 1
        if not self.works:
            raise RuntimeError("the device is lost")

    def clock(self) -> float:
        return self.now


@pytest.fixture
def voice() -> Voice:
    return Voice()


@pytest.fixture
def health(voice: Voice) -> Health:
    one = Health(voice, clock=voice.clock)
    one.begin()
    return one


def test_it_begins_and_ends(voice: Voice) -> None:
    one = Health(voice)
    assert one.status() == "initializing" and not one.is_ready
    one.begin()
    assert one.status() == "healthy" and one.is_ready
    one.end()
    assert one.status() == "initializing" and voice.num_words == 0


def test_a_word_tells_whether_a_failure_lasts(voice: Voice, health: Health) -> None:
    voice.works = False
    health.failed(RuntimeError("the device is lost"))
    assert [health.status(), health.status()] == ["error", "error"] and voice.num_words == 1
    voice.works = True
    assert health.status() == "error"  # it does not speak at each question
    voice.now += PAUSE
    assert [health.status(), health.status()] == ["healthy", "healthy"] and voice.num_words == 2


def test_a_request_that_is_spoken_tells_as_well(voice: Voice, health: Health) -> None:
    health.failed(RuntimeError("the device is lost"))
    health.spoken()
    assert health.status() == "healthy" and voice.num_words == 0


@pytest.mark.parametrize("error", [ValueError("speed must be"), ApiError("there is no voice 'bob'", 404)])
def test_callers_mistakes_say_nothing(voice: Voice, health: Health, error: Exception) -> None:
    health.failed(error)
    assert health.status() == "healthy" and voice.num_words == 0
