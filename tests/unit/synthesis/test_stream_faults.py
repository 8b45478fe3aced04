"""Streams that end badly: what was said before is heard, the error names its place, nothing stays behind."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
import torch

from chatterbox.config import KVCacheConfig
from chatterbox.engine.engine import DecodeEngine
from chatterbox.synthesis.render_queue import RenderQueue
from chatterbox.synthesis.speech_stream import MAX_UNREAD, SpeechStream
from chatterbox.synthesis.utterances import Utterances, _Utterance
from chatterbox.tts import ChatterboxTTS
from tests.support.folders import SMALL
from tests.support.speaking import say_instead
from tests.support.waiting import WAIT, wait_for

LONG = "Hello there. And so on. " * 20
PER_UTTERANCE = SMALL.sampling.max_new_tokens * 960
OPTIONS = {"seed": 3, "watermark": False, "print_metrics": False}
SMALLEST = {"chunk_size": 1, "first_chunk": 1}
LONG_UTTERANCES = {**SMALLEST, "max_new_tokens": 60}  # the first is still being decoded when some chunks are heard


@pytest.fixture
def tts(small_tts: ChatterboxTTS) -> ChatterboxTTS:
    """The shared weights under caches of their own. Afterwards nothing may be in use, and no thread be alive."""
    tts = ChatterboxTTS(
        small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu", small_tts.conds,
        sampling=small_tts.sampling, kvcache=KVCacheConfig(),
    )  # fmt: skip
    yield tts
    assert is_free(tts)
    tts.close()
    parts = tts.synthesizer.scheduler._worker, tts.synthesizer.whole_renders, tts.synthesizer.chunk_renders
    assert not any(part.is_alive for part in parts)


def stream(tts: ChatterboxTTS, text=LONG, **options) -> Iterator:
    return tts.generate_stream(text, **{**OPTIONS, **options})


def is_in_use(tts: ChatterboxTTS) -> bool:
    """Whether a request has rows, waits for some, or holds a prefix."""
    stats = tts.synthesizer.scheduler.stats()
    nodes = tts.synthesizer.prefixes.manager.tree.nodes()
    return bool(stats["rows"] or stats["waiting"]) or any(node.ref_count for node in nodes)


def is_free(tts: ChatterboxTTS) -> bool:
    """Whether all is free soon: what nobody wants any more leaves within a step."""
    until = time.monotonic() + WAIT
    while is_in_use(tts) and time.monotonic() < until:
        time.sleep(0.001)
    return not is_in_use(tts)


def num_samples(chunks) -> int:
    return sum(audio.shape[1] for audio, _ in chunks)


@pytest.mark.parametrize("decode_ahead", [0, 3, 250])
@pytest.mark.parametrize("num_taken", [0, 1, 4])
def test_closing_ends_all(tts, decode_ahead, num_taken):
    chunks = stream(tts, decode_ahead=decode_ahead, **LONG_UTTERANCES)
    for _ in range(num_taken):
        next(chunks)
    assert is_in_use(tts) or not num_taken or decode_ahead == 250
    chunks.close()
    assert is_free(tts) and next(chunks, None) is None


def test_a_forgotten_stream_ends(tts):
    chunks = stream(tts, decode_ahead=3, **LONG_UTTERANCES)
    next(chunks)
    assert is_in_use(tts)
    del chunks
    gc.collect()
    assert is_free(tts)


def test_a_slow_reader_bounds_what_is_drawn(tts, monkeypatch):
    decoded, push = [], _Utterance.push
    monkeypatch.setattr(_Utterance, "push", lambda self, tokens: decoded.extend(tokens) or push(self, tokens))
    chunks = stream(tts, decode_ahead=5, **SMALLEST)
    for _ in range(6):
        _, metrics = next(chunks)
        time.sleep(0.1)
        # Chunks that wait for the reader, of which one may end an utterance and with it the lookahead, one that is
        # rendered, what is decoded ahead of them, and one more.
        most = metrics.num_tokens + MAX_UNREAD + 3 + 1 + 5 + 1
        assert metrics.num_tokens < len(decoded) <= most
    chunks.close()


def broken(*pieces: str, error: BaseException) -> Iterator[str]:
    yield from pieces
    raise error


@pytest.mark.parametrize("decode_ahead", [0, 250])
@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
@pytest.mark.parametrize("error", [OSError("connection lost"), KeyboardInterrupt()])
def test_text_that_raises(tts, decode_ahead, continuity, error):
    got = []
    chunks = stream(tts, broken("Hello there. ", "And", error=error), continuity=continuity, decode_ahead=decode_ahead)
    with pytest.raises(type(error)) as raised:
        for chunk in chunks:
            got.append(chunk)
    assert raised.value is error and num_samples(got) == PER_UTTERANCE and is_free(tts)


class Stalled:
    """A sentence, and then nothing until it is let go."""

    def __init__(self) -> None:
        self.waits, self.release = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        yield "Hello there. And "
        self.waits.set()
        assert self.release.wait(WAIT)
        yield "so on."


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_text_that_stalls(tts, continuity):
    """All of the complete sentence is heard before more text is there; closing does not wait for it."""
    text, heard = Stalled(), 0
    chunks = stream(tts, text, continuity=continuity, **SMALLEST)
    while heard < PER_UTTERANCE:
        heard += next(chunks)[0].shape[1]
    assert heard == PER_UTTERANCE and text.waits.wait(WAIT) and not text.release.is_set()
    chunks.close()
    assert is_free(tts)
    text.release.set()


@pytest.mark.parametrize("text", [[], [""], [" \n", " "], iter(()), ["\N{GRINNING FACE}"]])
@pytest.mark.parametrize("decode_ahead", [0, 250])
def test_text_of_nothing(tts, caplog, text, decode_ahead):
    with caplog.at_level(logging.WARNING, "chatterbox"):
        assert list(stream(tts, text, decode_ahead=decode_ahead)) == []
    assert "the text ended before it said anything" in caplog.text


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_utterance_of_which_nothing_is_said(tts, monkeypatch, caplog, silent):
    """The others are heard, and the log says which is missing, in none of its words."""
    texts = [f"This is sentence {number} of the text. " for number in ("one", "two", "three")]
    say_instead(monkeypatch, lambda number, request: [6562] if number == silent else None)
    with caplog.at_level(logging.WARNING, "chatterbox"):
        heard = num_samples(stream(tts, iter(texts), continuity="history"))
    assert heard == 2 * PER_UTTERANCE
    said = [record.getMessage() for record in caplog.records if "silent" in record.getMessage()]
    num_characters = len(texts[silent].strip())
    assert said == [f"utterance {silent + 1}, of {num_characters} characters, came out silent; try another seed"]


@pytest.mark.parametrize("text", [["Hello. ", 5], [b"Hello."], [None]])
def test_pieces_that_are_no_text(tts, text):
    with pytest.raises(TypeError, match="pieces of text must be strings"):
        list(stream(tts, text))


@pytest.mark.parametrize("kind", ["generate", "stream", "batch"])
@pytest.mark.parametrize("lacking", ["prompt_token", "prompt_feat", "embedding"])
def test_a_voice_that_lacks_something_is_told(tts, kind, lacking):
    voice = dataclasses.replace(tts.conds, gen={key: value for key, value in tts.conds.gen.items() if key != lacking})
    with pytest.raises(ValueError, match=f"ref_dict lacks {lacking}; make it with embed_ref"):
        if kind == "generate":
            tts.generate("Hello.", audio_prompt_path=voice)
        elif kind == "stream":
            list(stream(tts, audio_prompt_path=voice))
        else:
            tts.generate_batch(["Hello.", "Hello."], voices=[None, voice])
    assert tts.synthesizer.chunk_renders.stats()["starting"] == 0


def test_what_goes_wrong_where_a_chunk_is_asked_for_is_told(tts, monkeypatch):
    monkeypatch.setattr(SpeechStream, "_due", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream(tts))


def test_two_voices_at_once(tts, reference_wav):
    voices = (None, str(reference_wav))
    alone = [torch.cat([audio for audio, _ in stream(tts, audio_prompt_path=one)], 1) for one in voices]
    one, two = (stream(tts, audio_prompt_path=one, **{"decode_ahead": 4}) for one in voices)
    together: tuple[list, list] = ([], [])
    pairs = [(one, together[0]), (two, together[1])]
    while pairs:
        for chunks, heard in list(pairs):
            chunk = next(chunks, None)
            pairs.remove((chunks, heard)) if chunk is None else heard.append(chunk[0])
    assert not torch.equal(*alone)
    assert all(torch.equal(torch.cat(heard, 1), whole) for heard, whole in zip(together, alone, strict=True))


def test_streams_in_threads(tts, reference_wav):
    voices = (None, str(reference_wav)) * 2
    alone = [torch.cat([audio for audio, _ in stream(tts, audio_prompt_path=one)], 1) for one in voices[:2]]
    heard: dict[int, torch.Tensor] = {}

    def work(place: int) -> None:
        heard[place] = torch.cat([audio for audio, _ in stream(tts, audio_prompt_path=voices[place])], 1)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(heard) == 4 and all(torch.equal(wav, alone[place % 2]) for place, wav in heard.items())


def test_interrupted_reader(tts):
    """As Ctrl-C between two chunks: the stream closes when nobody refers to it any more."""

    def read() -> None:
        for _ in stream(tts, decode_ahead=3, **SMALLEST):
            raise KeyboardInterrupt

    try:
        read()
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("not interrupted")
    gc.collect()
    assert is_free(tts)


@pytest.mark.parametrize("decode_ahead", [0, 250])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory")])
def test_an_error_in_t3_after_some_tokens(tts, monkeypatch, decode_ahead, error):
    """It comes behind the audio of what was decoded before, and whatever waits is freed."""
    original, count = DecodeEngine.step, itertools.count()

    def breaks(self):
        if next(count) == 7:
            raise error
        return original(self)

    monkeypatch.setattr(DecodeEngine, "step", breaks)
    got = []
    with pytest.raises(RuntimeError, match=r"a decode step failed: (out of memory|MemoryError)") as raised:
        for chunk in stream(tts, decode_ahead=decode_ahead, **SMALLEST):
            got.append(chunk)
    assert raised.value.__cause__ is error and got and is_free(tts)


def nan_from(monkeypatch, owner: torch.nn.Module, name: str, call: int) -> None:
    """From its ``call``-th call on a method computes NaN."""
    original, calls = getattr(owner, name), itertools.count(1)

    def computes_nan(*arguments, **options):
        result = original(*arguments, **options)
        return result * float("nan") if next(calls) >= call else result

    monkeypatch.setattr(owner, name, computes_nan)


@pytest.mark.parametrize("decode_ahead", [0, 250])
@pytest.mark.parametrize(
    ("stage", "name", "call", "message"),
    [
        ("t3", "predict_speech", 1, "T3 computed NaN or infinite logits at speech token 1;"),
        ("t3", "predict_speech", 12, "T3 computed NaN or infinite logits at speech token [2-8];"),
        ("flow", "flow_inference", 1, "S3Gen's flow computed NaN"),
        ("flow", "flow_inference", 6, "S3Gen's flow computed NaN"),
        ("vocoder", "decode", 1, "S3Gen's vocoder computed NaN"),
        ("vocoder", "decode", 6, "S3Gen's vocoder computed NaN"),
    ],
)
def test_nan_names_its_stage(tts, stage, name, call, message, decode_ahead):
    owners = {"t3": tts.t3, "flow": tts.s3gen, "vocoder": tts.s3gen.mel2wav}
    got = []
    with pytest.MonkeyPatch.context() as patch:
        nan_from(patch, owners[stage], name, call)
        with pytest.raises(RuntimeError, match=message) as raised:
            for chunk in stream(tts, decode_ahead=decode_ahead, **SMALLEST):
                got.append(chunk)
    assert "\n" not in str(raised.value) and bool(got) == (call > 1)
    assert all(audio.isfinite().all() for audio, _ in got) and is_free(tts)
    assert num_samples(stream(tts, "Hello there.")) == PER_UTTERANCE  # the model is as before


def test_a_watermarker_that_fails(tts):
    class Broken:
        def apply_watermark(self, signal, sample_rate):
            raise RuntimeError("no weights")

    tts.watermarker = Broken()
    with pytest.raises(RuntimeError, match="no weights"):
        list(stream(tts, watermark=True))
    assert is_free(tts)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, WAIT))


class TestAsync:
    def test_equals_the_stream(self, tts):
        async def pieces() -> AsyncIterator[str]:
            for word in ("Hello ", "there. ", "And so", " on."):
                yield word

        async def main() -> list[torch.Tensor]:
            return [audio async for audio, _ in tts.agenerate_stream(pieces(), **OPTIONS)]

        expected = [audio for audio, _ in stream(tts, iter(["Hello there. And so on."]))]
        assert torch.equal(torch.cat(run(main()), 1), torch.cat(expected, 1))

    def test_cancelling_closes(self, tts):
        """While more text is waited for."""

        async def main() -> None:
            waits = asyncio.Event()

            async def pieces() -> AsyncIterator[str]:
                yield "Hello there. And "
                waits.set()
                await asyncio.Event().wait()

            heard = []

            async def listen() -> None:
                async for audio, _ in tts.agenerate_stream(pieces(), **OPTIONS):
                    heard.append(audio)

            task = asyncio.create_task(listen())
            await waits.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main())

    def test_leaving_early_closes(self, tts):
        async def main() -> None:
            async with aclosing(tts.agenerate_stream(LONG, decode_ahead=3, **SMALLEST, **OPTIONS)) as chunks:
                async for _ in chunks:
                    break

        run(main())

    def test_leaving_while_a_chunk_is_waited_for_closes_at_once(self, tts, monkeypatch):
        """What is being rendered ends when it will: rows and prefixes are given back before."""
        renders, go, render = threading.Event(), threading.Event(), SpeechStream._render

        def held(stream: SpeechStream) -> None:
            renders.set()
            assert go.wait(WAIT)
            render(stream)

        monkeypatch.setattr(SpeechStream, "_render", held)

        async def main() -> None:
            task = asyncio.create_task(anext(tts.agenerate_stream(LONG, **LONG_UTTERANCES, **OPTIONS)))
            await asyncio.to_thread(renders.wait, WAIT)
            assert is_in_use(tts)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(is_free, tts)

        try:
            run(main())
        finally:
            go.set()

    def test_left_before_it_began(self, tts, monkeypatch):
        """Its reader is gone while the voice is prepared: nothing is begun."""
        begins, go, init, started = threading.Event(), threading.Event(), SpeechStream.__init__, []

        def held(stream: SpeechStream, *arguments, **options) -> None:
            begins.set()
            assert go.wait(WAIT)
            init(stream, *arguments, **options)

        monkeypatch.setattr(SpeechStream, "__init__", held)
        monkeypatch.setattr(Utterances, "start", lambda self, request=None: started.append(request))

        async def main() -> None:
            task = asyncio.create_task(anext(tts.agenerate_stream(LONG, **OPTIONS)))
            await asyncio.to_thread(begins.wait, WAIT)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        threads = set(threading.enumerate())
        run(main())
        go.set()
        for thread in set(threading.enumerate()) - threads:
            thread.join(WAIT)
        assert not started

    def test_a_source_that_raises(self, tts):
        async def pieces() -> AsyncIterator[str]:
            yield "Hello there. And "
            raise OSError("connection lost")

        heard = []

        async def main() -> None:
            async for audio, _ in tts.agenerate_stream(pieces(), **OPTIONS):
                heard.append(audio)

        with pytest.raises(OSError, match="connection lost"):
            run(main())
        assert sum(audio.shape[1] for audio in heard) == PER_UTTERANCE


@pytest.mark.parametrize("kind", ["generate", "batch", "stream"])
def test_closing_a_model_ends_those_that_wait_to_be_rendered(tts, monkeypatch, kind):
    """Also where all their tokens are decoded, so that no engine fails them."""
    synthesizer, go = tts.synthesizer, threading.Event()
    queue = synthesizer.chunk_renders if kind == "stream" else synthesizer.whole_renders
    monkeypatch.setattr(RenderQueue, "_next", lambda self, now: (None, WAIT))  # nobody's turn comes
    calls = {
        "generate": lambda: tts.generate("Hello there.", seed=3, watermark=False),
        "batch": lambda: tts.generate_batch(["Hello there.", "And so on."], seed=3, watermark=False),
        "stream": lambda: list(stream(tts, "Hello there.")),
    }
    ended = []

    def call() -> None:
        try:
            calls[kind]()
        except Exception as error:
            ended.append(error)
        go.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    wait_for(lambda: queue.stats()["waiting"] >= (2 if kind == "batch" else 1))
    tts.close()
    assert go.wait(WAIT)
    assert "closed" in str(ended[0])


def test_a_stream_that_is_collected_while_its_lock_is_held_does_not_wait_for_it(tts, monkeypatch):
    """A destructor runs in any thread, also in one that the holder of the lock waits for."""
    made, start = [], SpeechStream.start
    monkeypatch.setattr(SpeechStream, "start", lambda self: made.append(self) or start(self))
    chunks = stream(tts, **LONG_UTTERANCES)
    next(chunks)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with made[0]._changed:
            held.set()
            assert go.wait(WAIT)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(WAIT)
    chunks.close()  # comes back although another thread has the lock
    go.set()
    holder.join()
    assert is_free(tts)
    wait_for(lambda: tts.synthesizer.chunk_renders.is_for_none_but(None))
