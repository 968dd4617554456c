"""The short way of a subrequest that was seen before: from its bytes to its charge and its answer.

What it is judged by is compared with what this process holds now. Its claim is charged as ever,
with the proof that all of that is current, and it is counted and logged. Whatever is not as it was
the last time, and whatever is refused, goes the plain way (ADR 13).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

from authsidecar.decision.authorize import (
    Charged,
    Judged,
    Outcome,
    Rules,
    Stale,
    Store,
    StoreError,
    conclude,
    conclude_unavailable,
    holds,
    judge_held,
    repeat_key,
)
from authsidecar.decision.model import AccessRequest, Allow, Credential, TokenRecord
from authsidecar.decision.policy import Instance, Judgement, find_route
from authsidecar.decision.proxies.endpoints import Endpoint
from authsidecar.decision.proxies.replies import Admission, Reply
from authsidecar.decision.ratelimit.charges import USES
from authsidecar.decision.routes import Route
from authsidecar.decision.usage import Used, used
from authsidecar.observe.decision_line import DecisionLine
from authsidecar.observe.metrics import NEAR_LIMIT, Telemetry
from authsidecar.observe.receipts import Decided
from authsidecar.serving.encoding import DecisionIds
from authsidecar.serving.memo import Remembered
from authsidecar.store.calls import Result
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.last_used import LastUses
from authsidecar.store.receipts import ReceiptWriter
from authsidecar.times import UnixMs

_FIRST_STATE: Final = 2
"""Where in a result the states of the counters begin."""


class Asker(Protocol):
    """Who waits for an answer; one of the three is called in the end.

    Attributes:
        peer: the address that called.
    """

    peer: str

    def answered_later(self, reply: Reply, /) -> None:
        """The answer is there."""

    def failed_later(self, error: BaseException, /) -> None:
        """It raised instead."""

    def run(self, answer: Coroutine[Any, Any, Reply], /) -> None:
        """This gives the answer."""


Plain = Callable[[Endpoint, AccessRequest, str, float], Coroutine[Any, Any, Reply]]
"""Answers the plain way: what is asked, what was read, the peer, when it began."""

Finish = Callable[[Endpoint, AccessRequest, Outcome, str, float], Reply]
"""Observes and renders an outcome: what is asked, what was read, it, the peer, when it began."""


class _Use:
    """What a request uses, and until when that is noted."""

    __slots__ = ("noted_until", "what")

    def __init__(self, what: Used) -> None:
        self.what = what
        self.noted_until = UnixMs(0)


class _Prepared(NamedTuple):
    """What is the same for a remembered request as long as the state is that it was judged by.

    Attributes:
        instance: the instance-wide state.
        record: the token.
        judged: the judgement, which admits, and the claim.
        route: what matched.
        changes: whether time may change the judgement.
        repeat_tail: what follows the proxy's id in what makes a request a repeat.
        visible: the requests that each counter admits that is told of.
        admission: renders the answer.
        line: renders the log line; None: it gets none.
        use: what it uses, and until when that is noted.
    """

    instance: Instance
    record: TokenRecord
    judged: Judged
    route: Route
    changes: bool
    repeat_tail: bytes
    visible: tuple[int, ...]
    admission: Admission
    line: DecisionLine | None
    use: _Use


class WarmPath:
    """Answers remembered subrequests from what this process holds, and one trip."""

    def __init__(
        self,
        rules: Rules,
        telemetry: Telemetry,
        decision_ids: DecisionIds,
        *,
        uses: LastUses | None,
        receipts: ReceiptWriter | None,
        expiry_ms: int,
        plain: Plain,
        finish: Finish,
    ) -> None:
        """Everything goes the plain way until a store is given.

        Args:
            rules: what decisions depend on.
            telemetry: told of every decision.
            decision_ids: names decisions.
            uses: told of every request.
            receipts: keeps those that can be looked up.
            expiry_ms: how long before its expiry a token is said to expire, in milliseconds.
            plain: answers the plain way.
            finish: observes and renders what is decided here, but is no plain admission.
        """
        self._rules = rules
        self._telemetry = telemetry
        self._decision_ids = decision_ids
        self._uses = uses
        self._receipts = receipts
        self._expiry_ms = expiry_ms
        self._plain = plain
        self._finish = finish
        self._store: DecisionStore | None = None

    def use(self, store: Store) -> None:
        """Decide by this store from now on, if it charges a claim in one call."""
        able = isinstance(store, DecisionStore) and store.in_one_call
        self._store = store if able and isinstance(store, DecisionStore) else None

    def apply(self, rules: Rules, expiry_ms: int) -> None:
        """Prepare by these from now on; what is prepared is the memo's to forget."""
        self._rules = rules
        self._expiry_ms = expiry_ms

    def answer(
        self, remembered: Remembered, request_id: str | None, asker: Asker
    ) -> Coroutine[Any, Any, Reply] | None:
        """Have a remembered subrequest answered; or the coroutine that answers it.

        Args:
            remembered: what follows from its bytes.
            request_id: the proxy's id of it, or None.
            asker: gets the answer.
        """
        start = time.perf_counter()
        store = self._store
        if not remembered.takes_id:
            request_id = None
        prepared = None if store is None else self._prepared(remembered, store)
        if store is None or prepared is None:
            return self._plain(
                remembered.endpoint, _access(remembered, request_id), asker.peer, start
            )
        key = None if request_id is None else request_id.encode("ascii") + prepared.repeat_tail
        charge = _Charge(
            self, store, remembered, prepared, asker, request_id=request_id, start=start
        )
        charged = store.begin(prepared.judged.claim, key, charge)
        if charged is not None:  # a refusal that stands
            judgement, route = prepared.judged.judgement, prepared.route
            charge.finish(conclude(judgement, charged, route, prepared.record))
        return None

    def _prepared(self, remembered: Remembered, store: DecisionStore) -> _Prepared | None:
        """What was prepared, if it still holds, or is prepared now; None: the plain way."""
        credential = remembered.access.credential
        assert isinstance(credential, Credential)  # noqa: S101  # others are not remembered
        instance, record = store.current(), store.held(credential)
        if instance is None or record is None:
            return None
        prepared: _Prepared | None = remembered.prepared
        if (
            prepared is None
            or prepared.instance is not instance
            or prepared.record is not record
            or not store.holds_places(prepared.judged.claim.places)
        ):
            prepared = remembered.prepared = self._prepare(remembered, instance, record, store)
        if prepared is not None and prepared.changes and not holds(prepared.judged, store.now()):
            return None
        return prepared

    def _prepare(
        self, remembered: Remembered, instance: Instance, record: TokenRecord, store: DecisionStore
    ) -> _Prepared | None:
        access = remembered.access
        route = find_route(self._rules.policy, access)
        if isinstance(route, Judgement):
            return None
        judged = judge_held(
            *(access, self._rules, route, instance, record),
            now=store.now(),
            held_places=store.held_places,
        )
        if judged is None or not isinstance(judged.judgement.verdict, Allow):
            return None
        if record.rotated_until is not None:  # its answers say so, which no memo does
            return None
        shown = [one for one in judged.claim.counters if one.scope != USES]
        allow = judged.judgement.verdict
        return _Prepared(
            instance,
            record,
            judged,
            route,
            judged.timed or record.expires_at is not None,
            repeat_key(access._replace(request_id="")) or b"",
            tuple([one.limit.requests for one in shown]),
            Admission(allow, access.client, [(one.scope, one.limit) for one in shown]),
            self._telemetry.line_of_admissions(access, route.template, record),
            _Use(used(access.method, route.template, access.path, access.target, body=access.body)),
        )

    def charged(self, charge: "_Charge", result: Result) -> Reply | None:
        """The answer to what was charged; None: the asker has it, or will have it."""
        prepared = charge.prepared
        claim, record = prepared.judged.claim, prepared.record
        if charge.store.admitted(claim, result):
            now, numbers = result
            states = numbers[_FIRST_STATE : _FIRST_STATE + 2 * len(prepared.visible)]
            if not self._is_special(prepared, states, now):
                access = charge.remembered.access
                if self._uses is not None:
                    self._uses.used(record.token, now, access.client, prepared.route.template)
                    use = prepared.use
                    if now >= use.noted_until:
                        use.noted_until = self._uses.note(record.token, now, use.what)
                decision_id = self._decision_ids()
                self._keep_receipt(charge, result, decision_id)
                seconds = time.perf_counter() - charge.start
                self._telemetry.admitted(
                    access.proxy, prepared.line, decision_id, charge.request_id, seconds
                )
                return prepared.admission.reply(decision_id, states, now)
        charged = charge.store.read(claim, result)
        if isinstance(charged, Stale):
            charge.asker.run(self.plain(charge))
            return None
        return self.finished(
            charge, conclude(prepared.judged.judgement, charged, prepared.route, record)
        )

    def _keep_receipt(self, charge: "_Charge", result: Result, decision_id: str) -> None:
        """Keep a receipt, where this admission is to have one."""
        prepared, receipts = charge.prepared, self._receipts
        if receipts is None:
            return
        record, route = prepared.record, prepared.route
        weight = receipts.weight(record.token, route.template)
        if weight:
            charged = charge.store.read(prepared.judged.claim, result)
            assert isinstance(charged, Charged)  # noqa: S101  # it was admitted
            outcome = conclude(prepared.judged.judgement, charged, route, record)
            access = _access(charge.remembered, charge.request_id)
            receipts.keep(
                Decided(decision_id, access.proxy, access, outcome, "", prepared.instance, weight)
            )

    def unavailable(self, charge: "_Charge", error: StoreError) -> Reply:
        """The answer where Redis gives none."""
        now = charge.store.now()
        return self.finished(
            charge, conclude_unavailable(error, charge.prepared.route, self._rules, now)
        )

    def finished(self, charge: "_Charge", outcome: Outcome) -> Reply:
        """The answer to an outcome, which is counted and logged."""
        remembered, peer = charge.remembered, charge.asker.peer
        access = _access(remembered, charge.request_id)
        return self._finish(remembered.endpoint, access, outcome, peer, charge.start)

    def plain(self, charge: "_Charge") -> Coroutine[Any, Any, Reply]:
        """The plain way, for a request whose state has changed under it."""
        remembered, peer = charge.remembered, charge.asker.peer
        access = _access(remembered, charge.request_id)
        return self._plain(remembered.endpoint, access, peer, charge.start)

    def _is_special(self, prepared: _Prepared, states: list[int], now: int) -> bool:
        """Whether more is told of an admission: a counter near its limit, a token that expires."""
        for i, most in enumerate(prepared.visible):
            if states[2 * i] * NEAR_LIMIT < most:
                return True
        at = prepared.record.expires_at
        return at is not None and at - now <= self._expiry_ms


class _Charge:
    """A request that waits for its charge: a waiter, as the store's calls know it."""

    __slots__ = (
        "_done",
        "_path",
        "asker",
        "prepared",
        "remembered",
        "request_id",
        "start",
        "store",
    )

    def __init__(
        self,
        path: WarmPath,
        store: DecisionStore,
        remembered: Remembered,
        prepared: _Prepared,
        asker: Asker,
        *,
        request_id: str | None,
        start: float,
    ) -> None:
        self._path = path
        self._done = False
        self.store = store
        self.remembered = remembered
        self.prepared = prepared
        self.request_id = request_id
        self.asker = asker
        self.start = start

    def done(self) -> bool:
        return self._done

    def exception(self) -> None:
        return None

    def set_result(self, result: Result) -> None:
        self._done = True
        try:
            reply = self._path.charged(self, result)
        except Exception as error:  # noqa: BLE001  # whatever it is, the peer waits
            self._fail(error)
        else:
            if reply is not None:
                self.asker.answered_later(reply)

    def set_exception(self, error: Exception) -> None:
        self._done = True
        if not isinstance(error, StoreError):
            self._fail(error)
            return
        try:
            reply = self._path.unavailable(self, error)
        except Exception as defect:  # noqa: BLE001  # whatever it is, the peer waits
            self._fail(defect)
        else:
            self.asker.answered_later(reply)

    def cancel(self) -> None:
        if not self._done:
            self._done = True
            self._fail(asyncio.CancelledError())

    def finish(self, outcome: Outcome) -> None:
        """What is known without asking."""
        self._done = True
        self.asker.answered_later(self._path.finished(self, outcome))

    def _fail(self, error: BaseException) -> None:
        try:
            self.asker.failed_later(error)
        except Exception as defect:  # noqa: BLE001  # others share its call and must be answered
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "no answer", "exception": defect})


def _access(remembered: Remembered, request_id: str | None) -> AccessRequest:
    if request_id is None:
        return remembered.access
    return remembered.access._replace(request_id=request_id)
