"""Tables of speech tokens that a file stores by what a token is made of.

Owns: the form, and the plain matrix it stands for. Does not know: which module has such a table; what the parts mean.

A token ``t`` of S * S has the first symbol ``t % S`` and the second ``t // S``. The file has, in place of
``NAME.weight``, six tensors ``NAME.code_table.PART``; see :func:`code_table`. `tools.tiny_voice` exports such files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PARTS = ("first", "second", "left", "right", "mix", "special")
_MARK = ".code_table."


def code_table(first: Tensor, second: Tensor, left: Tensor, right: Tensor, mix: Tensor, special: Tensor) -> Tensor:
    """The matrix (S * S + K, D): ``first[i] + second[j] + (left[i] * right[j]) @ mix``, then the special rows.

    Args:
        first: (S, D) of the first symbol, as ``second`` of the second.
        second: (S, D).
        left: (S, R) what the first symbol brings to the pair, as ``right`` for the second.
        right: (S, R).
        mix: (R, D).
        special: (K, D) rows of tokens that are no pairs.
    """
    pairs = (right[:, None] * left[None]).flatten(0, 1) @ mix  # (S * S, D), the second symbol changing slowest
    rows = (second[:, None] + first[None]).flatten(0, 1) + pairs
    return torch.cat([rows, special])


def with_plain_tables(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Shapes by key of a file and what reads a tensor of it, with every code table as the weight it stands for.

    A table is computed in float32 when it is read, and has the precision of its first part.

    Raises:
        ValueError: a part of a table is missing, or the parts do not fit each other.
    """
    names = {key.rpartition(_MARK)[0] for key in shapes if _MARK in key}
    plain = {key: shape for key, shape in shapes.items() if _MARK not in key}
    plain |= {f"{name}.weight": _shape_of(name, shapes) for name in sorted(names)}

    def read_plain(key: str) -> Tensor:
        name = key.removesuffix(".weight")
        if name not in names:
            return read(key)
        parts = [read(f"{name}{_MARK}{part}") for part in PARTS]
        return code_table(*(part.float() for part in parts)).to(parts[0].dtype)

    return (plain, read_plain) if names else (dict(shapes), read)


def _shape_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    found = {part: shapes.get(f"{name}{_MARK}{part}") for part in PARTS}
    missing = [part for part, shape in found.items() if shape is None]
    if missing:
        raise ValueError(f"the code table {name!r} lacks {', '.join(missing)}")
    rows, width = (*(found["first"] or ()), 0, 0)[:2]
    rank, num_special = (found["mix"] or (0,))[0], (found["special"] or (0,))[0]
    wanted = {
        "first": (rows, width),
        "second": (rows, width),
        "left": (rows, rank),
        "right": (rows, rank),
        "mix": (rank, width),
        "special": (num_special, width),
    }
    if found != wanted:
        raise ValueError(f"the parts of the code table {name!r} do not fit each other: {found}")
    return rows**2 + num_special, width
