"""The authz listener: connections below, one function per subrequest above.

The endpoints are a closed set, so there is no router. What the parser itself refuses (a header too
long, say) is answered here as well, since aiohttp's own words would repeat the header.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeGuard

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong

from authsidecar.decision.addresses import Networks, parse_address
from authsidecar.decision.authorize import Outcome, ReadBody, Rules, StoreError, authorize
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Kind,
    Proxy,
    Reason,
    TokenId,
)
from authsidecar.decision.policy import METHOD_NOT_ALLOWED, STORE_UNAVAILABLE
from authsidecar.decision.proxies.endpoints import WHOAMI, Endpoint, find, guess
from authsidecar.decision.proxies.forward_auth import UNTRUSTED_PEER, read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.replies import Reply, preflight, render, served, shown
from authsidecar.decision.routes import ROUTE_UNKNOWN
from authsidecar.decision.usage import unnamed, used
from authsidecar.decision.whoami import METHODS, Facts, ReadingStore, whoami
from authsidecar.observe.canary import CanaryUse, agent_digest
from authsidecar.observe.log import Log
from authsidecar.observe.metrics import Telemetry
from authsidecar.observe.traces import Sampler, Trace, traceparent
from authsidecar.serving.connection_limits import ConnectionLimits
from authsidecar.serving.doctor_probe import offered
from authsidecar.serving.encoding import DecisionIds
from authsidecar.serving.memo import ENTRIES, Look, Memo, Remembered
from authsidecar.serving.servers import ListenerConnections, Server
from authsidecar.serving.shown_body import SHOWING, BodyReader
from authsidecar.serving.subrequest import (
    Answer,
    RequestTimeoutError,
    Subrequest,
    TooManyHeadersError,
)
from authsidecar.serving.traced_path import TracedPath
from authsidecar.serving.warm_path import Asker, WarmPath
from authsidecar.serving.witness import Witness, identify_doctor, is_probe
from authsidecar.store.audit import Origin, Via
from authsidecar.store.last_used import LastUses
from authsidecar.store.receipts import ReceiptWriter
from authsidecar.times import UnixMs

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

_NO_ENDPOINT: Final = Deny(ROUTE_UNKNOWN, "no such endpoint")
_UNTRUSTED: Final = Deny(UNTRUSTED_PEER, "not one of trusted_peers")
_NOT_READ: Final = Deny(REQUEST_UNREADABLE)


class AuthzServer:
    """Answers subrequests; one instance serves all connections of a process."""

    def __init__(
        self,
        *,
        rules: Rules,
        store: ReadingStore,
        telemetry: Telemetry,
        log: Log,
        trusted_peers: Networks,
        trusted_hops: Networks,
        switch: Callable[[bool, Origin], Awaitable[None]],
        witness: Witness | None = None,
        report_only: bool = False,
        uses: LastUses | None = None,
        canary_used: Callable[[CanaryUse], None] = lambda _: None,
        receipts: ReceiptWriter | None = None,
        traces: Sampler | None = None,
        expiry_ms: int = 0,
        memo_entries: int = ENTRIES,
    ) -> None:
        """Nothing is listened on yet.

        Args:
            rules: what decisions depend on.
            store: where state and counters are.
            telemetry: told of every decision.
            log: told of what should not happen.
            trusted_peers: networks that may ask, beside the unix socket.
            trusted_hops: networks that are skipped in X-Forwarded-For.
            switch: sets the API switch, told by whom; may raise StoreError.
            report_only: everything is decided, logged and counted; what would have been refused
                passes without identity, but for peers that are not trusted.
            expiry_ms: how long before its expiry a token is said to expire, in milliseconds.
            uses: told of every request that a token authenticated.
            canary_used: told of every request with a canary token; it must not wait.
            receipts: told of every decision; keeps those that can be looked up.
            traces: says which decisions are traced; None: none is.
            witness: asked of a request without a readable token: is it a doctor's probe?
            memo_entries: how many subrequests are remembered at the most; 0: none.
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
        self._canary_used = canary_used
        self._receipts = receipts
        self._traces = traces
        self._expiry_ms = expiry_ms
        self._peers: dict[str, bool] = {}
        self._decision_ids = DecisionIds(secrets.token_bytes(5))
        self._memo = Memo(memo_entries) if memo_entries else None
        path = WarmPath if traces is None else partial(TracedPath, traces)
        self._warm = path(
            rules,
            telemetry,
            self._decision_ids,
            uses=uses,
            receipts=receipts,
            expiry_ms=expiry_ms,
            plain=self._decide,
            finish=self._finish,
            settled=self._settled,
        )
        self._warm.use(store)
        self._quick: Any = None

    def use(self, store: ReadingStore) -> None:
        """Decide by this store from now on."""
        self._store = store
        self._warm.use(store)

    def _settled(self) -> None:
        """All have their results that share a call: a single one has its answer at once."""
        self._warm.settle()
        if self._quick is not None:
            self._quick.send_all()
        self._warm.note()

    def apply(
        self,
        rules: Rules,
        *,
        trusted_peers: Networks,
        trusted_hops: Networks,
        report_only: bool,
        expiry_ms: int,
    ) -> None:
        """Decide the next request by these; the arguments are those of the constructor.

        A request under way ends by the rules that it began with.
        """
        if trusted_peers != self._trusted_peers and self._quick is not None:
            self._quick.recall = self._recall_of_trusted
        self._rules = rules
        self._trusted_peers = trusted_peers
        self._trusted_hops = trusted_hops
        self._report_only = report_only
        self._expiry_ms = expiry_ms
        self._peers.clear()
        self._warm.apply(rules, expiry_ms)
        if self._quick is not None:
            self._quick.shows_bodies = rules.forwarded_bodies
        if self._memo is not None:
            self._memo.clear()
        if self._witness is not None:
            self._witness.report(report_only, forwarded=rules.forwarded_bodies)

    def connections(
        self, limits: ConnectionLimits = DEFAULT_LIMITS, server: Server = "fast"
    ) -> ListenerConnections:
        """The connections that this answers on, to be listened with."""
        made: Callable[..., ListenerConnections]
        traces = self._traces
        answer: Answer = self.answer if traces is None else partial(self._answer_traced, traces)
        if server == "fast":  # imported late: a new aiohttp may not have what it stands on
            from authsidecar.serving.connection import Connections as Quick  # noqa: PLC0415

            made = partial(Quick, memo=self._memo, recall=self._warm.answer)
        else:
            from authsidecar.serving.aiohttp_server import AiohttpConnections  # noqa: PLC0415

            made = AiohttpConnections
        connections: ListenerConnections = made(
            answer,
            self._unreadable,
            fail=self._failed,
            trusts=self._trusts,
            refuse_stranger=self._stranger,
            limits=limits,
            dropped=self._telemetry.connection_dropped,
        )
        if server == "fast":
            self._quick = connections
            self._quick.shows_bodies = self._rules.forwarded_bodies
        return connections

    def application(self) -> web.Application:
        """A plain aiohttp application that gives the same answers."""
        from authsidecar.serving.aiohttp_server import application  # noqa: PLC0415

        return application(self.answer, self._failed)

    async def answer(self, asked: Subrequest, trace: Trace | None = None) -> Reply:
        """Answer one subrequest: who asks, read, authorize, observe, render.

        Args:
            asked: the subrequest.
            trace: the trace that its decision belongs to; None: it is not traced.
        """
        start = time.perf_counter()
        store = self._store if trace is None else trace.through(self._store)
        endpoint = find(asked.target)
        proxy = endpoint.proxy
        if proxy is None:
            return self._refuse(endpoint, _NO_ENDPOINT, asked.peer)
        if (refusal := self._unwelcome(endpoint, asked)) is not None:
            return self._refuse(endpoint, refusal, asked.peer)
        if endpoint is WHOAMI:
            return await self._describe(asked)
        access: AccessRequest | Deny = _NOT_READ
        try:
            fields = endpoint.fields(asked.headers)
            line = endpoint.line(asked.method, asked.target)
            access = read(fields, proxy, self._trusted_hops, line)
            if _is_plain(access, endpoint):
                if asked.look is not None:
                    self._learn(asked, asked.look, endpoint, fields, access)
                body = self._body(asked, proxy, fields) if access.body else None
                outcome = await authorize(access, self._rules, store, body)
            else:
                outcome = await self._authorize(endpoint, asked, fields, access, store)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # unclear means refused
            outcome = Outcome(self._defect(error), self._store.now())
        return self._finish(endpoint, access, outcome, asked.peer, start, trace=trace)

    async def _answer_traced(self, traces: Sampler, asked: Subrequest) -> Reply:
        """Answer one subrequest, which may belong to a trace if who asks is trusted."""
        trusted = self._trusts(asked.peer)
        return await self.answer(
            asked, traces.begin(traceparent(asked.headers)) if trusted else None
        )

    def _body(self, asked: Subrequest, proxy: Proxy, fields: Fields) -> ReadBody | None:
        """What reads the body, where the operator says that this proxy shows it."""
        if not self._rules.forwarded_bodies or proxy not in SHOWING:
            return None
        return BodyReader(asked, proxy, fields.content_type)

    def _recall_of_trusted(
        self, remembered: Remembered, look: Look, asker: Asker
    ) -> Coroutine[Any, Any, Reply] | None:
        """As the warm path, where a peer that has a connection may not be trusted any more."""
        if not self._trusts(asker.peer):
            return self._refused(remembered.endpoint, asker.peer)
        return self._warm.answer(remembered, look, asker)

    async def _refused(self, endpoint: Endpoint, peer: str) -> Reply:
        return self._refuse(endpoint, _UNTRUSTED, peer)

    async def _decide(
        self,
        endpoint: Endpoint,
        access: AccessRequest,
        peer: str,
        start: float,
        *,
        trace: Trace | None = None,
    ) -> Reply:
        """Answer one subrequest that was read already: authorize, observe, render."""
        store = self._store if trace is None else trace.through(self._store)
        try:
            outcome = await authorize(access, self._rules, store)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # unclear means refused
            outcome = Outcome(self._defect(error), self._store.now())
        return self._finish(endpoint, access, outcome, peer, start, trace=trace)

    def _finish(
        self,
        endpoint: Endpoint,
        access: AccessRequest | Deny,
        outcome: Outcome,
        peer: str,
        start: float,
        *,
        trace: Trace | None = None,
    ) -> Reply:
        """Observe and render what was decided."""
        decision_id = self._decision_ids()
        if trace is not None:
            trace.decided(endpoint.proxy, access, outcome.verdict, outcome.route, decision_id)
        self._observe(endpoint, access, outcome, decision_id, peer, start=start)
        self._look_for_canary(access, outcome, decision_id)
        return self._render(endpoint, access, outcome, decision_id, report_only=self._report_only)

    def _learn(
        self,
        asked: Subrequest,
        look: Look,
        endpoint: Endpoint,
        fields: Fields,
        access: AccessRequest,
    ) -> None:
        """Remember what was read, unless an id was cut out that is not the only one."""
        if self._memo is None or not endpoint.native_admissions:
            return
        cut = [] if look.request_id is None else [look.request_id.encode("ascii")]
        if fields.request_id == cut:
            self._memo.learn(look, endpoint, access, asked.target)

    async def _describe(self, asked: Subrequest) -> Reply:
        """Tell a token about itself; what is only reported elsewhere is refused here, too."""
        start = time.perf_counter()
        access: AccessRequest | Deny = _NOT_READ
        facts: Facts = {}
        try:
            line = WHOAMI.line(asked.method, asked.target)
            access = read(Fields(asked.headers), Proxy.DIRECT, self._trusted_hops, line)
            if isinstance(access, Deny):
                outcome = Outcome(access, self._store.now())
            else:
                outcome, facts = await whoami(access, self._rules, self._store)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # unclear means refused
            outcome, facts = Outcome(self._defect(error), self._store.now()), {}
        decision_id = self._decision_ids()
        self._observe(WHOAMI, access, outcome, decision_id, asked.peer, start=start)
        self._look_for_canary(access, outcome, decision_id)
        if facts:
            return shown(outcome, facts)
        if isinstance(outcome.verdict, Allow):
            return preflight(METHODS)
        return self._render(WHOAMI, access, outcome, decision_id)

    def _unwelcome(self, endpoint: Endpoint, asked: Subrequest) -> Deny | None:
        """Why nothing of a subrequest is looked at, or None."""
        if not self._trusts(asked.peer):
            return _UNTRUSTED
        if endpoint.enables is not None and asked.method != "POST":
            return Deny(METHOD_NOT_ALLOWED, f"{asked.target} takes POST", allowed=("POST",))
        return None

    async def _authorize(
        self,
        endpoint: Endpoint,
        asked: Subrequest,
        fields: Fields,
        access: AccessRequest | Deny,
        store: ReadingStore,
    ) -> Outcome:
        """The outcome of what a doctor may have sent, or of what sets the API switch."""
        if self._witness is not None and _without_token(access):
            offer = offered(fields.authorization)
            if offer is not None:
                seen = self._witness.outcome(offer, asked, fields, access, endpoint)
                if (found := await asyncio.ensure_future(seen)) is not None:
                    return found
        if isinstance(access, Deny):
            return Outcome(access, self._store.now())
        outcome = await authorize(access, self._rules, store)
        if endpoint.enables is None or isinstance(outcome.verdict, Deny):
            return outcome
        who = "nobody" if outcome.record is None else f"token {outcome.record.token}"
        origin = Origin(who, Via.AUTHZ, str(access.client))
        try:
            await asyncio.ensure_future(self._switch(endpoint.enables, origin))
        except StoreError as error:
            return outcome._replace(verdict=Deny(STORE_UNAVAILABLE, error.kind))
        return outcome

    def _observe(
        self,
        endpoint: Endpoint,
        access: AccessRequest | Deny,
        outcome: Outcome,
        decision_id: str,
        peer: str,
        *,
        start: float,
    ) -> None:
        """Count and log what was decided, whatever is answered."""
        if self._receipts is not None:
            if isinstance(access, AccessRequest) and isinstance(outcome.verdict, Allow):
                self._receipts.admitted(decision_id, endpoint.proxy, access, outcome, self._store)
            else:
                self._receipts.refused(
                    decision_id, endpoint.proxy, access, outcome, peer, self._store
                )
        if isinstance(access, Deny):
            deny = outcome.verdict if isinstance(outcome.verdict, Deny) else access
            self._telemetry.unreadable(endpoint.proxy, deny, decision_id, peer)
            return
        if self._uses is not None and (record := outcome.record) is not None:
            self._uses.used(record.token, outcome.now, access.client, outcome.route or "")
            if isinstance(outcome.verdict, Allow) and outcome.route and endpoint is not WHOAMI:
                self._note_use(self._uses, record.token, access, outcome.route, outcome.now)
        seconds = time.perf_counter() - start
        self._telemetry.decided(access.proxy, outcome, decision_id, access, seconds)
        if endpoint.enables is not None and isinstance(outcome.verdict, Allow):
            self._log.event(
                "info", "api_switched", enabled=endpoint.enables, decision_id=decision_id
            )

    @staticmethod
    def _note_use(
        uses: LastUses, token: TokenId, access: AccessRequest, route: str, now: UnixMs
    ) -> None:
        """Note what an admitted request has used of the backend."""
        if uses.has_named_too_much(token, now):
            use = unnamed(access.method, route)
        else:
            use = used(access.method, route, access.path, access.target, body=access.body)
        uses.note(token, now, use)

    def _look_for_canary(
        self, access: AccessRequest | Deny, outcome: Outcome, decision_id: str
    ) -> None:
        """Look whether a token that is not known is a canary; the answer is an unknown token's."""
        if outcome.record is not None or isinstance(access, Deny):
            return
        who = access.credential
        if isinstance(who, Credential):
            # Of every one of them, and after the answer is written at the tick's end: neither
            # the look nor what is told may show in the time of an answer.
            later = asyncio.get_running_loop().call_soon
            later(later, self._tell_of_canary, access, who, outcome.route or "", decision_id)

    def _tell_of_canary(
        self, access: AccessRequest, who: Credential, route: str, decision_id: str
    ) -> None:
        if not self._store.is_canary(who):
            return
        agent = agent_digest(access.user_agent)
        used = CanaryUse(who.token_id, access.client, access.method, route, agent, decision_id)
        self._canary_used(used)

    def _render(
        self,
        endpoint: Endpoint,
        access: AccessRequest | Deny,
        outcome: Outcome,
        decision_id: str,
        *,
        report_only: bool = False,
    ) -> Reply:
        """The answer in the dialect of who asks."""
        if endpoint.enables is None:
            if report_only and isinstance(outcome.verdict, Deny) and not is_probe(outcome):
                outcome = outcome._replace(verdict=Allow(None))
        elif isinstance(outcome.verdict, Allow):
            return served(outcome, f"API {'enabled' if endpoint.enables else 'disabled'}.")
        client = None if isinstance(access, Deny) else access.client
        reply = render(outcome, client, decision_id, expiry_ms=self._expiry_ms)
        if outcome.record is None and is_probe(outcome) and reply.status == 200:
            reply = identify_doctor(reply)
        return reply if endpoint.write is None else endpoint.write(reply)

    def _refuse(self, endpoint: Endpoint, deny: Deny, peer: str) -> Reply:
        """Refuse what is not read, whether only reported or not."""
        outcome = Outcome(deny, self._store.now())
        decision_id = self._decision_ids()
        self._observe(endpoint, deny, outcome, decision_id, peer, start=0.0)
        return self._render(endpoint, deny, outcome, decision_id)

    def _unreadable(self, error: HttpProcessingError, peer: str, begun: bytes) -> Reply:
        """The answer to what could not be parsed, to whom it seems to be from."""
        reason = REQUEST_UNREADABLE
        if isinstance(error, LineTooLong | TooManyHeadersError):
            reason = HEADERS_TOO_LARGE
        elif isinstance(error, RequestTimeoutError):
            reason = REQUEST_TIMEOUT
        elif isinstance(error, BadHttpMethod):  # Envoy passes on whatever the client made up
            reason = METHOD_NOT_ALLOWED
        return self._refuse(guess(begun), Deny(reason), peer)

    def _stranger(self, start: bytes, peer: str) -> Reply:
        """The answer to a peer that is not trusted; `start` is where its request begins."""
        return self._refuse(guess(start), _UNTRUSTED, peer)

    def _failed(self, error: BaseException, peer: str, target: str) -> Reply:
        """The answer to a request whose own answer raised or was cancelled."""
        return self._refuse(find(target), self._defect(error), peer)

    def _defect(self, error: BaseException) -> Deny:
        """What is answered when this program is wrong: a refusal."""
        self._log.event("error", "defect", error=type(error).__name__)
        return Deny(INTERNAL_ERROR, type(error).__name__)

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


def _without_token(access: AccessRequest | Deny) -> bool:
    return isinstance(access, Deny) or isinstance(access.credential, Deny)


def _is_plain(access: AccessRequest | Deny, endpoint: Endpoint) -> TypeGuard[AccessRequest]:
    """Whether there is a token to check, and nothing to do but to answer."""
    return (
        endpoint.enables is None
        and isinstance(access, AccessRequest)
        and not isinstance(access.credential, Deny)
    )
