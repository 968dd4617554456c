"""Tokens: who holds which, until when; made, narrowed, revoked."""

from aiohttp import web

from authsidecar.serving.console.page import Page, Route, Visit


async def show(visit: Visit) -> web.StreamResponse:
    """A page of tokens."""
    query = {name: visit.query[name] for name in ("cursor", "user", "team") if name in visit.query}
    found = await visit.ask("listTokens", query=query)
    return visit.page("tokens.html", tokens=found.items, next=found.next)


PAGE = Page("Tokens", "/tokens", (Route("GET", "/tokens", show),))
