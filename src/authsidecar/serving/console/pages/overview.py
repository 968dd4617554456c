"""Overview: how the sidecar is doing, and what to do about it."""

from aiohttp import web

from authsidecar.serving.console.page import Page, Route, Visit, together


async def show(visit: Visit) -> web.StreamResponse:
    """How this process is doing, its warnings, and the last changes."""
    health, warned, settings, changes = await together(
        visit.ask("readStatus"),
        visit.ask("readWarnings"),
        visit.ask("readSettings"),
        visit.ask("listAudit", query={"limit": "5"}),
    )
    return visit.page(
        "overview.html",
        health=health,
        warnings=warned.items,
        settings=settings,
        changes=changes.items,
    )


PAGE = Page("Overview", "/", (Route("GET", "/", show),))
