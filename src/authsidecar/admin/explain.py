"""Why a request would be answered as it would be: the server's own core, and nothing consumed.

The outcome is `authorize`'s. The rows are told from what it saw on its way, by the very checks
that it ran, in its order.
"""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.tokens import standing
from authsidecar.decision.addresses import Networks
from authsidecar.decision.authorize import (
    Charged,
    Claim,
    Outcome,
    Rules,
    Stale,
    StoreError,
    authorize,
    names_of,
)
from authsidecar.decision.checks import CHECKS, NOT_TEAM_MEMBER
from authsidecar.decision.model import (
    AccessRequest,
    Address,
    Allow,
    Credential,
    Deny,
    Proxy,
    Quota,
    TokenId,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.policy import (
    STORE_UNAVAILABLE,
    TOKEN_DISABLED,
    TOKEN_UNKNOWN,
    Case,
    Instance,
    Judgement,
    authenticate,
    find_route,
)
from authsidecar.decision.proxies.forward_auth import UNTRUSTED_PEER, read
from authsidecar.decision.proxies.headers import FORWARDED_FOR, Fields
from authsidecar.decision.proxies.target import AMBIGUOUS_TARGET
from authsidecar.decision.ratelimit.charges import USES
from authsidecar.decision.resources import Names, Places
from authsidecar.decision.routes import Guard, Route
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs, rfc3339


class Result(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  # no secret
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check: what was needed and found."""

    name: str
    result: Result
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a request would be answered, and each check on the way there, in order."""

    verdict: Verdict
    rows: tuple[CheckOutcome, ...]

    @property
    def status(self) -> int:
        """The status towards the client; 200 stands for whatever the backend answers."""
        return 200 if isinstance(self.verdict, Allow) else self.verdict.reason.status

    @property
    def code(self) -> str | None:
        """The reason code, or None if the request is allowed."""
        return None if isinstance(self.verdict, Allow) else self.verdict.reason.code


NOT_REACHED: Final = "not reached"

_CHECK_NAMES: Final = tuple(check.name for check in CHECKS)

ROWS: Final = ("target", "route", "token", "rate_limit", *_CHECK_NAMES, "store")
"""Every row of every explanation, in order."""

Finding = tuple[Result, str]

_UNKNOWN: Final[Finding] = (Result.FAIL, "no token with this id and secret")


class Peekable(Protocol):
    """A store that can be asked without charging anything."""

    def now(self) -> UnixMs:
        """The time by Redis's clock."""

    async def instance(self, *, fresh: bool) -> Instance:
        """The instance-wide state."""

    def known(self, credential: Credential) -> TokenRecord | None:
        """The record that is held for exactly this id and secret, or None."""

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        """The record of exactly this id and secret, or None."""

    async def places(self, keys: tuple[str, ...]) -> Places:
        """Where resources lie, by their keys."""

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        """The same, read for this call alone."""

    def charge(
        self, claim: Claim, *, repeat_key: bytes | None, peek: bool = False
    ) -> Coroutine[Any, Any, Charged | Stale]:
        """What a charge would be answered, where `peek` is set."""


@dataclass(slots=True)
class _Peeking:
    """The server's store, but nothing is charged; keeps what the decision saw last."""

    store: Peekable
    instance_seen: Instance | None = None
    record_seen: TokenRecord | None = None
    places_seen: Places = field(default_factory=dict)
    charged: Charged | None = None
    error: StoreError | None = None
    asked: bool = field(default=False)

    def now(self) -> UnixMs:
        return self.store.now()

    def current(self) -> Instance | None:
        return None  # it is read for this explanation

    async def instance(self, *, fresh: bool) -> Instance:
        self.asked = True
        try:
            self.instance_seen = await self.store.instance(fresh=fresh)
        except StoreError as error:
            self.error = error
            raise
        return self.instance_seen

    def known(self, credential: Credential) -> TokenRecord | None:
        self.record_seen = self.store.known(credential)
        return self.record_seen

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        try:
            self.record_seen = await self.store.load(credential, fresh=fresh)
        except StoreError as error:
            self.error = error
            raise
        return self.record_seen

    async def places(self, keys: tuple[str, ...]) -> Places:
        try:
            self.places_seen = await self.store.places(keys)
        except StoreError as error:
            self.error = error
            raise
        return self.places_seen

    def held_places(self, keys: tuple[str, ...]) -> None:  # noqa: ARG002  # it is read for this
        """Nothing is held."""
        return

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        try:
            self.places_seen = await self.store.provable_places(keys)
        except StoreError as error:
            self.error = error
            raise
        return self.places_seen

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged | Stale:
        self.asked = True
        try:
            answer = await self.store.charge(claim, repeat_key=repeat_key, peek=True)
        except StoreError as error:
            self.error = error
            raise
        if isinstance(answer, Charged):
            self.charged = answer
        return answer

    def may_look_up(self, address: str, credential: Credential) -> bool:  # noqa: ARG002  # per process
        return True

    def refused_address(self, address: str, until: UnixMs) -> None:
        """Take no note: nobody was refused."""


async def explain(
    line: tuple[bytes, bytes],
    authorization: Sequence[bytes],
    client: Address,
    *,
    hops: Networks,
    rules: Rules,
    store: DecisionStore,
    registry: Registry,
    others: Sequence[tuple[bytes, bytes]] = (),
    as_token: Credential | None = None,
) -> Explanation:
    """Tell what a client's request would be answered now.

    Args:
        line: method and target as the client would send them.
        authorization: the values of its Authorization headers.
        client: its address.
        hops: networks that are skipped in X-Forwarded-For.
        rules: what decisions depend on.
        store: the hot path's store.
        registry: asked for what only an operator may know.
        others: more headers of the client's, as name and value.
        as_token: stands for a token whose secret is taken as right.
    """
    headers = [*others, *((b"Authorization", value) for value in authorization)]
    headers.append((FORWARDED_FOR.encode(), str(client).encode()))
    access = read(Fields(headers), Proxy.TRAEFIK, hops, line)
    if isinstance(access, Deny):
        return _explanation(access, {"target": (Result.FAIL, target_fault(line[1], access))})
    if as_token is not None:
        access = access._replace(credential=as_token)
    return await explain_access(access, rules=rules, store=store, registry=registry)


async def as_if_known(token: TokenId, registry: Registry) -> Credential | None:
    """A credential that stands for a token's own, whose secret nobody has; None: no such token."""
    found = await registry.token(token)
    return None if found is None else Credential(token, found.sha256)


async def explain_access(
    access: AccessRequest, *, rules: Rules, store: Peekable, registry: Registry | None
) -> Explanation:
    """Tell what a request that was read would be answered.

    Args:
        access: the request.
        rules: what decisions depend on.
        store: where the state and the counters are.
        registry: asked for what only an operator may know; None: nobody is.
    """
    peeking = _Peeking(store)
    outcome = await authorize(access, rules, peeking)
    found: dict[str, Finding] = {"target": (Result.PASS, f"is read as {access.path}")}
    route = find_route(rules.policy, access)
    if isinstance(route, Judgement):
        found.update(_without_token(route, peeking))
    elif peeking.error is None and peeking.instance_seen is not None:
        found.update(_with_token(access, route, rules, peeking, outcome))
    else:
        found["route"] = _route(route)
    if peeking.error is not None:
        found["store"] = (Result.FAIL, f"Redis did not answer ({peeking.error.kind})")
    elif peeking.asked:
        found["store"] = (Result.PASS, "Redis answered")
    else:
        found["store"] = (Result.SKIPPED, "not needed")
    if registry is None:
        return _explanation(outcome.verdict, found)
    if found.get("token") == _UNKNOWN and isinstance(access.credential, Credential):
        found["token"] = await _known_to_operators(access.credential, registry)
    if isinstance(outcome.verdict, Deny) and outcome.verdict.reason is NOT_TEAM_MEMBER:
        found["team_member"] = await _membership(peeking.record_seen, registry)
    return _explanation(outcome.verdict, found)


def target_fault(target: bytes, deny: Deny) -> str:
    """Say what is wrong with a target that a person typed.

    Args:
        target: path and query, as they were typed.
        deny: why it cannot be read.
    """
    if deny.reason is AMBIGUOUS_TARGET and not target.startswith(b"/"):
        return "it does not begin with a slash: a target is path and query, as /api/v1/teams?page=2"
    return deny.detail


def untrusted_peer(peer: Address) -> Explanation:
    """Tell what a caller is answered that is not one of trusted_peers, whatever it asks."""
    detail = f"{peer} asks, which is not one of trusted_peers"
    return _explanation(Deny(UNTRUSTED_PEER, detail), {"target": (Result.FAIL, detail)})


def refused_at(name: str, detail: str, verdict: Deny) -> Explanation:
    """Tell of a refusal of which no more is known than the check that made it."""
    return _explanation(verdict, {name: (Result.FAIL, detail)})


def _explanation(verdict: Verdict, found: Mapping[str, Finding]) -> Explanation:
    skipped = (Result.SKIPPED, NOT_REACHED)
    return Explanation(
        verdict, tuple(CheckOutcome(name, *found.get(name, skipped)) for name in ROWS)
    )


def _without_token(judgement: Judgement, peeking: _Peeking) -> dict[str, Finding]:
    """The rows of a public route, an unknown one, or a path outside."""
    verdict = judgement.verdict
    if isinstance(verdict, Deny):
        return {"route": (Result.FAIL, verdict.detail), "rate_limit": _rate(peeking)}
    free: Finding = (Result.SKIPPED, "not needed: public")
    public: Finding = (Result.PASS, "public: no token is needed")
    checks = dict.fromkeys(("token", *_CHECK_NAMES), free)
    return {**checks, "route": public, "rate_limit": _rate(peeking)}


def _with_token(
    access: AccessRequest, route: Route, rules: Rules, peeking: _Peeking, outcome: Outcome
) -> dict[str, Finding]:
    """The rows of a route that needs a token, Redis having answered."""
    instance, now = peeking.instance_seen, outcome.now
    assert instance is not None  # noqa: S101  # the caller has looked
    if route.guard is Guard.MCP and not instance.mcp_enabled:
        off = "the instance's MCP switch is off"
        return {"route": (Result.FAIL, off), "rate_limit": _rate(peeking)}
    found: dict[str, Finding] = {"route": _route(route), "rate_limit": _rate(peeking)}
    if isinstance(access.credential, Deny):
        return {**found, "token": (Result.FAIL, access.credential.detail)}
    proven = authenticate(access.credential, peeking.record_seen, now)
    if isinstance(proven, Deny):
        if proven.reason is TOKEN_UNKNOWN or peeking.record_seen is None:
            return {**found, "token": _UNKNOWN}
        if proven.reason is TOKEN_DISABLED:
            return {**found, "token": (Result.FAIL, proven.detail)}
        expired = f"token {access.credential.token_id} expired {_expiry(peeking.record_seen)}"
        return {**found, "token": (Result.FAIL, expired)}
    found["token"] = (Result.PASS, _token(proven))
    if peeking.charged is None or not peeking.charged.admitted:
        return found
    names: Names | None = None
    narrowed = any(one.to_resources for one in proven.restrictions.values())
    if narrowed or rules.policy.team_isolation:
        names = names_of(route, access, rules)
    places = peeking.places_seen
    case = Case(rules.policy, access.client, route, instance, proven, names, places, now)
    for check in CHECKS:
        denial = check.denial(case)
        if denial is not None:
            found[check.name] = (Result.FAIL, denial.detail)
            break
        passed = check.passed(case)
        found[check.name] = (Result.PASS if passed.needed else Result.SKIPPED, passed.detail)
    return found


def _route(route: Route) -> Finding:
    needs = " or ".join(route.sufficient) or "a token"
    return Result.PASS, f"{route.method} {route.template} needs {needs}"


def _token(record: TokenRecord) -> str:
    held = " ".join(sorted(record.permissions)) or "nothing"
    team = "no team" if record.team is None else f"team {record.team}"
    expiry = "never expires" if record.expires_at is None else f"expires {_expiry(record)}"
    return f"token {record.token} of user {record.user} in {team} holds {held}; {expiry}"


def _expiry(record: TokenRecord) -> str:
    return "never" if record.expires_at is None else rfc3339(record.expires_at)


def _rate(peeking: _Peeking) -> Finding:
    """What the counters say; those of a request that is charged nothing say nothing."""
    charged = peeking.charged
    if charged is None or not charged.quotas:
        return Result.SKIPPED, NOT_REACHED if peeking.error else "not counted"
    if charged.admitted:
        return Result.PASS, "; ".join(_room(quota) for quota in charged.quotas)
    full = [quota for quota in charged.quotas if quota.remaining == 0]
    if all(quota.scope == USES for quota in full):
        return Result.FAIL, "; ".join(_room(quota) for quota in full)
    wait = max(1, -(-(max(q.reset_at for q in full) - charged.now) // 1000))
    return Result.FAIL, f"{'; '.join(_room(quota) for quota in full)}; again in {wait} s"


def _room(quota: Quota) -> str:
    if quota.scope == USES:
        return f"{quota.remaining} of {quota.limit.requests} uses left"
    window = quota.limit.window_ms / 1000
    return f"{quota.scope}: {quota.remaining} of {quota.limit.requests} in {window:g} s left"


async def _known_to_operators(credential: Credential, registry: Registry) -> Finding:
    """Tell an unknown id from a wrong secret, which no client is ever told."""
    if await registry.token(credential.token_id) is None:
        return Result.FAIL, f"there is no token {credential.token_id}"
    return Result.FAIL, f"token {credential.token_id} is there, but its secret is another"


async def _membership(record: TokenRecord | None, registry: Registry) -> Finding:
    """Say which of user, team and membership is missing."""
    if record is None or record.team is None:
        return Result.FAIL, "the token's team is not a plain number"
    missing = await standing(registry, record.team, record.user)
    why = missing.why if isinstance(missing, Refusal) else "the membership has just come back"
    return Result.FAIL, why.partition(";")[0]


HINTS: Final = {
    "ambiguous_target": "write the path plainly: no empty or dot segments, no odd escapes",
    "method_override": "send the method itself",
    "target_too_long": "shorten it to 16384 bytes",
    "method_not_allowed": "use a method that the route takes, in upper case",
    "authorization_ambiguous": "send one token",
    "route_unknown": "check the method and path against `coolify.routes` and `extra_routes`",
    "token_missing": "give the token by --token-file FILE, or - for standard input",
    "token_malformed": "a token is written ID|SECRET, as it was shown when it was created",
    "token_prefix_missing": "put the token's id and | in front: ID|SECRET",
    "token_unknown": "`authsidecar token list` shows the tokens that there are",
    "token_disabled": "`authsidecar token enable ID` has it admitted again",
    "token_expired": "create a new token",
    "rate_limited": "wait, or see `authsidecar limit --help`",
    "mcp_disabled": "`authsidecar mcp enable` switches it on",
    **{check.reason.code: check.hint for check in CHECKS},
    STORE_UNAVAILABLE.code: "is Redis running, and redis.url right?",
}
"""What an operator can do, by reason code."""
