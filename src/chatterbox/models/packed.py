"""Linear layers whose weights take fewer bits, for CPUs.

Owns: matrices of float16, bfloat16 and int8 in the form that a CPU's products read, and the layer that has one in place
of a weight. Does not know: which layers of a model get it, and which type (`chatterbox.models.precision`), or files.

A layer's outputs may be some rows of a matrix that several layers share, as they share their input. Its state dict has
the published names and float32 numbers, those that the matrix stands for.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INT8_LEVELS = 127  # of a stored code, to both sides
# A product of uint8 and int8 adds two neighbours in 16 bits where the CPU has no VNNI, and cuts what is beyond: with
# weights of 7 bits nothing is.
LEVELS_WITHOUT_VNNI = 63


def has_vnni() -> bool:
    """Whether products of 8 bits add up in 32, at once: AVX-512 VNNI."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def has_fbgemm() -> bool:
    """Whether torch has its own products of float16 and int8 weights: x86 builds."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def quantize_rows(weight: Tensor, levels: int = INT8_LEVELS) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 and what one of them is worth, (out,) float32, of a weight (out, in).

    Symmetric, by the largest of each row. A row of zeros is worth 0.
    """
    weight = weight.float()
    scales = weight.abs().amax(1) / levels
    codes = (weight / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
    return codes.clamp_(-levels, levels).to(torch.int8), scales


class PackedMatrix(abc.ABC):
    """A matrix (out, in) that products read; never changed."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.num_out, self.num_in = shape

    @abc.abstractmethod
    def multiply(self, rows: Tensor) -> Tensor:
        """(N, in) float32 to (N, out) float32."""

    @abc.abstractmethod
    def unpacked(self) -> Tensor:
        """The weight (out, in) that it stands for, float32."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of its numbers."""


class Float16Matrix(PackedMatrix):
    """float16 weights, widened on their way into products of float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape)
        weight = weight.float().contiguous()
        if not weight.abs().amax() <= torch.finfo(torch.float16).max:
            raise ValueError("a weight is beyond float16's 65504, or not a number; take precision='float32'")
        self._weight: Any = (
            torch.ops.quantized.linear_prepack_fp16(weight, None) if has_fbgemm() else weight.to(torch.float16)
        )

    def multiply(self, rows: Tensor) -> Tensor:
        if isinstance(self._weight, Tensor):
            return F.linear(rows, self._weight.float())
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self._weight)
        return out

    def unpacked(self) -> Tensor:
        if isinstance(self._weight, Tensor):
            return self._weight.float()
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._weight)[0]
        return weight.float()

    @property
    def nbytes(self) -> int:
        return 2 * self.num_out * self.num_in


class BFloat16Matrix(PackedMatrix):
    """bfloat16 weights and inputs; sums are of float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape)
        self._weight = weight.to(torch.bfloat16)

    def multiply(self, rows: Tensor) -> Tensor:
        return F.linear(rows.to(torch.bfloat16), self._weight).float()

    def unpacked(self) -> Tensor:
        return self._weight.float()

    @property
    def nbytes(self) -> int:
        return 2 * self.num_out * self.num_in


class Int8Matrix(PackedMatrix):
    """int8 weights, a scale for each output, and inputs of 8 bits, a scale for each row.

    A row is divided by its own largest number, so its output does not depend on the rows beside it, to the last bit.
    """

    def __init__(self, weight: Tensor, scales: Tensor | None = None) -> None:
        """``weight``: (out, in); with ``scales`` (out,) its codes, as `quantize_rows` makes them."""
        super().__init__(weight.shape)
        levels = INT8_LEVELS if has_vnni() or not has_fbgemm() else LEVELS_WITHOUT_VNNI
        if scales is None:
            weight, scales = quantize_rows(weight, levels)
        elif levels < INT8_LEVELS:
            # To the nearest of 63 levels, in whole numbers: 127 becomes 63.
            weight = ((weight.to(torch.int16) * 127 + 128) >> 8).to(torch.int8)
            scales = scales * (INT8_LEVELS / levels)
        self._codes: Any = weight
        self._scales: Tensor | None = scales
        if has_fbgemm():
            self._codes, self._scales = _packed_codes(weight, scales), None

    def multiply(self, rows: Tensor) -> Tensor:
        largest = rows.abs().amax(1, keepdim=True)
        scaled = rows / largest.clamp_min(torch.finfo(torch.float32).tiny)
        if self._scales is None:
            # Codes 1 to 255 of uint8, 128 is zero.
            return _multiply_codes(scaled, 1 / INT8_LEVELS, INT8_LEVELS + 1, self._codes).mul_(largest)
        codes = scaled.mul_(INT8_LEVELS).round_().to(torch.int8)
        return torch._int_mm(codes, self._codes.T) * (largest / INT8_LEVELS) * self._scales

    def unpacked(self) -> Tensor:
        if self._scales is not None:
            return self._codes.float() * self._scales[:, None]
        weight: Tensor = torch.ops.quantized.linear_unpack(self._codes)[0]
        return weight.dequantize()

    @property
    def nbytes(self) -> int:
        return self.num_out * (self.num_in + 4)


def _multiply_codes(x: Tensor, scale: float, zero: int, codes: Any) -> Tensor:
    """Products of x (N, in), rounded to uint8 by one scale, with int8 codes; (N, out) float32."""
    out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, scale, zero, codes)
    return out


def _packed_codes(codes: Tensor, scales: Tensor) -> Any:
    with warnings.catch_warnings():  # torch gives up quantised tensors, not these products; this is their only door
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        quantized = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(quantized, None)


MATRICES: dict[str, Callable[[Tensor], PackedMatrix]] = {
    "float16": Float16Matrix,
    "bfloat16": BFloat16Matrix,
    "int8": Int8Matrix,
}


class PackedLinear(nn.Module):
    """Stands in for a linear layer whose weight is ``rows`` of a matrix."""

    def __init__(
        self, matrix: PackedMatrix, rows: slice, bias: Tensor | None = None, *, is_transposed: bool = False
    ) -> None:
        """Args:
        matrix: on the CPU.
        is_transposed: whether the state dict's weight is (in, out), as GPT-2's.
        """
        super().__init__()
        self.matrix, self.rows, self.is_transposed = matrix, rows, is_transposed
        self.in_features, self.out_features = matrix.num_in, rows.stop - rows.start
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """What its numbers stand for, in the published form, float32; computed for whoever asks."""
        weight = self.matrix.unpacked()[self.rows]
        return weight.T.contiguous() if self.is_transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the type of ``x``. What is differentiated is computed with `weight`."""
        if torch.is_grad_enabled() and x.requires_grad:
            weight = self.weight.T if self.is_transposed else self.weight
            return F.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        out = multiply(self.matrix, x)
        if self.out_features < self.matrix.num_out:
            out = out[..., self.rows]
        return out if self.bias is None else (out + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {self.precision}, bias={self.bias is not None}"

    @property
    def precision(self) -> str:
        """As `MATRICES` names it."""
        return type(self.matrix).__name__.removesuffix("Matrix").lower()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with torch.inference_mode(False):  # whoever asks: others may train it
            destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight = state_dict.pop(prefix + "weight", None)
        if weight is None:
            missing_keys.append(prefix + "weight")
        elif weight.shape != (shape := self.weight.shape):
            error_msgs.append(f"size mismatch for {prefix}weight: {tuple(weight.shape)}, the model has {tuple(shape)}")
        elif not torch.equal(weight.cpu().float(), self.weight):
            weight = weight.T if self.is_transposed else weight
            self.matrix, self.rows = type(self.matrix)(weight.detach().cpu().float()), slice(0, self.out_features)
        arguments = state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Nothing: its numbers are of a type of their own, and its sums of float32."""
        if (device := fn(torch.empty(1)).device).type != "cpu":
            raise RuntimeError(
                f"weights in {self.precision} stay on the CPU, so this model cannot be moved to {device}; load it "
                f"there: from_local(folder, {str(device)!r})"
            )
        return self


def multiply(matrix: PackedMatrix, x: Tensor) -> Tensor:
    """(..., in) to (..., out), in the type of ``x``."""
    if not x.numel():
        return x.new_empty(*x.shape[:-1], matrix.num_out)
    out = matrix.multiply(x.reshape(-1, matrix.num_in).float().contiguous())
    return out.reshape(*x.shape[:-1], matrix.num_out).to(x.dtype)
