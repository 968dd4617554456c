"""What a token is told about itself: who it is, what it may do, and what is left of its limits.

It is charged to a bucket of its own, by address; the token's own limits are only read. Whoever has
no good token is answered and counted as on every other route.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from authsidecar.decision.authorize import (
    ATTEMPTS,
    Charged,
    Claim,
    Outcome,
    Rules,
    Stale,
    Store,
    StoreError,
    conclude,
    conclude_unavailable,
    look_up,
    refuse_look_up,
)
from authsidecar.decision.checks import NOT_TEAM_MEMBER, admission, denial_of_all
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Quota,
    TokenRecord,
    Verdict,
)
from authsidecar.decision.policy import (
    METHOD_NOT_ALLOWED,
    Case,
    Judgement,
    authenticate,
)
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.restrictions import TOKEN_RESTRICTED, as_mapping, elsewhere
from authsidecar.decision.routes import Guard, Route
from authsidecar.times import UnixMs, rfc3339

WHOAMI: Final = Route("GET", "/authz/whoami", Guard.ORDINARY)
"""What the answer is called in logs and as a token's last use; no proxy asks for leave to it."""

BUCKET: Final = "whoami"
"""The limit that it is charged to."""

METHODS: Final = ("GET", "HEAD")

Facts = Mapping[str, object]
"""The answer, as JSON has it (docs/reference/whoami.md)."""

Answer = tuple[Outcome, Facts]

_NOTHING: Final[Facts] = {}


class ReadingStore(Store, Protocol):
    """A Store that also tells what counters say."""

    async def charge_and_read(
        self, claim: Claim, others: tuple[charges.Charge, ...]
    ) -> tuple[Charged | Stale, tuple[Quota, ...]]:
        """Charge a claim, and tell what other counters say, which are charged nothing."""

    def is_canary(self, credential: Credential) -> bool:
        """Whether this unknown token was put somewhere to be found."""


async def whoami(request: AccessRequest, rules: Rules, store: ReadingStore) -> Answer:
    """The facts about the token that a request carries; empty if it is refused, or a preflight.

    Never raises for anything that the client or Redis did.
    """
    if request.preflight:
        return _without_facts(Allow(None), store.now())
    if request.method not in METHODS:
        denial = Deny(METHOD_NOT_ALLOWED, f"{WHOAMI.template} takes GET", allowed=METHODS)
        return _without_facts(denial, store.now())
    try:
        for attempt in range(1, ATTEMPTS + 1):
            found = await _attempt(request, rules, store, last=attempt == ATTEMPTS)
            if found is not None:
                return found
    except StoreError as error:
        return conclude_unavailable(error, WHOAMI, rules, store.now()), _NOTHING
    raise AssertionError("the last attempt proves nothing, so nothing of it is stale")


async def _attempt(
    request: AccessRequest, rules: Rules, store: ReadingStore, *, last: bool
) -> Answer | None:
    """The answer, or None: the state has changed meanwhile."""
    instance = (None if last else store.current()) or await store.instance(fresh=last)
    credential = request.credential
    record = None
    if not last and isinstance(credential, Credential):
        record = store.known(credential)
    if record is None:
        record, waits = await look_up(request, rules, store, fresh=last)
        if waits:
            return refuse_look_up(store.now(), WHOAMI), _NOTHING
    known = _identified(credential, record, store.now())
    own = () if isinstance(known, Deny) else _own(known, request, rules)
    bucket = "failed" if isinstance(known, Deny) else BUCKET
    counters = charges.of_address(bucket, request.client, rules.limits, rules.ipv6_prefix)
    claim = Claim(counters) if last else Claim(counters, instance, record)
    charged, quotas = await store.charge_and_read(claim, own)
    if isinstance(charged, Stale):
        return None
    if isinstance(known, Deny):
        if not charged.admitted:
            store.refused_address(counters[0].tag, charged.quotas[0].reset_at)
        return conclude(Judgement(known, bucket), charged, WHOAMI, None), _NOTHING
    outcome = conclude(Judgement(_verdict(known), bucket), charged, WHOAMI, known)
    if isinstance(outcome.verdict, Deny):
        return outcome, _NOTHING
    case = Case(rules.policy, request.client, WHOAMI, instance, known, now=charged.now)
    return outcome, _facts(case, quotas, charged.now)


def _without_facts(verdict: Verdict, now: UnixMs) -> Answer:
    return Outcome(verdict, now, route=WHOAMI.template), _NOTHING


def _identified(
    credential: Credential | Deny, record: TokenRecord | None, now: UnixMs
) -> TokenRecord | Deny:
    return credential if isinstance(credential, Deny) else authenticate(credential, record, now)


def _verdict(record: TokenRecord) -> Allow | Deny:
    """Whoever has left the token's team is told what every other route tells."""
    if record.role is None or record.team is None:
        return Deny(NOT_TEAM_MEMBER, "the token's user is not in the token's team")
    return admission(record)


def _own(record: TokenRecord, request: AccessRequest, rules: Rules) -> tuple[charges.Charge, ...]:
    """All counters of the token's other requests: they are read, and not charged."""
    principal = charges.of_principal(record, request.client, rules.limits, rules.ipv6_prefix)
    return principal + charges.of_restriction(record)


def _facts(case: Case, quotas: Sequence[Quota], now: UnixMs) -> Facts:
    """The answer to an authenticated member of the token's team."""
    record, instance = case.record, case.instance
    allowed = admission(record)
    assert allowed.principal is not None  # noqa: S101  # it has an identity
    denial = denial_of_all(case)
    spent = any(quota.scope == charges.USES and not quota.remaining for quota in quotas)
    refused = denial.reason if denial is not None else TOKEN_RESTRICTED if spent else None
    return {
        "id": record.token,
        "name": record.name,
        "user": record.user,
        "team": record.team,
        "role": record.role,
        "permissions": sorted(record.permissions),
        "effective_permissions": sorted(allowed.principal.permissions),
        "read_sensitive": allowed.read_sensitive,
        "restrictions": {
            holder: {name: part for name, part in as_mapping(narrower).items() if name != "note"}
            for holder, narrower in record.restrictions.items()
        },
        "expires_at": None if record.expires_at is None else rfc3339(record.expires_at),
        "limits": [_limit(quota) for quota in quotas],
        "api_enabled": instance.api_enabled,
        "mcp_enabled": instance.mcp_enabled and record.team_mcp,
        "address": str(case.client),
        "address_allowed": instance.allowlist.admits(case.client)
        and not any(elsewhere(one, case.client) for one in record.restrictions.values()),
        "refused_with": None if refused is None else refused.code,
        "time": rfc3339(now),
    }


def _limit(quota: Quota) -> dict[str, object]:
    """One counter: what it admits, what is left, and when the oldest request leaves it."""
    window = quota.limit.window_ms
    return {
        "name": quota.scope,
        "limit": quota.limit.requests,
        "window_seconds": None if window == charges.NO_WINDOW else window / 1000,
        "remaining": quota.remaining,
        "resets_at": None if window == charges.NO_WINDOW else rfc3339(quota.reset_at),
    }
