"""The sandwich around one request: load, decide, charge.

Pure but for the Store it is handed; everything that can be slow or broken is behind that.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from authsidecar.decision.bodies import Body
from authsidecar.decision.checks import judge
from authsidecar.decision.model import (
    AccessRequest,
    Address,
    Allow,
    Credential,
    Deny,
    Limit,
    Place,
    Quota,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.policy import (
    RATE_LIMITED,
    STORE_UNAVAILABLE,
    Case,
    Instance,
    Judgement,
    Policy,
    find_route,
    identify,
)
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.decision.resources import MOST_NAMED, Names, Places, named, with_body
from authsidecar.decision.restrictions import TOKEN_RESTRICTED, depends_on_time, refusal_now
from authsidecar.decision.routes import Route
from authsidecar.times import UnixMs

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


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What a request is to be charged, and the state that must be current for that.

    Attributes:
        counters: what to charge; may be empty.
        instance: to be proven current, or None.
        record: to be proven current, or None.
        places: where resources lie, by their keys, to be proven current.
    """

    counters: tuple[Charge, ...]
    instance: Instance | None = None
    record: TokenRecord | None = None
    places: tuple[tuple[str, Place | None], ...] = ()


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


UNSYNCED: Final = "unsynced"
"""The kind of a StoreError where Redis answers, and the sync has not filled it yet."""

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

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged | Stale:
        """Charge all of a claim's counters or none, if its state is still current.

        Args:
            claim: the same one may be charged again and again.
            repeat_key: identifies a client request that the proxy may ask about again.
        """

    async def places(self, keys: tuple[str, ...]) -> Places:
        """Where resources lie, by their keys, as of a few seconds ago; None: not known."""

    def held_places(self, keys: tuple[str, ...]) -> Places | None:
        """The same as this process holds it, for all of them, to be proven by the charge."""

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        """The same, read for this call alone."""

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
        forwarded_bodies: whether the proxy shows bodies, to be looked at for a token that is
            restricted to resources.
    """

    policy: Policy
    limits: Mapping[str, Limit]
    ipv6_prefix: int = 64
    public_without_store: bool = False
    forwarded_bodies: bool = False


ReadBody = Callable[[], Awaitable[Body]]
"""Waits for a body that a proxy shows, and tells what it says, each time the same; never raises."""


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


def judge_held(
    request: AccessRequest,
    rules: Rules,
    route: Route,
    instance: Instance,
    record: TokenRecord,
    *,
    now: UnixMs,
    held_places: Callable[[tuple[str, ...]], Places | None],
) -> "Judged | None":
    """What is known of a token's request before it is charged, by state that is held.

    None: it is not authenticated, or something must be looked up; `authorize` decides those.
    """
    judged = _judged(request, rules, route, instance, record, now=now)
    if judged.case is None:
        return None
    if judged.to_resources:
        names = names_of(route, request, rules)
        places = held_places(names.keys[:MOST_NAMED])
        return None if places is None else _located(judged, names, places, request, rules, now=now)
    if rules.policy.team_isolation and named(route, request.path, request.target).keys:
        return None
    return judged


def holds(judged: "Judged", now: UnixMs) -> bool:
    """Whether what was judged by the same state before is judged the same now.

    Args:
        judged: of an authenticated request.
        now: by Redis's clock.
    """
    assert judged.case is not None  # noqa: S101  # it is authenticated
    record = judged.case.record
    if record.expires_at is not None and now > record.expires_at:
        return False
    if judged.timed:
        for restriction in record.restrictions.values():
            if refusal_now(restriction, now) is not None:
                return False
    return True


async def authorize(
    request: AccessRequest, rules: Rules, store: Store, read_body: ReadBody | None = None
) -> Outcome:
    """Decide one readable request. Never raises for anything that the client or Redis did.

    Args:
        request: the client's.
        rules: what decisions depend on.
        store: where state and counters are.
        read_body: gives the body, where the proxy shows it; only asked of a token that is
            restricted to resources.
    """
    found = find_route(rules.policy, request)
    try:
        if isinstance(found, Judgement):
            return await _without_token(found, request, rules, store)
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            instance = (None if last else store.current()) or await store.instance(fresh=last)
            record = None if last else _known(request, store)
            if record is None:
                record, paced = await look_up(request, rules, store, fresh=last)
                if paced:
                    return refuse_look_up(store.now(), found)
            judged = _judged(request, rules, found, instance, record, now=store.now())
            if judged.paid or judged.to_resources:
                judged = await _looked_up(judged, request, rules, store, read_body, fresh=last)
            claim = Claim(judged.claim.counters) if last else judged.claim
            charged = await store.charge(claim, repeat_key=repeat_key(request))
            if isinstance(charged, Stale):
                continue
            judgement = judged.judgement
            if judgement.bucket == "failed" and not charged.admitted:
                store.refused_address(claim.counters[0].tag, charged.quotas[0].reset_at)
            elif charged.admitted and rules.policy.team_isolation:
                judgement = await _isolated(judged, request, store)
            return conclude(judgement, charged, found, judged.case and judged.case.record)
    except StoreError as error:
        return conclude_unavailable(error, found, rules, store.now())
    raise AssertionError("the last attempt proves nothing, so nothing of it is stale")


def conclude_unavailable(
    error: StoreError, found: Route | Judgement, rules: Rules, now: UnixMs
) -> Outcome:
    """The answer where Redis gives none, or knows nothing yet."""
    why = "sync: not complete yet" if error.kind == UNSYNCED else f"redis: {error.kind}"
    if isinstance(found, Route):
        return Outcome(Deny(STORE_UNAVAILABLE, why), now, route=found.template)
    if rules.public_without_store and isinstance(found.verdict, Allow):
        return Outcome(found.verdict, now)
    return Outcome(Deny(STORE_UNAVAILABLE, why), now)


async def _without_token(
    judgement: Judgement, request: AccessRequest, rules: Rules, store: Store
) -> Outcome:
    """A public route, an unknown one, or a preflight: only the address's bucket matters."""
    counters = _of_address(judgement.bucket, request, rules)
    if not counters:
        return Outcome(judgement.verdict, store.now())
    charged = await store.charge(Claim(counters), repeat_key=repeat_key(request))
    assert isinstance(charged, Charged)  # noqa: S101  # nothing was to be proven
    return conclude(judgement, charged, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What is known of a request before it is charged.

    Attributes:
        judgement: the verdict, and the bucket.
        claim: what the request is to be charged.
        case: what it was judged by, or None: it has no known token.
        timed: whether it is to be judged again by the time.
        paid: whether it is charged what only an admitted request is.
        to_resources: whether it is to be judged again by what it names.
    """

    judgement: Judgement
    claim: Claim
    case: Case | None
    timed: bool = False
    paid: bool = False
    to_resources: bool = False


def _judged(
    request: AccessRequest,
    rules: Rules,
    route: Route,
    instance: Instance,
    record: TokenRecord | None,
    *,
    now: UnixMs,
) -> Judged:
    known = identify(request, route, instance, record, now)
    if isinstance(known, TokenRecord):
        settled = _settled(rules, request.client, route, instance, known)
        return _rejudged_at(now, settled, request, rules) if settled.timed else settled
    return Judged(known, Claim(_of_address(known.bucket, request, rules), instance, record), None)


@lru_cache(maxsize=8192)
def _settled(
    rules: Rules, client: Address, route: Route, instance: Instance, record: TokenRecord
) -> Judged:
    """An authenticated request: the same for the same snapshots, none of which ever changes."""
    case = Case(rules.policy, client, route, instance, record)
    judgement = judge(case)
    counters = charges.of_principal(record, client, rules.limits, rules.ipv6_prefix)
    allowed = isinstance(judgement.verdict, Allow)
    own = charges.of_restriction(record) if allowed else ()
    narrowed = record.restrictions.values()
    timed = any(map(depends_on_time, narrowed))
    to_resources = allowed and any(one.to_resources for one in narrowed)
    claim = Claim(counters + own, instance, record)
    return Judged(judgement, claim, case, timed, bool(own), to_resources)


def _rejudged_at(now: UnixMs, judged: Judged, request: AccessRequest, rules: Rules) -> Judged:
    """The same at this time: outside its hours, a restriction refuses what it admits in them."""
    assert judged.case is not None  # noqa: S101  # it is timed
    for restriction in judged.case.record.restrictions.values():
        if refusal_now(restriction, now) is not None:
            return _rejudged(judged, judge(judged.case._replace(now=now)), request, rules)
    return judged


async def _looked_up(
    judged: Judged,
    request: AccessRequest,
    rules: Rules,
    store: Store,
    read_body: ReadBody | None,
    *,
    fresh: bool,
) -> Judged:
    """The same when what the request names was looked at, as far as that matters yet."""
    if not judged.to_resources:
        if not rules.policy.team_isolation:
            return judged
        # What only an admitted request pays for must not be charged before this is known.
        return _rejudged(judged, await _isolated(judged, request, store), request, rules)
    assert judged.case is not None  # noqa: S101  # there is a restriction
    body = None if read_body is None else await read_body()
    names = names_of(judged.case.route, request, rules, body)
    keys = names.keys[:MOST_NAMED]
    places = None if fresh else store.held_places(keys)
    if places is None:
        places = await store.provable_places(keys)
    return _located(judged, names, places, request, rules, now=store.now())


def names_of(route: Route, request: AccessRequest, rules: Rules, body: Body | None = None) -> Names:
    """What a request names, and whether a body may name more.

    Args:
        route: that serves it.
        request: the client's.
        rules: what decisions depend on.
        body: what the body says that the proxy shows, or None: it shows none.
    """
    names = named(route, request.path, request.target)
    if body is not None:
        names = with_body(names, route, request.path, body)
    if request.body or rules.forwarded_bodies:
        hidden = request.body and body is None
        return names._replace(body=hidden, held=rules.forwarded_bodies)
    return names


def _located(
    judged: Judged,
    names: Names,
    places: Places,
    request: AccessRequest,
    rules: Rules,
    *,
    now: UnixMs,
) -> Judged:
    """The same when it is known where the resources lie that are named."""
    there = tuple([places[key] for key in names.keys[:MOST_NAMED]])
    seen = request.body and names.held and not names.body  # nothing of it outlives its request
    settle = _settled_there.__wrapped__ if seen else _settled_there
    settled = settle(rules, judged, names, there)
    return _rejudged_at(now, settled, request, rules) if settled.timed else settled


@lru_cache(maxsize=8192)
def _settled_there(
    rules: Rules, judged: Judged, names: Names, places: tuple[Place | None, ...]
) -> Judged:
    """What was settled, judged again by what is named: the same for the same places."""
    case, claim = judged.case, judged.claim
    assert case is not None  # noqa: S101  # it was settled
    found = tuple(zip(names.keys, places, strict=False))
    case = case._replace(names=names, places=dict(found))
    judgement, counters = judge(case), claim.counters
    if isinstance(judgement.verdict, Deny):
        counters = charges.of_principal(case.record, case.client, rules.limits, rules.ipv6_prefix)
    proven = Claim(counters, claim.instance, claim.record, found)
    return Judged(judgement, proven, case, judged.timed, judged.paid)


def _rejudged(judged: Judged, judgement: Judgement, request: AccessRequest, rules: Rules) -> Judged:
    """The same with another judgement; one that refuses costs what a refusal costs."""
    if judgement is judged.judgement or isinstance(judgement.verdict, Allow):
        return judged
    claim = judged.claim
    assert claim.record is not None  # noqa: S101  # it has a case
    counters = charges.of_principal(claim.record, request.client, rules.limits, rules.ipv6_prefix)
    proven = Claim(counters, claim.instance, claim.record, claim.places)
    return Judged(judgement, proven, judged.case)


def _of_address(bucket: str | None, request: AccessRequest, rules: Rules) -> tuple[Charge, ...]:
    """The counter of a request without an identity, if it is counted."""
    if bucket is None:
        return ()
    return charges.of_address(bucket, request.client, rules.limits, rules.ipv6_prefix)


async def _isolated(judged: Judged, request: AccessRequest, store: Store) -> Judgement:
    """The judgement when the teams of what is named are looked at too.

    Last of all, so that nobody who is refused anyway costs a trip for it.
    """
    case = judged.case
    if case is None or case.names is not None or isinstance(judged.judgement.verdict, Deny):
        return judged.judgement
    names = named(case.route, request.path, request.target)
    keys = names.keys
    if not keys:
        return judged.judgement
    return judge(case._replace(names=names, places=await store.places(keys[:MOST_NAMED])))


def _known(request: AccessRequest, store: Store) -> TokenRecord | None:
    credential = request.credential
    return None if isinstance(credential, Deny) else store.known(credential)


async def look_up(
    request: AccessRequest, rules: Rules, store: Store, *, fresh: bool
) -> tuple[TokenRecord | None, bool]:
    """The token's record, and whether the address must wait before it may be looked up."""
    credential = request.credential
    if isinstance(credential, Deny):
        return None, False
    failed = _of_address("failed", request, rules)
    if failed and not store.may_look_up(failed[0].tag, credential):
        return None, True
    return await store.load(credential, fresh=fresh), False


def refuse_look_up(now: UnixMs, route: Route) -> Outcome:
    """The refusal of an address that must wait before its token is looked up."""
    retry_at = UnixMs(now + LOOKUP_RETRY_MS)
    denial = Deny(RATE_LIMITED, "too many unknown tokens from this address")
    quota = Quota("failed", Limit(1, LOOKUP_RETRY_MS), 0, retry_at)
    return Outcome(denial, now, (quota,), route.template)


def conclude(
    judgement: Judgement, charged: Charged, route: Route | None, record: TokenRecord | None
) -> Outcome:
    """The outcome of what was judged, once it is charged.

    Args:
        judgement: the verdict unless a counter has no room.
        charged: what the store answered.
        route: what matched, or None.
        record: the authenticated token, or None.
    """
    template = route.template if route else None
    quotas = charged.quotas
    if record is not None and record.restrictions:
        quotas = tuple([q for q in quotas if q.scope != charges.USES])  # it is no rate
    if charged.admitted:
        return Outcome(judgement.verdict, charged.now, quotas, template, record)
    full = tuple([(q.scope, q.limit) for q in quotas if q.remaining == 0])
    denial = _no_room(full) if full else Deny(TOKEN_RESTRICTED, "its uses are spent")
    return Outcome(denial, charged.now, quotas, template, record)


@lru_cache(maxsize=1024)
def _no_room(full: tuple[tuple[str, Limit], ...]) -> Deny:
    counters = ", ".join(f"{scope} ({li.requests} in {li.window_ms} ms)" for scope, li in full)
    return Deny(RATE_LIMITED, f"no room in {counters}")


def repeat_key(request: AccessRequest) -> bytes | None:
    """What makes a subrequest a repeat: id, token, method and target, all the same."""
    if request.request_id is None:
        return None
    who = (
        f"{request.credential.token_id}:{request.credential.digest.hex()}"
        if isinstance(request.credential, Credential)
        else request.credential.reason.code
    )
    return f"{request.request_id}\n{who}\n{request.method}\n".encode() + request.target
