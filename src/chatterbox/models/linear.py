"""Products with weight matrices, as fast as the CPU has them.

Owns: which product reads the weights faster, and which layers it stands for: those that nobody touched. Does not know:
what the layers are for, layers that share an input (`chatterbox.models.shared_input`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from chatterbox.models.conv import shared_length

# What is fastest on CPUs differs by the number of rows and the size of the matrix. Large ones take `weight @ x.T` for
# two to four rows (benchmarks/speed/linear.py), those that the caches hold for up to eight, and there one row is
# computed as two, in less time than alone (benchmarks/speed/small_products.py). Others take oneDNN, which `F.linear`
# does not take for float32. In other types, and where there is no oneDNN, the first pays for more rows too. oneDNN
# keeps memory for each number of rows that it meets: beyond a few they come in few numbers, zeros following them.
# Fixed, not probed: a probe under load would choose differently in the next process, and they differ in last bits.
SKINNY, FEW_ROWS = range(2, 5), range(2, 129)
SMALL, SMALL_ROWS = 2**19, range(1, 9)  # elements of a matrix at most, and rows
ONEDNN = torch.backends.mkldnn.is_available()
EXACT_ROWS = 32  # so many, and fewer, have a kernel of their own


def shared_rows(rows: int) -> int:
    """The number of rows at which ``rows`` are computed."""
    return rows if rows <= EXACT_ROWS else shared_length(rows)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` of (..., in), (out, in) and (out,)."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not x.numel():
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    flat = x.reshape(rows, -1).contiguous()  # both ways are fast only where the rows lie whole
    is_small = weight.numel() <= SMALL and rows in SMALL_ROWS
    is_skinny = rows in SKINNY and weight.is_contiguous()  # this product is slow with one that lies as (in, out)
    if ONEDNN and x.dtype == torch.float32 and not is_small and not is_skinny:
        if (shared := shared_rows(rows)) > rows:
            flat = F.pad(flat, (0, 0, 0, shared - rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
        return out[:rows].reshape(*x.shape[:-1], -1)
    if is_small or rows in FEW_ROWS:
        columns = torch.cat([flat, flat]).T if rows == 1 else flat.T
        product = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
        return (product[:, 0] if rows == 1 else product.T).reshape(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def is_called_as(layer: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether calling ``layer`` is ``kind.forward`` and nothing else. Backward hooks act in training alone."""
    if type(layer) is not kind:
        return False
    own = layer.__dict__  # attributes of modules are slow to read, and this is asked at every call
    return not ("forward" in own or "_compiled_call_impl" in own or own["_forward_hooks"] or own["_forward_pre_hooks"])


def is_untouched(layer: nn.Module | None, kind: type[nn.Module] = nn.Linear) -> bool:
    """`is_called_as` of a layer with a plain weight: subclasses of Parameter, as quantised ones, have products of
    their own.
    """
    return is_called_as(layer, kind) and type(layer.__dict__["_parameters"].get("weight")) is nn.Parameter


def has_global_hooks() -> bool:
    """Whether torch calls hooks around the forward of every module."""
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; of an `nn.Linear` that nobody touched by `linear`.

    The layers are torch's own, not a subclass, because tools that replace layers look for exactly that type.
    """
    if is_untouched(layer) and not has_global_hooks():
        parameters = layer.__dict__["_parameters"]
        return linear(x, parameters["weight"], parameters["bias"])
    out: Tensor = layer(x)
    return out


class LinearSequential(nn.Sequential):
    """`nn.Sequential` whose layers are called through `apply_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = apply_linear(layer, input)
        return input
