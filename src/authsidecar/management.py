"""The management listener: is it alive, is it ready, how is it doing."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Ready = Callable[[], Awaitable[dict[str, str]]]
"""What is missing before requests can be decided, by part; empty when ready."""

Told = Callable[[], Awaitable[Mapping[str, object] | None]]
"""What `/readyz` says beside it, or None; never a reason not to be ready."""

_NO_STORE: Final = {"Cache-Control": "no-store"}


async def _nothing() -> None:
    return None


def application(
    registry: Callable[[], CollectorRegistry], ready: Ready, sync: Told = _nothing
) -> web.Application:
    """`/healthz`, `/readyz` and `/metrics`.

    Args:
        registry: gives the metrics of all processes.
        ready: asked at each `/readyz`.
        sync: what the sync tells of itself.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=_NO_STORE)

    async def readyz(_: web.Request) -> web.Response:
        missing = await ready()
        told = None if missing else await sync()  # without Redis nobody could say
        status = {"status": "not ready" if missing else "ready", "missing": missing}
        return web.json_response(
            status if told is None else {**status, "sync": told},
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
