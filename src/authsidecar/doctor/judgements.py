"""How each probe is judged: from what was sent and seen to the fault, or None.

Pure. A judgement says in one line what was found; why it matters and what to change stand in the
table of probes. What the evidence does not settle counts as a fault.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from authsidecar.decision.credentials import AUTHORIZATION_AMBIGUOUS
from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.headers import IDENTITY, USER_ID
from authsidecar.doctor.evidence import Answer, Echoed
from authsidecar.serving.doctor_probe import CODE, RETRY_AFTER_S, Sighting, identity

LEFTMOST: Final = "192.0.2.66"
"""What a client forges at the left end of X-Forwarded-For."""

RIGHTMOST: Final = "198.51.100.77"
"""What stands at its right end: believed only from a trusted hop."""

FORGED: Final = "forged"
"""The value of every other header that a probe forges."""

UNAVAILABLE: Final = "authorization_unavailable"
"""The code that the shipped files answer with while they cannot reach the sidecar."""

UNASKED_REFUSALS: Final = frozenset({400, 403, 405, 414, 421, 431, 501})
"""What a proxy answers to a request that it does not pass on; a backend answers an unknown path
with another status."""


@dataclass(frozen=True, slots=True)
class Observation:
    """All that is known of one probe.

    Attributes:
        proxy: which proxy the operator says it is.
        method: as it was sent.
        target: as it was sent.
        answer: what the client got, or None: no answer in time, or the connection was closed.
        seen: what the sidecar saw, in order; empty if it was not asked.
        first: what the sidecar saw of the first probe.
        from_hop: the doctor runs where the proxy trusts X-Forwarded-For.
    """

    proxy: Proxy
    method: str
    target: str
    answer: Answer | None
    seen: tuple[Sighting, ...]
    first: tuple[Sighting, ...] = ()
    from_hop: bool = False

    @property
    def echoed(self) -> Echoed | None:
        """What reached the backend, if it was the echo that answered."""
        return self.answer.echoed() if self.answer else None


Judge = Callable[[Observation], str | None]


def _answered(o: Observation) -> str:
    return f"the client got {o.answer.status}" if o.answer else "the client got no answer"


def asked(o: Observation) -> str | None:
    """The sidecar was asked."""
    if o.seen:
        return None
    said = o.answer.document() if o.answer else {}
    if said.get("code") == "untrusted_peer":
        return "the sidecar does not trust the proxy's address: add it to trusted_peers"
    if said.get("code") == UNAVAILABLE:
        return "the proxy cannot reach the sidecar at the address that its file has"
    if "decision_id" in said:
        return (
            "a sidecar was asked, but Authorization did not reach it, "
            "or it has another Redis or prefix than the doctor"
        )
    return f"the sidecar was not asked; {_answered(o)}"


def asked_here(o: Observation) -> str | None:
    """The sidecar was asked, at the endpoint of this proxy."""
    if (fault := asked(o)) is not None:
        return fault
    wrong = {s.proxy for s in o.seen} - {o.proxy}
    return f"the proxy asks at /authz/{min(wrong)}, another proxy's endpoint" if wrong else None


def readable(o: Observation) -> str | None:
    """The sidecar was asked, and could read the question."""
    if (fault := asked(o)) is not None:
        return fault
    refused = {s.refused for s in o.seen} - {None}
    return f"the sidecar cannot read the question: {min(map(str, refused))}" if refused else None


def guarded(o: Observation) -> str | None:
    """The sidecar was asked, or the proxy refused: the backend was not reached unasked."""
    if o.seen:
        return None
    if o.answer is None:
        return "no answer"
    if o.echoed:
        return f"reached the backend as {o.echoed.target} without the sidecar being asked"
    by_sidecar = "decision_id" in o.answer.document()
    if by_sidecar or o.answer.status in UNASKED_REFUSALS:
        return None
    return (
        f"answered {o.answer.status} without the sidecar being asked "
        "(if the proxy itself refuses it, let it answer 400)"
    )


def told_target(o: Observation) -> str | None:
    """The sidecar is told the target that was sent."""
    if (fault := asked(o)) is not None:
        return fault
    for s in o.seen:
        if s.target != o.target:
            return f"the sidecar was told the target {s.target}, not {o.target}"
    return None


def told_name(o: Observation) -> str | None:
    """The sidecar is told a name of any script as it was sent, and reads it."""
    return readable(o) or told_target(o)


def told_method(o: Observation) -> str | None:
    """The sidecar is told the method that was sent."""
    if (fault := asked(o)) is not None:
        return fault
    for s in o.seen:
        if s.method != o.method:
            return f"the sidecar was told the method {s.method}, not {o.method}"
    return None


def described(o: Observation) -> str | None:
    """The whole question arrives readable and true, or the proxy refuses such a request."""
    return readable(o) or told_target(o) or told_method(o) if o.seen else guarded(o)


def not_leftmost(o: Observation) -> str | None:
    """The left end of X-Forwarded-For is not believed."""
    if (fault := readable(o)) is not None:
        return fault
    if any(s.client == LEFTMOST for s in o.seen):
        return f"the leftmost X-Forwarded-For, {LEFTMOST}, which any client can forge, was believed"
    return None


def own_address(o: Observation) -> str | None:
    """No entry of X-Forwarded-For is believed from a client that is no trusted hop."""
    if (fault := readable(o)) is not None:
        return fault
    forged = {s.client for s in o.seen} & {LEFTMOST, RIGHTMOST}
    if forged and not o.from_hop:
        return (
            f"this machine's X-Forwarded-For was believed ({min(map(str, forged))}); "
            "if the proxy is meant to trust it, as a CDN, say --from-trusted-hop"
        )
    return None


def without_foreign(*names: str) -> Judge:
    """Headers that name the client or the target in another way do not reach the sidecar."""

    def judge(o: Observation) -> str | None:
        if (fault := readable(o)) is not None:
            return fault
        found = {name for s in o.seen for name in s.names} & set(names)
        return f"{min(found)} of the client's reaches the sidecar" if found else None

    return judge


def one_authorization(o: Observation) -> str | None:
    """Authorization arrives exactly once."""
    if (fault := asked(o)) is not None:
        return fault
    counts = {s.names.count("authorization") for s in o.seen} - {1}
    return f"Authorization reaches the sidecar {max(counts)} times" if counts else None


def ambiguous(o: Observation) -> str | None:
    """Of two Authorization headers none is chosen: the proxy or the sidecar refuses."""
    if any(s.refused != AUTHORIZATION_AMBIGUOUS.code for s in o.seen):
        return (
            "the sidecar is shown one of two Authorization headers; the backend may read the other"
        )
    if any(s.report_only for s in o.seen):
        return None  # it refuses, and lets pass what it refuses
    if o.answer is None or not 400 <= o.answer.status < 500:
        return f"two Authorization headers were not refused; {_answered(o)}"
    return None


def bodyless(o: Observation) -> str | None:
    """A POST with a body is asked about without it, unless it is to be shown, and answered."""
    if (fault := asked(o)) is not None:
        return fault
    if any(s.body and not s.forwarded for s in o.seen):
        return "the body, or its length, is sent to the sidecar"
    if any(s.forwarded and not s.body for s in o.seen):
        return (
            "restrictions.body is forwarded, and the sidecar is shown no body: take in the lines "
            "marked #bodies# of the deploy file"
        )
    return "no answer: the sidecar is made to wait for a body" if o.answer is None else None


def content_type(o: Observation) -> str | None:
    """The type of a body reaches the sidecar, which then knows that there may be one."""
    if (fault := asked(o)) is not None:
        return fault
    if any("content-type" not in s.names for s in o.seen):
        return "content-type does not reach the sidecar: a body could name what a token may not"
    return None


def preflight(o: Observation) -> str | None:
    """Both CORS headers reach the sidecar."""
    if (fault := asked(o)) is not None:
        return fault
    for name in ("origin", "access-control-request-method"):
        if any(name not in s.names for s in o.seen):
            return f"{name} does not reach the sidecar: browsers' preflights are refused"
    return None


def no_override(o: Observation) -> str | None:
    """A method override is refused, or at least kept from the backend."""
    if o.echoed and o.echoed.values("x-http-method-override"):
        return "X-HTTP-Method-Override reaches the backend, which then runs another method"
    if o.echoed or any("x-http-method-override" in s.names for s in o.seen):
        return None
    if not o.seen:
        return guarded(o)
    return (
        "X-HTTP-Method-Override is neither refused nor shown to the sidecar; "
        "--echo-url tells whether the backend sees it"
    )


def request_id(o: Observation) -> str | None:
    """The proxy sets an id of its own for each request."""
    if (fault := readable(o)) is not None:
        return fault
    name = "x-authz-request-id"
    ids = [s.values(name) for s in o.seen]
    if any(len(values) != 1 or not values[0] for values in ids):
        return "X-Authz-Request-Id does not reach the sidecar exactly once"
    if any(FORGED in values[0] for values in ids):
        return "the client's own request id is believed: its repeats would not be counted"
    if {values[0] for values in ids} & {v for s in o.first for v in s.values(name)}:
        return "two requests have the same X-Authz-Request-Id: the second is not counted"
    return None


def denied(status: int, *once: str) -> Judge:
    """A denial reaches the client whole: status, body and these headers, each once."""

    def judge(o: Observation) -> str | None:
        if (fault := asked(o)) is not None:
            return fault
        if o.answer is None or o.answer.status != status:
            return f"the sidecar says {status}, but {_answered(o)}"
        for name in once:
            found = o.answer.values(name)
            if len(found) != 1 or not found[0]:
                return f"{name} reaches the client {len(found)} times, not once"
        if status == 429 and o.answer.values("Retry-After") != [str(RETRY_AFTER_S)]:
            return "Retry-After is not the sidecar's"
        document = o.answer.document()
        # Envoy loses the body of a 5xx and says it in words of its own.
        own_words = o.proxy is Proxy.ENVOY and status >= 500 and "code" in document
        if document.get("code") == CODE or own_words:
            return None
        return "the sidecar's JSON body does not reach the client"

    return judge


def answered(o: Observation) -> str | None:
    """Whatever it is, it is an answer and no failure."""
    if o.answer is None:
        return "no answer"
    return f"answered {o.answer.status}" if o.answer.status >= 500 else None


def _reached(o: Observation) -> Echoed | str:
    """What reached the echo, asked for; or the fault."""
    if (fault := asked(o)) is not None:
        return fault
    return o.echoed or f"the request did not reach `doctor echo`; {_answered(o)}"


def whole_identity(o: Observation) -> str | None:
    """The backend is told every identity header once, with the sidecar's value."""
    reached = _reached(o)
    if isinstance(reached, str):
        return reached
    for name in IDENTITY:
        found = reached.values(name)
        if not found:
            return f"{name} does not reach the backend"
        if found != [identity(name)]:
            return f"the backend sees {name}: {', '.join(found)}, not what the sidecar said"
    return None


def identity_kept(o: Observation) -> str | None:
    """Naming an identity header in Connection does not delete it, or is refused."""
    if not o.seen:
        return guarded(o)
    reached = _reached(o)
    if isinstance(reached, str):
        return reached
    found = reached.values(USER_ID)
    return None if found == [identity(USER_ID)] else f"{USER_ID} does not reach the backend"


def no_alias(o: Observation) -> str | None:
    """No other spelling reaches the backend: PHP would take it for ours."""
    if o.echoed is None:
        if o.answer is not None and 400 <= o.answer.status < 500:
            return None
        return f"the request did not reach `doctor echo`; {_answered(o)}"
    ours = {name.lower() for name in IDENTITY}
    found = [name for name in o.echoed.claims() if name not in ours]
    forged = [name for name, value in o.echoed.headers if value == FORGED]
    return f"{(found or forged)[0]} reaches the backend" if found or forged else None


def nobody(o: Observation) -> str | None:
    """Where the sidecar is not asked, the backend is told of no identity."""
    if o.echoed is None:
        if o.seen or (o.answer is not None and 400 <= o.answer.status < 500):
            return None
        return f"the request did not reach `doctor echo`; {_answered(o)}"
    found = o.echoed.claims()
    return f"the client's own {found[0]} reaches the backend" if found else None


def same_target(o: Observation) -> str | None:
    """The backend is sent what the sidecar judged."""
    reached = _reached(o)
    if isinstance(reached, str):
        return reached
    for s in o.seen:
        if (s.method, s.target) != (reached.method, reached.target):
            return (
                f"the sidecar judged {s.method} {s.target}, "
                f"the backend got {reached.method} {reached.target}"
            )
    return None


def not_forged(*names: str) -> Judge:
    """None of these carries a client's value to the backend."""

    def judge(o: Observation) -> str | None:
        reached = _reached(o)
        if isinstance(reached, str):
            return reached
        for name in names:
            if any(FORGED in value for value in reached.values(name)):
                return f"the client's own {name} reaches the backend"
        return None

    return judge


def upgraded(o: Observation) -> str | None:
    """An admitted websocket is opened."""
    if (fault := asked(o)) is not None:
        return fault
    return None if o.answer is not None and o.answer.status == 101 else _answered(o)
