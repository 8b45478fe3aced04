"""Rows of one cache, used by one sequence after another: each goes on as it would in a cache of its own.

Rows join, are cleared, moved, copied, cut, and taken into larger and smaller caches, in any order, on every policy.
What a pass shows of a row is compared bit by bit with what a cache shows that never held anything else.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from chatterbox.config import KVCacheConfig
from chatterbox.kvcache import POLICIES, KVCache, Segment, StaticKVCache, make_cache, planned_nbytes
from chatterbox.kvcache.base import position_mask
from chatterbox.kvcache.bounded import BoundedKVCache

LAYERS, HEADS, HEAD_DIM = 2, 2, 4
LONGEST, CEILING = 70, 16
CAPACITIES = (10, 24, LONGEST)  # below the ceiling, above it, and that of caches of one row
TIGHT = {"max_cache_size": CEILING, "window_size": 5, "uncond_window": 3}
CONFIGS = {
    "static": KVCacheConfig("static"),
    "dynamic": KVCacheConfig("dynamic"),
    "sliding": KVCacheConfig("sliding", **TIGHT),
    "evicting": KVCacheConfig("evicting", **TIGHT, eviction="silence*2+attention+prosody", silent_tokens=(0, 1)),
    "int8": KVCacheConfig("compressed", group_size=4, residual_size=3),
    "int4": KVCacheConfig("compressed", group_size=4, residual_size=3, decode_codec="int4"),
    "headwindow": KVCacheConfig("headwindow", **TIGHT),
}
every_policy = pytest.mark.parametrize("name", CONFIGS)


def make(name: str, rows: int, capacity: int) -> KVCache:
    cache = make_cache(CONFIGS[name], LAYERS, rows, HEADS, HEAD_DIM, capacity)
    assert cache is not None
    return cache


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keys_and_values(seed: int, rows: int, new_len: int) -> Tensor:
    """(2, layers, rows, heads, new, head_dim)."""
    return noise(seed, 2, LAYERS, rows, HEADS, new_len, HEAD_DIM)


def append(cache: KVCache, new: Tensor, rows: slice, tokens: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A pass of new keys and values; what each layer is shown, positions as (rows, heads, kept)."""
    cache.reserve(new.shape[4], rows)
    if cache.wants_tokens:
        cache.note_tokens(tokens)
    shown = []
    for layer in range(LAYERS):
        keys, values, positions = cache.append(layer, *new[:, layer])
        if cache.wants_queries:
            cache.observe(layer, new[0, layer].sin())
        positions = positions.expand(len(keys), -1)[:, None] if positions.ndim < 3 else positions
        shown.append((keys.clone(), values.clone(), positions.expand(-1, HEADS, -1).clone()))
    return shown


def reached(shown: tuple[Tensor, Tensor, Tensor], row: int, length: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each head what a row of that length may look at: positions, ascending, their keys and values."""
    found = []
    for keys, values, positions in zip(*(part[row] for part in shown), strict=True):
        order = positions.argsort()[: int((positions < length).sum())]
        found.append((positions[order], keys[order], values[order]))
    return found


class PoolMachine(RuleBasedStateMachine):
    name: str

    def __init__(self) -> None:
        super().__init__()
        self.pool = make(self.name, 3, CAPACITIES[1])
        self.alone = [self.fresh() for _ in range(3)]  # a cache of one row for every row of the pool
        self.seed = 0

    def fresh(self) -> KVCache:
        return make(self.name, 1, LONGEST)

    def row(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.pool.num_rows - 1), label="row")

    def room(self, row: int) -> int:
        """Most positions that a row can take at once."""
        alone = self.alone[row]
        free = self.pool.capacity - alone.length
        return min(free, CEILING - alone._num_pinned(0)) if isinstance(alone, BoundedKVCache) else free

    @rule(data=st.data(), num=st.integers(2, 4), new_len=st.sampled_from([1, 2, 4, 5, 6, 9, 13]))
    def step(self, data: st.DataObject, num: int, new_len: int) -> None:
        first = self.row(data)
        places = range(self.pool.num_rows)[first : first + num]
        self.grow(places, min([new_len, *map(self.room, places)]))

    @rule(data=st.data(), num=st.integers(1, 4), count=st.integers(8, 24))
    def steps(self, data: st.DataObject, num: int, count: int) -> None:
        first = self.row(data)
        places = range(self.pool.num_rows)[first : first + num]
        for _ in range(min([count, *(self.pool.capacity - self.alone[row].length for row in places)])):
            self.grow(places, 1)

    def grow(self, places: range, new_len: int) -> None:
        if new_len < 1:
            return
        self.seed += 1
        new = keys_and_values(self.seed, len(places), new_len)
        tokens = torch.arange(len(places) * new_len).view(len(places), new_len) % 5
        shown = append(self.pool, new, slice(places.start, places.stop), tokens)
        for place, row in enumerate(places):
            only = slice(place, place + 1)
            expected = append(self.alone[row], new[:, :, only], slice(0, 1), tokens[only])
            length = self.alone[row].length
            for mine, theirs in zip(shown, expected, strict=True):
                for found, wanted in zip(reached(mine, place, length), reached(theirs, 0, length), strict=True):
                    assert all(map(torch.equal, found, wanted))

    @rule(data=st.data(), length=st.integers(0, 9), num_pinned=st.integers(0, 7), is_conditional=st.booleans())
    def join(self, data: st.DataObject, length: int, num_pinned: int, is_conditional: bool) -> None:
        row = self.row(data)
        self.seed += 1
        keys, values = keys_and_values(self.seed, 1, length)[:, :, 0]
        self.alone[row] = self.fresh()
        for cache, target in ((self.pool, row), (self.alone[row], 0)):
            cache.clear_row(target)
            cache.load(target, Segment(keys, values, 0))
            cache.begin(target, range(num_pinned), is_conditional=is_conditional)

    @rule(data=st.data(), has_nan=st.booleans())
    def leave(self, data: st.DataObject, has_nan: bool) -> None:
        row = self.row(data)
        if has_nan and (new_len := min(3, self.room(row))) > 0:
            broken = torch.full((2, LAYERS, 1, HEADS, new_len, HEAD_DIM), torch.nan)
            append(self.pool, broken, slice(row, row + 1), torch.zeros(1, new_len, dtype=torch.long))
        self.pool.clear_row(row, wipe=has_nan)
        self.alone[row] = self.fresh()

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        source, target = self.row(data), self.row(data)
        self.pool.move_row(source, target)
        if source != target:
            self.alone[target], self.alone[source] = self.alone[source], self.fresh()

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source, target = self.row(data), self.row(data)
        self.pool.take_row(target, self.pool, source)
        if source != target:
            self.alone[target] = copy.deepcopy(self.alone[source])

    @rule(data=st.data(), num_rows=st.integers(2, 4), capacity=st.sampled_from((*CAPACITIES, LONGEST, LONGEST)))
    def exchange(self, data: st.DataObject, num_rows: int, capacity: int) -> None:
        """Into a cache of other sizes, in another order, as far as there is room."""
        taken = data.draw(st.permutations(range(self.pool.num_rows)), label="taken")[:num_rows]
        other, alone = self.pool.empty_like(num_rows, capacity), [self.fresh() for _ in range(num_rows)]
        assert (other.num_rows, other.capacity, other.length) == (num_rows, capacity, 0)
        for target, source in enumerate(taken):
            if self.alone[source].length <= capacity:
                other.take_row(target, self.pool, source)
                alone[target] = self.alone[source]
                continue
            with pytest.raises(ValueError, match=rf"key-value cache is full: 0 .* capacity {capacity}"):
                other.take_row(target, self.pool, source)
        self.pool, self.alone = other, alone

    @rule(num_cut=st.integers(0, 12))
    def crop(self, num_cut: int) -> None:
        length = max(0, self.pool.length - num_cut)
        if all(length == 0 or length >= one.length or length - 1 in one.held(0) for one in self.alone):
            self.pool.crop(length)
            for one in self.alone:
                one.crop(min(length, one.length))

    @precondition(lambda self: self.seed % 8 == 0)  # seldom
    @rule()
    def reset(self) -> None:
        self.pool.reset()
        self.alone = [self.fresh() for _ in self.alone]

    @invariant()
    def rows_hold_what_they_would_alone(self) -> None:
        self.pool.check_integrity()
        assert self.pool.row_lens == tuple(one.length for one in self.alone)
        assert [self.pool.held(row) for row in range(self.pool.num_rows)] == [one.held(0) for one in self.alone]


@every_policy
def test_any_order_of_operations(name: str) -> None:
    machine = type("Machine", (PoolMachine,), {"name": name})
    limits = {"max_examples": 60, "stateful_step_count": 40, "deadline": None, "derandomize": True, "database": None}
    run_state_machine_as_test(machine, settings=settings(**limits, suppress_health_check=list(HealthCheck)))


def filled(name: str, rows: int, capacity: int, num: int) -> KVCache:
    """All rows with as many positions."""
    cache = make(name, rows, capacity)
    for _ in range(num):
        append(cache, keys_and_values(0, rows, 1), slice(0, rows), torch.zeros(rows, 1, dtype=torch.long))
    return cache


def attended(cache: KVCache, seed: int) -> Tensor:
    """What all rows attend to in a pass of one position, (layers, rows, heads, head_dim)."""
    rows, lens = cache.num_rows, torch.tensor(cache.row_lens)
    new = keys_and_values(seed, rows, 1)
    outputs = []
    for keys, values, positions in append(cache, new, slice(0, rows), torch.zeros(rows, 1, dtype=torch.long)):
        mask = position_mask(lens[:, None], positions)
        outputs.append(F.scaled_dot_product_attention(noise(seed, rows, HEADS, 1, HEAD_DIM), keys, values, mask))
    return torch.stack(outputs)[..., 0, :]


@every_policy
@pytest.mark.parametrize("num_before", [4, 15, 40])
def test_a_wiped_row_does_not_poison_the_next_one(name: str, num_before: int) -> None:
    broken = torch.full((2, LAYERS, 2, HEADS, 1, HEAD_DIM), torch.nan)
    used, new = make(name, 2, LONGEST), make(name, 2, LONGEST)
    for _ in range(num_before):
        append(used, broken, slice(0, 2), torch.zeros(2, 1, dtype=torch.long))
    for row in range(2):
        used.clear_row(row, wipe=True)
    keys, values = keys_and_values(1, 1, 3)[:, :, 0]
    for cache in (used, new):
        for row in range(2):
            cache.load(row, Segment(keys, values, 0))
    for seed in range(30):
        found = attended(used, seed)
        assert torch.isfinite(found).all()
        assert torch.equal(found, attended(new, seed))


@pytest.mark.parametrize("num_held", [(2, 3), (3, 6), (6, 9)])
def test_a_row_is_packed_as_alone_whoever_shares_the_pass(num_held: tuple[int, int]) -> None:
    """Of both rows, one has room for the pass in full precision, the other has not."""
    pool, alone = make("int8", 2, LONGEST), [make("int8", 1, LONGEST) for _ in num_held]
    for row, num in enumerate(num_held):
        for cache, target in ((pool, row), (alone[row], 0)):
            for seed in range(num):
                new = keys_and_values(seed, 1, 1)
                append(cache, new, slice(target, target + 1), torch.zeros(1, 1, dtype=torch.long))
    new, tokens = keys_and_values(9, 2, 5), torch.zeros(2, 5, dtype=torch.long)
    append(pool, new, slice(0, 2), tokens)
    for row, cache in enumerate(alone):
        append(cache, new[:, :, row : row + 1], slice(0, 1), tokens[:1])
        assert torch.equal(pool.segment(row, 0, cache.length).keys, cache.segment(0, 0, cache.length).keys)


@every_policy
def test_a_cleared_row_is_free_and_leaves_its_neighbours_alone(name: str) -> None:
    cache = filled(name, 3, LONGEST, 12)
    cache.begin(1, range(4))
    before = [cache.segment(row, 0, 12) for row in (0, 2)]
    nbytes = cache.nbytes
    cache.clear_row(1)
    assert (cache.row_lens, cache.held(1), cache.nbytes) == ((12, 0, 12), [], nbytes)
    for row, segment in zip((0, 2), before, strict=True):
        assert torch.equal(cache.segment(row, 0, 12).keys, segment.keys)
    for _ in range(40 if name in ("sliding", "evicting", "headwindow") else 0):  # nothing is pinned any more
        append(cache, keys_and_values(0, 1, 1), slice(1, 2), torch.zeros(1, 1, dtype=torch.long))
        assert len(cache.held(1)) <= CEILING
    cache.check_integrity()


@every_policy
@pytest.mark.parametrize("made_in", [True, False])
def test_a_cache_may_pass_between_inference_modes(name: str, made_in: bool) -> None:
    with torch.inference_mode(made_in):
        cache = filled(name, 2, LONGEST, 12)
        bigger = cache.empty_like(3)
    with torch.inference_mode(not made_in):
        bigger.take_row(2, cache, 0)
        for rows in (slice(2, 3), slice(0, 3)):
            append(bigger, keys_and_values(1, 3, 9)[:, :, rows], rows, torch.zeros(3, 9, dtype=torch.long)[rows])
        bigger.crop(20)
        cache.move_row(0, 1)
        cache.load(0, bigger.segment(0, 0, 9))
        cache.clear_row(1, wipe=True)
        assert (bigger.row_lens, cache.row_lens) == ((9, 9, 20), (9, 0))
        bigger.check_integrity()


@every_policy
def test_a_pool_grows_by_need(name: str) -> None:
    cache = filled(name, 2, 24, 10)
    cache.clear_row(0)
    bigger = cache.empty_like(4, 48)
    bigger.take_row(3, cache, 1)
    assert (bigger.row_lens, bigger.held(3), bigger.held(0)) == ((0, 0, 0, 10), list(range(10)), [])
    assert torch.equal(bigger.segment(3, 0, 10).keys, cache.segment(1, 0, 10).keys)
    with pytest.raises(ValueError, match="settings, dtype and sizes"):
        bigger.take_row(0, StaticKVCache(LAYERS, 1, HEADS, HEAD_DIM + 1, 48), 0)
    assert bigger.row_lens == (0, 0, 0, 10)


@every_policy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_planned_nbytes(name: str, capacity: int, dtype: torch.dtype) -> None:
    sizes = (LAYERS, 3, HEADS, HEAD_DIM, capacity)
    planned = planned_nbytes(CONFIGS[name], *sizes, dtype=dtype)
    cache = make_cache(CONFIGS[name], *sizes, dtype=dtype)
    assert cache is not None and planned == cache.max_nbytes > 0
    new = keys_and_values(0, 3, 1).to(dtype)
    for _ in range(capacity):
        append(cache, new, slice(0, 3), torch.zeros(3, 1, dtype=torch.long))
    assert cache.nbytes == planned


def test_no_cache_takes_no_bytes() -> None:
    assert planned_nbytes(KVCacheConfig("none"), LAYERS, 3, HEADS, HEAD_DIM, 10) == 0


def test_every_policy_is_here() -> None:
    assert {config.policy for config in CONFIGS.values()} == POLICIES.keys() - {"none"}


def test_a_dynamic_cache_is_as_wide_as_its_longest_row() -> None:
    cache = filled("dynamic", 3, LONGEST, 4)
    per_position = cache.nbytes // 4
    append(cache, keys_and_values(0, 1, 9), slice(1, 2), torch.zeros(1, 9, dtype=torch.long))
    for _ in range(9):
        append(cache, keys_and_values(0, 1, 1), slice(2, 3), torch.zeros(1, 1, dtype=torch.long))
    assert (cache.row_lens, cache.nbytes) == ((4, 13, 13), 13 * per_position)
    cache.clear_row(1)
    cache.move_row(2, 1)
    assert (cache.row_lens, cache.nbytes) == ((4, 13, 0), 13 * per_position)
    cache.clear_row(1)
    assert cache.nbytes == 4 * per_position
    cache.crop(1)
    assert cache.nbytes == per_position
    cache.reset()
    assert cache.nbytes == 0


@every_policy
def test_a_reset_forgets_a_pass_that_was_broken_off(name: str) -> None:
    cache = filled(name, 2, LONGEST, 3)
    cache.reserve(1)
    cache.append(0, *keys_and_values(0, 2, 1)[:, 0])
    with pytest.raises(RuntimeError, match="unequally often"):
        cache.check_integrity()
    cache.reset()
    cache.check_integrity()
