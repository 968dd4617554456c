"""The console: `/console` on the management listener, for people with a browser.

To add a page:

1. Write `pages/NEW.py` with `PAGE = ConsolePage("Title", "/new", routes)`, and list it in
   `pages/__init__.py`. What is not listed is neither served nor in the navigation; that order is
   the navigation's.
2. A route is `PageRoute("GET", "/new/{id}", show)`; `async def show(visit: Visit)` gives an answer.
   A route other than GET needs a session that may write, unless it says `scope=Scope.READ`.
3. State is read and changed by `await visit.ask("operationId", path=..., query=..., body=...)`:
   the management API's own operations with their checks, audit and words, as models of `models`.
4. `return visit.page("new.html", items=...)`; the template extends `base.html` and fills `main`.
   Everything is escaped. Times: `{{ text|time }}`. Parts: `{% import "parts.html" as parts %}`.
5. A form is `<form method="post">` with `{{ parts.csrf(visit) }}`; the gate has checked the token,
   Origin and Host before the route runs; `visit.form` holds the fields. It ends with
   `return await visit.moved("/new", said="what was done")`.
6. What can't be done raises `NotDoneError(status, why)`: a page says it in these words. A form that
   is to be shown again catches it: `visit.page(..., status=error.status, wrong=error.why)`.
   A stream (server-sent events) sends `headers.HEADERS` itself.
7. No inline script, style or handler: the policy (CSP) lets none run. Files in `static/` are named
   by `{{ static("x.js") }}`; charts are SVG, coloured by the classes of `style.css`.
8. Test it in-process (`tests/integration/console`): the fixture `console` is a signed-in browser:
   `await console.get("/new")`, `await console.post("/new", {...})`. List it in PAGES_SHOWN there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from aiohttp import web

from authsidecar.observe.log import Log
from authsidecar.serving.manage.access import Access
from authsidecar.serving.manage.operations import Sidecar

BASE: Final = "/console"
"""Where it is served."""


def add_console(
    app: web.Application, sidecar: Sidecar, access: Access, log: Log, hosts: Collection[str]
) -> None:
    """Have an application answer below /console.

    Templates and pages are only imported once somebody asks for one: a sidecar whose console
    nobody opens starts as fast as without it.

    Args:
        app: the management listener's.
        sidecar: what operations work with.
        access: judges management keys.
        log: told of defects.
        hosts: names by which browsers may reach it, beside localhost and addresses.
    """
    opened: list[Callable[[web.Request], Awaitable[web.StreamResponse]]] = []
    opening = asyncio.Lock()

    async def handle(request: web.Request) -> web.StreamResponse:
        if not opened:
            async with opening:
                if not opened:
                    opened.append(await asyncio.to_thread(_open, sidecar, access, log, hosts))
        return await opened[0](request)

    app.router.add_route("*", BASE, handle)
    app.router.add_route("*", f"{BASE}/{{rest:.*}}", handle)


def _open(
    sidecar: Sidecar, access: Access, log: Log, hosts: Collection[str]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    from authsidecar.serving.console.gate import Gate  # noqa: PLC0415  # see add_console
    from authsidecar.serving.console.rendering import prepare  # noqa: PLC0415

    prepare()
    return Gate(sidecar, access, log, hosts).answer
