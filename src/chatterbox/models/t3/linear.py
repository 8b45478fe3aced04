"""Products with weight matrices when there are few rows, as in decoding.

Owns: which product reads the weights faster, and several layers of one input stored as one matrix. Does not know: what
the layers are for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What reads weights fastest on CPUs differs by the number of rows (benchmarks/linear.py): two to four go through
# `weight @ x.T`, one and more than four through oneDNN, which `F.linear` does not take for float32. oneDNN keeps 2 MB
# for each number of rows that it meets, so prefills, which come in all lengths, do not take it.
# Fixed, not probed: a probe under load would choose differently in the next process, and they differ in last bits.
FEW_ROWS = range(2, 129)
ONEDNN_ROWS = (1, *range(5, 33)) if torch.backends.mkldnn.is_available() else ()


def project(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of (..., in) and (out, in)."""
    rows = x.numel() // x.shape[-1]
    if x.device.type == "cpu":
        if rows in ONEDNN_ROWS and x.dtype == torch.float32 and not torch.is_grad_enabled():
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        if rows in FEW_ROWS:
            # Fast only if the rows lie whole in memory; after another such product they are interleaved.
            return (weight @ x.reshape(rows, -1).contiguous().T).T.reshape(*x.shape[:-1], -1)
    return F.linear(x, weight)


class SharedInput(nn.Module):
    """Base of a module with several bias-free linear layers of one input: their weights lie in one matrix.

    The layers keep their names and are views of it, so state dicts are as published. Subclasses name them in
    ``JOINED``.
    """

    JOINED: tuple[str, ...]
    _joined: Tensor | None = None

    def _apply(self, *args: Any, **kwargs: Any) -> SharedInput:  # what .to(), .half() and .cuda() go through
        module = super()._apply(*args, **kwargs)
        self._joined = None
        return module

    def project_joined(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of all joined layers."""
        layers = [getattr(self, name) for name in self.JOINED]
        if torch.is_grad_enabled():
            return tuple(F.linear(x, layer.weight) for layer in layers)
        joined = self._joined
        if joined is None or joined.data_ptr() != layers[0].weight.data_ptr():
            joined = self._join(layers)
        return project(x, joined).split([layer.out_features for layer in layers], dim=-1)

    def _join(self, layers: list[nn.Linear]) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # weights must stay fit for training
            joined = torch.cat([layer.weight for layer in layers])
            for layer, part in zip(layers, joined.split([layer.out_features for layer in layers]), strict=True):
                layer.weight.data = part
        self._joined = joined
        return joined
