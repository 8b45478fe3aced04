"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chatterbox import heap

FRAGMENTED = """
import psutil, torch
from chatterbox import heap
process = psutil.Process()
kept = []
for _ in range(2000):  # small blocks that stay, between larger ones that go
    gone = torch.ones(30_000)
    kept.append(torch.ones(100))
    kept.append(gone)
before = process.memory_info().rss
kept = kept[::2]
del gone
freed = process.memory_info().rss
heap.trim()
print(before - process.memory_info().rss, before - freed)
"""


@pytest.mark.skipif(heap._malloc_trim() is None, reason="the C library is not glibc")
def test_what_lies_between_live_blocks_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    trimmed, without = map(int, done.stdout.split())
    assert trimmed > 0.8 * 2000 * 120_000 > 2 * without


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()
