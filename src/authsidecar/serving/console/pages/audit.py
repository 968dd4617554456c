"""Audit: who changed what, when, from where."""

from collections.abc import Mapping
from functools import partial

from aiohttp import web

from authsidecar.serving.console.page import ConsolePage, Found, PageRoute, Visit
from authsidecar.serving.manage import models
from authsidecar.store.audit import Via


async def show(visit: Visit) -> web.StreamResponse:
    """A page of changes, the newest first."""
    given = {name: visit.query.get(name, "").strip() for name in ("q", "via")}
    query = {"cursor": visit.query["cursor"]} if "cursor" in visit.query else {}
    if any(given.values()):
        found = await visit.search("listAudit", query, partial(_is_wanted, given))
    else:
        page = await visit.ask("listAudit", query=query)
        found = Found(page.items, page.next)
    return visit.page(
        "audit.html",
        records=found.items,
        next=found.next,
        looked=found.looked,
        given=given,
        ways=[one.value for one in Via],
    )


def _is_wanted(given: Mapping[str, str], one: models.AuditRecord) -> bool:
    """Whether a filter lets a change through: a text of what was done, to what, who, from where."""
    texts = (one.action, one.target, one.actor, one.place)
    text = given["q"].casefold()
    return given["via"] in {"", one.via} and any(text in each.casefold() for each in texts)


async def show_one(visit: Visit) -> web.StreamResponse:
    """One change, whole."""
    found = await visit.ask("readAuditRecord", path={"record": visit.path["record"]})
    return visit.page("audit_record.html", record=found)


PAGE = ConsolePage(
    "Audit",
    "/audit",
    (PageRoute("GET", "/audit", show), PageRoute("GET", "/audit/{record}", show_one)),
)
