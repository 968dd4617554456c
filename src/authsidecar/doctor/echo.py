"""A backend that answers with the request that reached it, for `authsidecar doctor echo`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from authsidecar.doctor.evidence import MARK

HIDDEN: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers whose values are not shown to whoever reads the answer."""

_MAX_FIELD_BYTES: Final = 65_536


@asynccontextmanager
async def echoing(host: str, port: int) -> AsyncIterator[str]:
    """Listen for as long as the context lasts; yields `host:port` as it was found.

    Raises:
        OSError: the address cannot be listened on.
    """
    server = web.Server(
        _answer, max_field_size=_MAX_FIELD_BYTES, max_line_size=_MAX_FIELD_BYTES, access_log=None
    )
    runner = web.ServerRunner(server, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        found_host, found_port = runner.addresses[0][:2]
        name = f"[{found_host}]" if ":" in found_host else found_host
        yield f"{name}:{found_port}"
    finally:
        await runner.cleanup()


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    if request.headers.get("Upgrade", "").lower() == "websocket":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket
    async for _ in request.content.iter_any():
        pass
    return web.json_response(
        {
            MARK: 1,
            "method": request.method,
            "target": request.raw_path,
            "headers": [
                [name.lower(), "(hidden)" if name.lower() in HIDDEN else value]
                for name, value in (
                    (n.decode("latin-1"), v.decode("latin-1")) for n, v in request.raw_headers
                )
            ],
        },
        headers={"Cache-Control": "no-store"},
    )
