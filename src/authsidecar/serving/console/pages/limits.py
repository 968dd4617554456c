"""Limits: who is near or over, and whose limit is another than the configured one."""

import time
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from authsidecar.admin.pressed import Pressed, pressed
from authsidecar.serving.console.page import ConsolePage, PageRoute, Undo, Visit
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.times import UnixMs

SCOPES: Final = ("token", "user", "team")
"""Who can have a limit of its own."""

SPAN_MS: Final = 10 * 60_000
"""For how long somebody who came near a limit is shown, in milliseconds."""

SEARCHING_S: Final = 0.1
"""How long overrides are looked for before a page is shown, in seconds."""

SHOWN: Final = 50
"""How many overrides a page has, about."""


async def show(visit: Visit) -> web.StreamResponse:
    """Who is near or over, and a page of overrides."""
    return await _shown(visit)


async def show_near(visit: Visit) -> web.StreamResponse:
    """Who is near or over, alone: asked for every few seconds."""
    answer = visit.page("limits_near.html", near=await _near(visit))
    visit.shown = False  # a notice is told by the whole page
    return answer


async def _near(visit: Visit) -> tuple[Pressed, ...]:
    now = await visit.call().registry.now()
    return await pressed(visit.sidecar.client, visit.sidecar.keys, UnixMs(now - SPAN_MS))


async def _shown(visit: Visit, *, wrong: str = "", status: int = 200) -> web.StreamResponse:
    scope = visit.query.get("scope", "token")
    scope = scope if scope in SCOPES else "token"
    near = await _near(visit)
    found, following = await _overrides(visit, scope)
    return visit.page(
        "limits.html",
        status=status,
        wrong=wrong,
        near=near,
        overrides=found,
        next=following,
        first="cursor" not in visit.query,
        scope=scope,
        scopes=SCOPES,
        configured=visit.sidecar.rules().limits,
    )


async def _overrides(visit: Visit, scope: str) -> tuple[list[models.Limit], str | None]:
    """Those that are found in a short time, and where to go on."""
    until = time.monotonic() + SEARCHING_S
    found: list[models.Limit] = []
    cursor = visit.query.get("cursor")
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        page = await visit.ask("listLimits", query={"scope": scope, "limit": "200"} | more)
        found += page.items
        cursor = page.next
        if cursor is None or len(found) >= SHOWN or time.monotonic() > until:
            return found, cursor


async def set_one(visit: Visit) -> web.StreamResponse:
    """Give a token, user or team a limit of its own, or another one."""
    try:
        scope, number = _holder(visit.form.get("scope", ""), visit.form.get("id", "").strip())
        window = visit.form.get("window_seconds", "").strip()
        body = {
            "limit": _number("requests", visit.form.get("limit", "")),
            "window_seconds": _number("window", window) if window else None,
        }
        where = {"scope": scope, "id": number}
        before = await visit.ask("readLimit", path=where)
        found = await visit.ask("setLimit", path=where, body=body)
    except NotDoneError as error:
        return await _shown(visit, wrong=error.why, status=error.status)
    undo = await _undo(visit, before)
    return await _back(visit, scope, f"{scope} {found.id} may make {_words(found)}", undo)


async def clear_one(visit: Visit) -> web.StreamResponse:
    """Take its own limit back."""
    scope, number = _holder(visit.path["scope"], visit.path["id"])
    where = {"scope": scope, "id": number}
    before = await visit.ask("readLimit", path=where)
    found = await visit.ask("clearLimit", path=where)
    said = f"{scope} {found.id} may make {_words(found)}, as configured"
    return await _back(visit, scope, said, await _undo(visit, before))


async def _undo(visit: Visit, before: models.Limit) -> Undo:
    where = {"scope": before.scope, "id": before.id}
    if before.source != "override" or before.window_seconds is None:
        return await visit.undo("clearLimit", where)
    body = {"limit": before.limit, "window_seconds": int(before.window_seconds)}
    return await visit.undo("setLimit", where, body)


async def reset_one(visit: Visit) -> web.StreamResponse:
    """Forget what was counted."""
    scope, number = _holder(visit.path["scope"], visit.path["id"])
    found = await visit.ask("resetLimit", path={"scope": scope, "id": number})
    return await _back(visit, scope, f"the counter of {scope} {found.id} is empty again")


async def _back(visit: Visit, scope: str, said: str, undo: Undo | None = None) -> web.Response:
    return await visit.moved(f"/limits?{urlencode({'scope': scope})}", said=said, undo=undo)


def _words(found: models.Limit) -> str:
    if found.limit is None or found.window_seconds is None:
        return "as many requests as it likes"
    return f"{found.limit} requests in {found.window_seconds:g} s"


def _holder(scope: str, number: str) -> tuple[str, int]:
    if scope not in SCOPES:
        raise NotDoneError(422, f"whose limit: is none of {', '.join(SCOPES)}")
    return scope, _number("id", number)


def _number(name: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise NotDoneError(422, f"{name}: is not a number")
    return int(text)


PAGE = ConsolePage(
    "Limits",
    "/limits",
    (
        PageRoute("GET", "/limits", show),
        PageRoute("GET", "/limits/near/part", show_near, polled=True),
        PageRoute("POST", "/limits", set_one),
        PageRoute("POST", "/limits/{scope}/{id}/clear", clear_one),
        PageRoute("POST", "/limits/{scope}/{id}/reset", reset_one),
    ),
)
