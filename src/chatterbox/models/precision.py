"""The type of a model's weights, and so of its products.

Owns: what the name of a type means on a device and a CPU, for T3 and for S3Gen, and which layers get it. Does not know:
how packed layers compute (`chatterbox.models.packed`), files.

What is chosen follows from what the CPU can do, never from a timing: two processes on one machine compute the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from chatterbox.config import PRECISIONS, PrecisionConfig
from chatterbox.models.packed import MATRICES, Int8Matrix, PackedLinear, PackedMatrix, has_fbgemm
from chatterbox.models.shared_input import SharedInput

logger = logging.getLogger(__name__)

AUTO, FLOAT32, FLOAT16, BFLOAT16, INT8 = PRECISIONS
T3_LAYERS = ("tfmr.", "speech_head", "text_head")  # how their names begin
ESTIMATOR = "flow.decoder.estimator"  # in bfloat16 it is that as a whole, and S3Gen's other parts stay in float32
S3GEN_LAYERS = ("flow.encoder.", f"{ESTIMATOR}.")


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 (AVX-512 BF16, AMX, ARM's)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False


def t3_precision(wanted: PrecisionConfig, device: torch.device, stored: str | None = None) -> str:
    """What a caller's choice means for T3 here; ``stored``: that its file was packed in, for "auto".

    Raises:
        ValueError: not on such a device.
    """
    return _one(wanted.t3, device, stored)


def s3gen_precision(wanted: PrecisionConfig, device: torch.device, stored: str | None = None) -> str:
    """As `t3_precision`, for S3Gen."""
    found = _one(wanted.t3 if wanted.s3gen is None else wanted.s3gen, device, stored)
    # Its rows are many, and what is around its layers counts as much: bfloat16 halves all of that.
    if found == INT8 and wanted.s3gen is None and stored is None and has_bfloat16():
        return BFLOAT16
    return found


def _one(wanted: str, device: torch.device, stored: str | None) -> str:
    if wanted == AUTO:
        if device.type == "cuda":
            return BFLOAT16
        return FLOAT32 if stored is None or device.type != "cpu" else stored
    if device.type == "cpu":
        _warn_if_slow(wanted)
    elif wanted == INT8:
        raise ValueError(f"precision int8 is for CPUs, and the model is on {device}; take 'bfloat16' or 'float16'")
    return wanted


@cache
def _warn_if_slow(precision: str) -> None:  # once for each
    if precision == BFLOAT16 and not has_bfloat16():
        faster = "float16 and int8 are" if has_fbgemm() else "float32 is"
        logger.warning("precision bfloat16 is slow on this CPU, which has no such products; %s faster", faster)
    if precision in (FLOAT16, INT8) and not has_fbgemm():
        logger.warning("precision %s is slow here: this torch has no such products; float32 is faster", precision)


@dataclass(frozen=True)
class Packing:
    """Layers that get packed weights: those whose names begin so, and the kind of matrix."""

    layers: tuple[str, ...]
    matrix: Callable[[Tensor], PackedMatrix]

    def parents(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Modules that have such layers as children, with the names that the layers' begin with."""
        named = ((f"{name}." if name else "", parent) for name, parent in module.named_modules())
        # A list of these alone: it must not hold the layers that are packed meanwhile.
        yield from [(prefix, parent) for prefix, parent in named if self.children(prefix, parent)]

    def children(self, prefix: str, parent: nn.Module) -> list[str]:
        """Names of a parent's children that are such layers."""
        return [name for name, layer in parent.named_children() if self._wants(prefix + name, layer)]

    def pack(self, prefix: str, parent: nn.Module, codes: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> None:
        """Put packed layers in the places of a parent's children; those that share an input share a matrix.

        ``codes``: of all of them, by name, in place of their weights: what `Int8Matrix` takes.
        """
        wanted = self.children(prefix, parent)
        together = parent.JOINED if isinstance(parent, SharedInput) and set(parent.JOINED) <= set(wanted) else ()
        for names in [together, *((name,) for name in wanted if name not in together)]:
            layers, found = (
                [getattr(parent, name) for name in names],
                [codes[name] for name in names] if codes else None,
            )
            for name, layer in zip(names, self._packed(layers, found), strict=True):
                setattr(parent, name, layer)

    def layers_of(self, module: nn.Module) -> dict[str, bool]:
        """Names of the layers that get packed weights, and whether each is `is_conv1d`."""
        named = module.named_modules()
        return {name: is_conv1d(layer) for name, layer in named if self._wants(name, layer)}

    def _wants(self, name: str, layer: nn.Module | None) -> bool:
        return layer is not None and name.startswith(self.layers) and (type(layer) is nn.Linear or is_conv1d(layer))

    @torch.no_grad()
    def _packed(self, layers: Sequence[Any], codes: Sequence[tuple[Tensor, Tensor]] | None) -> Iterator[PackedLinear]:
        if not layers:
            return
        if codes is None:
            weights = [layer.weight.T if is_conv1d(layer) else layer.weight for layer in layers]
            matrix: PackedMatrix = self.matrix(_joined(weights))
        else:
            matrix = Int8Matrix(_joined([part for part, _ in codes]), _joined([scales for _, scales in codes]))
        stop = 0
        for layer in layers:
            is_transposed = is_conv1d(layer)
            start, stop = stop, stop + layer.weight.shape[1 if is_transposed else 0]
            yield PackedLinear(matrix, slice(start, stop), layer.bias, is_transposed=is_transposed)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer's weight is (in, out), as GPT-2's."""
    kind = type(layer)  # asked without importing transformers, which Llama models load and speak without
    return kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D"


def packing_of(precision: str, layers: tuple[str, ...], device: torch.device) -> Packing | None:
    """How a model's layers are packed; None: they stay as torch has them."""
    is_packed = device.type == "cpu" and precision in MATRICES
    return Packing(layers, MATRICES[precision]) if is_packed else None


def pack(module: nn.Module, packing: Packing) -> None:
    """Pack a whole model that is loaded."""
    for prefix, parent in packing.parents(module):
        packing.pack(prefix, parent)
