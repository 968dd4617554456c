"""Ask: what a request would be answered, and what a change of the settings would have done."""

import json
from typing import Final

from aiohttp import web

from authsidecar.decision.ratelimit.charges import SCOPES
from authsidecar.decision.routes import RELEASES
from authsidecar.serving.console.page import (
    ConsolePage,
    PageRoute,
    Visit,
)
from authsidecar.serving.console.pages.decisions import TIMES
from authsidecar.serving.console.slow_answers import NotYetError, SlowAnswers
from authsidecar.serving.manage.decision_models import Simulated
from authsidecar.serving.manage.models import LONGEST_ALLOWLIST
from authsidecar.serving.manage.operations import NotDoneError
from authsidecar.store.management_keys import Scope

_NOTHING: Final = "nothing is to be another: change the allowlist, a limit or the routes"

_CHANGES: Final = SlowAnswers[Simulated]()
"""What changes would have done: a full stream takes long to judge."""

METHODS: Final = ("GET", "POST", "PATCH", "PUT", "DELETE")


async def show(visit: Visit) -> web.StreamResponse:
    """The two forms."""
    return await _shown(visit)


async def explain(visit: Visit) -> web.StreamResponse:
    """What a request would be answered, and every check; nothing is counted."""
    form = visit.form
    token = form.get("as_token", "").strip()
    body: dict[str, object] = {
        "method": form.get("method", "").strip(),
        "target": form.get("target", "").strip(),
        "client_ip": form.get("client_ip", "").strip(),
    }
    if token:
        body["as_token"] = int(token) if token.isascii() and token.isdigit() else token
    try:
        found = await visit.ask("explainRequest", body=body)
    except NotDoneError as error:
        return await _shown(visit, wrong_request=error.why, status=error.status)
    return await _shown(visit, answer=found)


async def what_if(visit: Visit) -> web.StreamResponse:
    """Which decisions would have been others under a change; nothing is changed."""
    form = visit.form
    limits = {scope: form.get(f"limit-{scope}", "").strip() for scope in SCOPES}
    span = form.get("last_seconds", "")
    body: dict[str, object] = {
        "limits": {scope: rate for scope, rate in limits.items() if rate},
        "last_seconds": int(span) if span in TIMES else 86_400,
    }
    if form.get("change_allowlist"):
        body["allowlist"] = ",".join(form.get("allowlist", "").splitlines())
    if form.get("routes"):
        body["routes"] = form["routes"]
    if not (body["limits"] or "allowlist" in body or "routes" in body):
        return await _shown(visit, wrong_change=_NOTHING, status=422)
    try:
        found = await _CHANGES.of(
            visit.sidecar.client, lambda: visit.ask("simulateChange", body=body), json.dumps(body)
        )
    except NotYetError:
        return await _shown(visit, again=True)
    except NotDoneError as error:
        return await _shown(visit, wrong_change=error.why, status=error.status)
    return await _shown(visit, change=found)


async def _shown(visit: Visit, *, status: int = 200, **found: object) -> web.StreamResponse:
    settings = await visit.ask("readSettings")
    return visit.page(
        "ask.html",
        status=status,
        **{
            "answer": None, "change": None, "again": False, "wrong_request": "", "wrong_change": "",
            "form": visit.form, "settings": settings, "methods": METHODS, "scopes": SCOPES,
            "releases": RELEASES, "now": visit.sidecar.routes(), "times": TIMES,
            "configured": visit.sidecar.rules().limits, "longest": LONGEST_ALLOWLIST,
            **found,
        },
    )  # fmt: skip


PAGE = ConsolePage(
    "Ask",
    "/ask",
    (
        PageRoute("GET", "/ask", show),
        PageRoute("POST", "/ask", explain, scope=Scope.READ),
        PageRoute("POST", "/ask/what-if", what_if, scope=Scope.READ),
    ),
)
