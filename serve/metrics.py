"""What an engine did, and its process, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from serve.engine import STEP_BOUNDS_S, Engine


class EngineCollector:
    """Reads an engine's figures when Prometheus asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Every figure."""
        engine, stats = self._engine, self._engine.stats()
        input_hz = engine.speaker.clock.input_hz
        yield GaugeMetricFamily("duplex_calls_active", "Calls now.", stats.num_active)
        yield GaugeMetricFamily("duplex_calls_capacity", "Calls at most.", engine.capacity)
        yield GaugeMetricFamily("duplex_call_state_bytes", "Memory of what the model remembers of a call.", engine.bytes_per_call)
        yield CounterMetricFamily("duplex_calls", "Calls taken.", stats.num_opened)
        yield CounterMetricFamily("duplex_calls_refused", "Calls refused because all lines were taken.", stats.num_refused)
        yield CounterMetricFamily("duplex_frames", "Frames of 80 ms delivered.", stats.num_frames)
        yield CounterMetricFamily("duplex_frames_late", "Frames delivered more than 80 ms after they could be stepped.", stats.num_late)
        yield CounterMetricFamily("duplex_audio_padded_seconds", "Silence put in for late audio.", stats.num_padded / input_hz)
        yield CounterMetricFamily("duplex_audio_trimmed_seconds", "Late audio left out.", stats.num_trimmed / input_hz)
        bounds = [*map(str, STEP_BOUNDS_S), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(stats.steps_by_bound)), strict=True))
        yield HistogramMetricFamily("duplex_step_seconds", "Time of a step of all calls that had a frame due.", buckets, stats.step_s)


def exposition(engine: Engine) -> bytes:
    """Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
