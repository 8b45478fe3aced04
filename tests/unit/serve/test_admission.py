"""Places in all and of each key, and the rate of each key."""

from __future__ import annotations

import pytest

from chatterbox.serve.admission import Admissions
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(admissions: Admissions, caller: int | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admissions.admit(caller)
    assert caught.value.status == 429
    return caught.value


def test_places_are_given_back_once() -> None:
    admissions = Admissions(ServerConfig(max_streams=2))
    with admissions.admit(None) as leave, admissions.admit(None):
        assert admissions.num_held == 2
        error = refused(admissions, None)
        assert (error.code, error.headers) == ("queue_full", {"retry-after": "1"})
    assert admissions.num_held == 2  # an answer goes on behind the block that made it
    leave()
    leave()
    assert admissions.num_held == 1


def test_a_place_is_given_back_where_the_answer_was_never_begun() -> None:
    admissions = Admissions(ServerConfig(max_streams=1))
    with pytest.raises(KeyError), admissions.admit(None):
        raise KeyError
    assert admissions.num_held == 0


def test_at_the_end_nobody_is_admitted() -> None:
    admissions = Admissions(ServerConfig())
    with admissions.admit(None) as leave:
        admissions.end()
        with pytest.raises(ApiError, match="shutting down; ask again when it is back") as caught:
            admissions.admit(None)
        assert (caught.value.status, admissions.num_held) == (503, 1)
    leave()
    assert admissions.num_held == 0


def test_one_key_does_not_take_anothers_places() -> None:
    admissions = Admissions(ServerConfig(max_streams=3, key_streams=1))
    with admissions.admit(0) as leave:
        assert "1 requests of this key are being answered" in str(refused(admissions, 0))
        with admissions.admit(1):
            pass
        with admissions.admit(None):
            pass
    leave()
    with admissions.admit(0):
        pass


def test_a_key_has_a_rate() -> None:
    clock = Clock()
    admissions = Admissions(ServerConfig(key_rate=2), clock=clock)
    for _ in range(2):
        with admissions.admit(0) as leave:
            leave()
        clock.now += 10
    error = refused(admissions, 0)
    assert (error.code, error.headers) == ("rate_limit_exceeded", {"retry-after": "40"})
    assert str(error).endswith("try again in 40 seconds")
    for caller in (1, None, None, None):
        with admissions.admit(caller) as leave:
            leave()
    clock.now += 40.001
    with admissions.admit(0):
        pass
    refused(admissions, 0)


def test_what_is_refused_for_want_of_a_place_does_not_count() -> None:
    admissions = Admissions(ServerConfig(max_streams=1, key_rate=2))
    with admissions.admit(0) as leave:
        for _ in range(5):
            refused(admissions, 0)
    leave()
    with admissions.admit(0):
        pass
