"""The management listener: is it alive, is it ready, how is it doing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import web, web_response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from authsidecar.observe.metrics import shared
from authsidecar.serving.encoding import SERVER
from authsidecar.serving.manage.access import Access, BadKey
from authsidecar.serving.manage.api import LARGEST_BODY
from authsidecar.serving.manage.problems import refusal
from authsidecar.store.management_keys import Scope

Dropped = Callable[[str, str], None]
"""Told of a connection that is closed although its peer has not ended it: why, and whose."""

Ready = Callable[[], Awaitable[dict[str, str]]]
"""What is missing before requests can be decided, by part; empty when ready."""

Told = Callable[[], Awaitable[Mapping[str, object] | None]]
"""What `/readyz` says beside it, or None; never a reason not to be ready."""

_NO_STORE: Final = {"Cache-Control": "no-store"}


async def _nothing() -> None:
    return None


def application(
    registry: Callable[[], CollectorRegistry],
    ready: Ready,
    sync: Told = _nothing,
    background: Callable[[], Mapping[str, str]] = dict,
    record_ready: Callable[[bool], None] = lambda _: None,
    *,
    config_digest: Callable[[], str] = str,
    metrics_access: Access | None = None,
) -> web.Application:
    """`/healthz`, `/readyz` and `/metrics`.

    Args:
        registry: gives the metrics of all processes.
        ready: asked at each `/readyz`.
        sync: what the sync tells of itself.
        background: what fails beside requests, by task.
        record_ready: called at each `/metrics`, before the metrics are read.
        config_digest: names the configuration in force; the empty text: it has no name.
        metrics_access: judges the key that `/metrics` wants; None: it is open.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=_NO_STORE)

    async def readyz(_: web.Request) -> web.Response:
        missing = await ready()
        told = None if "redis" in missing else await sync()  # without Redis nobody could say
        status: dict[str, object] = {
            "status": "not ready" if missing else "ready",
            "missing": missing,
        }
        more = {"config_digest": config_digest(), "sync": told, "background": dict(background())}
        status |= {name: value for name, value in more.items() if value}
        return web.json_response(
            status,
            status=503 if missing else 200,
            headers=_NO_STORE,
        )

    # Of several processes they are read from files, which no event loop should wait for.
    reading = ThreadPoolExecutor(1, "metrics") if shared() else None

    async def metrics(request: web.Request) -> web.Response:
        if metrics_access is not None:
            key = await metrics_access.key(request, Scope.READ)
            if isinstance(key, BadKey):
                return refusal(key)
        record_ready(not await ready())
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        loop = asyncio.get_running_loop()
        body = (
            await loop.run_in_executor(reading, lambda: encode(registry()))
            if reading
            else encode(registry())
        )
        return web.Response(body=body, headers={**_NO_STORE, "Content-Type": content_type})

    async def closed(_: web.Application) -> None:
        if reading:
            reading.shutdown(wait=False, cancel_futures=True)

    _sign_without_versions()
    app = web.Application(client_max_size=LARGEST_BODY)
    app.on_cleanup.append(closed)
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    return app


def _sign_without_versions() -> None:
    """Have aiohttp sign its answers by our name, in place of its own version and Python's.

    It writes some itself, before any application is asked: to what it cannot parse.
    """
    web_response.SERVER_SOFTWARE = SERVER  # type: ignore[attr-defined]


def bounded(server: web.Server, most: int, dropped: Dropped) -> Callable[[], asyncio.Protocol]:
    """What makes the protocol of a new connection: past the bound, the oldest one is closed.

    aiohttp waits for ever for the rest of a request, so who comes last must find room.

    Args:
        server: what answers.
        most: how many connections there may be.
        dropped: told of each that is closed for a new one.
    """

    def connect() -> asyncio.Protocol:
        # One that is closing is not counted again.
        connections = [one for one in server.connections if one.transport is not None]
        if len(connections) >= most:
            oldest = connections[0]
            name = oldest.transport.get_extra_info("peername") if oldest.transport else None
            dropped("management", str(name[0]) if isinstance(name, tuple) else "?")
            oldest.force_close()
        return server()

    return connect
