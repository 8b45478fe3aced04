"""What a server tells Prometheus: how soon and how evenly it speaks, what waits, what the cache saves.

Owns: names, units, buckets. Does not know: HTTP, who measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chatterbox.kvcache.prefix.stats import CacheStats
from chatterbox.serve.models import ServedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0)
MODEL = ("model",)
_COUNTERS = set(CacheStats().as_dict()) - {"hit_rate"}


class ServerMetrics:
    """Of one server. Thread-safe, as all of prometheus-client is."""

    def __init__(self, models: Callable[[], Iterable[ServedModel]], num_streams: Callable[[], int]) -> None:
        """``models``: those that are loaded now. ``num_streams``: requests that are answered now."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "chatterbox_requests",
            "Requests for speech, by how they ended",
            ("model", "outcome"),
            registry=self._registry,
        )
        self.audio_seconds = Counter(
            "chatterbox_audio_seconds", "Seconds of audio that were handed out", MODEL, registry=self._registry
        )
        self.first_audio = self._histogram("first_audio_seconds", "From a request to its first audio", SECONDS)
        self.gap = self._histogram("gap_seconds", "That a reader waited for later audio", SECONDS)
        self.real_time_factor = self._histogram(
            "real_time_factor", "Seconds that a reader waited, over those of audio", FACTORS
        )
        self._registry.register(_Held(models, num_streams))

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"chatterbox_{name}", about, MODEL, buckets=buckets, registry=self._registry)

    def text(self) -> bytes:
        """All of it, as Prometheus scrapes it."""
        return generate_latest(self._registry)


class _Held(Collector):
    """What is true at the moment: rows, queues, bytes of the caches, their counters."""

    def __init__(self, models: Callable[[], Iterable[ServedModel]], num_streams: Callable[[], int]) -> None:
        self._models, self._num_streams = models, num_streams

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("chatterbox_streams", "Requests that are answered now", value=self._num_streams())
        found: dict[str, Metric] = {}
        for model in self._models():
            engine = {f"engine_{name}": value for name, value in model.synthesizer.scheduler.stats().items()}
            cache = {f"cache_{name}": value for name, value in model.synthesizer.prefixes.manager.stats().items()}
            for name, value in {**engine, **cache}.items():
                _add(found, name, float(value), model.name)  # type: ignore[arg-type]  # numbers all
        yield from found.values()


def _add(found: dict[str, Metric], name: str, value: float, model: str) -> None:
    grows = name == "engine_steps" or name.removeprefix("cache_") in _COUNTERS
    if name.endswith("_ms"):
        name, value = f"{name.removesuffix('_ms')}_seconds", value / 1000
    family = CounterMetricFamily if grows else GaugeMetricFamily
    metric = found.setdefault(name, family(f"chatterbox_{name}", f"docs/serving.md: {name}", labels=("model",)))
    metric.add_metric([model], value)  # type: ignore[attr-defined]
