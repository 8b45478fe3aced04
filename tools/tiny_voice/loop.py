"""One training loop for every stage: resumable, averaged weights, one log line a while.

Owns: optimiser, schedule, checkpoints, the log. Does not know: what a stage learns.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant rate, then a linear decay to zero over the last ``decay_share`` of ``steps``."""

    steps: int
    learning_rate: float
    warmup_steps: int = 200
    decay_share: float = 0.3
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    average_decay: float = 0.999

    def factor(self, step: int) -> float:
        """Learning rate at ``step`` as a share of `learning_rate`."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return max(0.0, min(1.0, (step + 1) / self.warmup_steps, left))


# A NamedTuple of tensors and plain numbers.
Batch = TypeVar("Batch", bound=tuple[Any, ...])


class Stage(ABC, Generic[Batch]):
    """What a stage brings: a module to train, batches and a loss."""

    name: str
    schedule: Schedule
    module: nn.Module

    @abstractmethod
    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        """A fresh batch on the CPU, decided by ``rng`` and ``step`` alone: other processes may draw it ahead."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch on the module's device, and figures to log."""

    def held_out(self) -> Iterator[tuple[str, Batch]]:
        """Batches of held-out data, always the same, with a word that goes before their figures' names."""
        return iter(())


def train(
    stage: Stage[Any],
    work: Path,
    *,
    minutes: float = math.inf,
    device: str | torch.device = "cpu",
    workers: int = 0,
    report_every: int = 50,
    save_every: int = 300,
) -> None:
    """Train ``stage`` until its schedule ends, ``minutes`` have passed or the process is asked to stop by a signal.

    Continues where the last run stopped. Writes ``work/NAME.pt`` (everything needed to resume, replaced whole) and
    appends to ``work/NAME.jsonl``. ``workers`` processes draw the batches ahead; 0 draws them in between.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{stage.name}.pt"
    run = _Run(stage, torch.device(device))
    if checkpoint.exists():
        run.load(torch.load(checkpoint, map_location="cpu", weights_only=True))
        logger.info("%s: resumed at step %d of %d", stage.name, run.step, stage.schedule.steps)
    steps = range(run.step, stage.schedule.steps)
    batches = DataLoader(_Draws(stage), batch_size=None, sampler=steps, num_workers=workers, collate_fn=_unchanged)
    started, recent = time.monotonic(), []
    with open(work / f"{stage.name}.jsonl", "a") as log, _stop_requests() as stopped:
        waiting = iter(batches)
        while run.step < stage.schedule.steps and time.monotonic() - started < 60 * minutes and not stopped:
            recent.append(run.advance(waiting))
            if run.step % report_every == 0:
                figures = {key: float(np.mean([r[key] for r in recent if key in r])) for key in recent[-1]}
                recent.clear()
                record = {"step": run.step, "seconds": round(run.seconds, 1), **figures}
                if run.step % save_every == 0:
                    record |= run.validate()
                print(json.dumps(record), file=log, flush=True)
            if run.step % save_every == 0:
                _replace(checkpoint, run.state())
    _replace(checkpoint, run.state())


class _Draws(Dataset[Any]):
    """The batch of each step."""

    def __init__(self, stage: Stage[Any]) -> None:
        self.stage = stage

    def __getitem__(self, step: int) -> Any:
        return self.stage.draw(np.random.default_rng((step, 20250718)), step)


def _unchanged(batch: Any) -> Any:
    return batch


def _to(batch: Batch, device: torch.device) -> Batch:
    return type(batch)(*(x.to(device) if isinstance(x, Tensor) else x for x in batch))


def averaged_weights(work: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a stage's module, to be loaded by later stages and by the export.

    Raises:
        FileNotFoundError: the stage has not been trained yet.
    """
    path = work / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `python -m tools.tiny_voice {name}` first")
    return torch.load(path, map_location="cpu", weights_only=True)["average"]


@torch.no_grad()
def held_out_figures(stage: Stage[Any], device: torch.device | str = "cpu") -> dict[str, float]:
    """Means of a stage's figures over its held-out batches, named ``held_out_*``."""
    collected: dict[str, list[float]] = {}
    for label, batch in stage.held_out():
        for key, value in stage.loss(_to(batch, torch.device(device)))[1].items():
            collected.setdefault(f"held_out_{label}{key}", []).append(value)
    return {key: float(np.mean(values)) for key, values in collected.items()}


class _Run:
    def __init__(self, stage: Stage[Any], device: torch.device) -> None:
        self.stage, self.device, self.step, self.seconds = stage, device, 0, 0.0
        schedule = stage.schedule
        stage.module.to(device)
        decayed = [p for p in stage.module.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in stage.module.parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        self.average = {k: v.detach().clone() for k, v in stage.module.state_dict().items()}

    def advance(self, batches: Iterator[Any]) -> dict[str, float]:
        began = time.monotonic()
        schedule, module = self.stage.schedule, self.stage.module
        module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.factor(self.step)
        loss, figures = self.stage.loss(_to(next(batches), self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), schedule.grad_clip)
        if not torch.isfinite(norm):
            raise RuntimeError(f"{self.stage.name}: gradient is not finite at step {self.step}")
        self.optimizer.step()
        self.step += 1
        self._update_average()
        self.seconds += time.monotonic() - began
        return {"loss": float(loss.detach()), "grad_norm": float(norm), **figures}

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first, so that the random start is soon forgotten.
        decay = min(self.stage.schedule.average_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.stage.module.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def validate(self) -> dict[str, float]:
        module = self.stage.module
        own = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.average)
        module.eval()
        figures = held_out_figures(self.stage, self.device)
        module.load_state_dict(own)
        return figures

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "module": self.stage.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.stage.module.load_state_dict(state["module"])
        self.average = {key: value.to(self.device) for key, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that gets the number of each signal asking the process to stop; it stays empty outside the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _replace(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
