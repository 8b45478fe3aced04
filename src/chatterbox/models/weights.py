"""How large networks are.

Owns: counting their weights, packed ones too, without reading any. Does not know: what networks are for.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from chatterbox.models.packed import PackedLinear, PackedMatrix
from chatterbox.runtime.openmp import can_compute_alone

SMALL = 20_000_000  # weights; the embedded voice has 9 million in T3, 5 in S3Gen


def modules_of(network: nn.Module) -> Iterator[nn.Module]:
    """A network and all within. Unlike its own ``modules()`` it wakes no part whose weights come late."""
    yield network
    for child in network._modules.values():
        if child is not None:
            yield from modules_of(child)


def nbytes_of(*networks: nn.Module) -> int:
    """Bytes of all weights."""
    plain, packed = _weights_of(networks)
    return sum(weight.nbytes for weight in plain) + sum(matrix.nbytes for matrix in packed)


def is_small(*networks: nn.Module) -> bool:
    """Whether networks gain less from a second thread than from other work beside them: few weights, on a CPU."""
    plain, packed = _weights_of(networks)
    num_weights = sum(weight.numel() for weight in plain) + sum(matrix.num_out * matrix.num_in for matrix in packed)
    is_on_cpu = all(weight.device.type == "cpu" for weight in plain)
    return is_on_cpu and can_compute_alone() and num_weights <= SMALL


def _weights_of(networks: tuple[nn.Module, ...]) -> tuple[list[Tensor], list[PackedMatrix]]:
    """Plain weights, and matrices, each once in a network: layers share some."""
    plain: list[Tensor] = []
    packed: list[PackedMatrix] = []
    for network in networks:
        modules = list(modules_of(network))
        weights = (weight for one in modules for weight in one._parameters.values())
        plain += {id(weight): weight for weight in weights if weight is not None}.values()
        packed += {id(one.matrix): one.matrix for one in modules if isinstance(one, PackedLinear)}.values()
    return plain, packed
