"""Is memory running short? A look at it now and then, two watermarks, and who asks what they mean.

Owns: reading free memory (`MemoryProbe`), how often, the level of pressure, what was said of it in the log. Does not
know: what gives way, which is the manager's: docs/kvcache.md, Pressure, has the order.

No thread of its own: memory is looked at when somebody asks, at most every ``interval_ms``. Where the system does not
say how much memory there is, there is no pressure.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from chatterbox.config import PressureConfig
from chatterbox.runtime import forking

logger = logging.getLogger(__name__)

MIB = 2**20
EASED = 1.25  # an episode is over when this many times the soft watermark is free, so that it is not one of many
NUM_HARD_LOOKS = 2  # looks in a row beyond the hard watermark until requests wait: all else had its turn


class Level(enum.IntEnum):
    NONE = 0
    SOFT = 1
    HARD = 2


@dataclass(frozen=True)
class MemoryReading:
    """Bytes; None where there is no such memory, or no telling."""

    device_free: int | None = None  # on the accelerator, what torch keeps for later included
    process: int | None = None  # resident, of this process
    system_available: int | None = None  # of the machine, or of the container's limit


class MemoryProbe(Protocol):
    """Where readings come from. Raises nothing: what cannot be read is None."""

    def read(self) -> MemoryReading: ...


@dataclass(frozen=True)
class Pressure:
    """One look: how short memory is, in bytes below the soft watermark, on the device and in host memory."""

    number: int = 0  # of the look
    level: Level = Level.NONE
    device_short: int = 0
    host_short: int = 0


class MemoryMonitor:
    """Level of pressure, from a probe and watermarks. Safe from several threads."""

    def __init__(
        self, config: PressureConfig, probe: MemoryProbe, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock``: seconds."""
        self.config, self.num_episodes, self.num_delays = config, 0, 0
        self._probe, self._clock = probe, clock
        forking.register(self, MemoryMonitor._renew)
        self._last, self._looked_at, self._num_hard = Pressure(), float("-inf"), 0
        self._said: set[str] | None = None  # what this episode's log says already; None: there is no episode

    def poll(self) -> Pressure:
        """The pressure now, or ``interval_ms`` ago at most."""
        with self._lock:
            return self._looked()

    def admits(self, *, is_new: bool = True) -> bool:
        """Whether another request may join those under way; ask before each. With none under way, do not ask: go.

        False while memory stays beyond the hard watermark although prefixes have made room. That is counted where
        ``is_new``: it is asked for the first time for this request.
        """
        with self._lock:
            self._looked()
            if self._num_hard < NUM_HARD_LOOKS:
                return True
            self.num_delays += is_new
        self.say("requests wait until others have ended")
        return False

    def say(self, action: str) -> None:
        """Log what gives way, once in an episode."""
        with self._lock:
            if self._said is None or action in self._said:
                return
            self._said.add(action)
            last = self._last
        shortages = [("device", last.device_short), ("host", last.host_short)]
        short = ", ".join(f"{size / MIB:.0f} MiB of {name} memory" for name, size in shortages if size)
        logger.warning("memory runs short (%s below the soft watermark): %s", short or "just now", action)

    def _renew(self) -> forking.Lock:
        self._lock = threading.RLock()
        return self._lock

    def _looked(self) -> Pressure:
        now = self._clock()
        if now - self._looked_at >= self.config.interval_ms / 1000:
            self._looked_at = now
            self._last = self._judged(self._probe.read())
            self._num_hard = self._num_hard + 1 if self._last.level == Level.HARD else 0
        return self._last

    def _judged(self, reading: MemoryReading) -> Pressure:
        soft, hard, limit = self.config.soft_mib * MIB, self.config.hard_mib * MIB, self.config.process_mib
        allowed = None if limit is None or reading.process is None else limit * MIB - reading.process
        device = soft if reading.device_free is None else reading.device_free
        hosts = [free for free in (reading.system_available, allowed) if free is not None]
        host, number = min(hosts, default=soft), self._last.number + 1
        least = min(device, host)
        if least < soft:
            if self._said is None:
                self._said = set()
                self.num_episodes += 1
            level = Level.HARD if least < hard else Level.SOFT
            return Pressure(number, level, max(0, soft - device), max(0, soft - host))
        known = hosts if reading.device_free is None else [*hosts, device]
        if min(known, default=EASED * soft) >= EASED * soft:
            self._end()
        return Pressure(number)

    def _end(self) -> None:
        if self._said:
            logger.info("memory suffices again")
        self._said = None


class SystemProbe:
    """The system's own figures: CUDA's for one device, /proc and the control group's limit where there are such."""

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        """``device``: None, or one that is not CUDA's, has no memory of its own."""
        self._device = None if device is None else torch.device(device)
        self._proc = proc
        self._groups = list(_groups(proc, cgroups))
        self._page_size = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1

    def read(self) -> MemoryReading:
        return MemoryReading(self._device_free(), self._process(), self._system_available())

    def _device_free(self) -> int | None:
        if self._device is None or self._device.type != "cuda":
            return None
        try:
            free, _ = torch.cuda.mem_get_info(self._device)
            return free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        except RuntimeError:
            return None

    def _process(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((self._proc / "self" / "statm").read_text().split()[1]) * self._page_size
        return None

    def _system_available(self) -> int | None:
        kib = _field(self._proc / "meminfo", "MemAvailable:")
        frees = [None if kib is None else 1024 * kib, *(group.available() for group in self._groups)]
        return min((free for free in frees if free is not None), default=None)


@dataclass(frozen=True)
class _Group:
    """Files of one control group that say what it may use, what it does, and what of that the kernel gives back."""

    limit: Path
    used: Path
    stat: Path
    given_back: str

    def available(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            return max(0, int(self.limit.read_text()) - int(self.used.read_text())) + (
                _field(self.stat, self.given_back) or 0
            )
        return None


def _groups(proc: Path, cgroups: Path) -> Iterator[_Group]:
    """Those that this process is in, of both versions of the interface; each folder above is a limit too."""
    versions = {
        "": (cgroups, "memory.max", "memory.current", "inactive_file"),
        "memory": (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kind, path = line.split(":", 2)
        if kind not in versions:
            continue
        root, limit, used, given_back = versions[kind]
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and (folder / limit).exists():
                yield _Group(folder / limit, folder / used, folder / "memory.stat", given_back)


def _field(path: Path, name: str) -> int | None:
    """The number that follows ``name`` in a file of such lines."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return None
