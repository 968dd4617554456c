"""A stand-in for Coolify: routes as Laravel does and answers with what it saw.

Tests read `seen`; people read the JSON. It guards nothing: whoever reaches it is let in.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from aiohttp import WSMsgType, web
from multidict import CIMultiDict

from authsidecar.demo.laravel import BadRequestError, Routed, route

MAX_HEADER_BYTES: Final = 65_536

SWITCHES: Final[Mapping[str, str]] = {
    "/api/v1/enable": "API enabled.",
    "/api/v1/disable": "API disabled.",
    "/api/v1/mcp/enable": "MCP server enabled.",
    "/api/v1/mcp/disable": "MCP server disabled.",
}
"""What Coolify says to a POST on each of its switches."""

API_SWITCH: Final[Mapping[str, bool]] = {"/api/v1/enable": True, "/api/v1/disable": False}
"""Which of them turn the API on and off."""

PREFLIGHT: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Allow-Headers": "*",
}

# Coolify counts too: a proxy must not show both its count and the sidecar's.
API_HEADERS: Final[Mapping[str, str]] = {
    "Access-Control-Allow-Origin": "*",
    "Cache-Control": "no-cache, private",
    "X-RateLimit-Limit": "200",
    "X-RateLimit-Remaining": "199",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived; `routed` is None where Symfony would answer 400."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes
    routed: Routed | None

    def identity(self) -> dict[str, str]:
        """Every header that PHP could take for one of the sidecar's, as it was spelled.

        Two equal lines show as one value joined by commas, which the sidecar never sends.
        """
        names = {name for name in self.headers if php_spelling(name).startswith("x-auth-")}
        return {name: ",".join(self.headers.getall(name)) for name in sorted(names)}


def php_spelling(name: str) -> str:
    """A header's name as PHP folds it.

    >>> php_spelling("X_Auth.User-Id")
    'x-auth-user-id'
    """
    return name.lower().replace("_", "-").replace(".", "-")


@dataclass(slots=True)
class Backend:
    """A running stand-in; use it as an asynchronous context manager.

    Attributes:
        address: `host:port` while it runs.
        seen: all requests, oldest first.
        on_switch: awaited with the new state before the API switch is answered; what Coolify
            writes to its database here, the sidecar learns by syncing.
    """

    address: str = ""
    seen: list[Seen] = field(default_factory=list)
    on_switch: Callable[[bool], Awaitable[None]] | None = None
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen on a free loopback port, or again on the one it had."""
        server = web.Server(
            self._answer, max_field_size=MAX_HEADER_BYTES, max_line_size=MAX_HEADER_BYTES
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        port = int(self.address.rpartition(":")[2] or 0)
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # as Coolify's nginx does
        body = await request.content.read()  # of any size: request.read() stops at 1 MiB
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            routed = route(request.method, request.raw_path, headers, body)
        except BadRequestError:
            routed = None
        seen = Seen(request.method, request.raw_path, CIMultiDict(request.headers), body, routed)
        self.seen.append(seen)
        if routed and routed.template and headers.get("upgrade", "").lower() == "websocket":
            return await _echo(request)
        if self.on_switch is not None and (to := _switched(routed)) is not None:
            await self.on_switch(to)
        return answer(seen)


def _switched(routed: Routed | None) -> bool | None:
    """The state that a request turns the API switch to, or None."""
    if routed is None or routed.method != "POST":
        return None
    return API_SWITCH.get(routed.template or "")


async def _echo(request: web.BaseRequest) -> web.WebSocketResponse:
    """Say back each text message, on any route that was asked to upgrade."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


def answer(seen: Seen) -> web.Response:
    """What Coolify would answer, with what was seen in the place of its data."""
    routed = seen.routed
    if routed is None:
        return web.json_response({"message": "Bad request."}, status=400)
    if _is_preflight(seen, routed):
        return web.Response(status=204, headers=PREFLIGHT)
    headers = API_HEADERS if routed.is_api else {}
    if routed.is_api and routed.template is None:
        document = {"message": "Not found.", "docs": "https://coolify.io/docs"}
        return web.json_response(document, status=404, headers=headers)
    if routed.method == "POST" and (words := SWITCHES.get(routed.template or "")):
        return web.json_response({"message": words}, headers=headers)
    document_of_seen = {
        "method": routed.method,
        "template": routed.template,
        "identity": seen.identity(),
        "target": seen.target,
        "body_bytes": len(seen.body),
    }
    return web.json_response(text=json.dumps(document_of_seen, indent=2) + "\n", headers=headers)


def _is_preflight(seen: Seen, routed: Routed) -> bool:
    asks = "Access-Control-Request-Method" in seen.headers
    return routed.is_api and routed.method == "OPTIONS" and asks
