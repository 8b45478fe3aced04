"""GPT-2 backbone of T3 (Turbo, Nano), with the published parameter names (``tfmr.h.N.attn.c_attn.weight`` ...).

Owns: learned positions, attention, MLP, the stack. Does not know: text, speech, sampling, or which cache policy it runs
on. As `backbone`, it appends to a `KVCache` and masks by the positions that come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox.kvcache.base import KVCache
from chatterbox.models.config import GPT2Config
from chatterbox.models.linear import has_global_hooks, is_untouched, linear
from chatterbox.models.t3 import batch_invariant as blocks
from chatterbox.models.t3.attention import HeadReader, Pass, attend, positions_of
from chatterbox.models.t3.transformers_call import Backbone, call
from chatterbox.models.t3.uncompiled import Layers, Uncompiled, share_notice


@cache
def conv1d() -> type[nn.Module]:
    """transformers' own linear layer whose weight is stored (in, out): adapters look for exactly that type."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def apply_conv1d(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; of a `conv1d` that nobody touched by `linear`."""
    if is_untouched(layer, conv1d()) and not has_global_hooks():
        parameters = layer.__dict__["_parameters"]
        return linear(x, parameters["weight"].T, parameters["bias"])
    out: Tensor = layer(x)
    return out


def make_conv1d(num_out: int, num_in: int) -> Any:
    """A `conv1d` whose weight has the published shape, (in, out), and lies in memory as (out, in).

    That is the order in which products with few rows read it (benchmarks/speed/precision.py compares both).
    """
    layer: Any = conv1d()(num_out, num_in)
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    return layer


class _Block(Uncompiled):
    """A module with layers of `make_conv1d`; its state dict has their weights as files have them, in one piece."""

    def state_dict(self, *args: Any, prefix: str = "", keep_vars: bool = False, **kwargs: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, keep_vars=keep_vars, **kwargs)
        for name, _ in self.named_children() if not keep_vars else ():
            if (weight := state.get(key := f"{prefix}{name}.weight")) is not None:
                with torch.inference_mode(weight.is_inference()):  # whoever asks: it may be trained
                    state[key] = weight.contiguous()
        return state


class Attention(_Block):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner = config.num_heads * config.head_dim
        self.c_attn = make_conv1d(3 * inner, config.hidden_size)  # queries, keys, values
        self.c_proj = make_conv1d(config.hidden_size, inner)

    def forward(self, x: Tensor, run: Pass, layer: int) -> Tensor:
        query, key, value = (  # (B, H, T, head_dim)
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in run.rowwise(partial(apply_conv1d, self.c_attn), x).chunk(3, dim=-1)
        )
        return run.rowwise(partial(apply_conv1d, self.c_proj), attend(query, key, value, run, layer))


class MLP(_Block):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = make_conv1d(config.intermediate_size, config.hidden_size)
        self.c_proj = make_conv1d(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        inner = run.rowwise(partial(apply_conv1d, self.c_fc), x)
        inner = blocks.gelu_tanh(inner) if run.batch_invariant else F.gelu(inner, approximate="tanh")
        return run.rowwise(partial(apply_conv1d, self.c_proj), inner)


class Layer(Uncompiled):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, run: Pass, layer: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), run, layer)
        return x + self.mlp(self.ln_2(x), run)


class GPT2Backbone(Backbone):
    """Embeddings in, hidden states after the final norm out."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.wpe = nn.Embedding(config.max_positions, config.hidden_size)
        self.h = Layers(Layer(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        share_notice(self)

    def forward(
        self,
        embeds: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        readers: Sequence[HeadReader] = (),
        batch_invariant: bool = False,
        **as_transformers: Any,
    ) -> Any:
        """As `chatterbox.models.t3.backbone.LlamaBackbone.forward`; positions are added here."""
        if embeds is None:
            return call(self, **as_transformers)
        if as_transformers:
            raise TypeError(f"{type(self).__name__} got an unexpected argument {min(as_transformers)!r}")
        positions = positions_of(embeds, cache) if positions is None else positions
        return self._through(embeds, Pass(positions, cache, readers, batch_invariant=batch_invariant))

    def _run(self, embeds: Tensor, cache: KVCache | None, inputs: list[Tensor] | None) -> Tensor:
        return self._through(embeds, Pass(positions_of(embeds, cache), cache, ()), inputs)

    def _through(self, embeds: Tensor, run: Pass, inputs: list[Tensor] | None = None) -> Tensor:
        """``inputs``: gets what enters each layer."""
        x = self._entering(embeds + self.wpe(run.positions))
        for index, layer in enumerate(self.h):
            if inputs is not None:
                inputs.append(x)
            x = self._through_layer(layer, x, run, index)
        return self.ln_f(x)
