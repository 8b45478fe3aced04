"""Several layers of one input, whose weights lie in one matrix and are multiplied in one product.

Owns: the joined matrix. Does not know: what the layers are for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.models.linear import linear


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
        return linear(x, joined).split([layer.out_features for layer in layers], dim=-1)

    def _join(self, layers: list[nn.Linear]) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # weights must stay fit for training
            joined = torch.cat([layer.weight for layer in layers])
            for layer, part in zip(layers, joined.split([layer.out_features for layer in layers]), strict=True):
                layer.weight.data = part
        self._joined = joined
        return joined
