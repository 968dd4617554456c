"""Overview: how the whole fleet is doing, and what to do about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from authsidecar.serving.console.charts import Chart, ChartLine
from authsidecar.serving.console.page import ConsolePage, PageRoute, Visit, together
from authsidecar.serving.manage.fleet import Fleet, FleetPoint
from authsidecar.times import parse_rfc3339

SPANS: Final = {"hour": "Hour", "day": "Day", "week": "Week"}
"""The times that can be looked at, and what their links say."""

ROWS: Final = 12
"""Rows of the table beside a chart."""


@dataclass(frozen=True, slots=True)
class SlotRow:
    """A part of the time, as the table has it.

    Attributes:
        at: when it began.
        admitted: a second, on average; None: nobody has counted.
        refused: the same.
        p50: the highest of its slots, in milliseconds; None: none was measured.
        p99: the same.
    """

    at: str
    admitted: float | None
    refused: float | None
    p50: float | None
    p99: float | None


async def show(visit: Visit) -> web.StreamResponse:
    """How the fleet is doing, its warnings, and the last changes."""
    span = visit.query.get("span", "hour")
    fleet, health, warned, settings, changes = await together(
        visit.ask("readFleet", query={"span": span if span in SPANS else "hour"}),
        visit.ask("readStatus"),
        visit.ask("readWarnings"),
        visit.ask("readSettings"),
        visit.ask("listAudit", query={"limit": "5"}),
    )
    return visit.page(
        "overview.html",
        fleet=fleet,
        spans=SPANS,
        rates=_rates(fleet),
        times=_times(fleet),
        rows=list(_rows(fleet.points)),
        refused=sum(fleet.refused.values()),
        differ=_differ(fleet),
        health=health,
        warnings=warned.items,
        settings=settings,
        changes=changes.items,
    )


def _rates(fleet: Fleet) -> Chart:
    refused = sum(fleet.refused.values())
    return Chart(
        key="rates",
        title="Decisions a second",
        description=f"In the last {fleet.span}, {fleet.admitted} requests were admitted and "
        f"{refused} refused.",
        lines=(
            ChartLine("admitted", "good-line", [one.admitted for one in fleet.points]),
            ChartLine("refused", "bad-line", [one.refused for one in fleet.points], dashed=True),
        ),
        times=[parse_rfc3339(one.at) for one in fleet.points],
        step_ms=fleet.step_seconds * 1000,
    )


def _times(fleet: Fleet) -> Chart:
    p50, p99 = _ms(fleet.p50), _ms(fleet.p99)
    text = (
        "No decision was timed."
        if p50 is None or p99 is None
        else f"In the last {fleet.span}, half of the decisions took at most {p50:.2g} ms, "
        f"and 99 of 100 at most {p99:.2g} ms."
    )
    return Chart(
        key="times",
        title="Time of a decision, in milliseconds",
        description=text,
        lines=(
            ChartLine("p50", "line", [_ms(one.p50) for one in fleet.points]),
            ChartLine("p99", "bad-line", [_ms(one.p99) for one in fleet.points], dashed=True),
        ),
        times=[parse_rfc3339(one.at) for one in fleet.points],
        step_ms=fleet.step_seconds * 1000,
    )


def _rows(points: Sequence[FleetPoint]) -> Iterator[SlotRow]:
    """The latest first."""
    size = -(-len(points) // ROWS)
    for start in reversed(range(0, len(points), size)):
        part = points[start : start + size]
        yield SlotRow(
            part[0].at,
            _mean([one.admitted for one in part]),
            _mean([one.refused for one in part]),
            max((_ms(one.p50) or 0 for one in part if one.p50 is not None), default=None),
            max((_ms(one.p99) or 0 for one in part if one.p99 is not None), default=None),
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) / len(known) if known else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _differ(fleet: Fleet) -> list[str]:
    """What processes have not in common, and what to do about it."""
    found = []
    versions = sorted({one.version for one in fleet.processes})
    if len(versions) > 1:
        found.append(
            f"processes of the versions {', '.join(versions)} run side by side: finish the upgrade"
        )
    if len({one.config_digest for one in fleet.processes}) > 1:
        found.append(
            "processes decide by different configurations: bring the files into line, and reload "
            "(SIGHUP) or restart those that are behind"
        )
    return found


PAGE = ConsolePage("Overview", "/", (PageRoute("GET", "/", show),))
