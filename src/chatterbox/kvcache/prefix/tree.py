"""What T3 has computed for the prefixes of sequences: a tree of read-only segments, one per voice.

Owns: the tree, its splitting at shared prefixes, which of two tiers a node is in, who is held. Does not know: locks,
budgets, how a segment is computed, what a label stands for.

A voice's root holds the positions of its conditioning. After it, every position has a label, and sequences with the
same labels have the same keys and values: the emotion, then text tokens, or `NO_TEXT` for each position of the
unconditional row's empty text, so that a longer one contains every shorter one.

A node is resident (a segment on the device) or packed (by a codec, in host memory).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.compression import Codec, Packed

Label = Hashable
NO_TEXT = "no text"


@dataclass(eq=False)
class Node:
    """Consecutive positions of one prefix, and what they are worth."""

    labels: tuple[Label, ...]  # one per position; none for a root
    stored: Segment | Packed
    parent: Node | None
    prefill_ms: float  # time it took to compute
    children: dict[Label, Node] = field(default_factory=dict)
    ref_count: int = 0  # of this node and of all that continue it
    num_uses: int = 0
    last_use: int = 0
    floor: float = 0.0  # `RadixTree.floor` at its last use

    @property
    def is_resident(self) -> bool:
        return isinstance(self.stored, Segment)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    @property
    def unpacked_nbytes(self) -> int:
        """Bytes on the device, now or before."""
        return self.stored.nbytes if isinstance(self.stored, Segment) else self.stored.unpacked_nbytes

    @property
    def num_positions(self) -> int:
        return len(self.stored) if isinstance(self.stored, Segment) else self.stored.num_positions

    def path(self) -> Iterator[Node]:
        """This node and all before it, up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class Match:
    """The longest known part of a prefix: its segments in order from position 0, and the last node they are of."""

    segments: tuple[Segment, ...]
    node: Node | None  # None: the voice is unknown
    is_whole: bool
    prefill_ms: float  # what the segments once took to compute

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def end_of(self, labels: Sequence[Label], default: int) -> int:
        """Position after the last of ``labels``; ``default`` where the voice, and so its own length, is not known."""
        return len(self.segments[0]) + len(labels) if self.segments else default


class RadixTree:
    """Prefixes by voice. Not thread-safe: the manager's lock is around it."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.nbytes = 0  # of resident nodes
        self.packed_nbytes = 0
        self.floor = 0.0  # highest value of a node that was forgotten: what is used from now on is worth more
        self._roots: dict[str, Node] = {}
        self._clock = 0

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes())

    def nodes(self, voice: str | None = None) -> Iterator[Node]:
        """All nodes, or those of one voice, in no particular order."""
        pending = list(self._roots.values()) if voice is None else [self._roots[voice]] if voice in self._roots else []
        while pending:
            node = pending.pop()
            pending += node.children.values()
            yield node

    @property
    def num_refs(self) -> int:
        """How often `ref` was called without its `unref`: each is of one voice's root too."""
        return sum(root.ref_count for root in self._roots.values())

    def voices(self) -> list[str]:
        return list(self._roots)

    def find(self, voice: str, labels: Sequence[Label]) -> list[Node]:
        """Nodes of the longest known part of a prefix, the root first."""
        return [node for node, _ in self._walk(voice, labels)]

    def match(self, voice: str, labels: Sequence[Label]) -> Match:
        """What is known of a prefix. Packed nodes are unpacked for the caller and stay packed."""
        path = self._walk(voice, labels)
        return Match(
            segments=tuple(self._segment(node)[:used] for node, used in path),
            node=path[-1][0] if path else None,
            is_whole=bool(path) and sum(used for node, used in path if node.labels) == len(labels),
            prefill_ms=sum(node.prefill_ms * used / node.num_positions for node, used in path),
        )

    def ref(self, node: Node) -> None:
        """Keep a node and all before it until as many `unref`."""
        for one in node.path():
            one.ref_count += 1

    def unref(self, node: Node) -> None:
        for one in node.path():
            one.ref_count -= 1

    def use(self, node: Node) -> None:
        """Count a use of a node and all before it, for eviction."""
        self._clock += 1
        for one in node.path():
            one.num_uses += 1
            one.last_use, one.floor = self._clock, self.floor

    def insert(self, voice: str, labels: Sequence[Label], segment: Segment, prefill_ms: float) -> Node:
        """Add the positions of ``segment``, the last of the prefix ``labels``; what is known already is left as is.

        Args:
            segment: starts where the tree's knowledge ends, or before. The tree keeps copies.
            prefill_ms: time that it took to compute ``segment``.

        Returns:
            The node that holds the last position.

        Raises:
            ValueError: there is a gap between what is known and ``segment``.
        """
        labels = tuple(labels)
        root_len = segment.end - len(labels)
        path = self._walk(voice, labels)
        known = sum(used for _, used in path)
        if segment.start > known or root_len < 1:
            raise ValueError(f"a segment from position {segment.start} cannot follow a prefix of {known}")
        if not path:
            cost = prefill_ms * root_len / len(segment)
            self._roots[voice] = self._counted(Node((), segment[:root_len].clone(), None, cost))
            path, known = [(self._roots[voice], root_len)], root_len
        node, used = path[-1]
        if known == segment.end:
            return node
        if used < node.num_positions:
            node = self._split(node, used)
        rest = segment[known - segment.start :].clone()
        leaf = self._counted(Node(labels[known - root_len :], rest, node, prefill_ms * len(rest) / len(segment)))
        node.children[leaf.labels[0]] = leaf
        return leaf

    def pack(self, node: Node, packed: Packed) -> None:
        """Move a node to host memory, as ``packed``, which is `codec`'s of its segment."""
        self._store(node, packed)

    def unpack(self, node: Node) -> None:
        """Bring a packed node back to the device."""
        self._store(node, self._segment(node))

    def drop(self, node: Node) -> int:
        """Forget a node that nobody holds, and all that continues it; returns how many. Raises ValueError if held."""
        if node.ref_count:
            raise ValueError("this prefix is in use; only one that nobody holds is dropped")
        num_dropped = 1 + sum(self.drop(child) for child in list(node.children.values()))
        if node.parent is None:
            self._roots = {voice: root for voice, root in self._roots.items() if root is not node}
        else:
            del node.parent.children[node.labels[0]]
        self._count(node, -1)
        return num_dropped

    def _segment(self, node: Node) -> Segment:
        return node.stored if isinstance(node.stored, Segment) else self.codec.unpack(node.stored)

    def _walk(self, voice: str, labels: Sequence[Label]) -> list[tuple[Node, int]]:
        """Nodes of the longest known prefix and how many positions it uses of each, all of them but in the last."""
        node, path, place = self._roots.get(voice), [], 0
        while node is not None:
            same = 0
            for mine, wanted in zip(node.labels, labels[place:], strict=False):
                if mine != wanted:
                    break
                same += 1
            path.append((node, same if node.labels else node.num_positions))
            place += same
            if same < len(node.labels) or place == len(labels):
                break
            node = node.children.get(labels[place])
        return path

    def _split(self, node: Node, used: int) -> Node:
        """Cut a node in two; returns the first. The second keeps its identity, and with it its holders and children."""
        assert node.parent is not None  # a root has no labels to cut
        segment, share = self._segment(node), used / node.num_positions
        head: Segment | Packed = segment[:used].clone()
        rest: Segment | Packed = segment[used:].clone()
        if not node.is_resident:
            head, rest = self.codec.pack(segment[:used]), self.codec.pack(segment[used:])
        first = Node(node.labels[:used], head, node.parent, node.prefill_ms * share)
        first.ref_count, first.num_uses = node.ref_count, node.num_uses
        first.last_use, first.floor = node.last_use, node.floor
        self._store(node, rest)
        node.parent.children[first.labels[0]] = self._counted(first)
        node.labels, node.parent, node.prefill_ms = node.labels[used:], first, node.prefill_ms * (1.0 - share)
        first.children[node.labels[0]] = node
        return first

    def _store(self, node: Node, stored: Segment | Packed) -> None:
        self._count(node, -1)
        node.stored = stored
        self._count(node, 1)

    def _counted(self, node: Node) -> Node:
        self._count(node, 1)
        return node

    def _count(self, node: Node, sign: int) -> None:
        if node.is_resident:
            self.nbytes += sign * node.nbytes
        else:
            self.packed_nbytes += sign * node.nbytes
