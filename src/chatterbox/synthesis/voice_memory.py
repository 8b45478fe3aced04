"""What S3Gen remembers of voices, kept beside T3's prefixes: under the same budgets, tiers, codecs and leases.

Owns: the name by content of such a memory, who computes it. Does not know: budgets, what is in a memory
(`models.s3gen.memory`), streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from chatterbox.config import S3GenOptions
from chatterbox.kvcache.base import Segment
from chatterbox.kvcache.prefix.disk import Form
from chatterbox.kvcache.prefix.keys import content_hash
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.cfm import Steps
from chatterbox.models.s3gen.flow import FRAMES_PER_TOKEN
from chatterbox.models.s3gen.memory import FlowMemory, MemoryShape, from_segment, remembered_dtype, to_segment
from chatterbox.models.s3gen.stream import prompt_len, remember_prompt, with_prompt_seconds
from chatterbox.models.weights_watch import WeightsWatch
from chatterbox.runtime.torch_context import own_context

DEFAULTS = S3GenOptions()
FRAMES_PER_SECOND = 50


def steps_of(options: S3GenOptions, s3gen: S3Gen) -> Steps:
    """Of the solver: no more than the model's own, which may have been made for few."""
    num = options.steps
    if num is not None:
        num = min(num, s3gen.flow.decoder.num_steps(None))
    return Steps(num, options.unguided_steps)


class VoiceMemories:
    """One S3Gen and the manager that keeps what its flow remembers of voices. A change of its weights begins anew."""

    def __init__(self, s3gen: S3Gen, manager: GlobalKVCacheManager, options: S3GenOptions = DEFAULTS) -> None:
        self.options, self.steps = options, steps_of(options, s3gen)
        self._s3gen, self._manager = s3gen, manager
        self._watch = WeightsWatch()

    def of(self, gen: Mapping[str, Any]) -> VoiceMemory:
        """Of the voice ``gen``, of `S3Gen.embed_ref`, as it is to be integrated."""
        return VoiceMemory(self._s3gen, self._manager, self._watch, gen, self.steps)

    def warm(self, gen: Mapping[str, Any], *, pin: bool = False) -> None:
        """Compute what is remembered of a voice ahead of time. ``pin``: keep it on the device."""
        if self.options.memory != "none":
            self.of(with_prompt_seconds(gen, self.options.prompt_seconds)).warm(pin=pin)

    def forget(self) -> None:
        """Weights have changed in a way that is not noticed."""
        self._watch.taint()


class VoiceMemory:
    """Lends the memory of one voice, computing it where nobody has it: call it for a ``with`` block."""

    def __init__(
        self,
        s3gen: S3Gen,
        manager: GlobalKVCacheManager,
        watch: WeightsWatch,
        gen: Mapping[str, Any],
        steps: Steps,
    ) -> None:
        self._s3gen, self._manager, self._watch, self._gen, self._steps = s3gen, manager, watch, gen, steps
        self._name: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[FlowMemory]:
        shape = self._s3gen.flow.decoder.memory_shape(self._steps)
        lease = self._manager.acquire(
            self._voice(shape), (), lambda known: self._computed(shape), device=self._s3gen.device,
            form=self._form(shape), counts=False,
        )  # fmt: skip
        with lease:
            yield from_segment(lease.segments[0], shape)

    @own_context()
    def warm(self, *, pin: bool = False) -> None:
        """Have it computed. ``pin``: keep it on the device."""
        with self():
            if pin and self._name is not None:
                self._manager.pin(self._name)

    def _voice(self, shape: MemoryShape) -> str:
        """Name by content of all that shapes the memory."""
        if self._name is None:
            flow = self._s3gen.flow
            dtype = flow.decoder.estimator.dtype
            about = f"S3Gen {self._watch.fingerprint(flow)} {dtype} {self._s3gen.device.type} {shape}"
            about += f" {flow.decoder.inference_cfg_rate}"
            parts = (self._gen.get(key) for key in ("prompt_token", "prompt_token_len", "prompt_feat", "embedding"))
            self._name = content_hash(about, *(torch.as_tensor(one) for one in parts if one is not None))
        return self._name

    def _form(self, shape: MemoryShape) -> Form:
        num_frames = min(FRAMES_PER_TOKEN * prompt_len(self._gen), self._gen["prompt_feat"].shape[1])
        return Form(
            shape.num_stored_layers, shape.num_heads, shape.head_dim,
            remembered_dtype(self._s3gen.flow.decoder.estimator.dtype),
            num_frames + shape.num_tail_positions,
        )  # fmt: skip

    def _computed(self, shape: MemoryShape) -> Segment:
        segment = to_segment(remember_prompt(self._s3gen, self._gen, self._steps), shape)
        if not segment.is_finite:
            raise RuntimeError("S3Gen's flow computed NaN or infinite values; check the weights and their dtype")
        return segment


def memory_nbytes(s3gen: S3Gen, steps: Steps, seconds: float) -> int:
    """Bytes of what is remembered of a voice whose recording is so long."""
    shape = s3gen.flow.decoder.memory_shape(steps)
    num_positions = round(FRAMES_PER_SECOND * seconds) + shape.num_tail_positions
    numbers = 2 * shape.num_stored_layers * shape.num_heads * shape.head_dim * num_positions
    return numbers * remembered_dtype(s3gen.flow.decoder.estimator.dtype).itemsize
