"""The arithmetic of the server's measurements: what is heard, what a server may answer, what it must not lose."""

from __future__ import annotations

import asyncio
import random

import pytest

from benchmarks.serve import client, figures, listening, outcomes
from benchmarks.serve.actions import CLIENTS
from benchmarks.serve.killed import Ledger, Turns
from benchmarks.serve.outcomes import Outcome
from chatterbox.audio.encoding import FORMATS, encoder_of
from tests.support.folders import recording


def test_percentiles_and_differences_of_turns():
    assert figures.percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert figures.percentile(range(101), 99) == 99
    more = figures.difference_ms([0.11, 0.12, 0.13, 0.24], [0.10, 0.10, 0.10, 0.10])
    assert more["value"] == 25.0 and more["interval"] == [pytest.approx(12.5, abs=3), pytest.approx(112.5, abs=10)]
    with pytest.raises(ValueError, match="measure something"):
        figures.percentile([], 50)
    with pytest.raises(ValueError, match="got 2 and 1"):
        figures.difference_ms([1.0, 2.0], [1.0])


def test_a_body_of_pcm_is_heard_as_its_pieces_come():
    """A sample that a piece cuts is played with the next; a player of 100 ms waits for what comes too late."""
    second = b"\0" * 48_000
    one = figures.heard([0.2, 0.5, 1.9], [second[:24_001], second[:23_999], second])
    assert one.lasts == (0.5, 0.5, 1.0) and one.audio == 2.0 and one.first == 0.2
    assert one.waited() == pytest.approx(1.9 - 1.2) and figures.real_time_factor(one) == pytest.approx(0.95)
    assert figures.gaps([0.2, 0.5, 1.9]) == pytest.approx([0.3, 1.4])


@pytest.mark.parametrize("form", FORMATS)
def test_a_body_begins_to_sound_where_a_decoder_has_samples_of_it(form):
    encoder, pieces = encoder_of(form, 24_000), []
    for start in range(0, 24_000, 4_800):
        pieces.append(encoder.push(recording(1.0)[start : start + 4_800]))
    pieces.append(encoder.finish())
    header, rest = pieces[0][:20], pieces[0][20:]
    times = [0.1, *(1.0 + place for place in range(len(pieces)))]
    first = figures.first_audible(times, [header, rest, *pieces[1:]], form)
    assert first == (0.1 if form == "pcm" else 1.0)
    with pytest.raises(ValueError, match=r"1 pieces of .* have no audio"):
        figures.first_audible([0.1], [b""], form)


def test_streams_are_in_real_time_if_none_waits_and_none_is_slower_than_it_plays():
    smooth = figures.heard([0.1, 0.5], [b"\0" * 48_000, b"\0" * 48_000])
    slow = figures.heard([0.1, 3.0], [b"\0" * 48_000, b"\0" * 48_000])
    assert listening._at_once(8, [smooth] * 8, 1)["reached"] == "yes"
    row = listening._at_once(8, [smooth] * 7 + [slow], 1)
    assert row["reached"] == "no" and row["waited_s_worst"] == 1.9 and row["rtf_worst"] == 1.5
    assert "reached" not in listening._at_once(4, [slow], 1)


def test_a_server_has_earned_what_the_request_has_earned():
    assert Outcome("speech", 200).is_earned and Outcome("no JSON", 400, (400,)).is_earned
    assert not Outcome("speech", 500).is_earned and not Outcome("no JSON", 200, (400,)).is_earned
    assert not Outcome("speech", 200, fault="it was cut").is_earned and not Outcome("speech", 0).is_earned
    rows = outcomes.counted([Outcome("b", 200), Outcome("a", 404, (404,)), Outcome("b", 0, fault="cut")])
    assert [(row["asked"], row["statuses"], row["not_earned"]) for row in rows] == [
        ("a", "404: 1", 0),
        ("b", "none: 1, 200: 1", 1),
    ]


def test_memory_is_compared_from_behind_the_warm_up():
    readings = [(10.0, 50.0), (60.0, 100.0), (70.0, 101.0), (80.0, 99.0), (90.0, 103.0), (100.0, 102.0), (110.0, 250.0)]
    figures = {"mib_after_warm_up": 100.0, "mib_half_way": 103.0, "mib_at_end": 103.0, "growth_percent": 3.0}
    assert outcomes.grown(readings) == figures
    with pytest.raises(ValueError, match="measure longer"):
        outcomes.grown(readings[:1])


def test_what_is_held_must_be_told():
    told = {**dict.fromkeys(outcomes.HELD, 0.0), "chatterbox_engine_rows": 2.0, "other": 5.0}
    assert sum(outcomes.held(told).values()) == 2.0 and outcomes.held(told)["engine_rows"] == 2.0
    with pytest.raises(KeyError):
        outcomes.held({})


def test_what_was_acknowledged_is_lost_if_it_is_not_there():
    ledger = Ledger()
    for name in "abc":
        ledger.added(name)
    ledger.asked("b")  # to be removed; the server was killed before it said so
    ledger.asked("c")
    ledger.removed("c")
    ledger.asked("d")  # to be added; neither
    assert ledger.check({"a", "d"}) == {"lost": set(), "returned": set()}
    assert ledger.there == {"a", "d"} and not ledger.open
    assert ledger.check({"c"}) == {"lost": {"a", "d"}, "returned": {"c"}}


def test_every_action_has_clients_and_there_are_32():
    assert sum(count for _, count in CLIENTS) == 32 and all(count > 0 for _, count in CLIENTS)


async def _answered(answer: bytes, read) -> object:
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with client.asked(f"http://127.0.0.1:{port}", "GET", "/") as reply:
            return await read(reply)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
def test_bodies_are_read_as_they_come(answer, body):
    assert asyncio.run(_answered(answer, lambda reply: reply.body())) == body


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhel",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_a_body_that_is_cut_is_no_body(answer):
    with pytest.raises(client.CutError):
        asyncio.run(_answered(answer, lambda reply: reply.body()))


def test_faults_of_a_killed_server_are_counted(tmp_path):
    turns = Turns(tmp_path, random.Random(0))
    turns._expect(True, "fine")
    turns._expect(False, "job a failed")
    assert turns.wrong == ["job a failed"]
