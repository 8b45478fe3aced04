"""T3 alone, many requests at once: tokens a second, and the steps that it takes. Sections of `streams.py`.

Owns: how the engine is driven, in `seconds_a_step`, and the scheduler, in `steps_of`. Does not know: text, audio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from benchmarks.kvcache.t3_decode import PEER, Bench, T3Loop
from benchmarks.lib.heard import Row, goal, paired
from chatterbox.config import EngineConfig, KVCacheConfig, SamplingConfig
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import Scheduler
from chatterbox.models.config import LlamaConfig, T3Config
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

POSITION = 100
MIX = (10, 10, 10, 100) * 4  # tokens of each request
PLACES = 4
SMALL = LlamaConfig(num_layers=2, hidden_size=32, num_heads=2, head_dim=16, intermediate_size=48)
STREAMS_OF_GOAL = 8


def seconds_a_step(bench: Bench, num_streams: int, num_steps: int) -> float:
    """Median time of a decode step of so many guided streams at once, at `POSITION`."""
    return statistics.median(bench.steps("static", 2 * num_streams, POSITION, num_steps)) / 1000


def steps_of(lens: Sequence[int], places: int) -> int:
    """Decode steps until guided requests of so many tokens have ended, of which ``places`` at most decode at once.

    Of a scheduler, on a small T3 with random weights.
    """
    torch.manual_seed(0)
    t3 = T3(T3Config(backbone=SMALL)).eval()
    hp = t3.hp
    prompt = torch.randint(0, 6561, (1, hp.speech_cond_prompt_len))
    cond = T3Cond(torch.randn(1, hp.speaker_embed_size), cond_prompt_speech_tokens=prompt, emotion_adv=0.5)
    text = torch.tensor([hp.start_text_token, 7, hp.stop_text_token])
    requests = [
        Request(cond, text, SamplingConfig(), max_new_tokens=length, stop_on_eos=False, seed=index)
        for index, length in enumerate(lens)
    ]
    scheduler = Scheduler(Prefiller(t3), EngineConfig(max_rows=sum(one.num_rows for one in requests[:places])))
    # Submitted between two steps, so that the count is the same every time.
    streams = scheduler.call(lambda _: [scheduler.stream(one, policy=KVCacheConfig()) for one in requests])
    decoded = [len(list(stream)) for stream in streams]
    steps = scheduler.stats()["steps"]
    scheduler.close()
    if decoded != list(lens):
        raise RuntimeError(f"the engine decoded {decoded} tokens, not {list(lens)}")
    return steps


def tokens(streams: Sequence[int], num_steps: int, turns: int, peer: str | None) -> Iterator[list[Row]]:
    """Tokens a second of all numbers of streams, in turn; and of one of chatterbox-tts where ``peer`` is a Python."""
    bench = Bench()
    rates: dict[int, list[float]] = {count: [] for count in streams}
    theirs: list[float] = []
    with ExitStack() as stack:
        process = stack.enter_context(T3Loop(peer)) if peer else None
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
