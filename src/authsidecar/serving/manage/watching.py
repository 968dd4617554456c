"""What is only looked at over the management API: status, warnings, keys, audit, explanations."""

import os
import time

from authsidecar.admin.audit import find_record
from authsidecar.admin.explain import (
    HINTS,
    Explanation,
    as_if_known,
    explain,
    untrusted_peer,
)
from authsidecar.admin.refusal import absent
from authsidecar.decision.model import Deny, TokenId
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import (
    Call,
    NotDoneError,
    Operation,
    read_address,
    read_cursor,
    write_cursor,
)
from authsidecar.store.audit import Record, as_data
from authsidecar.times import UnixMs, rfc3339

_STARTED = UnixMs(int(time.time() * 1000))


async def read_status(call: Call) -> models.Status:
    """How this process is doing."""
    sidecar = call.sidecar
    missing = await sidecar.missing()
    away = "redis" in missing
    sync = None if away else await sidecar.sync()
    return models.Status(
        version=sidecar.version,
        pid=os.getpid(),
        started_at=rfc3339(_STARTED),
        ready=not missing,
        missing=dict(missing),
        background=dict(sidecar.background()),
        sync=None if sync is None else dict(sync),
        owned_by=None if away else await sidecar.owner(),
    )


async def read_warnings(call: Call) -> models.Warned:
    """What `check-config` warns of."""
    return models.Warned(items=list(call.sidecar.warnings()))


async def list_keys(call: Call) -> models.KeyPage:
    """The management keys: they are few, so this is one page."""
    found, now = await call.management_keys.list(), await call.management_keys.now()
    items = [
        models.Key(
            id=one.id,
            name=one.name,
            scope=one.scope.value,
            created_at=rfc3339(one.created_at),
            expires_at=None if one.expires_at is None else rfc3339(one.expires_at),
            expired=one.expired(now),
        )
        for one in found
    ]
    return models.KeyPage(items=items, next=None)


async def list_audit(call: Call) -> models.AuditPage:
    """A page of changes, the newest first."""
    place = read_cursor(call.query.cursor)
    if place is not None and not (isinstance(place, str) and _is_record(place)):
        raise NotDoneError(422, "cursor: is none that a page gave as `next`")
    found = await call.trail.latest(call.query.limit, place)
    more = write_cursor(found[-1].id) if len(found) == call.query.limit else None
    return models.AuditPage(items=[_record(one) for one in found], next=more)


async def read_record(call: Call) -> models.AuditRecord:
    """One change."""
    found = await find_record(call.trail, call.path["record"])
    if found is None:
        name = call.path["record"][:40]
        raise NotDoneError(404, f"there is no record {name!a}; `authsidecar audit tail` shows them")
    return _record(found)


async def explain_request(call: Call) -> models.Explained:
    """What a client's request would be answered now; nothing is counted."""
    body: models.Question = call.body
    sidecar = call.sidecar
    client = read_address("client_ip", body.client_ip)
    if body.peer is not None and (peer := read_address("peer", body.peer)) not in sidecar.peers():
        return _explained(untrusted_peer(peer))
    credential = None
    if body.as_token is not None:
        if body.token is not None:
            raise NotDoneError(422, "token and as_token exclude one another")
        credential = await as_if_known(TokenId(body.as_token), call.registry)
        if credential is None:
            raise NotDoneError(422, absent("token", body.as_token))
    bearer = [] if body.token is None else [_bytes(f"Bearer {body.token}")]
    found = await explain(
        (_bytes(body.method), _bytes(body.target)),
        bearer,
        client,
        hops=sidecar.hops(),
        rules=sidecar.rules(),
        store=sidecar.decisions,
        registry=call.registry,
        others=[(_bytes(one.name), _bytes(one.value)) for one in body.headers],
        as_token=credential,
    )
    return _explained(found, taken=credential is not None)


def explanation(found: Explanation) -> models.Explanation:
    """An explanation as the API shows it."""
    return models.Explanation(
        outcome="deny" if isinstance(found.verdict, Deny) else "allow",
        status=found.status,
        code=found.code,
        hint=HINTS.get(found.code or ""),
        checks=[
            models.Check(name=row.name, result=row.result.value, detail=row.detail)
            for row in found.rows
        ],
    )


def _explained(found: Explanation, *, taken: bool = False) -> models.Explained:
    return models.Explained(**dict(explanation(found)), secret_taken_as_right=taken)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _is_record(place: str) -> bool:
    first, dash, second = place.partition("-")
    return bool(dash) and first.isdigit() and second.isdigit() and len(place) < 30


def _record(record: Record) -> models.AuditRecord:
    return models.AuditRecord(at=rfc3339(record.at), **as_data(record))


OPERATIONS = (
    Operation(
        method="GET",
        path="/status",
        name="readStatus",
        summary="Say how this process is doing.",
        run=read_status,
        answer=models.Status,
    ),
    Operation(
        method="GET",
        path="/warnings",
        name="readWarnings",
        summary="Say what is legal but unwise about the configuration.",
        run=read_warnings,
        answer=models.Warned,
    ),
    Operation(
        method="GET",
        path="/keys",
        name="listKeys",
        summary="List the management keys; `authsidecar key` makes and revokes them.",
        run=list_keys,
        answer=models.KeyPage,
    ),
    Operation(
        method="GET",
        path="/audit",
        name="listAudit",
        summary="List changes, the newest first.",
        run=list_audit,
        query=models.PageQuery,
        answer=models.AuditPage,
        refusals=(422,),
    ),
    Operation(
        method="GET",
        path="/audit/{record}",
        name="readAuditRecord",
        summary="Read one change whole.",
        run=read_record,
        answer=models.AuditRecord,
    ),
    Operation(
        method="POST",
        path="/explain",
        name="explainRequest",
        summary="Say what a client's request would be answered now, and why. Nothing is counted.",
        run=explain_request,
        body=models.Question,
        answer=models.Explained,
    ),
)
"""In the order of their paths."""
