"""Any order of operations on a decode cache: after each one its books balance, and what it holds is what was given.

The model of a row is a list of all it was ever given, by position, and what was pinned of it.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from chatterbox.kvcache import (
    CompressedKVCache,
    DynamicKVCache,
    EvictingKVCache,
    HeadWindowKVCache,
    KVCache,
    Segment,
    SlidingKVCache,
    StaticKVCache,
)
from chatterbox.kvcache.bounded import BoundedKVCache
from chatterbox.kvcache.eviction import scorer

LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY, SLOTS, WINDOW = 2, 3, 2, 4, 120, 16, 5
SIZES = (LAYERS, ROWS, HEADS, HEAD_DIM, CAPACITY)
CEILING = {"max_cache_size": SLOTS, "window_size": WINDOW, "uncond_window": 3}
CACHES = {
    "static": lambda: StaticKVCache(*SIZES),
    "dynamic": lambda: DynamicKVCache(*SIZES),
    "sliding": lambda: SlidingKVCache(*SIZES, **CEILING),
    "evicting": lambda: EvictingKVCache(*SIZES, **CEILING, scorer=scorer("silence*2+attention+prosody", (0, 1))),
}
WIDE = 97  # the numbers that stand for keys: 0 to 96 by turns
PACKED = {"group_size": 4, "residual_size": 3}
CACHES |= {
    "int8": lambda: CompressedKVCache(*SIZES, codec="int8", **PACKED),
    "int4": lambda: CompressedKVCache(*SIZES, codec="int4", **PACKED),
    "headwindow": lambda: HeadWindowKVCache(*SIZES, max_cache_size=SLOTS, window_size=WINDOW, full_heads=0.5),
}
# A key that is packed is off by half a level of its group; one that a crop has unpacked is packed again.
TOLERANCE = {"int8": 4 * WIDE / 255 / 2, "int4": 4 * WIDE / 15 / 2}
ROW = st.integers(0, ROWS - 1)


class CacheMachine(RuleBasedStateMachine):
    name: str

    def __init__(self) -> None:
        super().__init__()
        self.cache: KVCache = CACHES[self.name]()
        self.given: list[list[float]] = [[] for _ in range(ROWS)]  # a number of its own for every key ever given
        self.pinned: list[set[int]] = [set() for _ in range(ROWS)]
        self.next = 1.0

    @property
    def is_bounded(self) -> bool:
        return isinstance(self.cache, BoundedKVCache)

    def near(self, found: Tensor, expected: list[float]) -> bool:
        return torch.allclose(found, torch.tensor(expected), atol=TOLERANCE.get(self.name, 0.0), rtol=0.0)

    def room(self, row: int) -> int:
        """Most positions that a row can take at once."""
        free = CAPACITY - len(self.given[row])
        return min(free, SLOTS - sum(p < len(self.given[row]) for p in self.pinned[row])) if self.is_bounded else free

    def new_numbers(self, rows: int, count: int) -> Tensor:
        numbers = torch.arange(rows * count).reshape(rows, count) + self.next
        self.next += rows * count
        return numbers % WIDE if self.name in TOLERANCE else numbers

    @rule(first=ROW, last=ROW, new_len=st.sampled_from([1, 1, 1, 1, 2, 5, 9]))
    def append(self, first: int, last: int, new_len: int) -> None:
        rows = range(min(first, last), max(first, last) + 1)
        if new_len > (room := min(self.room(row) for row in rows)):
            before = self.cache.row_lens
            with pytest.raises(ValueError, match=r"full|at once"):
                self.cache.reserve(new_len, slice(rows.start, rows.stop))
            assert self.cache.row_lens == before
            new_len = room
        if not new_len:
            return
        positions = self.cache.reserve(new_len, slice(rows.start, rows.stop))
        assert positions.tolist() == [[len(self.given[r]) + i for i in range(new_len)] for r in rows]
        numbers = self.new_numbers(len(rows), new_len)
        if self.cache.wants_tokens:
            self.cache.note_tokens(numbers.long() % 5)
        keys = numbers[:, None, :, None].expand(-1, HEADS, -1, HEAD_DIM).contiguous()
        seen = []
        for layer in range(LAYERS):
            seen_keys, _, at = self.cache.append(layer, keys, -keys)
            seen.append((seen_keys.clone(), at.clone()))
            if self.cache.wants_queries:
                self.cache.observe(layer, keys.sin())
        for place, row in enumerate(rows):
            self.given[row] += numbers[place].tolist()
        for seen_keys, at in seen:
            if at.ndim < 3:
                at = at.expand(len(keys), -1)[:, None].expand(-1, HEADS, -1)
            for place, row in enumerate(rows):
                held = [self.shown(seen_keys[place, head], at[place, head], row) for head in range(HEADS)]
                assert set.intersection(*held) >= set(self.cache.held(row))
                assert self.name == "headwindow" or held == [set(self.cache.held(row))] * HEADS

    def shown(self, keys: Tensor, positions: Tensor, row: int) -> set[int]:
        """Positions that a head may look at; its keys (slots, head_dim) are those that were given."""
        reached = positions < len(self.given[row])
        seen = positions[reached].tolist()
        assert self.near(keys[reached, 0], [self.given[row][p] for p in seen])
        assert len(set(seen)) == len(seen)
        return set(seen)

    @rule(first=ROW, last=ROW, count=st.integers(2, SLOTS))
    def append_one_by_one(self, first: int, last: int, count: int) -> None:
        for _ in range(count):
            self.append(first, last, 1)

    @rule(row=ROW, pinned_len=st.integers(0, 8), later=st.integers(0, 4), is_conditional=st.booleans())
    def begin(self, row: int, pinned_len: int, later: int, is_conditional: bool) -> None:
        """A prefix, as far as it is held, and some positions to come."""
        held, length = set(self.cache.held(row)), len(self.given[row])
        while not set(range(min(pinned_len, length))) <= held:
            pinned_len -= 1
        spans = range(pinned_len), range(length, length + later)
        self.cache.begin(row, *spans, is_conditional=is_conditional)
        self.pinned[row] = {p for span in spans for p in span}

    @rule(num_cut=st.one_of(st.integers(0, 4), st.integers(0, 30)))
    def crop(self, num_cut: int) -> None:
        length = max(0, self.cache.length - num_cut)
        cut = [row for row in range(ROWS) if length < len(self.given[row])]
        if length and any(length - 1 not in self.cache.held(row) for row in cut):
            before = [self.cache.held(row) for row in range(ROWS)]
            for refused in (self.cache.crop, self.cache.clone_prefix):
                with pytest.raises(ValueError, match=f"no longer holds position {length - 1}"):
                    refused(length)
            assert [self.cache.held(row) for row in range(ROWS)] == before
            return
        expected = [[p for p in self.cache.held(row) if p < length] for row in range(ROWS)]
        self.cache.crop(length)
        assert [self.cache.held(row) for row in range(ROWS)] == expected
        for row in cut:
            self.given[row] = self.given[row][:length]
            self.pinned[row] = {p for p in self.pinned[row] if p < length}

    @rule()
    def go_on_with_a_clone(self) -> None:
        old, self.cache = self.cache, self.cache.clone_prefix(self.cache.length)
        for row in range(ROWS):
            assert self.cache.held(row) == old.held(row)
        old.reset()

    @rule(row=ROW, length=st.integers(0, SLOTS), pieces=st.integers(1, 3))
    def load(self, row: int, length: int, pieces: int) -> None:
        numbers = self.new_numbers(1, length)
        keys = numbers[:, None, :, None].expand(LAYERS, HEADS, -1, HEAD_DIM)
        whole, step = Segment(keys, -keys, 0), max(1, length // pieces)
        self.cache.load(row, *(whole[at : at + step] for at in range(0, length, step)))
        self.given[row], self.pinned[row] = numbers[0].tolist(), set()

    @rule(pair=st.permutations(range(ROWS)))
    def move(self, pair: list[int]) -> None:
        source, target, _ = pair
        held = self.cache.held(source)
        self.cache.move_row(source, target)
        assert (self.cache.held(target), self.cache.held(source)) == (held, [])
        self.given[target], self.given[source] = self.given[source], []
        self.pinned[target], self.pinned[source] = self.pinned[source], set()

    @precondition(lambda self: isinstance(self.cache, EvictingKVCache))
    @rule(lengths=st.lists(st.integers(0, 40), min_size=ROWS, max_size=ROWS))
    def update(self, lengths: list[int]) -> None:
        other = StaticKVCache(*SIZES)
        given = []
        for row, length in enumerate(lengths):
            numbers = self.new_numbers(1, length)
            keys = numbers[:, None, :, None].expand(LAYERS, HEADS, -1, HEAD_DIM)
            other.load(row, Segment(keys, -keys, 0))
            given.append(numbers[0].tolist())
        self.cache.update(other)
        self.given = given
        for row, length in enumerate(lengths):
            held = self.cache.held(row)
            assert held == list(range(length)) or (len(held) <= SLOTS < length and held[-1] == length - 1)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.given, self.pinned = [[] for _ in range(ROWS)], [set() for _ in range(ROWS)]

    @invariant()
    def holds_what_it_was_given(self) -> None:
        self.cache.check_integrity()
        assert self.cache.row_lens == tuple(map(len, self.given))
        for row, given in enumerate(self.given):
            held = self.cache.held(row)
            assert {p for p in self.pinned[row] if p < len(given)} <= set(held)
            assert len(held) <= SLOTS if self.is_bounded else held == list(range(len(given)))
            if self.is_bounded:  # nothing else is pinned
                assert {p for span in self.cache._pinned[row] for p in span} == self.pinned[row]
            for position in held:
                segment = self.cache.segment(row, position, position + 1)
                assert self.near(segment.keys[..., 0].unique(), [given[position]])
                assert (segment.keys == segment.keys[:1, :1, :, :1]).all()
                assert self.near(segment.values[..., 0].unique(), [-given[position]])
            if gone := sorted(set(range(len(given))) - set(held)):
                refusal = rf"row {row} (no longer|still) holds all positions from {gone[0]}"
                with pytest.raises(ValueError, match=refusal):
                    self.cache.segment(row, gone[0], gone[0] + 1)


@pytest.mark.parametrize("name", CACHES)
def test_any_order_of_operations(name: str) -> None:
    machine = type("Machine", (CacheMachine,), {"name": name})
    limits = {"max_examples": 40, "stateful_step_count": 40, "deadline": None, "derandomize": True, "database": None}
    run_state_machine_as_test(machine, settings=settings(**limits, suppress_health_check=list(HealthCheck)))
