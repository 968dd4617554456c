"""The sandwich around one request: load, decide, charge.

Pure but for the Store it is handed; everything that can be slow or broken is behind that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from authsidecar.isolation import Resource, named
from authsidecar.model import (
    AccessRequest,
    Address,
    Allow,
    Credential,
    Deny,
    Limit,
    Quota,
    TeamId,
    TokenRecord,
    UnixMs,
    Verdict,
)
from authsidecar.policy import (
    RATE_LIMITED,
    STORE_UNAVAILABLE,
    Instance,
    Judgement,
    Policy,
    find_route,
    judge,
)
from authsidecar.ratelimit import charges
from authsidecar.ratelimit.charges import Charge
from authsidecar.routes import Route

ATTEMPTS: Final = 3
"""How often a request is judged when the state changes under it; the last time on state that was
loaded for this request alone, which is current by definition."""

LOOKUP_RETRY_MS: Final = 1000
"""When a client may try again whose address sends too many unknown tokens."""


class StoreError(Exception):
    """Redis could not answer: down, slow, read-only or loading. `kind` is a closed label."""

    def __init__(self, kind: str, message: str) -> None:
        """Keep the label beside the message; neither holds anything of a request."""
        super().__init__(message)
        self.kind = kind


class Charged(NamedTuple):
    """What the store answered to a charge.

    Attributes:
        admitted: every counter had room (or this repeats a request that was charged already).
        quotas: every counter after the charge, in the order of the charges.
        now: Redis's clock at that moment.
    """

    admitted: bool
    quotas: tuple[Quota, ...]
    now: UnixMs


class Stale:
    """The state that a request was judged by has changed; the store has forgotten it."""


STALE: Final = Stale()


class Store(Protocol):
    """What a decision needs from Redis; any method may raise StoreError."""

    def now(self) -> UnixMs:
        """The time by Redis's clock, as far as this process knows it without asking."""

    def current(self) -> Instance | None:
        """The instance-wide state that this process holds, or None."""

    async def instance(self, *, fresh: bool) -> Instance:
        """The instance-wide state; `fresh` reads Redis for this call alone."""

    def known(self, credential: Credential) -> TokenRecord | None:
        """The record that this process holds for exactly this id and secret, or None."""

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        """The record of exactly this id and secret, or None; one answer, in the same time."""

    async def charge(
        self,
        counters: tuple[Charge, ...],
        *,
        instance: Instance | None,
        record: TokenRecord | None,
        repeat_key: bytes | None,
    ) -> Charged | Stale:
        """Charge all counters or none, if instance and record are still current.

        Args:
            counters: what to charge; may be empty.
            instance: to be proven current, or None.
            record: to be proven current, or None.
            repeat_key: identifies a client request that the proxy may ask about again.
        """

    async def owner(self, uuid: str) -> TeamId | None:
        """The team of a resource, as of a few seconds ago; None if it is not known."""

    def may_look_up(self, address: str, credential: Credential) -> bool:
        """Whether this token from this address may cost a look-up now."""

    def refused_address(self, address: str, until: UnixMs) -> None:
        """Take note that an address has used up its bucket of failed authentications."""


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Everything configured that a decision depends on.

    Attributes:
        policy: routes and who may use the switches.
        limits: by scope; a scope that is absent is not counted.
        ipv6_prefix: IPv6 clients are counted by network of this length.
        public_without_store: public routes pass while Redis is unavailable.
    """

    policy: Policy
    limits: Mapping[str, Limit]
    ipv6_prefix: int = 64
    public_without_store: bool = False


class Outcome(NamedTuple):
    """The answer to one request, and what is told of it.

    Attributes:
        verdict: allow or deny.
        now: Redis's clock when it was decided.
        quotas: the counters that the request was charged to, or refused by; may be empty.
        route: the template that matched, or None.
        record: the authenticated token, also of a refused request; None if there is none.
    """

    verdict: Verdict
    now: UnixMs
    quotas: tuple[Quota, ...] = ()
    route: str | None = None
    record: TokenRecord | None = None


async def authorize(request: AccessRequest, rules: Rules, store: Store) -> Outcome:
    """Decide one readable request. Never raises for anything that the client or Redis did."""
    found = find_route(rules.policy, request)
    route = found if isinstance(found, Route) else None
    template = route.template if route else None
    try:
        if isinstance(found, Judgement):
            return await _without_token(found, request, rules, store)
        return await _with_token(found, request, rules, store)
    except StoreError as error:
        if isinstance(found, Judgement) and _passes(found, rules):
            return Outcome(found.verdict, store.now())
        denial = Deny(STORE_UNAVAILABLE, f"redis: {error.kind}")
        return Outcome(denial, store.now(), route=template)


def _passes(judgement: Judgement, rules: Rules) -> bool:
    return rules.public_without_store and isinstance(judgement.verdict, Allow)


async def _without_token(
    judgement: Judgement, request: AccessRequest, rules: Rules, store: Store
) -> Outcome:
    """A public route, an unknown one, or a preflight: only the address's bucket matters."""
    if judgement.bucket is None:
        return Outcome(judgement.verdict, store.now())
    counters = charges.of_address(judgement.bucket, request.client, rules.limits, rules.ipv6_prefix)
    if not counters:
        return Outcome(judgement.verdict, store.now())
    charged = await store.charge(
        counters, instance=None, record=None, repeat_key=_repeat_key(request)
    )
    assert isinstance(charged, Charged)  # noqa: S101  # nothing was to be proven
    return _outcome(judgement, charged, None, None)


async def _with_token(route: Route, request: AccessRequest, rules: Rules, store: Store) -> Outcome:
    for attempt in range(1, ATTEMPTS + 1):
        last = attempt == ATTEMPTS
        instance = None if last else store.current()
        if instance is None:
            instance = await store.instance(fresh=last)
        record = None if last else _known(request, store)
        if record is None:
            record, paced = await _record(request, rules, store, fresh=last)
            if paced:
                return _paced(store.now(), route)
        now = store.now()
        judgement = judge(rules.policy, request, route, instance, record, now)
        principal = record if judgement.bucket == "principal" else None
        if principal is not None:
            counters = _of_principal(principal, request.client, rules)
        else:
            counters = charges.of_address(
                judgement.bucket or "", request.client, rules.limits, rules.ipv6_prefix
            )
        charged = await store.charge(
            counters,
            instance=None if last else instance,
            record=None if last else record,
            repeat_key=_repeat_key(request),
        )
        if isinstance(charged, Charged):
            if judgement.bucket == "failed" and not charged.admitted:
                store.refused_address(counters[0].tag, charged.quotas[0].reset_at)
            if rules.policy.team_isolation and _admitted(judgement, charged):
                # Last of all, so that nobody who is refused anyway costs a trip for it.
                resource = await _named(route, request, store)
                judgement = judge(rules.policy, request, route, instance, record, now, resource)
            return _outcome(judgement, charged, route, principal)
    raise StoreError("stale", "the state kept changing")  # unreachable: the last proves nothing


@lru_cache(maxsize=8192)
def _of_principal(record: TokenRecord, client: Address, rules: Rules) -> tuple[Charge, ...]:
    return charges.of_principal(record, client, rules.limits, rules.ipv6_prefix)


def _admitted(judgement: Judgement, charged: Charged) -> bool:
    return charged.admitted and isinstance(judgement.verdict, Allow)


async def _named(route: Route, request: AccessRequest, store: Store) -> Resource | None:
    """What the path names, with its team as far as that is known."""
    found = named(route, request.path)
    return None if found is None else found._replace(team=await store.owner(found.uuid))


def _known(request: AccessRequest, store: Store) -> TokenRecord | None:
    credential = request.credential
    return None if isinstance(credential, Deny) else store.known(credential)


async def _record(
    request: AccessRequest, rules: Rules, store: Store, *, fresh: bool
) -> tuple[TokenRecord | None, bool]:
    """The token's record, and whether the address must wait before it may be looked up."""
    credential = request.credential
    if isinstance(credential, Deny):
        return None, False
    failed = charges.of_address("failed", request.client, rules.limits, rules.ipv6_prefix)
    if failed and not store.may_look_up(failed[0].tag, credential):
        return None, True
    return await store.load(credential, fresh=fresh), False


def _paced(now: UnixMs, route: Route) -> Outcome:
    retry_at = UnixMs(now + LOOKUP_RETRY_MS)
    denial = Deny(RATE_LIMITED, "too many unknown tokens from this address")
    quota = Quota("failed", Limit(1, LOOKUP_RETRY_MS), 0, retry_at)
    return Outcome(denial, now, (quota,), route.template)


def _outcome(
    judgement: Judgement, charged: Charged, route: Route | None, record: TokenRecord | None
) -> Outcome:
    template = route.template if route else None
    if charged.admitted:
        return Outcome(judgement.verdict, charged.now, charged.quotas, template, record)
    full = tuple([(q.scope, q.limit) for q in charged.quotas if q.remaining == 0])
    return Outcome(_no_room(full), charged.now, charged.quotas, template, record)


@lru_cache(maxsize=1024)
def _no_room(full: tuple[tuple[str, Limit], ...]) -> Deny:
    counters = ", ".join(f"{scope} ({li.requests} in {li.window_ms} ms)" for scope, li in full)
    return Deny(RATE_LIMITED, f"no room in {counters}")


def _repeat_key(request: AccessRequest) -> bytes | None:
    """What makes a subrequest a repeat: id, token, method and target, all the same."""
    if request.request_id is None:
        return None
    who = (
        f"{request.credential.token_id}:{request.credential.digest.hex()}"
        if isinstance(request.credential, Credential)
        else request.credential.reason.code
    )
    return f"{request.request_id}\n{who}\n{request.method}\n".encode() + request.target
