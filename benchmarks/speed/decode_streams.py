"""T3 alone, many requests in one engine: tokens a second, and the steps that it takes. Sections of `streams.py`.

Owns: how the engine is driven, in `seconds_a_step` and `steps_of`, and nowhere else here. Does not know: text, audio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from unittest.mock import patch

import torch

from chatterbox import ChatterboxTTS
from chatterbox.config import SamplingConfig
from chatterbox.engine.decode import generate_batch
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.request import DecodeRequest
from heard import Row, goal, paired
from t3_decode import PEER, Bench, Peer

POSITION = 100
MIX = (10, 10, 10, 100) * 4  # tokens of each request
PLACES = 4
STREAMS_OF_GOAL = 8


def seconds_a_step(bench: Bench, num_streams: int, num_steps: int) -> float:
    """Median time of a decode step of so many guided streams at once, at `POSITION`."""
    return statistics.median(bench.steps("static", 2 * num_streams, POSITION, num_steps)) / 1000


def steps_of(lens: Sequence[int], places: int) -> int:
    """Decode steps until requests of so many tokens have ended, of which ``places`` at most are decoded at once."""
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    hp = tts.t3.hp
    text = torch.tensor([hp.start_text_token, 7, hp.stop_text_token])
    sampling = SamplingConfig(cfg_weight=0.0)  # a row a request
    requests = [
        DecodeRequest(tts.conds.t3, text, sampling, max_new_tokens=length, stop_on_eos=False, seed=index)
        for index, length in enumerate(lens)
    ]
    with patch.object(DecodeEngine, "step", autospec=True, side_effect=DecodeEngine.step) as step:
        drawn = generate_batch(tts.t3, requests, max_rows=places)
    if [len(tokens) for tokens in drawn] != list(lens):
        raise RuntimeError(f"the engine drew {[len(tokens) for tokens in drawn]} tokens, not {list(lens)}")
    return step.call_count


def tokens(streams: Sequence[int], num_steps: int, turns: int, peer: str | None) -> Iterator[list[Row]]:
    """Tokens a second of all numbers of streams, in turn; and of one of chatterbox-tts where ``peer`` is a Python."""
    bench = Bench()
    rates: dict[int, list[float]] = {count: [] for count in streams}
    theirs: list[float] = []
    with ExitStack() as stack:
        process = stack.enter_context(Peer(peer)) if peer else None
        for turn in range(turns + 1):  # the first does not count
            for count in streams:
                rate = count / seconds_a_step(bench, count, num_steps)
                rates[count] += [rate] if turn else []
            if process is not None:
                rate = 1000 / statistics.median(process.steps(POSITION, num_steps))
                theirs += [rate] if turn else []
    rows = []
    for count, seen in rates.items():
        row: Row = {"table": "tokens", "system": "chatterbox-kvcache", "streams": count}
        row |= {"tokens_per_second": round(statistics.median(seen), 2), "turns": len(seen)}
        if count != streams[0]:
            row["times_one_stream"] = paired(seen, rates[streams[0]])
        if count == STREAMS_OF_GOAL:
            row |= goal(row["times_one_stream"]["value"], at_least=3.0)
        rows.append(row)
    if theirs:
        row = {"table": "tokens", "system": PEER, "streams": 1, "turns": len(theirs)}
        row |= {"tokens_per_second": round(statistics.median(theirs), 2)}
        rows.append(row | {"times_one_stream": paired(theirs, rates[streams[0]])})
    yield rows


def mix() -> Iterator[list[Row]]:
    """Steps that requests of unlike lengths take; the fewest are all tokens over all places."""
    steps = steps_of(MIX, PLACES)
    row: Row = {"table": "mix", "requests": len(MIX), "places": PLACES, "steps": steps}
    yield [row | {"fewest_steps": -(-sum(MIX) // PLACES)} | goal(steps, at_most=175)]
