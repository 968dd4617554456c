"""Traces, where a collector is set: else nothing of them is imported."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from authsidecar import __version__, extras
from authsidecar.config import Settings
from authsidecar.observe.log import Log
from authsidecar.observe.traces import Sampler
from authsidecar.run.errors import StartError

PATIENCE_S: Final = 2.0
"""How long a stop waits for the collector, in seconds."""


def check(settings: Settings) -> None:
    """See whether traces can be sent.

    Raises:
        StartError: a collector is set, and OpenTelemetry is missing.
    """
    if settings.traces.endpoint is None:
        return
    try:
        import authsidecar.observe.otlp  # noqa: F401, PLC0415  # an extra
    except ImportError:
        raise StartError(
            f"traces.endpoint: needs OpenTelemetry: {extras.command('otel')}"
        ) from None


@asynccontextmanager
async def tracing(settings: Settings, log: Log) -> AsyncIterator[Sampler | None]:
    """What traces decisions; None: nobody wants traces.

    Raises:
        StartError: OpenTelemetry is missing.
    """
    section = settings.traces
    if section.endpoint is None:
        yield None
        return
    check(settings)
    from authsidecar.observe.otlp import Exporter  # noqa: PLC0415

    def told(works: bool) -> None:
        if works:
            log.event("info", "traces_exported")
        else:
            log.event("warning", "traces_lost", hint="the collector at traces.endpoint takes none")

    _silence()
    who = {"service.name": "authsidecar", "service.version": __version__}
    exporter = Exporter(section.endpoint, who, told)
    try:
        yield Sampler(exporter.record, ratio=section.ratio, max_per_second=section.max_per_second)
    finally:
        await asyncio.to_thread(exporter.close, PATIENCE_S)


def _silence() -> None:
    """OpenTelemetry would log every batch, every retry, and the collector's URL."""
    import logging  # noqa: PLC0415  # only the edge knows that it exists

    for name in ("opentelemetry", "urllib3"):
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.propagate = False
