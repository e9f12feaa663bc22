"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Of one server; none is shared with other users of the library in this process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "egmf_requests", "Requests by path and status; 499: the client went away", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "egmf_request_seconds", "From the request's first byte to its answer", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.running = Gauge("egmf_requests_running", "Requests that are not answered yet", registry=registry)
        self.queue = Gauge("egmf_queue_places_taken", "Utterances that wait or are worked on", registry=registry)
        self.decode = Histogram(
            "egmf_decode_seconds", "A clip in its process, waiting for one included", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "egmf_batch_samples", "Questions that the model answered at once", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )  # fmt: skip
        self.streams = Counter(
            "egmf_clip_streams", "What became of clips' streams", ["stream", "status"], registry=registry
        )

    def text(self) -> bytes:
        """The page that Prometheus asks for."""
        return generate_latest(self.registry)
