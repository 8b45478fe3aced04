"""What goes wrong on a scheduler goes wrong for those alone whom it concerns; what a caller has set stays with it."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from chatterbox.config import KVCacheConfig, SamplingConfig
from chatterbox.engine.batch_state import BatchState, SamplerState
from chatterbox.engine.decode import generate
from chatterbox.engine.engine import DecodeEngine
from chatterbox.engine.prefill import Prefiller
from chatterbox.engine.request import Request
from chatterbox.engine.scheduler import EngineClosedError, Scheduler
from chatterbox.kvcache import GlobalKVCacheManager, cache_config
from chatterbox.models.t3 import T3
from tests.support.decoding import scheduler_of
from tests.support.small import SMALL, SMALL_GPT2, build, make_request
from tests.support.waiting import WAIT, wait_for, wait_until_free

STATIC = cache_config("static")


@pytest.fixture(scope="module", params=[SMALL, SMALL_GPT2], ids=["llama", "gpt2"])
def t3(request: pytest.FixtureRequest) -> T3:
    return build(request.param)


@pytest.fixture
def scheduler(t3: T3) -> Iterator[Scheduler]:
    scheduler = scheduler_of(t3, prefixes=Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**26)))
    yield scheduler
    scheduler.close()


def long_request(t3: T3, seed: int | None, **changes) -> Request:
    """One that goes on to its limit of 40 tokens; sampled and, where the model has it, guided."""
    sampling = SamplingConfig(cfg_weight=0.5 if t3.hp.has_guidance else 0.0)
    request = dataclasses.replace(
        make_request(seed or 0, t3.hp), sampling=sampling, max_new_tokens=40, stop_on_eos=False, seed=seed
    )
    return dataclasses.replace(request, **changes)


def alone(t3: T3, request: Request) -> list[int]:
    return generate(t3, request, use_cache=False).tolist()


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "chatterbox-engine" and thread.is_alive()]


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    step = DecodeEngine.step

    def slow(engine: DecodeEngine):
        time.sleep(seconds)
        return step(engine)

    monkeypatch.setattr(DecodeEngine, "step", slow)


def test_a_request_that_cannot_join_fails_alone(t3: T3, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong when its row is put beside the others', after its prefix was computed."""
    of = BatchState.of
    requests = [long_request(t3, seed) for seed in range(3)]
    bad = long_request(t3, 3, sampling=SamplingConfig(cfg_weight=0.0, top_k=7))

    def breaks(sampler: SamplerState, asked: Sequence[Request], rows: Sequence[Sequence[int]]) -> BatchState:
        if any(one.sampling.top_k == 7 for one in asked):
            raise ValueError("this one cannot be beside others")
        return of(sampler, asked, rows)

    monkeypatch.setattr(BatchState, "of", breaks)
    streams = [scheduler.stream(request, policy=STATIC) for request in requests]
    with pytest.raises(ValueError, match="this one cannot be beside others"):
        list(scheduler.stream(bad, policy=STATIC))
    assert [list(stream) for stream in streams] == [alone(t3, request) for request in requests]
    wait_until_free(scheduler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "x"}, "seed must be a whole number or None, got 'x'"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number from 1, got 2.5"),
        ({"max_new_tokens": 30000}, "max_new_tokens must be from 1 to the model's 29, got 30000"),
        ({"max_new_tokens": "five"}, "got 'five'"),
        ({"max_new_tokens": True}, "got True"),
        ({"text_tokens": torch.tensor([1, -3, 0])}, "text token -3 is outside of the vocabulary"),
        ({"guard": ["light"]}, "guard must be one of light, alignment, none, got ['light']"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(changes: dict, message: str) -> None:
    t3 = build(SMALL)
    message = message.replace("29", str(t3.hp.max_speech_tokens))
    with closing(scheduler_of(t3)) as scheduler, pytest.raises(ValueError, match=re.escape(message)) as error:
        scheduler.stream(dataclasses.replace(long_request(t3, 0), **changes), policy=STATIC)
    assert "\n" not in str(error.value)


def test_a_voice_of_nan_fails_alone(t3: T3, scheduler: Scheduler) -> None:
    good = [long_request(t3, seed) for seed in range(3)]
    cond = dataclasses.replace(good[0].t3_cond, speaker_emb=torch.full_like(good[0].t3_cond.speaker_emb, float("nan")))
    bad = dataclasses.replace(good[0], t3_cond=cond)
    streams = [scheduler.stream(request, policy=STATIC) for request in (good[0], bad, good[1])]
    with pytest.raises(RuntimeError, match="NaN or infinite values for this voice or text"):
        list(streams[1])
    assert [list(streams[0]), list(streams[2])] == [alone(t3, good[0]), alone(t3, good[1])]
    tree = scheduler.prefixes.manager.tree
    assert scheduler.prefixes.voice_of(cond) not in tree.voices()
    assert scheduler.prefixes.voice_of(good[0].t3_cond) in tree.voices()
    assert list(scheduler.stream(good[2], policy=STATIC)) == alone(t3, good[2])
    uncached = scheduler.stream(bad, policy=cache_config("none"))
    with pytest.raises(RuntimeError, match="NaN or infinite logits at speech token 1;"):
        list(uncached)
    wait_until_free(scheduler)


def test_nan_in_the_middle_of_decoding_fails_alone(t3: T3) -> None:
    """A token that one request alone decodes has an embedding of NaN."""
    t3 = build(t3.hp)
    good, bad = [long_request(t3, seed) for seed in range(4)], long_request(t3, 7)
    expected, doomed = [alone(t3, request) for request in good], alone(t3, bad)
    place = next(i for i in range(9, 40) if doomed[i] not in {*itertools.chain(*expected), *doomed[:i]})
    t3.speech_emb.weight.data[doomed[place]] = float("nan")
    t3.weights_changed()
    scheduler = scheduler_of(t3, prefixes=Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**26)))
    streams = [scheduler.stream(request, policy=STATIC) for request in (good[0], bad, good[1])]
    tokens: list[int] = []
    with pytest.raises(RuntimeError, match=f"NaN or infinite logits at speech token {place + 2};"):
        tokens.extend(streams[1])
    later = [scheduler.stream(request, policy=STATIC) for request in good[2:]]
    assert [list(one) for one in (streams[0], streams[2], *later)] == expected
    assert list(scheduler.stream(good[3], policy=STATIC)) == expected[3]  # on rows that held NaN
    scheduler.prefixes.manager.check_integrity()
    wait_until_free(scheduler)
    scheduler.close()


def test_a_step_that_raises_fails_those_under_way(
    t3: T3, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cancelled afterwards does not touch those that came since, whose handles are the same."""
    step, num_steps = DecodeEngine.step, 0

    def faulty(engine: DecodeEngine):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 5:
            raise RuntimeError("device lost its way\nwith details")
        time.sleep(0.002)
        return step(engine)

    monkeypatch.setattr(DecodeEngine, "step", faulty)

    errors: list[BaseException] = []

    class Kept:
        """A sink whose owner cancels whatever happened."""

        is_eager, is_full = True, False
        begin = push = finish = lambda *_: None

        def fail(self, error: BaseException) -> None:
            errors.append(error)

    cancels = [scheduler.submit(long_request(t3, seed), Kept(), policy=STATIC) for seed in range(2)]
    wait_for(lambda: len(errors) == 2)
    assert [str(error) for error in errors] == ["a decode step failed: device lost its way"] * 2
    assert str(errors[0].__cause__).startswith("device lost its way")
    request = long_request(t3, 3)
    stream = scheduler.stream(request, policy=STATIC)
    tokens = iter(stream)
    first = next(tokens)
    for cancel in cancels:
        cancel()
    assert [first, *tokens] == alone(t3, request)
    wait_until_free(scheduler)


def test_an_error_that_stays_makes_it_unusable(t3: T3, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(engine: DecodeEngine):
        # From here on the device is one that answers every call with an error.
        device = SimpleNamespace(t3=SimpleNamespace(device=torch.device("cuda")), manager=scheduler.prefixes.manager)
        monkeypatch.setattr(scheduler, "prefixes", device)
        raise RuntimeError("an illegal memory access was encountered")

    def synchronize(device: object) -> None:
        raise RuntimeError("an illegal memory access was encountered\nCUDA_LAUNCH_BLOCKING")

    monkeypatch.setattr(DecodeEngine, "step", lost)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    prefixes = scheduler.prefixes
    with pytest.raises(RuntimeError, match="a decode step failed: an illegal memory access"):
        list(scheduler.stream(long_request(t3, 0), policy=STATIC))
    wait_for(lambda: scheduler._unusable)
    scheduler.prefixes = prefixes
    for use in (lambda: scheduler.stream(long_request(t3, 1), policy=STATIC), lambda: scheduler.call(lambda _: 0)):
        with pytest.raises(EngineClosedError, match="reports an error that stays") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["begin", "push", "finish", "fail"])
def test_a_sink_that_raises_drops_its_request_alone(
    t3: T3, scheduler: Scheduler, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty:
        is_eager, is_full = True, False
        begin = push = finish = fail = lambda *_: None

    def fault(*_: object) -> None:
        raise ValueError("no place for tokens")

    sink = Faulty()
    setattr(sink, method, fault)
    bad, good = long_request(t3, 1), long_request(t3, 2)
    if method == "fail":
        cond = dataclasses.replace(bad.t3_cond, speaker_emb=bad.t3_cond.speaker_emb * float("nan"))
        bad = dataclasses.replace(bad, t3_cond=cond)
    stream = scheduler.stream(good, policy=STATIC)
    scheduler.submit(bad, sink, policy=STATIC)
    assert list(stream) == alone(t3, good)
    wait_until_free(scheduler)
    assert "the request is dropped" in caplog.text
    assert list(scheduler.stream(good, policy=STATIC)) == alone(t3, good)


def test_close_ends_all(t3: T3, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, 0.01)
    scheduler = scheduler_of(t3, max_rows=2)
    with ThreadPoolExecutor(4) as pool:
        streams = [scheduler.stream(long_request(t3, seed), policy=STATIC) for seed in range(4)]
        readers = [pool.submit(list, stream) for stream in streams]
        wait_for(lambda: scheduler.stats()["steps"] > 2)
        scheduler.close()
        for reader in readers:
            with pytest.raises(EngineClosedError, match="the engine was closed while the request was under way"):
                reader.result(WAIT)
    scheduler.close()
    for stream in streams:
        stream.close()
    with pytest.raises(EngineClosedError, match="cannot be used: it was closed; load the model anew"):
        scheduler.stream(long_request(t3, 0), policy=STATIC)
    with pytest.raises(EngineClosedError, match="it was closed"):
        scheduler.call(lambda between: None)
    assert not scheduler._worker.is_alive
    assert scheduler.stats()["rows"] == scheduler.stats()["waiting"] == 0


def test_its_thread_comes_and_goes_with_it(t3: T3) -> None:
    others = set(engine_threads())  # of models that other tests share

    def own_threads() -> set[threading.Thread]:
        return set(engine_threads()) - others

    scheduler = scheduler_of(t3)
    assert not own_threads()
    request = long_request(t3, 0)
    assert list(scheduler.stream(request, policy=STATIC)) == alone(t3, request)
    assert len(own_threads()) == 1
    watch = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    wait_for(lambda: watch() is None and not own_threads())
    scheduler = scheduler_of(t3)
    list(scheduler.stream(request, policy=STATIC))
    scheduler.close()
    assert not own_threads()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
def test_ctrl_c_cancels_the_request_of_its_caller_alone(
    t3: T3, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, 0.01)
    mine, other = long_request(t3, 1), long_request(t3, 2)
    stream = scheduler.stream(mine, policy=STATIC)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(list, scheduler.stream(other, policy=STATIC))
        tokens = iter(stream)
        next(tokens)
        main = threading.main_thread().ident
        assert main is not None
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
            list(tokens)
            time.sleep(WAIT)
        wait_for(lambda: scheduler.stats()["rows"] <= other.num_rows)
        assert others.result(WAIT) == alone(t3, other)
    wait_until_free(scheduler)


FORKING = """
import os, sys, threading
import torch
torch.set_num_threads(2)
from tests.support.decoding import scheduler_of
from tests.support.small import REQUESTS, SMALL, build
from chatterbox.kvcache import cache_config

scheduler, static = scheduler_of(build(SMALL)), cache_config("static")
said = [list(scheduler.stream(request, policy=static)) for request in REQUESTS[:4]]
parents, kept = scheduler.stream(REQUESTS[5], policy=static, limit=2), scheduler.continuation(static)
reader = iter(parents)
next(reader)
list(scheduler.stream(REQUESTS[6], policy=static, continuation=kept))
child = os.fork()
if not child:
    assert scheduler.stats()["rows"] == 0
    parents.close()
    continued = scheduler.stream(REQUESTS[6], policy=static, continuation=kept)
    assert list(continued) == list(scheduler.stream(REQUESTS[6], policy=static))
    streams = [scheduler.stream(request, policy=static) for request in REQUESTS[:4]]
    os._exit(0 if [list(one) for one in streams] == said else 3)
_, status = os.waitpid(child, 0)
assert [list(scheduler.stream(request, policy=static)) for request in REQUESTS[:4]] == said
for _ in range(10):  # as soon as a request ends, when threads of its steps end too
    list(scheduler.stream(REQUESTS[0], policy=static))
    child = os.fork()
    if not child:
        os._exit(0 if list(scheduler.stream(REQUESTS[0], policy=static)) == said[0] else 3)
    status |= os.waitpid(child, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_speaks() -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], check=True, cwd=root, timeout=4 * WAIT,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": float64_by_default,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("policy", ["static", "none"])
def test_what_a_caller_has_set_does_not_reach_it(t3: T3, name: str, policy: str) -> None:
    requests = [long_request(t3, seed) for seed in range(3)]
    expected = [alone(t3, request) for request in requests]
    for cached in (False, True):  # made by the caller, or before
        scheduler = scheduler_of(t3, prefixes=Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**26)))
        if cached:
            list(scheduler.stream(requests[0], policy=cache_config(policy)))
        with SETTINGS[name]():
            streams = [scheduler.stream(request, policy=cache_config(policy)) for request in requests]
            assert [list(stream) for stream in streams] == expected
        assert list(scheduler.stream(requests[1], policy=cache_config(policy))) == expected[1]
        scheduler.close()


@pytest.mark.parametrize("stop_stride", [1, 3, 7])
def test_unseeded_it_decode_what_one_request_alone_decode(t3: T3, stop_stride: int) -> None:
    """From torch's global generator, which is left as after that, wherever the end came between two looks."""
    request = long_request(t3, None, stop_on_eos=True)
    torch.manual_seed(7)
    whole = generate(t3, request).tolist()
    place = next(i for i in range(10, 40) if whole[i] not in whole[:i])
    ending = build(dataclasses.replace(t3.hp, stop_speech_token=whole[place]))
    torch.manual_seed(7)
    expected, state = generate(ending, request).tolist(), torch.get_rng_state()
    assert expected == whole[: place + 1]
    scheduler = scheduler_of(ending, stop_stride=stop_stride)
    torch.manual_seed(7)
    assert list(scheduler.stream(request, policy=STATIC)) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert list(scheduler.stream(long_request(t3, 3), policy=STATIC)) == alone(ending, long_request(t3, 3))
    assert torch.equal(torch.get_rng_state(), state)
    scheduler.close()


def test_a_policy_that_does_not_exist_is_told_at_the_call(t3: T3, scheduler: Scheduler) -> None:
    with pytest.raises(ValueError, match="cache policy 'nope' does not exist"):
        scheduler.stream(long_request(t3, 0), policy=KVCacheConfig(policy="nope"))


def test_a_request_that_cannot_be_taken_in_does_not_wait_for_ever(t3: T3, scheduler: Scheduler, monkeypatch) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("no engine")

    monkeypatch.setattr("chatterbox.engine.scheduler.PolicyEngine", fails)
    with pytest.raises(RuntimeError, match="the scheduler failed: no engine"):
        list(scheduler.stream(long_request(t3, 0), policy=STATIC))
    monkeypatch.undo()
    assert list(scheduler.stream(long_request(t3, 1), policy=STATIC)) == alone(t3, long_request(t3, 1))
