"""Waits for other threads, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable

from chatterbox.engine.scheduler import Scheduler

WAIT = 30.0  # seconds until a test that waits for another thread gives up


def wait_for(condition: Callable[[], object], seconds: float = WAIT) -> None:
    """Wait until ``condition`` holds, which it must come to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what a test waits for did not come about"
        time.sleep(0.002)


def wait_until_free(scheduler: Scheduler) -> None:
    """Nobody may be left: no rows, nobody who waits, no lease on a prefix."""
    wait_for(lambda: not any(scheduler.stats()[name] for name in ("running", "on_hold", "waiting", "parked", "rows")))
    wait_for(lambda: not any(node.ref_count for node in list(scheduler.prefixes.manager.tree.nodes())))
