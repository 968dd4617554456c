"""The short way of a subrequest that was seen before: from its bytes to its charge and its answer.

What it is judged by is compared with what this process holds now. Its claim is charged as ever,
with the proof that all of that is current, and it is counted and logged. Whatever is not as it was
the last time, and whatever is refused, goes the plain way (ADR 13).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from math import inf
from typing import Any, Protocol

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
from authsidecar.decision.usage import used
from authsidecar.observe.metrics import NEAR_LIMIT, Line, Telemetry
from authsidecar.observe.receipts import Decided
from authsidecar.observe.traces import Trace
from authsidecar.serving.encoding import last_of_admissions
from authsidecar.serving.memo import Look, Remembered
from authsidecar.store.calls import Result
from authsidecar.store.charging import ADMITS, Charging, PackedClaim
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.last_used import LastUses
from authsidecar.store.receipts import ReceiptWriter
from authsidecar.times import UnixMs


class Asker(Protocol):
    """Who waits for an answer; one of the four is called in the end.

    Attributes:
        peer: the address that called.
    """

    peer: str

    def answered_later(self, reply: Reply, /) -> None:
        """The answer is there."""

    def admitted_later(self, fields: str, last: str, /) -> None:
        """It is a plain admission: to be sent when all are decided that share its call.

        Args:
            fields: its header fields.
            last: what `last_of_admissions` says.
        """

    def failed_later(self, error: BaseException, /) -> None:
        """It raised instead."""

    def run(self, answer: Coroutine[Any, Any, Reply], /) -> None:
        """This gives the answer."""


class Plain(Protocol):
    """Answers the plain way: what is asked, what was read, the peer, when it began."""

    def __call__(
        self,
        endpoint: Endpoint,
        access: AccessRequest,
        peer: str,
        start: float,
        *,
        trace: Trace | None = None,
    ) -> Coroutine[Any, Any, Reply]:
        """What answers it."""


class Finish(Protocol):
    """Observes and renders an outcome: what is asked, what was read, it, the peer, the begin."""

    def __call__(
        self,
        endpoint: Endpoint,
        access: AccessRequest,
        outcome: Outcome,
        peer: str,
        start: float,
        *,
        trace: Trace | None = None,
    ) -> Reply:
        """The answer."""


class _Prepared:
    """What is the same for a remembered request as long as the state is that it was judged by.

    Attributes:
        instance: the instance-wide state.
        record: the token.
        token: its id.
        client: the address that was judged.
        template: that of the route.
        judged: the judgement, which admits, and the claim.
        claim: that claim.
        packed: the same, as it is sent.
        route: what matched.
        changes: whether time may change the judgement.
        repeat_tail: what follows the proxy's id in what makes a request a repeat.
        admission: renders the answer.
        times: counts its admissions.
        line: renders the log line; None: it gets none.
        used: what it uses.
        noted_until: until when that is noted.
        receipts_of: the hour that has a receipt of it, as `ReceiptWriter.hour` tells it.
    """

    __slots__ = (
        "_enough",
        "_expires_from",
        "admission",
        "changes",
        "claim",
        "client",
        "instance",
        "judged",
        "line",
        "noted_until",
        "packed",
        "receipts_of",
        "record",
        "repeat_tail",
        "route",
        "template",
        "times",
        "token",
        "used",
    )

    def __init__(  # noqa: PLR0917  # all that it is made of
        self,
        access: AccessRequest,
        route: Route,
        instance: Instance,
        record: TokenRecord,
        judged: Judged,
        allow: Allow,
        packed: PackedClaim,
        telemetry: Telemetry,
        *,
        expiry_ms: int,
    ) -> None:
        shown = [one for one in judged.claim.counters if one.scope != USES]
        expires_at = record.expires_at
        self.instance = instance
        self.record = record
        self.token = record.token
        self.client = access.client
        self.template = route.template
        self.judged = judged
        self.claim = judged.claim
        self.packed = packed
        self.route = route
        self.changes = judged.timed or expires_at is not None
        self.repeat_tail = repeat_key(access._replace(request_id="")) or b""
        self._enough = _enough(tuple([one.limit.requests for one in shown]))
        self._expires_from = inf if expires_at is None else expires_at - expiry_ms
        self.admission = Admission(allow, access.client, [(one.scope, one.limit) for one in shown])
        self.times = telemetry.times_of_admissions(access.proxy)
        self.line = telemetry.line_of_admissions(access, route.template, record)
        asked = (access.method, route.template, access.path, access.target)
        self.used = used(*asked, body=access.body)
        self.noted_until = UnixMs(0)
        self.receipts_of = -1

    def is_special(self, states: list[int], now: int) -> bool:
        """Whether more is told of an admission: a counter near its limit, a token that expires."""
        at = 0
        for enough in self._enough:
            if states[at] < enough:
                return True
            at += 2
        return now >= self._expires_from

    def outcome(self, charged: Charged) -> Outcome:
        """What is decided where this was charged."""
        return conclude(self.judged.judgement, charged, self.route, self.record)


@lru_cache(256)
def _enough(limits: tuple[int, ...]) -> tuple[int, ...]:
    """Below how many that are left more is told; one object for all with the same limits."""
    return tuple([-(-requests // NEAR_LIMIT) for requests in limits])


class WarmPath:
    """Answers remembered subrequests from what this process holds, and one trip."""

    def __init__(
        self,
        rules: Rules,
        telemetry: Telemetry,
        decision_ids: Callable[[], str],
        *,
        uses: LastUses | None,
        receipts: ReceiptWriter | None,
        expiry_ms: int,
        plain: Plain,
        finish: Finish,
        settled: Callable[[], None],
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
            settled: told that all have their results that share a call: has `settle` called, sends
                what is admitted, then has `note` called.
        """
        self._rules = rules
        self._telemetry = telemetry
        self._decision_ids = decision_ids
        self._uses = uses
        self._receipts = receipts
        self._expiry_ms = expiry_ms
        self._plain = plain
        self._finish = finish
        self._settled = settled
        self._store: DecisionStore | None = None
        self._charging: Charging | None = None
        self.charged: list[tuple[Underway, Result]] = []
        self.admitted: list[Admitted] = []

    def use(self, store: Store) -> None:
        """Decide by this store from now on, if it charges a claim in one call."""
        self._store = store if isinstance(store, DecisionStore) else None
        self._charging = None if self._store is None else self._store.charging
        if self._charging is not None:
            self._charging.tell(self._settled)

    def apply(self, rules: Rules, expiry_ms: int) -> None:
        """Prepare by these from now on; what is prepared is the memo's to forget."""
        self._rules = rules
        self._expiry_ms = expiry_ms

    def answer(
        self, remembered: Remembered, look: Look, asker: Asker
    ) -> Coroutine[Any, Any, Reply] | None:
        """Have a remembered subrequest answered; or the coroutine that answers it.

        Args:
            remembered: what follows from its bytes.
            look: what was cut out of them.
            asker: gets the answer.
        """
        start = time.perf_counter()
        store, charging = self._store, self._charging
        request_id = look.request_id if remembered.takes_id else None
        if store is None or charging is None:
            return self.plain(remembered, request_id, asker, start)
        prepared: _Prepared | None = remembered.prepared
        if prepared is None or not store.holds(
            prepared.instance, prepared.record, prepared.claim.places
        ):
            prepared = remembered.prepared = self._prepare(remembered, store)
        if prepared is None or (prepared.changes and not holds(prepared.judged, store.now())):
            return self.plain(remembered, request_id, asker, start)
        key = None if request_id is None else request_id.encode("ascii") + prepared.repeat_tail
        charge = Underway(self, charging, remembered, prepared, asker, request_id, start)
        self._telemetry.looked_up("hit")
        charged = charging.begin(prepared.packed, key, charge)
        if charged is not None:  # a refusal that stands
            charge.finish(prepared.outcome(charged))
        return None

    def _prepare(self, remembered: Remembered, store: DecisionStore) -> _Prepared | None:
        """What is the same for this as long as the state is; None: it goes the plain way."""
        access, charging = remembered.access, self._charging
        assert isinstance(access.credential, Credential)  # noqa: S101  # others are not remembered
        instance, record = store.current(), store.held(access.credential)
        if charging is None or instance is None or record is None:
            return None
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
        packed = charging.packed(judged.claim)
        return _Prepared(
            *(access, route, instance, record, judged, judged.judgement.verdict, packed),
            self._telemetry,
            expiry_ms=self._expiry_ms,
        )

    def settle(self) -> None:
        """Answer all that share a call, which has just ended."""
        charged, self.charged = self.charged, []
        if not charged:
            return
        first, (now, _) = charged[0]  # and all the others are of the same call
        charging = first.charging
        try:
            refused, last = charging.heard(now), last_of_admissions()
        except Exception as error:  # noqa: BLE001  # whatever it is, the peers wait
            for charge, _ in charged:
                charge.fail(error)
            return
        for charge, result in charged:
            try:
                prepared, numbers = charge.prepared, result[1]
                states = numbers[2:]
                if numbers[0] not in ADMITS or prepared.is_special(states, now):
                    self._settle_by_read(charge, result)
                    continue
                if refused:
                    charging.forget_refusals(prepared.claim.counters)
                decision_id = self._decision_ids()
                fields = prepared.admission.fields(decision_id, states, now)
                charge.asker.admitted_later(fields, last)
                self.admitted.append((charge, decision_id, result))
            except Exception as error:  # noqa: BLE001  # whatever it is, the peer waits
                charge.fail(error)

    def _settle_by_read(self, charge: "Underway", result: Result) -> None:
        """Answer what is no plain admission."""
        charged = charge.charging.read(charge.prepared.claim, result)
        if isinstance(charged, Stale):
            charge.asker.run(
                self.plain(charge.remembered, charge.request_id, charge.asker, charge.start)
            )
        else:
            charge.asker.answered_later(self.finished(charge, charge.prepared.outcome(charged)))

    def note(self) -> None:
        """Count and log what was admitted since the last time, and note what it has used."""
        admitted, self.admitted = self.admitted, []
        end = time.perf_counter()
        uses = self._uses
        lines: list[Line] = []
        for charge, decision_id, (now, _) in admitted:
            try:
                prepared = charge.prepared
                seconds = end - charge.start
                prepared.times.add(seconds)
                if prepared.line is not None:
                    lines.append((prepared.line, decision_id, charge.request_id, seconds))
                if uses is not None:
                    uses.used(prepared.token, now, prepared.client, prepared.template)
                    if now >= prepared.noted_until:
                        prepared.noted_until = uses.note(prepared.token, now, prepared.used)
            except Exception as defect:  # noqa: BLE001  # its answer is given
                tell("an admission is not noted", defect)
        if lines:
            try:
                self._telemetry.write(lines)
            except Exception as defect:  # noqa: BLE001  # as above
                tell("admissions have no line", defect)
        if self._receipts is not None:
            self._keep_receipts(self._receipts, admitted)

    def _keep_receipts(self, receipts: ReceiptWriter, admitted: "list[Admitted]") -> None:
        """Keep the receipts of those admissions whose turn it is."""
        hour = receipts.hour
        for charge, decision_id, result in admitted:
            prepared = charge.prepared
            if prepared.receipts_of == hour:
                weight = receipts.weight_of_share()
            else:
                prepared.receipts_of = hour
                weight = receipts.weight(prepared.token, prepared.template)
            if not weight:
                continue
            try:
                self._keep_receipt(receipts, charge, decision_id, result, weight)
            except Exception as defect:  # noqa: BLE001  # as above
                tell("an admission has no receipt", defect)

    def _keep_receipt(
        self,
        receipts: ReceiptWriter,
        charge: "Underway",
        decision_id: str,
        result: Result,
        weight: float,
    ) -> None:
        """Keep the receipt of this admission."""
        prepared = charge.prepared
        charged = charge.charging.read(prepared.claim, result)
        assert isinstance(charged, Charged)  # noqa: S101  # it is an admission
        access = charge.remembered.asked(charge.request_id)
        outcome = prepared.outcome(charged)
        receipts.keep(
            Decided(decision_id, access.proxy, access, outcome, "", prepared.instance, weight)
        )

    def unavailable(self, charge: "Underway", error: StoreError) -> Reply:
        """The answer where Redis gives none."""
        now = charge.charging.now()
        return self.finished(
            charge, conclude_unavailable(error, charge.prepared.route, self._rules, now)
        )

    def finished(self, charge: "Underway", outcome: Outcome) -> Reply:
        """The answer to an outcome, which is counted and logged."""
        remembered, peer = charge.remembered, charge.asker.peer
        access = remembered.asked(charge.request_id)
        return self._finish(remembered.endpoint, access, outcome, peer, charge.start)

    def plain(
        self, remembered: Remembered, request_id: str | None, asker: Asker, start: float
    ) -> Coroutine[Any, Any, Reply]:
        """The plain way, for a request that nothing is prepared for, or whose state has changed."""
        return self._plain(remembered.endpoint, remembered.asked(request_id), asker.peer, start)


Admitted = tuple["Underway", str, Result]
"""What was admitted by its charge, the decision's id, and what Redis has said of it."""


class Underway:
    """A request that waits for its charge: a waiter, as the store's calls know it."""

    __slots__ = (
        "_done",
        "_path",
        "asker",
        "charging",
        "prepared",
        "remembered",
        "request_id",
        "start",
    )

    def __init__(  # noqa: PLR0917  # in the path of every request
        self,
        path: WarmPath,
        charging: Charging,
        remembered: Remembered,
        prepared: _Prepared,
        asker: Asker,
        request_id: str | None,
        start: float,
    ) -> None:
        self._path = path
        self._done = False
        self.charging = charging
        self.remembered = remembered
        self.prepared = prepared
        self.request_id = request_id
        self.asker = asker
        self.start = start

    def done(self) -> bool:
        """Whether it is decided, or given up."""
        return self._done

    def exception(self) -> None:
        """Nothing: whatever goes wrong is told to who asks."""

    def set_result(self, result: Result) -> None:
        """Redis has answered; the path goes on once all have their results that share the call."""
        self._done = True
        self._path.charged.append((self, result))

    def set_exception(self, error: Exception) -> None:
        """It has not."""
        self._done = True
        if not isinstance(error, StoreError):
            self.fail(error)
            return
        try:
            reply = self._path.unavailable(self, error)
        except Exception as defect:  # noqa: BLE001  # whatever it is, the peer waits
            self.fail(defect)
        else:
            self.asker.answered_later(reply)

    def cancel(self) -> None:
        """Nobody asks it any more."""
        if not self._done:
            self._done = True
            self.fail(asyncio.CancelledError())

    def finish(self, outcome: Outcome) -> None:
        """What is known without asking."""
        self._done = True
        self.asker.answered_later(self._path.finished(self, outcome))

    def fail(self, error: BaseException) -> None:
        """Whatever it is, who asks is told."""
        try:
            self.asker.failed_later(error)
        except Exception as defect:  # noqa: BLE001  # others share its call and must be answered
            tell("no answer", defect)


def tell(what: str, defect: Exception) -> None:
    """Have a defect logged that nobody can be answered with."""
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": what, "exception": defect})
