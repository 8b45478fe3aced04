"""The backbone called as the models of transformers are, which upstream's backbones were.

Owns: those argument names, what is done without, the form of the result. Does not know: how a backbone computes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chatterbox.kvcache.base import KVCache
from chatterbox.kvcache.dynamic import DynamicKVCache

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    from chatterbox.models.config import GPT2Config, LlamaConfig

logger = logging.getLogger(__name__)

MAX_LEN = 2**20  # positions that a cache made here may come to have; it grows with them


class Backbone(nn.Module):
    """A backbone that can be called by the names of transformers."""

    config: LlamaConfig | GPT2Config

    def compile(self, *_: Any, **__: Any) -> None:
        """Does nothing but say so; see `not_compiled`."""
        not_compiled(self)

    def _run(self, embeds: Tensor, cache: KVCache | None, inputs: list[Tensor] | None) -> Tensor:
        """Hidden states (B, T, hidden) of ``embeds``, appended to ``cache``. ``inputs`` gets what enters each layer."""
        raise NotImplementedError


def not_compiled(backbone: nn.Module) -> nn.Module:
    """What `torch.compile` was given, as it was: each step has another cache, it would be compiled again and again."""
    logger.warning("torch.compile of T3's backbone is left out: its steps change with the cache; it runs as it is")
    original: nn.Module = getattr(backbone, "_orig_mod", backbone)
    return original


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
        use_cache: None is True without autograd, False with it.
        return_dict: False returns a tuple.
        others: ``position_ids``, if they are what they would be anyway; names of transformers that are None or False.

    Raises:
        TypeError: an argument that the backbone does not have, or ``past_key_values`` of another library.
        ValueError: a mask with padding, or attention weights are asked for.
    """
    positions, attentions = others.pop("position_ids", None), others.pop("output_attentions", None)
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
        raise ValueError("output_attentions is not available: attention weights are not kept; leave it out")
    start = 0 if past_key_values is None else past_key_values.length
    batch, num_new = inputs_embeds.shape[:2]
    if positions is not None and not bool((positions.cpu() == torch.arange(start, start + num_new)).all()):
        raise ValueError(f"position_ids must follow what is cached, {start} to {start + num_new - 1}; leave them out")
    use_cache = not torch.is_grad_enabled() if use_cache is None else use_cache
    cache, config = past_key_values, backbone.config
    if cache is None and use_cache:
        sizes = (config.num_layers, batch, config.num_heads, config.head_dim, MAX_LEN)
        cache = DynamicKVCache(*sizes, dtype=inputs_embeds.dtype, device=inputs_embeds.device)
    inputs: list[Tensor] | None = [] if output_hidden_states else None
    last = backbone._run(inputs_embeds, cache, inputs)
    hidden = None if inputs is None else (*inputs, last)
    if return_dict is False:
        return tuple(value for value in (last, cache, hidden) if value is not None)
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=cache, hidden_states=hidden)  # type: ignore[arg-type]
