"""Scorers of an `EvictingKVCache`: which token leaves first. A new one is one file and one line here.

Owns: names and weights. Must not import: `models`, `engine`.
"""

from __future__ import annotations

import math

from chatterbox.kvcache.eviction.attention import Attention
from chatterbox.kvcache.eviction.prosody import Prosody
from chatterbox.kvcache.eviction.recency import Recency
from chatterbox.kvcache.eviction.scorers import Held, Scorer, Sum
from chatterbox.kvcache.eviction.silence import Silence

SCORERS: dict[str, type[Scorer]] = {
    "attention": Attention,
    "prosody": Prosody,
    "recency": Recency,
    "silence": Silence,
}

__all__ = ["SCORERS", "Attention", "Held", "Prosody", "Recency", "Scorer", "Silence", "Sum", "scorer"]


def scorer(spec: str, silent_tokens: tuple[int, ...] = ()) -> Scorer:
    """What ``spec`` says: names joined by "+", each with a weight if wanted, as ``silence*2+attention``.

    Raises:
        ValueError: a name that does not exist, or a weight that is no number above 0.
    """
    parts = []
    for part in spec.split("+"):
        name, times, weight = (text.strip() for text in part.partition("*"))
        if name not in SCORERS:
            raise ValueError(f"eviction {name!r} does not exist; choose from {', '.join(sorted(SCORERS))}")
        parts.append((SCORERS[name](silent_tokens), _weight(weight, name) if times else 1.0))
    return parts[0][0] if len(parts) == 1 else Sum(silent_tokens, tuple(parts))


def _weight(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise ValueError(f"the weight of eviction {name!r} must be a number above 0, got {text!r}; write {name}*2")
    return weight
