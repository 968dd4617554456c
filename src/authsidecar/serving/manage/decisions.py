"""Decisions that were made, and what a change would have made of them, over the management API."""

from collections.abc import Iterable
from typing import TypeVar

from authsidecar.admin.decisions import Filter, not_kept, page, show
from authsidecar.admin.questions import (
    AllRefused,
    MostRefused,
    Question,
    UnansweredError,
    WouldFlip,
)
from authsidecar.admin.refusal_report import Count
from authsidecar.admin.what_if import WhatIf, changed
from authsidecar.observe.receipts import Receipt
from authsidecar.serving.manage import decision_models as models
from authsidecar.serving.manage.operations import (
    Call,
    NotDoneError,
    Operation,
    done,
    read_address,
    read_cursor,
    write_cursor,
)
from authsidecar.serving.manage.watching import explanation
from authsidecar.store.receipt_reader import StreamPosition
from authsidecar.times import UnixMs, rfc3339

T = TypeVar("T")


async def list_decisions(call: Call) -> models.DecisionPage:
    """A page of decisions, the newest first."""
    query: models.DecisionsQuery = call.query
    before = _place(read_cursor(query.cursor))
    since = UnixMs(await call.registry.now() - query.last_seconds * 1000)
    client, keys = call.sidecar.client, call.sidecar.keys
    found = await page(client, keys, filter_of(query), query.limit, since=since, before=before)
    following = None if found.before is None else write_cursor(list(found.before))
    return models.DecisionPage(items=[decision(one) for one in found.receipts], next=following)


async def read_decision(call: Call) -> models.ExplainedDecision:
    """One decision, with its checks then and now."""
    sidecar, name = call.sidecar, call.path["decision"]
    found = await show(
        name,
        client=sidecar.client,
        keys=sidecar.keys,
        rules=sidecar.rules(),
        store=sidecar.decisions,
        registry=call.registry,
    )
    if found is None:
        raise NotDoneError(404, not_kept(ascii(name[:64])[1:-1]))
    return models.ExplainedDecision(
        decision=decision(found.receipt),
        then=explanation(found.then),
        now=None if found.now is None else explanation(found.now),
        meaning=None if found.advice is None else found.advice.meaning,
        what_to_do=None if found.advice is None else found.advice.what_to_do,
    )


async def read_top(call: Call) -> models.Top:
    """Who, or what, is refused most."""
    query: models.TopQuery = call.query
    span_ms = query.last_seconds * 1000
    found = await _ask(call, MostRefused(filter_of(query), query.by, query.most, span_ms))
    return models.Top(by=query.by, items=_counts(found))


async def read_report(call: Call) -> models.Report:
    """What was refused, counted in every way."""
    query: models.ReportQuery = call.query
    found = await _ask(call, AllRefused(query.last_seconds * 1000, query.most))
    return models.Report(
        since=rfc3339(found.since),
        until=rfc3339(found.until),
        refused=found.refused,
        refused_by_coolify_too=found.refused_by_coolify_too,
        reported=found.reported,
        admitted_estimate=round(found.admitted),
        dropped=found.dropped,
        by_token=_counts(found.counts["token"]),
        by_user=_counts(found.counts["user"]),
        by_address=_counts(found.counts["address"]),
        by_route=_counts(found.counts["route"]),
        by_code=_counts(found.counts["code"]),
    )


async def simulate_change(call: Call) -> models.Simulated:
    """What a change would have done; nothing is changed."""
    body: models.Change = call.body
    wanted = WhatIf(body.allowlist, body.limits, body.routes, body.extra_routes)
    change = done(changed(call.sidecar.rules(), call.sidecar.routes(), wanted), 422)
    found = await _ask(call, WouldFlip(change, body.last_seconds * 1000))
    return models.Simulated(
        judged=found.judged,
        decisions_estimate=round(found.decisions),
        kinds=len(found.flips),
        flips=[
            models.Flip(
                would_be=one.direction,
                token=one.token,
                route=one.route,
                code=one.code,
                receipts=one.receipts,
                decisions=round(one.decisions),
                estimated=one.estimated,
                example=decision(one.example),
            )
            for one in found.flips[: models.MOST_FLIPS]
        ],
        unknown=[
            models.Unknown(why=one.why, decisions_estimate=round(one.decisions))
            for one in found.unknown
        ],
    )


async def _ask(call: Call, question: Question[T]) -> T:
    try:
        return await call.sidecar.ask(question)
    except UnansweredError as error:
        raise NotDoneError(409 if error.busy else 422, error.why) from None


def filter_of(query: models.DecisionFilter) -> Filter:
    """Which receipts a query wants.

    Raises:
        NotDoneError: its address is none.
    """
    address = None if query.address is None else read_address("address", query.address)
    return Filter(
        deny=query.deny,
        code=query.code,
        token=query.token,
        user=query.user,
        team=query.team,
        address=address,
        route=query.route,
    )


def _place(found: object) -> StreamPosition | None:
    match found:
        case None:
            return None
        case [int(at), int(number), int(stream)] if (
            min(at, number) >= 0 and max(at, number) < 2**63 and 0 <= stream < 64
        ):
            return StreamPosition(at, number, stream)
        case _:
            raise NotDoneError(422, "cursor: is none that a page gave as `next`")


def _counts(found: Iterable[Count]) -> list[models.Refusals]:
    return [
        models.Refusals(
            value=one.value,
            refused=one.refused,
            refused_by_coolify_too=one.refused_by_coolify_too,
            codes=dict(one.codes),
            example=one.example,
        )
        for one in found
    ]


def decision(one: Receipt) -> models.Decision:
    """A decision as the API shows it."""
    plain = {
        name: getattr(one, name)
        for name in models.Decision.model_fields
        if name not in {"at", "expires_at", "permissions", "limits", "restrictions", "counters"}
    }
    return models.Decision(
        **plain,
        at=rfc3339(one.at),
        expires_at=None if one.expires_at is None else rfc3339(one.expires_at),
        permissions=list(one.permissions),
        limits={
            scope: models.Override(limit=of.requests, window_seconds=of.window_ms / 1000)
            for scope, of in one.limits.items()
        },
        restrictions={holder: dict(of) for holder, of in one.restrictions.items()},
        counters=[
            models.CounterState(
                scope=of.scope,
                limit=of.limit.requests,
                window_seconds=of.limit.window_ms / 1000,
                remaining=of.remaining,
                reset_at=rfc3339(of.reset_at),
            )
            for of in one.counters
        ],
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/decisions",
        name="listDecisions",
        summary="List decisions that were made, the newest first.",
        run=list_decisions,
        query=models.DecisionsQuery,
        answer=models.DecisionPage,
        refusals=(422,),
    ),
    Operation(
        method="GET",
        path="/decisions/top",
        name="readTop",
        summary="Say who, or what, is refused most.",
        run=read_top,
        query=models.TopQuery,
        answer=models.Top,
        refusals=(409, 422),
    ),
    Operation(
        method="GET",
        path="/decisions/report",
        name="readReport",
        summary="Report what was refused, by token, owner, address, route and code.",
        run=read_report,
        query=models.ReportQuery,
        answer=models.Report,
        refusals=(409, 422),
    ),
    Operation(
        method="GET",
        path="/decisions/{decision}",
        name="readDecision",
        summary="Explain one decision: each check then and now, and what to do.",
        run=read_decision,
        answer=models.ExplainedDecision,
    ),
    Operation(
        method="POST",
        path="/simulate",
        name="simulateChange",
        summary="Say which decisions would have been others under a change. Nothing is changed.",
        run=simulate_change,
        body=models.Change,
        answer=models.Simulated,
        refusals=(409,),
    ),
)
"""In the order of their paths."""
