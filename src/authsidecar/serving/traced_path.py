"""The warm path where decisions may be traced: one that is takes its trace along."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from authsidecar.decision.authorize import Outcome, Rules, Store, StoreError
from authsidecar.decision.proxies.replies import Reply
from authsidecar.observe.metrics import Telemetry
from authsidecar.observe.traces import Sampler, Trace
from authsidecar.serving.memo import Look, Remembered
from authsidecar.serving.warm_path import Asker, Underway, WarmPath, tell

_TRIP: Final = "charge"


class TracedPath(WarmPath):
    """Answers as the warm path does, and has another one for whom nothing is traced."""

    def __init__(
        self,
        traces: Sampler,
        rules: Rules,
        telemetry: Telemetry,
        decision_ids: Callable[[], str],
        **more: Any,
    ) -> None:
        """As the warm path.

        Args:
            traces: says which decisions are traced.
            rules: the warm path's.
            telemetry: the warm path's.
            decision_ids: the warm path's.
            more: the warm path's.
        """
        super().__init__(rules, telemetry, decision_ids, **more)
        self._untraced = WarmPath(rules, telemetry, decision_ids, **more)
        self._traces = traces

    def use(self, store: Store) -> None:
        """As the warm path."""
        super().use(store)
        self._untraced.use(store)

    def apply(self, rules: Rules, expiry_ms: int) -> None:
        """As the warm path."""
        super().apply(rules, expiry_ms)
        self._untraced.apply(rules, expiry_ms)

    def answer(
        self, remembered: Remembered, look: Look, asker: Asker
    ) -> Coroutine[Any, Any, Reply] | None:
        """Have it answered; whoever asks goes along with its trace."""
        trace = self._traces.begin(look.traceparent)
        if trace is None:
            return self._untraced.answer(remembered, look, asker)
        return super().answer(remembered, look, _TracedAsker(asker, trace))

    def settle(self) -> None:
        """As the warm path, after one trip."""
        for charge, _ in self.charged:
            try:
                _trace_of(charge.asker).trip(_TRIP)
            except Exception as defect:  # noqa: BLE001  # its answer does not depend on that
                tell("a trip is not traced", defect)
        super().settle()
        self._untraced.settle()

    def note(self) -> None:
        """As the warm path; a plain admission is told of nowhere else."""
        for charge, decision_id, _ in self.admitted:
            try:
                _decided(charge, decision_id)
            except Exception as defect:  # noqa: BLE001  # its answer is given
                tell("an admission is not traced", defect)
        super().note()
        self._untraced.note()

    def unavailable(self, charge: Underway, error: StoreError) -> Reply:
        """The answer, after one trip that was in vain."""
        _trace_of(charge.asker).trip(_TRIP, error.kind)
        return super().unavailable(charge, error)

    def finished(self, charge: Underway, outcome: Outcome) -> Reply:
        """The answer to an outcome, which is counted, logged and traced."""
        remembered, asker = charge.remembered, charge.asker
        access, trace = remembered.asked(charge.request_id), _trace_of(asker)
        return self._finish(
            remembered.endpoint, access, outcome, asker.peer, charge.start, trace=trace
        )

    def plain(
        self, remembered: Remembered, request_id: str | None, asker: Asker, start: float
    ) -> Coroutine[Any, Any, Reply]:
        """The plain way, in the same trace."""
        access, trace = remembered.asked(request_id), _trace_of(asker)
        return self._plain(remembered.endpoint, access, asker.peer, start, trace=trace)


class _TracedAsker:
    """Who asks, and the trace of what is asked."""

    __slots__ = ("_asker", "peer", "trace")

    def __init__(self, asker: Asker, trace: Trace) -> None:
        self._asker = asker
        self.peer = asker.peer
        self.trace = trace

    def answered_later(self, reply: Reply) -> None:
        self._asker.answered_later(reply)

    def admitted_later(self, fields: str, last: str) -> None:
        self._asker.admitted_later(fields, last)

    def failed_later(self, error: BaseException) -> None:
        self._asker.failed_later(error)

    def run(self, answer: Coroutine[Any, Any, Reply]) -> None:
        self._asker.run(answer)


def _decided(charge: Underway, decision_id: str) -> None:
    """Tell its trace of a plain admission."""
    remembered, prepared = charge.remembered, charge.prepared
    verdict, proxy = prepared.judged.judgement.verdict, remembered.endpoint.proxy
    trace = _trace_of(charge.asker)
    trace.decided(proxy, remembered.access, verdict, prepared.template, decision_id)


def _trace_of(asker: Asker) -> Trace:
    assert isinstance(asker, _TracedAsker)  # noqa: S101  # whoever is traced comes by `answer`
    return asker.trace
