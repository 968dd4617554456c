"""The management listener: is it alive, is it ready, how is it doing."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Ready = Callable[[], Awaitable[dict[str, str]]]
"""What is missing before requests can be decided, by part; empty when ready."""

_NO_STORE: Final = {"Cache-Control": "no-store"}


def application(registry: Callable[[], CollectorRegistry], ready: Ready) -> web.Application:
    """`/healthz`, `/readyz` and `/metrics`.

    Args:
        registry: gives the metrics of all processes.
        ready: asked at each `/readyz`.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=_NO_STORE)

    async def readyz(_: web.Request) -> web.Response:
        missing = await ready()
        return web.json_response(
            {"status": "not ready" if missing else "ready", "missing": missing},
            status=503 if missing else 200,
            headers=_NO_STORE,
        )

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(
            body=encode(registry()), headers={**_NO_STORE, "Content-Type": content_type}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    return app
