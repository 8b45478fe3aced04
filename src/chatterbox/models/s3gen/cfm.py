"""Flow matching: from noise to a mel spectrogram in a few Euler steps.

Owns: the time grid, guidance, the solver and where the noise comes from.
Does not know: what the conditions mean, or how they were made (https://arxiv.org/abs/2210.02747).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from chatterbox.models.config import FlowConfig
from chatterbox.models.s3gen.estimator import ConditionalDecoder
from chatterbox.models.s3gen.memory import FlowPass, MemoryShape


def cosine_times(num_steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Times 0 = t_0 < ... < t_n = 1 (n + 1,) of the standard model: short steps first."""
    return 1 - torch.cos(torch.linspace(0, 1, num_steps + 1, dtype=torch.float32, device=device) * 0.5 * torch.pi)


class Steps(NamedTuple):
    """How the solver goes from noise to a mel."""

    num: int | None = None  # Euler steps; None is the model's own number
    num_unguided: int = 0  # of them, the first ones, that are taken without guidance; of none where the model has none


DEFAULT_STEPS = Steps()


class CausalConditionalCFM(nn.Module):
    """The solver around an estimator; the only weights are the estimator's."""

    def __init__(self, config: FlowConfig = FlowConfig(), meanflow: bool = False) -> None:
        super().__init__()
        self.config = config
        self.meanflow = meanflow
        self.estimator = ConditionalDecoder(config, meanflow)
        self.inference_cfg_rate = config.guidance_rate  # upstream's name; programs set it

    def num_steps(self, n_timesteps: int | None) -> int:
        """Euler steps; None is the model's own number.

        Raises:
            ValueError: no step.
        """
        if n_timesteps is None:
            return self.config.num_meanflow_steps if self.meanflow else self.config.num_steps
        if n_timesteps < 1:
            raise ValueError(f"n_timesteps must be at least 1, got {n_timesteps}; None is the model's default")
        return n_timesteps

    def memory_shape(self, steps: Steps = DEFAULT_STEPS) -> MemoryShape:
        """Of what a solve remembers, with guidance as it is now."""
        num_steps = self.num_steps(steps.num)
        is_guided = bool(self.inference_cfg_rate) and not self.meanflow
        num_rows = (2 if is_guided and i >= steps.num_unguided else 1 for i in range(num_steps))
        return self.estimator.memory_shape(tuple(num_rows))

    def forward(
        self,
        mu: Tensor,
        mask: Tensor | None,
        spks: Tensor,
        cond: Tensor,
        n_timesteps: int | None = None,
        noised_mels: Tensor | None = None,
        *,
        z: Tensor | None = None,
        generator: torch.Generator | None = None,
        frames: FlowPass | None = None,
        num_unguided: int = 0,
    ) -> Tensor:
        """Mel (B, num_mels, T) in the dtype of ``mu``.

        Args:
            mu: as the estimator takes it; so are ``mask``, ``spks`` and ``cond``.
            n_timesteps: see :meth:`num_steps`.
            noised_mels: (B or 1, num_mels, n), noise of the last n frames (upstream's mean-flow call draws it first).
            z: (B or 1, num_mels, T or more) standard normal noise, frame by frame; surplus frames are not used.
            generator: source of the noise when ``z`` is None; None is torch's global one.
            frames: what was before these frames, and what of them is to be remembered; without a mask.
            num_unguided: see `Steps`.

        Raises:
            ValueError: no step, or noise of a shape that does not fit ``mu``.
        """
        n_timesteps = self.num_steps(n_timesteps)
        x = _noise(mu, z, generator)
        if noised_mels is not None:
            if noised_mels.shape[2] > x.shape[2]:
                raise ValueError(f"noised_mels has {noised_mels.shape[2]} frames, the mel {x.shape[2]}; pass fewer")
            head = x[..., : x.shape[2] - noised_mels.shape[2]]
            x = torch.cat([head, noised_mels.to(x).expand(x.shape[0], -1, -1)], dim=2)
        x = self.config.noise_temperature * x
        conditions = [c.to(self.estimator.dtype) for c in (mu, spks, cond)]
        if self.meanflow:
            return self._solve_meanflow(x, mask, conditions, n_timesteps, frames).to(mu.dtype)
        return self._solve_guided(x, mask, conditions, Steps(n_timesteps, num_unguided), frames).to(mu.dtype)

    def _solve_guided(
        self,
        x: Tensor,
        mask: Tensor | None,
        conditions: list[Tensor],
        steps: Steps,
        frames: FlowPass | None,
    ) -> Tensor:
        """Two estimator rows per request: with the conditions, and with zeros in their place; one without guidance."""
        rate, num_steps = self.inference_cfg_rate, self.num_steps(steps.num)
        times = cosine_times(num_steps, x.device)
        for i in range(num_steps):
            is_guided = bool(rate) and i >= steps.num_unguided
            if is_guided and len(conditions[0]) == len(x):
                conditions = [torch.cat([c, torch.zeros_like(c)]) for c in conditions]
                mask = None if mask is None else torch.cat([mask, mask])
            rows = torch.cat([x, x]) if is_guided else x
            velocity = self._velocity(frames, rows, mask, conditions, times[i])
            if is_guided:
                conditional, unconditional = velocity.chunk(2)
                velocity = (1 + rate) * conditional - rate * unconditional
            x = x + (times[i + 1] - times[i]) * velocity
        return x

    def _solve_meanflow(
        self,
        x: Tensor,
        mask: Tensor | None,
        conditions: list[Tensor],
        num_steps: int,
        frames: FlowPass | None,
    ) -> Tensor:
        """Average velocity from t to r in one estimator row; guidance is distilled into the weights."""
        times = torch.linspace(0, 1, num_steps + 1, dtype=torch.float32, device=x.device)
        for i in range(num_steps):
            x = x + (times[i + 1] - times[i]) * self._velocity(frames, x, mask, conditions, *times[i : i + 2])
        return x

    def _velocity(
        self, frames: FlowPass | None, x: Tensor, mask: Tensor | None, conditions: list[Tensor], *times: Tensor
    ) -> Tensor:
        """The estimator's in float32, of frames that follow others where ``frames`` says so."""
        x, (mu, spks, cond) = x.to(self.estimator.dtype), conditions
        t, *r = (time.expand(len(x)) for time in times)
        if frames is None:
            velocity: Tensor = self.estimator(x, mask, mu, t, spks, cond, *r)
            return velocity.float()
        assert mask is None
        return self.estimator.resume(frames.next_step(), x, mu, t, spks, cond, *r).float()


def _noise(mu: Tensor, z: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Float32 noise of mu's shape: ``z`` if given, else drawn in mu's dtype, as upstream does."""
    if z is None:
        where = generator.device if generator is not None else mu.device
        return torch.randn(mu.shape, generator=generator, device=where, dtype=mu.dtype).to(mu.device, torch.float32)
    batch, channels, num_frames = mu.shape
    if z.dim() != 3 or z.shape[0] not in (1, batch) or z.shape[1] != channels or z.shape[2] < num_frames:
        raise ValueError(f"z must be ({batch} or 1, {channels}, {num_frames} or more), got {tuple(z.shape)}")
    return z[..., :num_frames].to(mu.device, torch.float32).expand(mu.shape)
