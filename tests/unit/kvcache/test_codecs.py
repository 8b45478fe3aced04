"""Codecs of cold segments: what comes back is within the bound that each states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chatterbox.kvcache import Segment
from chatterbox.kvcache.compression import codec

LAYERS, HEADS = 2, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def contents(dtype: torch.dtype, num_positions: int, head_dim: int) -> dict[str, Tensor]:
    """Keys by name, (layers, heads, positions, head_dim), from usual ones to the ends of what ``dtype`` can say."""
    torch.manual_seed(num_positions)
    shape, largest = (LAYERS, HEADS, num_positions, head_dim), torch.finfo(dtype).max
    usual = torch.randn(shape)
    channel = torch.zeros(head_dim)
    channel[head_dim // 2] = 1000.0
    return {
        name: x.to(dtype)
        for name, x in {
            "usual": usual,
            "one large channel": usual + channel,
            "far from zero": 300.0 + usual,
            "all equal": torch.full(shape, -3.0),
            "zero": torch.zeros(shape),
            "largest": largest * usual.sign().double(),
            "largest and small": torch.where(usual > 1.5, largest, usual.double()),
            "smallest": torch.finfo(dtype).tiny * usual,
        }.items()
    }


def rounding(x: Tensor, bound: Tensor) -> Tensor:
    """What storing a number within ``bound`` of ``x`` in its dtype, and computing it in float32, may cost."""
    about = torch.finfo(x.dtype)
    return (x.double().abs() + bound) * about.eps + 2.0 * about.tiny


def int8_bounds(segment: Segment) -> tuple[Tensor, Tensor]:
    keys, values = segment.keys.double().abs(), segment.values.double().abs()
    return keys.amax(2, keepdim=True) / 254, values.amax(3, keepdim=True) / 254


def int4_bounds(segment: Segment) -> tuple[Tensor, Tensor]:
    def spread(x: Tensor, dim: int) -> Tensor:
        return torch.cat(
            [(p.amax(dim, keepdim=True) - p.amin(dim, keepdim=True)).expand_as(p) for p in x.double().split(32, dim)],
            dim,
        )

    group = {64: 32, 8: 8, 5: 5}[segment.keys.shape[3]]
    values = segment.values.unflatten(3, (-1, group))
    return spread(segment.keys, 2) / 30, spread(values, 4).flatten(3) / 30


BOUNDS = {"int8": int8_bounds, "int4": int4_bounds}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(("num_positions", "head_dim"), [(1, 64), (31, 8), (32, 64), (77, 64), (65, 5)])
def test_error_is_within_the_stated_bound(name: str, dtype: torch.dtype, num_positions: int, head_dim: int) -> None:
    for content, keys in contents(dtype, num_positions, head_dim).items():
        segment = Segment(keys, -keys.flip(2), start=3)
        packed = codec(name).pack(segment)
        back = codec(name).unpack(packed)
        assert (back.start, back.keys.dtype, back.keys.shape) == (3, dtype, keys.shape)
        for got, wanted, bound in zip(
            (back.keys, back.values), (keys, segment.values), BOUNDS[name](segment), strict=True
        ):
            excess = (got.double() - wanted.double()).abs() - bound - rounding(wanted, bound)
            assert excess.max() <= 0, (content, float(excess.max()))
        if content == "usual" and num_positions > 1:
            assert not torch.equal(back.keys, keys)  # it was packed


def test_size() -> None:
    keys = torch.randn(LAYERS, HEADS, 96, 64)
    for dtype, name, share in [
        (torch.float32, "int8", 0.27),
        (torch.float32, "int4", 0.19),
        (torch.bfloat16, "int8", 0.54),
        (torch.bfloat16, "int4", 0.32),
    ]:
        segment = Segment(keys.to(dtype), keys.to(dtype), 0)
        packed = codec(name).pack(segment)
        assert packed.nbytes <= share * segment.nbytes
        assert sum(part.untyped_storage().nbytes() for part in packed.tensors.values()) == packed.nbytes


def test_packed_is_independent_of_the_segment() -> None:
    keys = torch.randn(LAYERS, HEADS, 33, 8)
    segment = Segment(keys, keys.clone(), 0)
    for name in BOUNDS:
        packed = codec(name).pack(segment)
        before = codec(name).unpack(packed).keys
        segment.keys.zero_()
        assert torch.equal(codec(name).unpack(packed).keys, before) and before.any()
        segment.keys.copy_(segment.values)
