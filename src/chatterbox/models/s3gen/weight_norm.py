"""Weight normalisation that inference pays for once.

Owns: the parametrization ``weight = g * v / |v|`` under torch's state-dict keys (g is
``parametrizations.weight.original0``, v ``original1``) and the reuse of its result while g and v stay unchanged.
Does not know: what the convolution is for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

NUM_VALUES = 16  # of v that are looked at
Conv = TypeVar("Conv", bound=nn.Module)


class _Kept(NamedTuple):
    state: tuple[int, ...]
    g: Tensor
    v: Tensor
    weight: Tensor
    values: Tensor  # all of g, some of v

    def is_of(self, state: tuple[int, ...], g: Tensor, v: Tensor) -> bool:
        if self.state != state or self.g is not g or self.v is not v or self.weight.dtype != v.dtype:
            return False
        return v.is_cuda or torch.equal(_values(g, v), self.values)  # torch does not count all changes


class CachedWeightNorm(nn.Module):
    """``g * v / |v|`` with the norm over every dimension but the first (the input channel of a transposed convolution).

    Without autograd the product is kept until g or v is written or moved; on a CPU also where torch does not count it,
    as through ``weight.data``. The kept entry is one tuple, replaced as a whole, so threads that share the module see
    either the old or the new one. On the meta device there are shapes alone, which torch would compute in Python.
    """

    _kept: _Kept | None = None

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        if v.is_meta:
            return v.new_empty(v.shape)
        if torch.is_grad_enabled() or g.is_inference() or v.is_inference():
            return torch._weight_norm(v, g, 0)
        state = (g._version, v._version, g.data_ptr(), v.data_ptr())
        kept = self._kept
        if kept is None or not kept.is_of(state, g, v):
            kept = self._computed(state, g, v)
        return kept.weight

    def _computed(self, state: tuple[int, ...], g: Tensor, v: Tensor) -> _Kept:
        with torch.inference_mode(False), torch.no_grad():
            self._kept = kept = _Kept(state, g, v, torch._weight_norm(v, g, 0), _values(g, v))
        return kept

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if weight.is_meta:
            return weight.new_empty((len(weight), *[1] * (weight.dim() - 1))), weight
        return torch.norm_except_dim(weight, 2, 0), weight


def weight_norm(conv: Conv) -> Conv:
    """Parametrize ``conv.weight`` in place; returns ``conv``, which can be pickled, unlike torch's own."""
    parametrize.register_parametrization(conv, "weight", CachedWeightNorm())
    type(conv).__reduce_ex__ = _reduce  # type: ignore[method-assign,assignment]  # a class of this object alone
    return conv


def _reduce(conv: nn.Module, protocol: int) -> tuple[Any, ...]:
    modules = {name: one for name, one in conv._modules.items() if name != "parametrizations"}
    g, v = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1  # type: ignore[union-attr]
    return _restored, (type(conv).__bases__[0], {**conv.__dict__, "_modules": modules}, g, v)


def _restored(kind: type[nn.Module], state: dict[str, Any], g: nn.Parameter, v: nn.Parameter) -> nn.Module:
    conv = kind.__new__(kind)
    conv.__setstate__(state)
    conv.register_parameter("weight", nn.Parameter(v.detach().clone(), v.requires_grad))
    weight_norm(conv)
    conv.parametrizations.weight.original0, conv.parametrizations.weight.original1 = g, v  # type: ignore[union-attr]
    return conv


def _values(g: Tensor, v: Tensor) -> Tensor:
    return torch.cat([g.detach().flatten(), v.detach().flatten()[:: max(1, v.numel() // NUM_VALUES)]])


def forget_products(module: nn.Module) -> None:
    """Compute every normalised weight below ``module`` anew."""
    for child in module.modules():
        if isinstance(child, CachedWeightNorm):
            child._kept = None


def fold_weight_norm(module: nn.Module) -> None:
    """Replace every normalised weight below ``module`` by its plain value. Changes the state-dict keys."""
    for child in module.modules():
        if parametrize.is_parametrized(child, "weight"):
            parametrize.remove_parametrizations(child, "weight")
