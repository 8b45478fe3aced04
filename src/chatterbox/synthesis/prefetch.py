"""An iterator that works ahead of its reader, in a thread of its own.

Owns: the thread, the bounded queue, and that an end on either side ends the other. Does not know: what is iterated.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from chatterbox import forking

T = TypeVar("T")
_END: Any = object()
PATIENCE = 2.0  # seconds that `close` waits for an item under way; a source that waits for others may never make it


class Ahead(Generic[T]):
    """Items of ``source``, of which up to ``limit`` are made before they are asked for.

    An exception of the source is raised where the item would have been. `close`, or the end of a ``with`` block, lets
    the source finish the item that it is at, closes it, and waits for that, but not for long: a source that itself
    waits, as for text that never comes, is closed when it wakes.
    """

    def __init__(self, source: Iterable[T], limit: int, *, start: bool = True) -> None:
        """``start``: False makes each item when it is asked for, until `start` is called."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}; without a limit nothing works ahead")
        self._source, self._limit = iter(source), limit
        self._items: deque[T] = deque()
        self._is_done = self._is_closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        forking.register(self, Ahead._renew)
        if start:
            self.start()

    def start(self) -> None:
        """Work ahead from now on. Where it does, nothing changes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="chatterbox-ahead", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            return next(self._source)
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_done or self._is_closed)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        if self._thread is None:
            self._close_source()
            return
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
        self._thread.join(PATIENCE)

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _renew(self) -> forking.Lock:
        """A forked child does not have the thread."""
        self._changed = threading.Condition()
        if self._thread is not None and not self._is_done:
            self._items.clear()
            self._error = RuntimeError("a stream cannot be read on in a forked process; start a stream there")
            self._is_done = True
        return self._changed

    def _work(self) -> None:
        try:
            while self._has_room():
                item = next(self._source, _END)
                if item is _END:
                    break
                with self._changed:
                    if not self._is_closed:
                        self._items.append(item)
                        self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            self._close_source()
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until another item may be made; False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._limit or self._is_closed)
            return not self._is_closed

    def _close_source(self) -> None:
        with contextlib.suppress(Exception):  # whoever reads has the items, or the error that came first
            getattr(self._source, "close", lambda: None)()
