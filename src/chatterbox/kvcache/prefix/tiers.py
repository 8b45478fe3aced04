"""Which prefixes are on the device, which are packed in host memory, and who moves when one of them is full.

Owns: the byte budgets of both, demotion, promotion, eviction, pins, what gives way to pressure. Does not know: locks
(the manager's is around it), leases, the disk.

    on the device  --demote-->  packed in host memory  --evict-->  forgotten
                   <--promote--
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.memory_pressure import Level, MemoryMonitor, Pressure
from chatterbox.kvcache.prefix.stats import CacheStats
from chatterbox.kvcache.prefix.tree import Label, Node, RadixTree
from chatterbox.runtime.allocator import return_freed_memory


class Tiers:
    """The nodes of one tree on two tiers, bounded in bytes each and together."""

    def __init__(
        self,
        tree: RadixTree,
        stats: CacheStats,
        device_bytes: int,
        host_bytes: int,
        value: PrefixEvictionPolicy,
        *,
        total_bytes: int | None = None,
        monitor: MemoryMonitor | None = None,
    ) -> None:
        """``value``: who leaves first, lowest first. ``total_bytes``: of both tiers; None is the sum of their budgets.
        ``monitor``: says when memory is short; None: it never is.

        Raises:
            ValueError: a budget is negative.
        """
        total_bytes = device_bytes + host_bytes if total_bytes is None else total_bytes
        for name, size in (("budget_bytes", device_bytes), ("host_bytes", host_bytes), ("total_bytes", total_bytes)):
            if size < 0:
                raise ValueError(f"{name} must be 0 or more, got {size}; 0 keeps nothing")
        self.device_bytes, self.host_bytes, self.total_bytes = device_bytes, host_bytes, total_bytes
        self.pinned: set[str] = set()
        self.monitor, self._pressure = monitor, Pressure()
        self._tree, self._stats, self._value = tree, stats, value

    @property
    def nbytes(self) -> int:
        """Bytes held on both."""
        return self._tree.nbytes + self._tree.packed_nbytes

    @property
    def level(self) -> Level:
        """Of pressure, at the last look."""
        return self._pressure.level

    def look(self) -> Level:
        """Ask the monitor, and give way to a shortage that it has found since the last time."""
        if self.monitor is None:
            return Level.NONE
        last, self._pressure = self._pressure, self.monitor.poll()
        if self.level == Level.NONE or self._pressure.number == last.number:
            return self.level
        stats = self._stats
        demotions, evictions = stats.demotions, stats.evictions
        self.relieve(self._pressure.device_short, self._pressure.host_short)
        demotions, evictions = stats.demotions - demotions, stats.evictions - evictions
        stats.pressure_demotions += demotions
        stats.pressure_evictions += evictions
        if demotions:
            self.monitor.say("prefixes move to host memory")
        if evictions:
            self.monitor.say("prefixes are forgotten")
        if demotions or evictions:
            return_freed_memory()
        return self.level

    def promote(self, nodes: Sequence[Node]) -> None:
        """Bring ``nodes``, a prefix from its root on, back to the device as far as there is room."""
        for node in nodes:
            if node.is_resident:
                continue
            self._tree.ref(nodes[-1])  # room is not to be made by what is asked for
            fits = self._make_room(node.unpacked_nbytes, leaves_host=node.nbytes)
            self._tree.unref(nodes[-1])
            if not fits:
                return
            with self._stats.timing("load_ms"):
                self._tree.unpack(node)
            self._stats.promotions += 1

    def keep(self, voice: str, labels: tuple[Label, ...], rest: Segment, prefill_ms: float) -> Node | None:
        """The node of a prefix's last positions ``rest``, from now on in the tree; None if there is no room.

        There is none either under hard pressure, nor while what they continue is packed: it did not fit either.
        """
        if self.level == Level.HARD and self.monitor is not None:
            self._stats.pressure_unshared += 1
            self.monitor.say("what is computed is not kept")
            return None
        nodes = self._tree.find(voice, labels)
        if nodes and not nodes[-1].is_resident:
            return None
        return self._tree.insert(voice, labels, rest, prefill_ms) if self._make_room(rest.nbytes) else None

    def relieve(self, device_bytes: int, host_bytes: int) -> None:
        """Free so much of each memory, as far as it goes: what nobody holds and no pin keeps, least valuable first.

        The device's own memory moves to host memory, unless that is short as well. Host memory is freed by packing what
        was computed on the CPU, if the codec makes it smaller, then by forgetting what is packed, then the rest.
        """
        while device_bytes > 0 and (node := self._least(self._free_on_device(in_host=False))):
            device_bytes -= node.nbytes
            self._leave(node, packed=host_bytes <= 0)
        aim = self.nbytes - host_bytes
        while self.nbytes > aim and not self._tree.codec.is_exact and (node := self._least(self._free_in_host())):
            self._leave(node)
        while self.nbytes > aim and (node := self._least(self._free_packed()) or self._least(self._free_in_host())):
            self._leave(node, packed=False)

    def check_integrity(self) -> None:
        """Raise RuntimeError if bytes, reference counts or budgets do not add up."""
        held = [0, 0]
        for node in self._tree.nodes():
            held[node.is_resident] += node.nbytes
            if node.is_resident and node.parent is not None and not node.parent.is_resident:
                raise RuntimeError("a prefix is on the device and what it continues is not")
            if node.ref_count < sum(child.ref_count for child in node.children.values()):
                raise RuntimeError("a prefix has fewer references than what continues it")
        if held != [self._tree.packed_nbytes, self._tree.nbytes]:
            raise RuntimeError(f"{held} bytes held, {[self._tree.packed_nbytes, self._tree.nbytes]} counted")
        sizes = [*held[::-1], self.nbytes]
        budgets = [self.device_bytes, self.host_bytes, self.total_bytes]
        if any(size > budget for size, budget in zip(sizes, budgets, strict=True)):
            raise RuntimeError(f"{sizes} bytes held, budgets {budgets}")

    def _make_room(self, nbytes: int, *, leaves_host: int = 0) -> bool:
        """Move nodes, least valuable first, until ``nbytes`` more fit on the device; False if they cannot.

        ``leaves_host``: bytes that leave host memory as they come.
        """
        if nbytes > min(self.device_bytes, self.total_bytes):
            return False
        while self._tree.nbytes + nbytes > self.device_bytes:
            node = self._least(self._free_on_device())
            if node is None:
                return False
            self._leave(node)
        while self.nbytes + nbytes - leaves_host > self.total_bytes:
            node = self._least(self._free_packed()) or self._least(self._free_on_device())
            if node is None:
                return False
            self._leave(node, packed=False)
        return True

    def _leave(self, node: Node, *, packed: bool = True) -> None:
        """Off its tier: from the device to host memory if it may be ``packed`` and fits there, else forgotten."""
        if packed and isinstance(node.stored, Segment) and self.host_bytes:
            with self._stats.timing("store_ms"):
                smaller = self._tree.codec.pack(node.stored)
            if self._make_host_room(smaller.nbytes, leaves_device=node.nbytes):
                self._tree.pack(node, smaller)
                self._stats.demotions += 1
                return
        self._tree.floor = max(self._tree.floor, self._value(node)[0])
        self._stats.evictions += self._tree.drop(node)

    def _make_host_room(self, nbytes: int, *, leaves_device: int) -> bool:
        if nbytes > self.host_bytes:
            return False
        while (
            self._tree.packed_nbytes + nbytes > self.host_bytes
            or self.nbytes + nbytes - leaves_device > self.total_bytes
        ):
            node = self._least(self._free_packed())
            if node is None:
                return False
            self._leave(node)
        return True

    def _least(self, nodes: Iterable[Node]) -> Node | None:
        return min(nodes, key=self._value, default=None)

    def _free_packed(self) -> Iterator[Node]:
        """What may be forgotten of host memory."""
        return (n for n in self._tree.nodes() if not (n.is_resident or n.ref_count or n.children))

    def _free_on_device(self, *, in_host: bool = True) -> Iterator[Node]:
        """What may leave the device; ``in_host``: also where that is the CPU, whose memory is host memory."""
        pinned = {id(node) for node in self._own_parts()}
        for node in self._tree.nodes():
            if not node.is_resident or node.ref_count or id(node) in pinned:
                continue
            if not in_host and _is_in_host(node):
                continue
            if not any(child.is_resident for child in node.children.values()):
                yield node

    def _free_in_host(self) -> Iterator[Node]:
        """What may leave the device where that is the CPU."""
        return filter(_is_in_host, self._free_on_device())

    def _own_parts(self) -> list[Node]:
        """Nodes of pinned voices without a text token in them."""
        return [
            node
            for voice in self.pinned
            for node in self._tree.nodes(voice)
            if not any(isinstance(label, int) for label in node.labels)
        ]


def _is_in_host(node: Node) -> bool:
    return isinstance(node.stored, Segment) and node.stored.keys.device.type == "cpu"


Value = tuple[float, ...]
PrefixEvictionPolicy = Callable[[Node], Value]


def lru(node: Node) -> Value:
    """Least recently used."""
    return (node.last_use,)


def lfu(node: Node) -> Value:
    """Least frequently used, the less recent of two."""
    return (node.num_uses, node.last_use)


def cost(node: Node) -> Value:
    """Cheapest to lose: milliseconds to compute, times how often it was wanted, per byte that it takes unpacked.

    Above a floor that rises with the value of all that is forgotten, so that what was wanted often once, and is no
    more, goes in the end (GreedyDual-Size with frequency: Cherkasova 1998).
    """
    return (node.floor + node.prefill_ms * node.num_uses / node.unpacked_nbytes, node.last_use)


PREFIX_EVICTION: dict[str, PrefixEvictionPolicy] = {"cost": cost, "lfu": lfu, "lru": lru}


def prefix_eviction(name: str) -> PrefixEvictionPolicy:
    """The policy called ``name``. Raises ValueError if there is none."""
    if name not in PREFIX_EVICTION:
        raise ValueError(f"replacement {name!r} does not exist; choose from {', '.join(sorted(PREFIX_EVICTION))}")
    return PREFIX_EVICTION[name]
