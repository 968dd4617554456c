"""Spans on their way to a collector: OTLP over HTTP, by OpenTelemetry's own SDK, an extra.

A thread of the SDK's sends them in batches, every five seconds (OTEL_BSP_SCHEDULE_DELAY). What
finds no room pushes out the oldest; what the collector does not take within the time limit is gone.
No request waits for either.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from authsidecar.observe.traces import TracedDecision

QUEUE: Final = 2048
"""Spans that wait, at most."""

BATCH: Final = 512
TIMEOUT_S: Final = 3.0
"""How long the collector may take for a batch, repetitions included, in seconds."""

_IDS: Final = RandomIdGenerator()
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("authsidecar")
_FINE: Final = Status(StatusCode.UNSET)
_FAILED: Final = Status(StatusCode.ERROR)

Told = Callable[[bool], None]
"""Told, from another thread, when batches arrive again, and when they do not."""


class Exporter:
    """Records spans, and has them sent."""

    def __init__(self, endpoint: str, resource: Mapping[str, str], told: Told) -> None:
        """The thread begins to wait.

        Args:
            endpoint: the collector's URL for traces.
            resource: who we are; what OTEL_RESOURCE_ATTRIBUTES says is added.
            told: told when the collector begins or ceases to take batches.
        """
        self._resource = Resource.create(dict(resource))
        self._processor = BatchSpanProcessor(
            _Telling(OTLPSpanExporter(endpoint, timeout=TIMEOUT_S), told),
            max_queue_size=QUEUE,
            max_export_batch_size=BATCH,
        )

    def record(self, span: TracedDecision) -> None:
        """Take a span, and one for each of its trips; never waits.

        Made at their end, as they are read: a tracer's spans cost five times as much.
        """
        parent = span.parent and _context(*span.parent, remote=True)
        trace_id = _IDS.generate_trace_id() if parent is None else parent.trace_id
        own = _context(trace_id, _IDS.generate_span_id())
        for trip in span.trips:
            about = {"db.system.name": "redis", "db.operation.name": trip.operation}
            if trip.error is not None:
                about["error.type"] = trip.error
            self._processor.on_end(
                ReadableSpan(
                    f"redis {trip.operation}",
                    _context(trace_id, _IDS.generate_span_id()),
                    own,
                    self._resource,
                    about,
                    kind=SpanKind.CLIENT,
                    status=_FINE if trip.error is None else _FAILED,
                    start_time=trip.start_ns,
                    end_time=trip.end_ns,
                    instrumentation_scope=_SCOPE,
                )
            )
        self._processor.on_end(
            ReadableSpan(
                "authorize",
                own,
                parent,
                self._resource,
                span.attributes,
                kind=SpanKind.SERVER,
                status=_FAILED if span.failed else _FINE,
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self, patience_s: float) -> None:
        """Send what waits, for so many seconds at most; what is recorded later is gone."""
        ending = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(patience_s)


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=_SAMPLED)


class _Telling(SpanExporter):
    """An exporter that says when it begins and ceases to fail."""

    def __init__(self, exporter: SpanExporter, told: Told) -> None:
        self._exporter = exporter
        self._told = told
        self._works = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        works = result is SpanExportResult.SUCCESS
        if works is not self._works:
            self._works = works
            self._told(works)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
