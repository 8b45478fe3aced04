"""Files whose linear layers' weights take fewer bits.

Owns: their form, the plain weights they stand for, writing one. Does not know: which layers of a model those are.

An int8 weight has its codes under the published name, in the published layout, and beside it ``NAME_scale``, float32,
what a code of each output is worth: (out, 1), or (1, out) where weights are (in, out). Others are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from chatterbox.models.packed import quantize_rows

SCALE = "_scale"
MARK = "precision"  # of the file's metadata


def packed_in(path: Path) -> str | None:
    """The precision that a file was packed in; None: it is a plain one, or none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return (file.metadata() or {}).get(MARK)
    except (SafetensorError, OSError):  # a pickle; whoever reads it says what else it is
        return None


class Reader:
    """Reads tensors of a file by key: of a scaled weight the float32 it stands for, or its codes."""

    def __init__(self, read: Callable[[str], Tensor], scaled: Collection[str] = ()) -> None:
        self._read, self._scaled = read, scaled

    def __call__(self, key: str) -> Tensor:
        return self._read(key).float() * self._read(key + SCALE) if key in self._scaled else self._read(key)

    def codes(self, key: str) -> tuple[Tensor, Tensor] | None:
        """Codes (out, in) and scales (out,) of a weight; None: it has none."""
        if key not in self._scaled:
            return None
        codes, scale = self._read(key), self._read(key + SCALE)
        return (codes if scale.shape[1] == 1 else codes.T.contiguous()), scale.flatten()


def with_plain_weights(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> tuple[dict[str, tuple[int, ...]], Reader]:
    """Shapes by key of a file and what reads a tensor of it, with every int8 weight as the float32 it stands for.

    Raises:
        ValueError: a scale does not fit its weight.
    """
    scaled = {key.removesuffix(SCALE) for key in shapes if key.endswith(f".weight{SCALE}")}
    plain = {key: shape for key, shape in shapes.items() if key.removesuffix(SCALE) not in scaled or key in scaled}
    for key in scaled:
        scale, weight = shapes[key + SCALE], shapes.get(key)
        if weight is None or len(weight) != 2 or scale not in ((weight[0], 1), (1, weight[1])):
            raise ValueError(f"{key}{SCALE} {scale} does not fit its weight, {weight}")
    return plain, Reader(read, scaled)


def packed(key: str, weight: Tensor, precision: str, *, is_transposed: bool) -> dict[str, Tensor]:
    """What a file has of a weight, by key. ``is_transposed``: it is (in, out)."""
    if precision != "int8":
        return {key: weight.to(getattr(torch, precision)).contiguous()}
    codes, scales = quantize_rows(weight.T if is_transposed else weight)
    if is_transposed:
        return {key: codes.T.contiguous(), key + SCALE: scales[None]}
    return {key: codes, key + SCALE: scales[:, None]}


def write_packed(
    target: Path,
    keys: Collection[str],
    read: Callable[[str], Tensor],
    precision: str,
    layers: Mapping[str, bool],
) -> None:
    """Write a file of the tensors ``keys``.

    Args:
        read: a tensor by key.
        layers: names of the layers whose weights are packed; whether they are (in, out).
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for key in keys:
        layer = key.removesuffix(".weight")
        if layer in layers and key != layer:
            tensors |= packed(key, read(key), precision, is_transposed=layers[layer])
        else:
            tensors[key] = read(key).contiguous()
    save_file(tensors, str(target), metadata={MARK: precision, "format": "pt"})
