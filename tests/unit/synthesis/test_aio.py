"""A blocking stream in an event loop: the loop goes on, and leaving closes the stream."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing

import pytest

from chatterbox.synthesis.aio import astream, on_leave

WAIT = 30.0
SENTENCES = ["Hello there. ", "And so on."]


class Stream:
    """Upper-cases pieces, in whatever thread it is asked; knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed, self.threads = threading.Event(), set()

    def __call__(self, text: Iterable[str], *, num: int = 1, error: Exception | None = None) -> Iterator[str]:
        try:
            for piece in text:
                self.threads.add(threading.current_thread())
                yield from [piece.upper()] * num
            if error is not None:
                raise error
        finally:
            self.is_closed.set()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, WAIT))


async def pieces_of(*pieces: str, error: BaseException | None = None) -> AsyncIterator[str]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece
    if error is not None:
        raise error


async def collect(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


@pytest.mark.parametrize("make_text", [lambda: SENTENCES, lambda: iter(SENTENCES), lambda: pieces_of(*SENTENCES)])
def test_all_items_from_another_thread(make_text):
    stream = Stream()

    async def main() -> list[str]:
        return await collect(astream(stream, make_text(), num=2))

    assert run(main()) == ["HELLO THERE. "] * 2 + ["AND SO ON."] * 2
    assert threading.main_thread() not in stream.threads and stream.is_closed.wait(WAIT)


def test_text_by_name():
    async def main() -> list[str]:
        return await collect(astream(Stream(), text=pieces_of("a", "b")))

    assert run(main()) == ["A", "B"]


def test_the_loop_goes_on_while_an_item_is_made():
    """The stream waits for something that only the loop can do."""
    go = threading.Event()

    def make(text: str) -> Iterator[str]:
        assert go.wait(WAIT)
        yield text

    async def main() -> list[str]:
        asyncio.get_running_loop().call_soon(go.set)
        return await collect(astream(make, "a"))

    assert run(main()) == ["a"]


def test_pieces_are_asked_for_when_they_are_wanted():
    asked = []

    async def pieces() -> AsyncIterator[str]:
        for piece in "abc":
            asked.append(piece)
            yield piece

    async def main() -> None:
        async with aclosing(astream(Stream(), pieces())) as items:
            assert await anext(items) == "A"
            assert asked == ["a"]

    run(main())


@pytest.mark.parametrize("error", [ValueError("broken"), RuntimeError("NaN")])
@pytest.mark.parametrize("where", ["stream", "source"])
def test_an_error_comes_behind_the_items_before_it(where, error):
    stream, got = Stream(), []

    async def main() -> None:
        text = pieces_of("a", error=error if where == "source" else None)
        async for item in astream(stream, text, **({"error": error} if where == "stream" else {})):
            got.append(item)

    with pytest.raises(type(error), match=str(error)):
        run(main())
    assert got == ["A"] and stream.is_closed.wait(WAIT)


def test_an_error_at_the_call():
    def make(text: str) -> Iterator[str]:
        raise ValueError("seed must be")

    with pytest.raises(ValueError, match="seed must be"):
        run(collect(astream(make, "a")))


def test_leaving_early_closes_the_stream():
    stream = Stream()

    async def main() -> None:
        async with aclosing(astream(stream, ["a"] * 1000)) as items:
            async for _ in items:
                break

    run(main())
    assert stream.is_closed.wait(WAIT)
    for thread in stream.threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_leaving_calls_what_the_stream_said():
    """From outside, while the stream waits for what nobody but who leaves brings about."""
    waits, left = threading.Event(), threading.Event()

    def make(text: str) -> Iterator[str]:
        on_leave(left.set)
        waits.set()
        assert left.wait(WAIT)
        yield text

    async def main() -> None:
        task = asyncio.create_task(anext(astream(make, "a")))
        await asyncio.to_thread(waits.wait, WAIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left.is_set()

    run(main())


def test_what_was_left_already_is_closed_at_once():
    waits, go, left = threading.Event(), threading.Event(), threading.Event()

    def make(text: str) -> Iterator[str]:
        waits.set()
        assert go.wait(WAIT)
        on_leave(left.set)
        yield text

    async def main() -> None:
        task = asyncio.create_task(anext(astream(make, "a")))
        await asyncio.to_thread(waits.wait, WAIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert not left.is_set()
    go.set()
    assert left.wait(WAIT)


def test_outside_of_such_a_stream_nothing_is_left():
    on_leave(pytest.fail)


async def stalling(waits: asyncio.Event, closed: asyncio.Event) -> AsyncIterator[str]:
    """One piece, and then none for ever."""
    try:
        yield "a"
        waits.set()
        await asyncio.Event().wait()
    finally:
        closed.set()


def test_cancelling_the_task_closes_stream_and_source():
    stream, got = Stream(), []

    async def main() -> None:
        waits, closed = asyncio.Event(), asyncio.Event()

        async def read() -> None:
            async for item in astream(stream, stalling(waits, closed)):
                got.append(item)

        task = asyncio.create_task(read())
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()

    run(main())
    assert got == ["A"] and stream.is_closed.wait(WAIT)


def test_a_source_that_blocks_holds_up_neither_the_loop_nor_the_end_of_the_program():
    """Its thread cannot be ended; nobody waits for it."""
    code = """
import asyncio, threading, time
from chatterbox.synthesis.aio import astream

waits = threading.Event()

def pieces():
    yield "a"
    waits.set()
    threading.Event().wait()

async def main():
    async def read():
        async for item in astream(iter, pieces()):
            print(item, flush=True)
    task = asyncio.create_task(read())
    while not waits.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        print("cancelled", flush=True)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0 and done.stdout.split() == ["a", "cancelled"], done.stderr


def test_several_at_once():
    async def main() -> list[list[str]]:
        return await asyncio.gather(*(collect(astream(Stream(), pieces_of(*letters))) for letters in ("ab", "cd")))

    assert run(main()) == [["A", "B"], ["C", "D"]]
