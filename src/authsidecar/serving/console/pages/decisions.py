"""Decisions: who was admitted or refused, and why; as a list, live, and one by one."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from authsidecar.admin.decisions import Filter
from authsidecar.admin.live import latest
from authsidecar.serving.console.headers import HEADERS
from authsidecar.serving.console.page import ConsolePage, PageRoute, Visit, validated
from authsidecar.serving.console.rendering import render
from authsidecar.serving.manage.decision_models import DecisionFilter
from authsidecar.serving.manage.decisions import decision, filter_of
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.times import UnixMs

SHOWN_LIVE: Final = 20
"""How many decisions a second the live view shows; of more, the latest."""

LIVE_MS: Final = 1000
"""When a browser asks for the next ones, in milliseconds."""

BACKLOG_MS: Final = 10_000
"""A browser that was away for longer, in milliseconds, goes on with the latest."""

FIELDS: Final = ("code", "token", "user", "team", "address", "route")

TIMES: Final = {
    "3600": "last hour",
    "86400": "last day",
    "604800": "last week",
    "2678400": "last month",
}
"""How far back a list goes, in seconds."""


async def show(visit: Visit) -> web.StreamResponse:
    """A page of decisions, the newest first."""
    given = _given(visit)
    query = {name: value for name, value in given.items() if value}
    if "cursor" in visit.query:
        query["cursor"] = visit.query["cursor"]
    wrong, status = "", 200
    try:
        found = await visit.ask("listDecisions", query=query)
        items, following = found.items, found.next
    except NotDoneError as error:
        items, following, wrong, status = [], None, error.why, error.status
    return visit.page(
        "decisions.html",
        status=status,
        wrong=wrong,
        decisions=items,
        next=following,
        given=given,
        times=TIMES,
        filtered=any(value for name, value in given.items() if name != "last_seconds"),
    )


def _given(visit: Visit) -> dict[str, str]:
    """The filters as they were sent; what is no filter is left out."""
    given = {name: visit.query.get(name, "").strip() for name in FIELDS}
    given["deny"] = "true" if visit.query.get("deny") else ""
    span = visit.query.get("last_seconds", "")
    return given | {"last_seconds": span if span in TIMES else "86400"}


async def show_one(visit: Visit) -> web.StreamResponse:
    """One decision: each check then and now, and what to do."""
    found = await visit.ask("readDecision", path={"decision": visit.path["decision"]})
    now = {} if found.now is None else {check.name: check for check in found.now.checks}
    then = {check.name: check for check in found.then.checks}
    return visit.page(
        "decision.html",
        found=found,
        one=found.decision,
        checks=[(name, then.get(name), now.get(name)) for name in {**then, **now}],
    )


async def live(visit: Visit) -> web.StreamResponse:
    """What was decided since a browser last asked, as events; it asks again by itself.

    Each answer ends at once, so nothing stays open: a browser's EventSource comes back after
    LIVE_MS with the time of the last event (HTML, "Server-sent events").
    """
    now = await visit.call().registry.now()
    since = _since(visit.request.headers, now)
    client, keys = visit.sidecar.client, visit.sidecar.keys
    found = await latest(client, keys, _filter(visit), SHOWN_LIVE, since=since, before=now)
    rows = "".join(
        render("decision_row.html", one=decision(one)) for one in reversed(found.receipts)
    )
    event = "sample" if found.more else "all"
    text = f"retry: {LIVE_MS}\nid: {now}\nevent: {event}\n{_data(rows)}\n\n"
    return web.Response(
        body=text.encode("utf-8"),
        content_type="text/event-stream",
        charset="utf-8",
        headers=HEADERS,
    )


def _filter(visit: Visit) -> Filter:
    query = {name: value for name, value in _given(visit).items() if value}
    return filter_of(validated(DecisionFilter, query))


def _since(headers: Mapping[str, str], now: UnixMs) -> UnixMs:
    last = headers.get("Last-Event-ID", "")
    given = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else now
    return UnixMs(max(given, now - BACKLOG_MS))


def _data(text: str) -> str:
    return "\n".join(f"data: {line}" for line in text.splitlines() or [""])


PAGE = ConsolePage(
    "Decisions",
    "/decisions",
    (
        PageRoute("GET", "/decisions", show),
        PageRoute("GET", "/decisions/live", live, polled=True),
        PageRoute("GET", "/decisions/{decision}", show_one),
    ),
)
