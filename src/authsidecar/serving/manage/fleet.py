"""How all processes together are doing, over the management API."""

from typing import Annotated, Literal

from pydantic import Field

from authsidecar.admin.fleet import read_series
from authsidecar.serving.manage.models import Model, Query, Time
from authsidecar.serving.manage.operations import Call, Operation
from authsidecar.store.fleet import read_processes
from authsidecar.times import rfc3339

Seconds = Annotated[float | None, Field(description="In seconds; null: none was measured.")]
Rate = Annotated[float | None, Field(description="A second; null: nobody has counted.")]
SpanName = Literal["hour", "day", "week"]


class FleetQuery(Query):
    """Which time."""

    span: Annotated[SpanName, Field(description="The last hour, day or week.")] = "hour"


class FleetPoint(Model):
    """What was decided in one slot of time."""

    at: Annotated[Time, Field(description="When it began.")]
    admitted: Rate
    refused: Rate
    p50: Seconds
    p99: Seconds


class FleetProcess(Model):
    """A process that runs."""

    host: str
    pid: int
    version: str
    config_digest: str
    started_at: Time


class Fleet(Model):
    """What all processes have decided."""

    span: SpanName
    step_seconds: int
    admitted: int
    refused: Annotated[dict[str, int], Field(description="By reason code, the commonest first.")]
    p50: Seconds
    p99: Seconds
    points: list[FleetPoint]
    processes: list[FleetProcess]


async def read_fleet(call: Call) -> Fleet:
    """What all processes have decided in the last hour, day or week, and which there are."""
    query: FleetQuery = call.query
    client, keys, now = call.sidecar.client, call.sidecar.keys, call.sidecar.decisions.now()
    found = await read_series(client, keys, query.span, now)
    return Fleet(
        span=query.span,
        step_seconds=found.span.step_s,
        admitted=found.admitted,
        refused=dict(found.refused),
        p50=found.p50,
        p99=found.p99,
        points=[
            FleetPoint(
                at=rfc3339(one.at),
                admitted=one.admitted,
                refused=one.refused,
                p50=one.p50,
                p99=one.p99,
            )
            for one in found.points
        ],
        processes=[
            FleetProcess(
                host=one.host,
                pid=one.pid,
                version=one.version,
                config_digest=one.config,
                started_at=rfc3339(one.started_at),
            )
            for one in await read_processes(client, keys, now)
        ],
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/fleet",
        name="readFleet",
        summary="Say what all processes have decided in the last hour, day or week.",
        run=read_fleet,
        query=FleetQuery,
        answer=Fleet,
        refusals=(422,),
    ),
)
"""In the order of their paths."""
