"""Which beginnings are on the device, which are packed in host memory, and who moves when one of them is full.

Owns: the byte budgets of both, demotion, promotion, eviction, pins. Does not know: locks (the manager's is around it),
leases, the disk.

    on the device  --demote-->  packed in host memory  --evict-->  forgotten
                   <--promote--
"""

from __future__ import annotations

from collections.abc import Sequence

from chatterbox.kvcache.prefix import Node, PrefixTree
from chatterbox.kvcache.replacement import Replacement
from chatterbox.kvcache.stats import CacheStats


class Tiers:
    """The nodes of one tree on two tiers, each bounded in bytes."""

    def __init__(
        self, tree: PrefixTree, stats: CacheStats, device_bytes: int, host_bytes: int, value: Replacement
    ) -> None:
        """``value``: who leaves first, lowest first. Raises ValueError if a budget is negative."""
        for name, size in (("budget_bytes", device_bytes), ("host_bytes", host_bytes)):
            if size < 0:
                raise ValueError(f"{name} must be 0 or more, got {size}; 0 keeps nothing")
        self.device_bytes, self.host_bytes, self.pinned = device_bytes, host_bytes, set[str]()
        self._tree, self._stats, self._value = tree, stats, value

    def promote(self, nodes: Sequence[Node]) -> None:
        """Bring ``nodes``, a beginning from its root on, back to the device as far as there is room."""
        for node in nodes:
            if node.is_resident:
                continue
            self._tree.hold(nodes[-1])  # room is not to be made by what is asked for
            fits = self.make_room(node.stored.unpacked_nbytes)
            self._tree.let_go(nodes[-1])
            if not fits:
                return
            with self._stats.timing("load_ms"):
                self._tree.unpack(node)
            self._stats.promotions += 1

    def make_room(self, nbytes: int) -> bool:
        """Move nodes off the device, least valuable first, until ``nbytes`` fit; False if they cannot."""
        if nbytes > self.device_bytes:
            return False
        while self._tree.nbytes + nbytes > self.device_bytes:
            pinned = {id(node) for node in self._own_parts()}
            free = [
                node
                for node in self._tree.nodes()
                if node.is_resident
                and not node.num_holders
                and id(node) not in pinned
                and not any(child.is_resident for child in node.children.values())
            ]
            if not free:
                return False
            self._demote(min(free, key=self._value))
        return True

    def check_integrity(self) -> None:
        """Raise RuntimeError if the books do not balance."""
        held = [0, 0]
        for node in self._tree.nodes():
            held[node.is_resident] += node.nbytes
        if held != [self._tree.packed_nbytes, self._tree.nbytes]:
            raise RuntimeError(f"{held} bytes held, {[self._tree.packed_nbytes, self._tree.nbytes]} in the books")
        if self._tree.nbytes > self.device_bytes or self._tree.packed_nbytes > self.host_bytes:
            raise RuntimeError(f"{held[::-1]} bytes held, budgets {[self.device_bytes, self.host_bytes]}")

    def _demote(self, node: Node) -> None:
        self._tree.floor = max(self._tree.floor, self._value(node)[0])
        if self.host_bytes:
            with self._stats.timing("store_ms"):
                packed = self._tree.codec.pack(node.stored)
            if self._make_host_room(packed.nbytes):
                self._tree.pack(node, packed)
                self._stats.demotions += 1
                return
        self._tree.drop(node)
        self._stats.evictions += 1

    def _make_host_room(self, nbytes: int) -> bool:
        if nbytes > self.host_bytes:
            return False
        while self._tree.packed_nbytes + nbytes > self.host_bytes:
            free = [n for n in self._tree.nodes() if not n.is_resident and not n.num_holders and not n.children]
            if not free:
                return False
            self._tree.drop(min(free, key=self._value))
            self._stats.evictions += 1
        return True

    def _own_parts(self) -> list[Node]:
        """Nodes of pinned voices without a text token in them."""
        return [
            node
            for voice in self.pinned
            for node in self._tree.nodes(voice)
            if not any(isinstance(label, int) for label in node.labels)
        ]
