"""The authz listener: connections below, one function per subrequest above.

The endpoints are a closed set, so there is no router. What the parser itself refuses (a header too
long, say) is answered here as well, since aiohttp's own words would repeat the header.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong

from authsidecar.decision.addresses import Networks, parse_address
from authsidecar.decision.authorize import Outcome, Rules, Store, StoreError, authorize
from authsidecar.decision.model import AccessRequest, Allow, Deny, Kind, Proxy, Reason
from authsidecar.decision.policy import METHOD_NOT_ALLOWED, STORE_UNAVAILABLE
from authsidecar.decision.proxies import auth_request
from authsidecar.decision.proxies.forward_auth import UNTRUSTED_PEER, RequestLine, read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.replies import Reply, refuse, render, served
from authsidecar.decision.routes import ROUTE_UNKNOWN
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.serving.connection import Connections, RequestTimeoutError, Subrequest
from authsidecar.serving.connection_limits import ConnectionLimits
from authsidecar.serving.encoding import DecisionIds
from authsidecar.serving.witness import Witness
from authsidecar.store.last_used import LastUses

HEADERS_TOO_LARGE: Final = Reason(
    "headers_too_large", Kind.MALFORMED, 431, "The request's headers are too large."
)
REQUEST_UNREADABLE: Final = Reason(
    "request_unreadable", Kind.MALFORMED, 400, "The request cannot be read."
)
REQUEST_TIMEOUT: Final = Reason(
    "request_timeout", Kind.MALFORMED, 408, "The request took too long to arrive."
)
INTERNAL_ERROR: Final = Reason(
    "internal_error", Kind.UNAVAILABLE, 503, "The sidecar failed to decide."
)

DEFAULT_LIMITS: Final = ConnectionLimits()

PREFIX: Final = b"/authz/"
_ENDPOINTS: Final = {
    PREFIX.decode() + proxy.value: proxy for proxy in Proxy if proxy is not Proxy.DIRECT
}
SWITCHES: Final = {"/api/v1/enable": True, "/api/v1/disable": False}
"""What the sidecar serves itself where the operator routes it here, and what it sets."""

_ENVOY: Final = PREFIX.decode() + Proxy.ENVOY.value

_NOWHERE: Final = Deny(ROUTE_UNKNOWN, "no such endpoint")


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

    def use(self, store: Store) -> None:
        """Decide by this store from now on."""
        self._store = store

    def connections(self, limits: ConnectionLimits = DEFAULT_LIMITS) -> Connections:
        """The connections that this answers on, to be listened with."""
        return Connections(
            self.answer,
            self._unreadable,
            fail=self._failed,
            trusts=self._trusts,
            refuse_stranger=self._stranger,
            limits=limits,
            dropped=self._telemetry.connection_dropped,
        )

    async def answer(self, asked: Subrequest) -> Reply:
        """Answer one subrequest, whatever goes wrong."""
        decision_id = self._decision_ids()
        proxy = None
        try:
            proxy = _ENDPOINTS.get(asked.target) or _endpoint(asked.target)
            if proxy is None:
                return self._refused(None, _NOWHERE, decision_id, asked.peer)
            if (deny := self._unwelcome(proxy, asked)) is not None:
                return self._refused(proxy, deny, decision_id, asked.peer)
            start = time.perf_counter()
            line = _line(asked, proxy)
            access = read(Fields(asked.headers), proxy, self._trusted_hops, line)
            if self._witness is not None and _without_token(access):
                asking = self._witness.reply(asked, access, proxy, line, decision_id)
                told = await asyncio.ensure_future(asking)
                if told is not None:
                    return _spoken(told, proxy)
            if isinstance(access, Deny):
                refusal = self._refused(proxy, access, decision_id, asked.peer)
                return self._let_in(decision_id) if self._report_only else refusal
            try:
                outcome = await authorize(access, self._rules, self._store)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # unclear means refused
                outcome = Outcome(self._defect(error), self._store.now())
            reply = self._decided(proxy, access, outcome, decision_id, start=start)
            if proxy is Proxy.DIRECT and isinstance(outcome.verdict, Allow):
                return await self._switched(access, outcome, decision_id)
        except Exception as error:  # noqa: BLE001  # unclear means refused
            return self._refused(proxy, self._defect(error), decision_id, asked.peer)
        else:
            return reply

    def _unwelcome(self, proxy: Proxy, asked: Subrequest) -> Deny | None:
        """Why nothing of a subrequest is looked at, or None."""
        if not self._trusts(asked.peer):
            return Deny(UNTRUSTED_PEER, "not one of trusted_peers")
        if proxy is Proxy.DIRECT and asked.method != "POST":
            return Deny(METHOD_NOT_ALLOWED, f"{asked.target} takes POST")
        return None

    def _refused(self, proxy: Proxy | None, deny: Deny, decision_id: str, peer: str) -> Reply:
        """Refuse what could not be read; None: not even who asks."""
        self._telemetry.unreadable(proxy, deny, decision_id, peer)
        return _spoken(refuse(deny, decision_id), proxy)

    def _let_in(self, decision_id: str) -> Reply:
        """What passes without identity although it could not be read."""
        return render(Outcome(Allow(None), self._store.now()), None, decision_id)

    def _decided(
        self,
        proxy: Proxy,
        access: AccessRequest,
        outcome: Outcome,
        decision_id: str,
        *,
        start: float,
    ) -> Reply:
        """The answer to a request that was decided; it is told of."""
        if self._uses is not None and (record := outcome.record) is not None:
            self._uses.used(record.token, outcome.now, access.client, outcome.route or "")
        self._telemetry.decided(proxy, outcome, decision_id, access, time.perf_counter() - start)
        if self._report_only and proxy is not Proxy.DIRECT and isinstance(outcome.verdict, Deny):
            outcome = outcome._replace(verdict=Allow(None))
        reply = render(outcome, access.client, decision_id, expiry_ms=self._expiry_ms)
        return _spoken(reply, proxy)

    def _unreadable(self, error: HttpProcessingError, peer: str, begun: bytes) -> Reply:
        """The answer to what could not be parsed, to whom it seems to be from."""
        reason = REQUEST_UNREADABLE
        if isinstance(error, LineTooLong) or "Too many" in str(error.message):
            reason = HEADERS_TOO_LARGE
        elif isinstance(error, RequestTimeoutError):
            reason = REQUEST_TIMEOUT
        elif isinstance(error, BadHttpMethod):  # Envoy passes on whatever the client made up
            reason = METHOD_NOT_ALLOWED
        reply = self._refused(None, Deny(reason), self._decision_ids(), peer)
        return _spoken(reply, _begun_by(begun))

    def _stranger(self, start: bytes, peer: str) -> Reply:
        """The answer to a peer that is not trusted; `start` is where its request begins."""
        words = start.partition(b"\r\n")[0].split(b" ", 2)
        target = words[1].decode("latin-1") if len(words) == 3 else ""
        proxy = _ENDPOINTS.get(target) or _endpoint(target)
        deny = Deny(UNTRUSTED_PEER, "not one of trusted_peers")
        return self._refused(proxy, deny, self._decision_ids(), peer)

    def _failed(self, error: BaseException, peer: str) -> Reply:
        """The answer to a request whose own answer raised or was cancelled."""
        return self._refused(None, self._defect(error), self._decision_ids(), peer)

    def _defect(self, error: BaseException) -> Deny:
        """What is answered when this program is wrong: a refusal."""
        self._log.event("error", "defect", error=type(error).__name__)
        return Deny(INTERNAL_ERROR, type(error).__name__)

    async def _switched(self, access: AccessRequest, outcome: Outcome, decision_id: str) -> Reply:
        """Set the API switch as an admitted request asks, and answer as Coolify does."""
        enabled = SWITCHES[access.path]
        try:
            await asyncio.ensure_future(self._switch(enabled))
        except StoreError as error:
            return refuse(Deny(STORE_UNAVAILABLE, error.kind), decision_id)
        self._log.event("info", "api_switched", enabled=enabled, decision_id=decision_id)
        message = f"API {'enabled' if enabled else 'disabled'}."
        return served(outcome, message)

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


def _spoken(reply: Reply, proxy: Proxy | None) -> Reply:
    """An answer in the dialect of who asks: all but nginx take the native one."""
    return auth_request.write(reply) if proxy is Proxy.NGINX else reply


def _without_token(access: AccessRequest | Deny) -> bool:
    return isinstance(access, Deny) or isinstance(access.credential, Deny)


def _endpoint(raw_path: str) -> Proxy | None:
    """The endpoint of a path that is not one to the letter: a query, or Envoy's own path."""
    if raw_path.startswith((_ENVOY + "/", _ENVOY + "?")):
        return Proxy.ENVOY
    if raw_path in SWITCHES:
        return Proxy.DIRECT
    return _ENDPOINTS.get(raw_path.partition("?")[0])


def _begun_by(begun: bytes) -> Proxy | None:
    """The proxy whose endpoint an unparsable request begins with, as far as that can be told."""
    words = begun.split(None, 2)
    target = words[1].decode("latin-1") if len(words) > 1 else ""
    return next((proxy for path, proxy in _ENDPOINTS.items() if target.startswith(path)), None)


def _line(asked: Subrequest, proxy: Proxy) -> RequestLine | None:
    """The client's own request line, where it is the subrequest's too."""
    if proxy is Proxy.ENVOY:
        target = asked.target[len(_ENVOY) :] or "/"
    elif proxy is Proxy.DIRECT:
        target = asked.target
    else:
        return None
    return asked.method.encode(), target.encode("utf-8", "surrogateescape")
