"""The order in which chunks are rendered."""

from __future__ import annotations

import math

import pytest

from chatterbox.synthesis.render_order import MAX_WAIT, Expected, Pace, RenderJob, pick

FIRST = None
WHOLE = math.inf


def job(owner: str, deadline: float | None, num_tokens: int = 10, submitted: float = 100.0) -> RenderJob:
    return RenderJob(owner, lambda: None, num_tokens, deadline, submitted)


# At 100 s, with 0.1 s a token: each job takes a second, if it has ten tokens.
CASES = {
    "the only one": ([job("a", WHOLE)], "a"),
    "the oldest first chunk": ([job("a", FIRST), job("b", FIRST)], "a"),
    "a first chunk before a later one with time enough for both": ([job("a", 102.0), job("b", FIRST)], "b"),
    "a later chunk that would be late for it": ([job("a", 101.9), job("b", FIRST)], "a"),
    "a later chunk that would be late for a long first one": ([job("a", 103.9), job("b", FIRST, 30)], "a"),
    "a later chunk that will be late anyhow": ([job("a", 100.9), job("b", FIRST)], "b"),
    "a later chunk that just makes it": ([job("a", 101.0), job("b", FIRST)], "a"),
    "a later chunk that is late already": ([job("a", 99.9), job("b", FIRST)], "a"),
    "the one of two later chunks that can be saved": ([job("a", 100.5), job("c", 101.5), job("b", FIRST)], "c"),
    "the first of two later chunks that can be saved": ([job("a", 101.8), job("c", 101.5), job("b", FIRST)], "c"),
    "later chunks by deadline": ([job("a", 101.9), job("b", 101.0), job("c", 101.5)], "b"),
    "later chunks in turn where nobody runs dry soon": ([job("a", 104.0), job("b", 103.0), job("c", 103.5)], "a"),
    "one that runs dry soon before those": ([job("a", 104.0), job("b", 103.0), job("c", 101.9)], "c"),
    "one that has waited longer than one that runs dry soon": ([job("a", 130.0, submitted=99.0), job("b", 101.5)], "a"),
    "later chunks behind none of their own stream": ([job("a", 101.9), job("b", 101.5), job("a", 101.0)], "b"),
    "a later chunk behind the first of its own stream": ([job("a", FIRST), job("a", 99.0)], "a"),
    "whole utterances behind later chunks": ([job("a", WHOLE), job("b", 104.0)], "b"),
    "whole utterances behind first chunks": ([job("a", WHOLE), job("b", FIRST)], "b"),
    "the oldest whole utterance": ([job("a", WHOLE, submitted=98.0), job("b", WHOLE, submitted=99.0)], "a"),
    "a whole utterance that has waited": ([job("a", WHOLE, submitted=95.5), job("b", 101.0)], "a"),
    "a whole utterance that has waited, and a late chunk": ([job("a", WHOLE, submitted=94.9), job("b", 99.0)], "b"),
    "a whole utterance that has waited, and a first chunk": ([job("a", WHOLE, submitted=94.9), job("b", FIRST)], "a"),
    "a later chunk that has waited, with much audio left": ([job("a", 130.0, submitted=95.2), job("b", 100.5)], "a"),
    "a first chunk that has waited for late ones": ([job("a", 97.0), job("b", FIRST, submitted=91.0)], "b"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_order(case):
    jobs, owner = CASES[case]
    picked = pick(jobs, 100.0, Pace(0.1, 0.1))
    assert picked is next(job for job in jobs if job.owner == owner)


def test_before_anything_is_measured_first_chunks_go_first_but_before_late_ones():
    first, soon, late = job("a", FIRST), job("b", 100.0), job("c", 99.0)
    assert pick([soon, first], 100.0, Pace()) is first
    assert pick([soon, first, late], 100.0, Pace()) is late


def test_of_many_whole_utterances_that_are_overdue_one_goes_before_a_stream():
    whole = [job(f"w{i}", WHOLE, submitted=90.0) for i in range(3)]
    chunk = job("stream", 101.0)
    assert pick([*whole, chunk], 100.0, Pace(0.1, 0.1)) is whole[0]
    assert pick([*whole[1:], chunk], 100.0, Pace(0.1, 0.1), last_whole=99.0) is chunk
    assert pick([*whole[1:], chunk], 100.0, Pace(0.1, 0.1), last_whole=101.0 - MAX_WAIT - 0.1) is whole[1]
    assert pick(whole[1:], 100.0, Pace(0.1, 0.1), last_whole=99.0) is whole[1]


# At 100 s, with 0.1 s a token: "a" speaks and gets its tokens late, "b" waits for its first chunk.
LATE_TOKENS = {
    "time enough for both": ([job("b", FIRST)], [Expected(10, 102.0)], 1, "b"),
    "the first chunk would make it late": ([job("b", FIRST)], [Expected(10, 101.9)], 1, None),
    "it would not where two are rendered at once": ([job("b", FIRST)], [Expected(10, 101.9)], 2, "b"),
    "several would be late that all make it alone": ([job("b", FIRST)], [Expected(10, 102.5)] * 2, 1, None),
    "one that is late anyhow": ([job("b", FIRST)], [Expected(10, 100.9)], 1, "b"),
    "another one's chunk meanwhile": ([job("c", 150.0), job("b", FIRST)], [Expected(10, 101.9)], 1, "c"),
    "a first chunk that has waited": ([job("b", FIRST, submitted=90.0)], [Expected(10, 101.9)], 1, "b"),
    "chunks that wait for no first one": ([job("c", 150.0)], [Expected(10, 101.0)], 1, "c"),
}


@pytest.mark.parametrize("case", LATE_TOKENS)
def test_a_first_chunk_waits_for_others_that_are_expected(case):
    jobs, expected, num_workers, owner = LATE_TOKENS[case]
    picked = pick(jobs, 100.0, Pace(0.1, 0.1), expected=expected, num_workers=num_workers)
    assert (picked and picked.owner) == owner


def test_a_first_chunk_waits_for_one_that_it_would_make_late_if_both_are_slow():
    """It takes a second, two where it is slow, and so does a chunk that is due in three and a half."""
    later, first, pace = job("a", 103.5), job("b", FIRST), Pace(0.1, 0.2)
    assert pick([later, first], 100.0, Pace(0.1, 0.1)) is first
    assert pick([later, first], 100.0, pace) is later
    assert pick([first], 100.0, pace, expected=[Expected(10, 103.5)]) is None
    assert pick([first], 100.0, pace, expected=[Expected(10, 103.5)], num_workers=2) is first


def test_a_chunk_that_is_late_only_if_it_is_slow_is_still_worth_it():
    soon, first = job("a", 101.5), job("b", FIRST)
    assert pick([soon, first], 100.0, Pace(0.1, 0.2)) is soon
    assert pick([soon, first], 100.0, Pace(0.2, 0.2)) is first


def test_the_pace_is_the_usual_one_and_what_few_are_slower_than():
    assert Pace.of([]) == Pace(0.0, 0.0)
    assert Pace.of([0.3]) == Pace(0.3, 0.3)
    assert Pace.of([0.1] * 20 + [0.4, 9.0]) == Pace(0.1, 0.1)
    assert Pace.of([0.1] * 16 + [0.4] * 3 + [9.0]) == Pace(0.1, 0.4)
