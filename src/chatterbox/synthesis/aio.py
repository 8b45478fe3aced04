"""A blocking stream inside an event loop.

Owns: the thread that the stream runs in, how it is left while it waits, and pieces of text on their way from the loop
to it. Does not know: what is streamed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


async def astream(make: Callable[..., Iterator[T]], text: Any, *arguments: Any, **options: Any) -> AsyncIterator[T]:
    """Items of ``make(text, *arguments, **options)``, which runs in a thread of its own.

    ``text`` may be an asynchronous iterable: its pieces are asked for in the loop, when the stream wants them. Leaving
    the loop over the items early, or cancelling it, closes the stream, at once where it has said `on_leave` how.
    """
    loop, pieces = asyncio.get_running_loop(), None
    if isinstance(text, AsyncIterable):
        pieces = text = _Pieces(text, loop)
    worker = _Worker()
    items: Iterator[T] = iter(())
    try:
        items = await worker.run(lambda: make(text, *arguments, **options))
        while (item := await worker.run(lambda: next(items, _END))) is not _END:
            yield item
    finally:
        if pieces is not None:
            pieces.cancel()
        worker.leave()
        # Behind what the worker is at, and not waited for: the loop goes on.
        worker.submit(getattr(items, "close", lambda: None))
        worker.finish()


def on_leave(close: Callable[[], None]) -> None:
    """Have ``close`` called when the asynchronous stream that runs in this thread is left, or now if it was.

    An iterator cannot be closed while it computes or waits for its next item. ``close`` is called from the loop's
    thread at any time, perhaps twice, and must not wait. Nothing happens in a thread that runs no such stream.
    """
    worker: _Worker | None = getattr(_CURRENT, "worker", None)
    if worker is not None:
        worker.on_leave(close)


_END: Any = object()
_CURRENT = threading.local()  # .worker: whose thread it is


class _Worker:
    """A thread that does one thing after the other. The end of the program does not wait for it.

    An executor's would: a stream whose text never comes could not be left.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._lock, self._closes, self._is_left = threading.Lock(), list[Callable[[], None]](), False
        threading.Thread(target=self._work, name="chatterbox-stream", daemon=True).start()

    async def run(self, job: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.submit(job))

    def submit(self, job: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._jobs.put((done, job))
        return done

    def on_leave(self, close: Callable[[], None]) -> None:
        with self._lock:
            self._closes.append(close)
            is_left = self._is_left
        if is_left:
            close()

    def leave(self) -> None:
        """Nobody waits for what is under way."""
        with self._lock:
            self._is_left, closes = True, list(self._closes)
        for close in closes:
            close()

    def finish(self) -> None:
        """End the thread when all is done."""
        self._jobs.put(None)

    def _work(self) -> None:
        _CURRENT.worker = self
        while (entry := self._jobs.get()) is not None:
            done, job = entry
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(job())
            except BaseException as error:
                done.set_exception(error)


class _Pieces:
    """Pieces of an asynchronous iterable for a reader in another thread."""

    def __init__(self, source: AsyncIterable[str], loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._loop = source.__aiter__(), loop
        self._asked: concurrent.futures.Future[str] | None = None
        self._is_cancelled = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._is_cancelled:
            raise StopIteration
        self._asked = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        if self._is_cancelled:  # meanwhile: `cancel` may not have seen what was asked
            self._asked.cancel()
        try:
            piece = self._asked.result()
        except concurrent.futures.CancelledError:
            raise StopIteration from None
        if piece is _END:
            raise StopIteration
        return piece

    async def _next(self) -> str:
        try:
            return await self._source.__anext__()
        except StopAsyncIteration:
            return _END

    def cancel(self) -> None:
        """The reader gets no more; one that waits is let go."""
        self._is_cancelled = True
        if self._asked is not None:
            self._asked.cancel()
