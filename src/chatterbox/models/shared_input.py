"""Several bias-free layers of one input, whose weights lie in one matrix and are multiplied in one product.

Owns: the joined matrix, and when its product stands for the layers: while nobody touched one of them. Does not know:
what the layers are for.

The layers are modules of their own under the published names, and views of the matrix, so state dicts are as published.
Where weights take fewer bits, the layers share a `PackedMatrix` instead. A layer that was replaced, wrapped or hooked,
or has a ``forward`` of its own, is called, and so are those beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatterbox.models.linear import apply_linear, has_global_hooks, is_called_as, is_untouched, linear
from chatterbox.models.packed import PackedLinear, PackedMatrix, multiply


class _Member(NamedTuple):
    """A layer as it was joined."""

    name: str
    layer: nn.Linear
    weight: Tensor
    address: int


class _Joined(NamedTuple):
    weight: Tensor  # (sum of sizes, in)
    sizes: list[int]  # rows of each member
    members: tuple[_Member, ...]


class SharedInput(nn.Module):
    """Base of a module with several bias-free `nn.Linear` layers of one input, which subclasses name in ``JOINED``."""

    JOINED: tuple[str, ...]
    _joined: _Joined | None = None

    def _apply(self, *args: Any, **kwargs: Any) -> SharedInput:  # what .to(), .half() and .cuda() go through
        module = super()._apply(*args, **kwargs)
        self._joined = None
        return module

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: they have weights of their own, and join them anew."""
        return {**self.__dict__, "_joined": None}

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of all layers named in ``JOINED``, in that order."""
        if not torch.is_grad_enabled():
            if (shared := self._shared_matrix()) is not None:
                return multiply(shared, x).split([getattr(self, name).out_features for name in self.JOINED], dim=-1)
            joined = self._joined
            if joined is None or not self._is_current(joined):
                joined = self.join()
            if joined is not None:
                return linear(x, joined.weight).split(joined.sizes, dim=-1)
        return tuple(apply_linear(getattr(self, name), x) for name in self.JOINED)

    def _shared_matrix(self) -> PackedMatrix | None:
        """The matrix whose rows are the weights of all members, in their order, while nobody touched one."""
        stop, matrix = 0, None
        for name in self.JOINED:
            member = self._modules.get(name)
            if not isinstance(member, PackedLinear) or not is_called_as(member, PackedLinear):
                return None
            if member.rows.start != stop or member.matrix is not (matrix or member.matrix) or member.bias is not None:
                return None
            stop, matrix = member.rows.stop, member.matrix
        return matrix if matrix is not None and stop == matrix.num_out and not has_global_hooks() else None

    def _is_current(self, joined: _Joined) -> bool:
        """Whether all members are in their places, untouched, and still views of the matrix."""
        if has_global_hooks():
            return False
        modules = self._modules
        for name, layer, weight, address in joined.members:
            if modules.get(name) is not layer or not is_untouched(layer):
                return False
            parameters = layer.__dict__["_parameters"]
            if parameters.get("weight") is not weight or parameters.get("bias") is not None:
                return False
            if weight.data_ptr() != address or not weight.is_contiguous():
                return False
        return True

    def join(self) -> _Joined | None:
        """Lay the weights into one matrix and make them views of it; None where the layers have to be called."""
        if (joined := self._joined) is not None and self._is_current(joined):
            return joined
        self._joined = None
        if has_global_hooks():
            return None
        layers = [layer for name in self.JOINED if isinstance(layer := self._modules.get(name), nn.Linear)]
        if len(layers) < len(self.JOINED) or not all(map(_is_joinable, layers)):
            return None
        weights = [layer.weight for layer in layers]
        kinds = {(weight.shape[1], weight.dtype, weight.device, weight.is_inference()) for weight in weights}
        if len(kinds) > 1 or len(set(map(id, weights))) < len(weights):
            return None
        sizes = [len(weight) for weight in weights]
        # Weights must stay fit for training, unless they were made in inference mode.
        with torch.inference_mode(weights[0].is_inference()), torch.no_grad():
            matrix = torch.cat([weight.detach() for weight in weights])
            for weight, part in zip(weights, matrix.split(sizes), strict=True):
                weight.data = part
        places = zip(self.JOINED, layers, weights, strict=True)
        members = tuple(_Member(name, layer, weight, weight.data_ptr()) for name, layer, weight in places)
        self._joined = _Joined(matrix, sizes, members)
        return self._joined


def _is_joinable(layer: nn.Linear) -> bool:
    return is_untouched(layer) and layer.weight.ndim == 2 and layer._parameters.get("bias") is None
