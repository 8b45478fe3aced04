"""What T3 has computed for the beginnings of sequences: a tree of read-only segments, one per voice.

Owns: the tree, its splitting at shared beginnings, who may be dropped. Does not know: locks, budgets, how a segment is
computed, what a label stands for.

A voice's root holds the positions of its conditioning. After it, every position has a label, and sequences with the
same labels have the same keys and values: the emotion, then text tokens, or `NO_TEXT` for each position of the
unconditional row's empty text, so that a longer one contains every shorter one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from chatterbox.kvcache.base import Segment

Label = Hashable
NO_TEXT = "no text"


@dataclass(eq=False)
class Node:
    """Consecutive positions of one beginning, and what it is worth.

    A node is dropped only when nothing continues it and nobody holds it. Whoever holds a node holds all before it.
    """

    labels: tuple[Label, ...]  # one per position; none for a root
    segment: Segment
    parent: Node | None
    fill_ms: float  # time it took to compute
    children: dict[Label, Node] = field(default_factory=dict)
    num_holders: int = 0
    num_uses: int = 0
    last_use: int = 0

    @property
    def is_free(self) -> bool:
        return not self.children and self.num_holders == 0


@dataclass(frozen=True)
class Match:
    """The longest known part of a beginning: its segments in order from position 0, and the node they end in."""

    segments: tuple[Segment, ...]
    node: Node | None  # None: the voice is unknown
    is_whole: bool
    fill_ms: float  # what the segments once took to compute

    def __len__(self) -> int:
        return sum(map(len, self.segments))


class PrefixTree:
    """Beginnings by voice. Not thread-safe: the manager's lock is around it."""

    def __init__(self) -> None:
        self._roots: dict[str, Node] = {}
        self._clock = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return sum(1 for _ in self.nodes())

    def nodes(self, voice: str | None = None) -> Iterator[Node]:
        """All nodes, or those of one voice, in no particular order."""
        pending = list(self._roots.values()) if voice is None else [self._roots[voice]] if voice in self._roots else []
        while pending:
            node = pending.pop()
            pending += node.children.values()
            yield node

    def voices(self) -> list[str]:
        return list(self._roots)

    def match(self, voice: str, labels: Sequence[Label]) -> Match:
        """What is known of a beginning."""
        path = self._walk(voice, labels)
        return Match(
            segments=tuple(node.segment[:used] for node, used in path),
            node=path[-1][0] if path else None,
            is_whole=bool(path) and sum(used for node, used in path if node.labels) == len(labels),
            fill_ms=sum(node.fill_ms * used / len(node.segment) for node, used in path),
        )

    def touch(self, node: Node) -> None:
        """Note a use of a node and of all before it."""
        self._clock += 1
        while node is not None:
            node.num_uses += 1
            node.last_use = self._clock
            node = node.parent

    def insert(self, voice: str, labels: Sequence[Label], segment: Segment, fill_ms: float) -> Node:
        """Add the positions of ``segment``, the last of the beginning ``labels``; what is known already is left as is.

        Args:
            segment: starts where the tree's knowledge ends, or before. The tree keeps copies.
            fill_ms: time that it took to compute ``segment``.

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
            raise ValueError(f"a segment from position {segment.start} cannot follow a beginning of {known}")
        if not path:
            cost = fill_ms * root_len / len(segment)
            self._roots[voice] = self._add(Node((), segment[:root_len].clone(), None, cost))
            path, known = [(self._roots[voice], root_len)], root_len
        node, used = path[-1]
        if known == segment.end:
            return node
        if used < len(node.segment):
            node = self._split(node, used)
        rest = segment[known - segment.start :].clone()
        leaf = self._add(Node(labels[known - root_len :], rest, node, fill_ms * len(rest) / len(segment)))
        node.children[leaf.labels[0]] = leaf
        return leaf

    def drop(self, node: Node) -> int:
        """Forget a free node; returns the bytes that it held. Raises ValueError if it is held or continued."""
        if not node.is_free:
            raise ValueError("this beginning is in use or others continue it; only a free one is dropped")
        if node.parent is None:
            self._roots = {voice: root for voice, root in self._roots.items() if root is not node}
        else:
            del node.parent.children[node.labels[0]]
        self.nbytes -= node.segment.nbytes
        return node.segment.nbytes

    def _walk(self, voice: str, labels: Sequence[Label]) -> list[tuple[Node, int]]:
        """Nodes of the longest known beginning and how many positions it uses of each, all of them but in the last."""
        node, path, place = self._roots.get(voice), [], 0
        while node is not None:
            same = 0
            for mine, wanted in zip(node.labels, labels[place:], strict=False):
                if mine != wanted:
                    break
                same += 1
            path.append((node, same if node.labels else len(node.segment)))
            place += same
            if same < len(node.labels) or place == len(labels):
                break
            node = node.children.get(labels[place])
        return path

    def _split(self, node: Node, used: int) -> Node:
        """Cut a node in two; returns the first. The second keeps its identity, and with it its holders and children."""
        self.nbytes -= node.segment.nbytes
        share = used / len(node.segment)
        first = Node(node.labels[:used], node.segment[:used].clone(), node.parent, node.fill_ms * share)
        first.num_uses, first.last_use = node.num_uses, node.last_use
        node.parent.children[first.labels[0]] = self._add(first)
        node.labels, node.segment, node.parent = node.labels[used:], node.segment[used:].clone(), first
        node.fill_ms *= 1.0 - share
        first.children[node.labels[0]] = self._add(node)
        return first

    def _add(self, node: Node) -> Node:
        self.nbytes += node.segment.nbytes
        return node
