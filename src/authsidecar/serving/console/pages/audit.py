"""Audit: who changed what, when, from where."""

from aiohttp import web

from authsidecar.serving.console.page import Page, Route, Visit


async def show(visit: Visit) -> web.StreamResponse:
    """A page of changes, the newest first."""
    query = {"cursor": visit.query["cursor"]} if "cursor" in visit.query else {}
    found = await visit.ask("listAudit", query=query)
    return visit.page("audit.html", records=found.items, next=found.next)


async def show_one(visit: Visit) -> web.StreamResponse:
    """One change, whole."""
    found = await visit.ask("readAuditRecord", path={"record": visit.path["record"]})
    return visit.page("audit_record.html", record=found)


PAGE = Page(
    "Audit",
    "/audit",
    (Route("GET", "/audit", show), Route("GET", "/audit/{record}", show_one)),
)
