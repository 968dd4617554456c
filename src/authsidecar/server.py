"""The authz listener: aiohttp below, one function per subrequest above.

aiohttp's own server is used without its router and middlewares: the endpoints are a closed set.
What aiohttp itself refuses (a header too long, say) is answered here as well, since its own
answer and its own log line would repeat the header.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from authsidecar.addresses import Networks, parse_address
from authsidecar.authorize import Outcome, Rules, Store, StoreError, authorize
from authsidecar.doctor.witness import Witness
from authsidecar.log import Log
from authsidecar.model import AccessRequest, Allow, Deny, Kind, Proxy, Reason
from authsidecar.policy import METHOD_NOT_ALLOWED, STORE_UNAVAILABLE
from authsidecar.proxies import auth_request
from authsidecar.proxies.forward_auth import UNTRUSTED_PEER, RequestLine, read
from authsidecar.proxies.headers import Fields
from authsidecar.proxies.replies import Reply, refuse, render, served
from authsidecar.routes import ROUTE_UNKNOWN
from authsidecar.telemetry import Telemetry
from authsidecar.usage import LastUses
from authsidecar.wire import SERVER, DecisionIds, Written

HEADERS_TOO_LARGE: Final = Reason(
    "headers_too_large", Kind.MALFORMED, 431, "The request's headers are too large."
)
REQUEST_UNREADABLE: Final = Reason(
    "request_unreadable", Kind.MALFORMED, 400, "The request cannot be read."
)

MAX_FIELD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 200

PREFIX: Final = b"/authz/"
_ENDPOINTS: Final = {
    PREFIX.decode() + proxy.value: proxy for proxy in Proxy if proxy is not Proxy.DIRECT
}
SWITCHES: Final = {"/api/v1/enable": True, "/api/v1/disable": False}
"""What the sidecar serves itself where the operator routes it here, and what it sets."""

_ENVOY: Final = PREFIX.decode() + Proxy.ENVOY.value

_DIALECTS: Final = {Proxy.NGINX: auth_request.write}
"""Proxies that do not take the native answer; all others do."""


class AuthzServer:
    """Answers subrequests; one instance serves all connections of a process."""

    def __init__(
        self,
        *,
        rules: Rules,
        store: Store,
        telemetry: Telemetry,
        log: Log,
        trusted_peers: Networks,
        trusted_hops: Networks,
        switch: Callable[[bool], Awaitable[None]],
        witness: Witness | None = None,
        report_only: bool = False,
        uses: LastUses | None = None,
        expiry_ms: int = 0,
    ) -> None:
        """Nothing is listened on yet.

        Args:
            rules: what decisions depend on.
            store: where state and counters are.
            telemetry: told of every decision.
            log: told of what should not happen.
            trusted_peers: networks that may ask, beside the unix socket.
            trusted_hops: networks that are skipped in X-Forwarded-For.
            switch: sets the API switch; may raise StoreError.
            report_only: everything is decided, logged and counted; what would have been refused
                passes without identity, but for peers that are not trusted.
            expiry_ms: how long before its expiry a token is said to expire, in milliseconds.
            uses: told of every request that a token authenticated.
            witness: asked of a request without a readable token: is it a doctor's probe?
        """
        self._switch = switch
        self._rules = rules
        self._store = store
        self._telemetry = telemetry
        self._log = log
        self._trusted_peers = trusted_peers
        self._trusted_hops = trusted_hops
        self._report_only = report_only
        self._witness = witness
        self._uses = uses
        self._expiry_ms = expiry_ms
        self._peers: dict[str, bool] = {}
        self._decision_ids = DecisionIds(secrets.token_bytes(5))
        self.draining = False

    def protocols(self) -> "_Server":
        """The factory of connections that an event loop serves."""
        return _Server(self, self._log)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one subrequest."""
        written = Written(await self._reply(request), request, last=self.draining)
        return cast(web.StreamResponse, written)

    async def _reply(self, request: web.BaseRequest) -> Reply:
        raw_path = request.raw_path
        proxy = _ENDPOINTS.get(raw_path) or _endpoint(raw_path)
        decision_id = self._decision_ids()
        if proxy is None:
            return refuse(Deny(ROUTE_UNKNOWN, "no such endpoint"), decision_id)
        write = _DIALECTS.get(proxy, _native)
        peer = _peer(request)
        if not self._trusts(peer):
            deny = Deny(UNTRUSTED_PEER, "not one of trusted_peers")
            self._telemetry.unreadable(proxy, deny, decision_id, peer)
            return write(refuse(deny, decision_id))
        if proxy is Proxy.DIRECT and request.method != "POST":
            return refuse(Deny(METHOD_NOT_ALLOWED, f"{raw_path} takes POST"), decision_id)
        start = time.perf_counter()
        line = _line(request, proxy)
        access = read(Fields(request.raw_headers), proxy, self._trusted_hops, line)
        refused = isinstance(access, Deny) or isinstance(access.credential, Deny)
        if refused and self._witness is not None:
            told = await self._witness.reply(request, access, proxy, line, decision_id)
            if told is not None:
                return write(told)
        if isinstance(access, Deny):
            self._telemetry.unreadable(proxy, access, decision_id, peer)
            if self._report_only:
                return render(Outcome(Allow(None), self._store.now()), None, decision_id)
            return write(refuse(access, decision_id))
        outcome = await self._decide(access)
        self._telemetry.decided(proxy, outcome, decision_id, access, time.perf_counter() - start)
        if proxy is Proxy.DIRECT and isinstance(outcome.verdict, Allow):
            return await self._switched(access, outcome, decision_id)
        if self._report_only and proxy is not Proxy.DIRECT and isinstance(outcome.verdict, Deny):
            outcome = outcome._replace(verdict=Allow(None))
        expiry_ms = self._expiry_ms
        return write(render(outcome, access.client, decision_id, expiry_ms=expiry_ms))

    async def _switched(self, access: AccessRequest, outcome: Outcome, decision_id: str) -> Reply:
        """Set the API switch as an admitted request asks, and answer as Coolify does."""
        enabled = SWITCHES[access.path]
        try:
            await self._switch(enabled)
        except StoreError as error:
            return refuse(Deny(STORE_UNAVAILABLE, error.kind), decision_id)
        self._log.event("info", "api_switched", enabled=enabled, decision_id=decision_id)
        message = f"API {'enabled' if enabled else 'disabled'}."
        return served(outcome, message)

    async def _decide(self, access: AccessRequest) -> Outcome:
        try:
            outcome = await authorize(access, self._rules, self._store)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # unclear means refused
            self._log.event("error", "defect", error=type(error).__name__)
            denial = Deny(STORE_UNAVAILABLE, "a defect of the sidecar")
            return Outcome(denial, self._store.now())
        if self._uses is not None and (record := outcome.record) is not None:
            self._uses.used(record.token, outcome.now, access.client, outcome.route or "")
        return outcome

    def _trusts(self, peer: str) -> bool:
        """Whether a peer may ask; the unix socket has no address and may."""
        if not peer:
            return True
        trusted = self._peers.get(peer)
        if trusted is None:
            address = parse_address(peer.partition("%")[0])
            trusted = address is not None and address in self._trusted_peers
            if len(self._peers) < 4096:
                self._peers[peer] = trusted
        return trusted


def _native(reply: Reply) -> Reply:
    return reply


def _endpoint(raw_path: str) -> Proxy | None:
    """The endpoint of a path that is not one to the letter: a query, or Envoy's own path."""
    if raw_path.startswith((_ENVOY + "/", _ENVOY + "?")):
        return Proxy.ENVOY
    if raw_path in SWITCHES:
        return Proxy.DIRECT
    return _ENDPOINTS.get(raw_path.partition("?")[0])


def _line(request: web.BaseRequest, proxy: Proxy) -> RequestLine | None:
    """The client's own request line, where it is the subrequest's too."""
    if proxy is Proxy.ENVOY:
        target = request.raw_path[len(_ENVOY) :] or "/"
    elif proxy is Proxy.DIRECT:
        target = request.raw_path
    else:
        return None
    return request.method.encode(), target.encode("utf-8", "surrogateescape")


def _peer(request: web.BaseRequest) -> str:
    """The caller's address; empty for a unix socket, "?" for one that is gone already."""
    transport = request.transport
    if transport is None:
        return "?"
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        return str(name[0])
    # A unix client may have a name of its own, and a TCP client that left at once has none.
    one = transport.get_extra_info("socket")
    return "" if one is not None and one.family == socket.AF_UNIX else "?"


class _Server(web.Server):
    """aiohttp's connection factory with our own error answers and limits."""

    def __init__(self, authz: AuthzServer, log: Log) -> None:
        super().__init__(authz.answer)
        self._log = log

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=0,
            auto_decompress=False,
        )


class _Connection(RequestHandler):
    """A connection whose own refusals are JSON and repeat nothing of the request."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # aiohttp's own words quote the header
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, or what went wrong below the decision."""
        reason = REQUEST_UNREADABLE
        if isinstance(exc, LineTooLong) or _too_many(exc):
            reason = HEADERS_TOO_LARGE
        elif isinstance(exc, BadHttpMethod):  # Envoy passes on whatever the client made up
            reason = METHOD_NOT_ALLOWED
        elif status >= 500:
            reason = STORE_UNAVAILABLE
        reply = refuse(Deny(reason), secrets.token_hex(13))
        response = web.Response(status=reply.status, headers=list(reply.headers), body=reply.body)
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def log_exception(self, *args: object, **kw: object) -> None:
        """Say nothing: the arguments can quote a header."""


def _too_many(exc: BaseException | None) -> bool:
    return isinstance(exc, HttpProcessingError) and "Too many" in str(exc.message)
