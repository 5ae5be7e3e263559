"""The metrics of the server, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pitcli.serving.answering import Outcome
from pitcli.serving.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """Counters of requests, and gauges that are read from the engine."""

    def __init__(self, engine: Engine, running: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("pit_requests", "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "pit_request_seconds", "Time until a request was answered", ["path"], buckets=SECONDS, registry=registry
        )
        self._stops = Counter("pit_stops", "Improvements by stop reason", ["reason"], registry=registry)
        self._iterations = Counter("pit_iterations", "Iterations by fate", ["accepted"], registry=registry)
        self._left = Counter("pit_clients_left", "Clients that left before their answer", registry=registry)
        gauges = {
            "pit_requests_running": ("Requests that run or wait", running),
            "pit_engine_jobs": ("Drafts and comparisons in the engine", engine.in_progress),
            "pit_responses_waiting": ("Responses that wait for a slot", engine.waiting),
            "pit_generated_tokens": ("Tokens that the improver generated since the start", lambda: engine.tokens),
        }
        for name, (meaning, read) in gauges.items():
            Gauge(name, meaning, registry=registry).set_function(read)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def left(self) -> None:
        """Count a client that left before its answer."""
        self._left.inc()

    def improved(self, outcome: Outcome) -> None:
        self._stops.labels(str(outcome.stop_reason)).inc()
        for iteration in outcome.iterations:
            self._iterations.labels(str(iteration["accepted"]).lower()).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
