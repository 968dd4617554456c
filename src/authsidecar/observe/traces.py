"""Traces of decisions: which are traced, and what is known of one when it ends.

A decision belongs to the trace of the request that it is for, by the `traceparent` (W3C Trace
Context) that the proxy hands on, and is traced if that says that the trace is sampled. Clients can
write that header too, so no more than a number a second are. Nothing here waits, or knows who takes
what is recorded.
"""

import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, cast

from authsidecar.decision.authorize import StoreError
from authsidecar.decision.model import AccessRequest, Allow, Deny, Kind, Proxy, Verdict
from authsidecar.decision.whoami import ReadingStore

TRACEPARENT: Final = "traceparent"

_NAME: Final = TRACEPARENT.encode()
_FORM: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


class Parent(NamedTuple):
    """The span that a request was under when the proxy asked: the ids of its trace and its own."""

    trace_id: int
    span_id: int


class Trip(NamedTuple):
    """One call that a decision waited for.

    Attributes:
        operation: what it was for, from a closed set.
        start_ns: when it began, in nanoseconds of the Unix epoch.
        end_ns: when it ended.
        error: the closed kind of what went wrong, or None.
    """

    operation: str
    start_ns: int
    end_ns: int
    error: str | None


class TracedDecision(NamedTuple):
    """A decision that was traced.

    Attributes:
        parent: what it is a part of; None: its trace begins with it.
        start_ns: when it began, in nanoseconds of the Unix epoch.
        end_ns: when it ended.
        attributes: what it was; nothing of a token, an address or a path.
        failed: whether it could not be decided, which no client is to blame for.
        trips: what it waited for.
    """

    parent: Parent | None
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int]
    failed: bool
    trips: list[Trip]


Record = Callable[[TracedDecision], None]
"""Takes a span; it must not wait."""


def traceparent(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """What the one header of that name says; None: there is none, or more than one."""
    found = [value for name, value in headers if name.lower() == _NAME]
    return found[0] if len(found) == 1 else None


class Sampler:
    """Says which decisions are traced."""

    def __init__(self, record: Record, *, ratio: float, max_per_second: int) -> None:
        """None has been so far.

        Args:
            record: takes each span.
            ratio: the share of requests that no trace is known for that begin one.
            max_per_second: how many are traced in a second, at the most.
        """
        self._record = record
        self._ratio = ratio
        self._most = max_per_second
        self._second = 0
        self._begun = 0

    def begin(self, said: bytes | None) -> "Trace | None":
        """A decision begins; None: it is not traced.

        Args:
            said: the value of its `traceparent`, or None. One that is malformed is none.
        """
        if not self._ratio and (said is None or said.endswith(b"-00")):
            return None  # as nearly always
        match = None if said is None else _FORM.fullmatch(said)
        parent = None
        if match is not None and (parent := _parent(match)) is not None:
            sampled = bool(int(match[4], 16) & _SAMPLED)
        else:
            sampled = random.random() < self._ratio  # noqa: S311  # nobody is to be surprised
        return Trace(self._record, parent) if sampled and self._has_room() else None

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= self._most


def _parent(match: re.Match[bytes]) -> Parent | None:
    """The parent; None where an id is zero, or the first version has more than it may."""
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id or (match[1] == b"00" and match[5]):
        return None
    return Parent(trace_id, span_id)


class Trace:
    """One decision that is traced, until it is made."""

    __slots__ = ("_parent", "_record", "_start_ns", "_trips")

    def __init__(self, record: Record, parent: Parent | None) -> None:
        """It begins now."""
        self._record = record
        self._parent = parent
        self._start_ns = time.time_ns()
        self._trips: list[Trip] = []

    def through(self, store: ReadingStore) -> ReadingStore:
        """The same store; what is asked of it is a trip of this decision."""
        return cast(ReadingStore, _Watched(store, self._trips))

    def trip(self, operation: str, error: str | None = None) -> None:
        """It has waited for this from its begin until now."""
        self._trips.append(Trip(operation, self._start_ns, time.time_ns(), error))

    def decided(
        self,
        proxy: Proxy | None,
        access: AccessRequest | Deny,
        verdict: Verdict,
        route: str | None,
        decision_id: str,
    ) -> None:
        """It is made: record it.

        Args:
            proxy: the endpoint that was asked.
            access: what was read, or why nothing could be.
            verdict: what was decided.
            route: the template that matched, or None.
            decision_id: names the decision.
        """
        attributes: dict[str, str | int] = {"authsidecar.decision_id": decision_id}
        if proxy is not None:
            attributes["authsidecar.proxy"] = proxy.value
        if isinstance(access, AccessRequest):
            attributes["http.request.method"] = access.method
        if route is not None:
            attributes["http.route"] = route
        if isinstance(verdict, Allow):
            attributes["authsidecar.outcome"] = "allow"
        else:
            attributes["authsidecar.outcome"] = "deny"
            attributes["authsidecar.code"] = verdict.reason.code
            attributes["http.response.status_code"] = verdict.reason.status
        failed = isinstance(verdict, Deny) and verdict.reason.kind is Kind.UNAVAILABLE
        self._record(
            TracedDecision(
                self._parent, self._start_ns, time.time_ns(), attributes, failed, self._trips
            )
        )


class _Watched:
    """A store whose answers are timed: those that are waited for."""

    def __init__(self, store: ReadingStore, trips: list[Trip]) -> None:
        self._store = store
        self._trips = trips

    def __getattr__(self, name: str) -> Any:
        """As the store has it; what may wait is timed."""
        found = getattr(self._store, name)
        return self._timed(name, found) if name in _WAITING else found

    def _timed(self, operation: str, call: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **kwargs: Any) -> Any:
            start, error = time.time_ns(), None
            try:
                return await call(*args, **kwargs)
            except StoreError as failure:
                error = failure.kind
                raise
            finally:
                self._trips.append(Trip(operation, start, time.time_ns(), error))

        return timed


_WAITING: Final = frozenset({"instance", "load", "charge", "places", "provable_places"})
"""What of a Store may ask Redis."""
