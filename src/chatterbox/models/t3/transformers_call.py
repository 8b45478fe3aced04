"""The backbone called as the models of transformers are, which upstream's backbones were.

Owns: those argument names, what is done without, the form of the result. Does not know: how a backbone computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.dynamic import DynamicKVCache
from chatterbox.models.t3.attention import Pass
from chatterbox.models.t3.llama_configs import named_as_in_transformers
from chatterbox.models.t3.uncompiled import Uncompiled

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    from chatterbox.models.config import GPT2Config, LlamaConfig

MAX_LEN = 2**20  # positions that a cache made here may come to have; it grows with them


class BackboneConfig(SimpleNamespace):
    """What `Backbone.config` is, for programs: sizes by transformers' names, and defaults of calls, all assignable.

    Assigning a size changes no network. ``use_cache``, ``output_hidden_states``, ``output_attentions`` and
    ``return_dict`` are what a call takes that does not say; speech does not look at them.
    """

    @classmethod
    def of(cls, sizes: LlamaConfig | GPT2Config) -> BackboneConfig:
        named = named_as_in_transformers(sizes)
        others = {name: getattr(sizes, name) for name in ("num_hidden_layers", "num_attention_heads", "head_dim")}
        defaults = {"use_cache": True, "output_hidden_states": False, "output_attentions": False, "return_dict": True}
        return cls(**{**named, **others, **defaults, "_attn_implementation": "sdpa"})

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class Backbone(Uncompiled):
    """A backbone that can be called by the names of transformers, and trained as its models are."""

    def __init__(self, sizes: LlamaConfig | GPT2Config) -> None:
        super().__init__()
        self.sizes, self.config = sizes, BackboneConfig.of(sizes)
        self._recomputes: dict[str, Any] | None = None  # how; None: training keeps what layers compute
        self._inputs_learn = False

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self._recomputes is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """In training compute each layer again for its gradients, and keep its input alone: slower, in less memory.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`.
        """
        self._recomputes = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        self._recomputes = None

    def enable_input_require_grads(self) -> None:
        """Compute gradients of what enters the layers even if nothing before them learns."""
        self._inputs_learn = True

    def disable_input_require_grads(self) -> None:
        self._inputs_learn = False

    def get_input_embeddings(self) -> nn.Module:
        raise AttributeError(f"{type(self).__name__} has no input embeddings; T3's are t3.text_emb and t3.speech_emb")

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_input_embeddings()

    def _entering(self, x: Tensor) -> Tensor:
        """What enters the first layer."""
        if self._inputs_learn and torch.is_grad_enabled() and not x.requires_grad:
            return x.detach().requires_grad_()
        return x

    def _through_layer(self, layer: nn.Module, x: Tensor, run: Pass, index: int) -> Tensor:
        if self._recomputes is not None and self.training and torch.is_grad_enabled() and run.cache is None:
            out: Tensor = checkpoint(layer, x, run, index, **self._recomputes)
            return out
        return layer(x, run, index)

    def _run(self, embeds: Tensor, cache: KVCache | None, inputs: list[Tensor] | None) -> Tensor:
        """Hidden states (B, T, hidden) of ``embeds``, appended to ``cache``. ``inputs`` gets what enters each layer."""
        raise NotImplementedError


def call(
    backbone: Backbone,
    inputs_embeds: Tensor,
    past_key_values: KVCache | None = None,
    *,
    attention_mask: Tensor | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
    **others: Any,
) -> BaseModelOutputWithPast | tuple[Any, ...]:
    """What ``backbone`` computes of ``inputs_embeds`` (B, T, hidden).

    Args:
        past_key_values: what an earlier call returned; it is written to.
        use_cache: None is what the backbone's ``config`` says, and False with autograd.
        output_hidden_states: None is what the backbone's ``config`` says.
        return_dict: likewise; False gives a tuple.
        others: ``position_ids``, if they are what they would be anyway; names of transformers that are None or False.

    Raises:
        TypeError: an argument that the backbone does not have, or ``past_key_values`` of another library.
        ValueError: a mask with padding, or attention weights are asked for.
    """
    config, sizes = backbone.config, backbone.sizes
    positions, attentions = others.pop("position_ids", None), others.pop("output_attentions", None)
    attentions = config.output_attentions if attentions is None else attentions
    return_dict = config.return_dict if return_dict is None else return_dict
    output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    if unknown := [name for name, value in others.items() if value is not None]:
        raise TypeError(f"{type(backbone).__name__} takes inputs_embeds, not {unknown[0]}")
    if past_key_values is not None and not isinstance(past_key_values, KVCache):
        raise TypeError(
            f"past_key_values must be what an earlier call returned, got {type(past_key_values).__name__}; "
            "leave it out for the first call"
        )
    if attention_mask is not None and not bool((attention_mask == 1).all()):
        raise ValueError("attention_mask must be all ones: rows are not padded here; call it with rows of one length")
    if attentions:
        raise ValueError(
            "output_attentions is not available: attention weights are not kept; leave it out, in config too"
        )
    start = 0 if past_key_values is None else past_key_values.length
    batch, num_new = inputs_embeds.shape[:2]
    if positions is not None and not bool((positions.cpu() == torch.arange(start, start + num_new)).all()):
        raise ValueError(f"position_ids must follow what is cached, {start} to {start + num_new - 1}; leave them out")
    use_cache = config.use_cache and not torch.is_grad_enabled() if use_cache is None else use_cache
    cache = past_key_values
    if cache is None and use_cache:
        shape = (sizes.num_layers, batch, sizes.num_heads, sizes.head_dim, MAX_LEN)
        cache = DynamicKVCache(*shape, dtype=inputs_embeds.dtype, device=inputs_embeds.device)
    inputs: list[Tensor] | None = [] if output_hidden_states else None
    last = backbone._run(inputs_embeds, cache, inputs)
    hidden = None if inputs is None else (*inputs, last)
    if not return_dict:
        return tuple(value for value in (last, cache, hidden) if value is not None)
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=cache, hidden_states=hidden)  # type: ignore[arg-type]
