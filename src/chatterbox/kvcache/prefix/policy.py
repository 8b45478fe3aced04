"""Who leaves a full prefix cache first: one function per policy, lowest value first.

Owns: the value of a node. Does not know: budgets, tiers. A new policy is one function and one line in
`PREFIX_EVICTION`.
"""

from __future__ import annotations

from collections.abc import Callable

from chatterbox.kvcache.prefix.tree import Node

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
