"""A receipt judged again by the server's own core: as it was, or by other rules.

What the decision was made from stands in for Redis: the token as it was, the switches, whether the
allowlist admitted the address, and the counters at that moment.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

from authsidecar.admin.explain import Peekable
from authsidecar.admin.recorded import TAKEN, admitting, credential, expired, token_record
from authsidecar.decision.allowlist import Allowlist
from authsidecar.decision.authorize import (
    Charged,
    Claim,
    Outcome,
    Rules,
    StoreError,
    authorize,
)
from authsidecar.decision.checks import RESOURCE_NOT_FOUND
from authsidecar.decision.model import (
    AccessRequest,
    Address,
    Credential,
    Deny,
    Place,
    Proxy,
    Quota,
    TeamId,
    TokenId,
    TokenRecord,
)
from authsidecar.decision.policy import (
    RATE_LIMITED,
    STORE_UNAVAILABLE,
    TOKEN_EXPIRED,
    Instance,
)
from authsidecar.decision.ratelimit.charges import USES, Charge
from authsidecar.decision.resources import Places
from authsidecar.decision.restrictions import TOKEN_RESTRICTED
from authsidecar.observe.receipts import Receipt
from authsidecar.times import UnixMs

_ELSEWHERE: Final = Place(TeamId(-1))
"""A team that no token belongs to."""

_OUTSIDE: Final = {one.code: one for one in (TOKEN_RESTRICTED, RESOURCE_NOT_FOUND)}
"""What refuses a token that names what is not its own."""

Doubt = Literal["counters", "secret"]
"""Why a judgement is an estimate: a counter had to be guessed, or a secret was never checked."""


Unjudged = Literal["unread", "named"]
"""Why a receipt can't be judged: the request could not be read, or nobody has looked at what it
named, which a query or a body may do."""


class _NamedError(Exception):
    """What a request names would be looked at now."""


class Rejudged(NamedTuple):
    """A receipt judged again.

    Attributes:
        outcome: what would have been decided.
        doubt: why that is an estimate; None: it is certain.
    """

    outcome: Outcome
    doubt: Doubt | None


@dataclass(slots=True)
class _Counter:
    """What a counter would hold beside what was recorded, by its admissions in the window."""

    admissions: deque[tuple[UnixMs, float]] = field(default_factory=deque)
    sum: float = 0.0

    def within(self, now: UnixMs, window_ms: int) -> float:
        while self.admissions and self.admissions[0][0] <= now - window_ms:
            self.sum -= self.admissions.popleft()[1]
        return self.sum

    def add(self, now: UnixMs, weight: float) -> None:
        self.admissions.append((now, weight))
        self.sum += weight


@dataclass(slots=True)
class Replay:
    """Judges receipts, in the order of their time, by rules that need not be theirs.

    Attributes:
        rules: what they are judged by.
        instance: the state that stands in where a receipt does not say.
        allowlist: judged by in place of the one that was; None: that one's word counts.
        tokens: those that are there now, for requests whose secret was never checked.
        places: asked for where resources lie that were not looked at.
    """

    rules: Rules
    instance: Instance
    allowlist: Allowlist | None = None
    tokens: Mapping[TokenId, TokenRecord] = field(default_factory=dict)
    places: Callable[[tuple[str, ...]], Awaitable[Places]] | None = None
    _counters: dict[tuple[str, str], _Counter] = field(default_factory=dict)
    _records: dict[tuple[object, ...], TokenRecord] = field(default_factory=dict)
    _anywhere: dict[TokenRecord, TokenRecord] = field(default_factory=dict)
    _instances: dict[tuple[object, ...], Instance] = field(default_factory=dict)
    _addresses: dict[str, Address] = field(default_factory=dict)

    async def judge(self, one: Receipt) -> Rejudged | Unjudged:
        """What these rules make of a receipt.

        Args:
            one: not older than the one before.
        """
        if one.path is None or one.method is None or one.client is None or one.proxy is None:
            return "unread"
        recorded = _Recorded(self, one, naming=True)
        try:
            outcome = await authorize(self.access(one), self.rules, recorded)
        except _NamedError:
            return await self._as_named(one)
        return Rejudged(outcome, recorded.doubt)

    async def _as_named(self, one: Receipt) -> Rejudged | Unjudged:
        """The same where all depends on what was named: as it was, it is inside or outside."""
        recorded = _Recorded(self, one, inside=True)
        outcome = await authorize(self.access(one), self.rules, recorded)
        if outcome.route == one.route:
            if one.code is None or isinstance(outcome.verdict, Deny):
                return Rejudged(outcome, recorded.doubt)
            if one.code in _OUTSIDE:
                return Rejudged(outcome._replace(verdict=Deny(_OUTSIDE[one.code])), None)
        return "named"

    def access(self, one: Receipt) -> AccessRequest:
        """The request as it was judged."""
        assert one.path is not None  # noqa: S101  # `judge` has looked
        assert one.method is not None  # noqa: S101
        return AccessRequest(
            proxy=Proxy(one.proxy or Proxy.DIRECT),
            method=one.method,
            path=one.path,
            target=b"",
            client=self.address(one),
            credential=credential(one),
            preflight=one.preflight,
        )

    def store(self, one: Receipt) -> Peekable:
        """What a receipt says, in the place of Redis."""
        return _Recorded(self, one)

    def address(self, one: Receipt) -> Address:
        """The address that was judged."""
        assert one.client is not None  # noqa: S101  # `judge` has looked
        found = self._addresses.get(one.client)
        if found is None:
            found = self._addresses[one.client] = ip_address(one.client)
        return found

    def record(self, one: Receipt) -> TokenRecord | None:
        """The token as it was; None if none was proven."""
        if one.code == TOKEN_EXPIRED.code and one.claimed is not None:
            return expired(one.claimed, one.at)
        if one.token is None or one.user is None:
            return None
        narrowed = tuple((holder, str(of)) for holder, of in one.restrictions.items())
        key = (one.token, one.user, one.team, one.role, one.permissions, one.expires_at,
               one.team_mcp, tuple(one.limits.items()), narrowed)  # fmt: skip
        found = self._records.get(key)
        if found is None:
            found = self._records[key] = token_record(one, one.token, one.user)
        return found

    def anywhere(self, record: TokenRecord) -> TokenRecord:
        """The same token, restricted to no resources."""
        if not any(one.to_resources for one in record.restrictions.values()):
            return record
        found = self._anywhere.get(record)
        if found is None:
            free = {
                holder: replace(
                    one,
                    projects=frozenset(),
                    environments=frozenset(),
                    resources=frozenset(),
                    tags=frozenset(),
                )
                for holder, one in record.restrictions.items()
            }
            found = self._anywhere[record] = replace(record, restrictions=free)
        return found

    def instance_of(self, one: Receipt) -> Instance:
        """The switches and the allowlist as they were; now, where they were not looked at."""
        admits: object = one.address_allowed
        key = (one.api_enabled, one.mcp_enabled, admits, admits and one.client)
        found = self._instances.get(key)
        if found is None:
            now = self.instance
            allowlist = self.allowlist
            if allowlist is None:
                allowlist = admitting(one) if admits is not None else now.allowlist
            found = self._instances[key] = Instance(
                api_enabled=now.api_enabled if one.api_enabled is None else one.api_enabled,
                allowlist=allowlist,
                mcp_enabled=now.mcp_enabled if one.mcp_enabled is None else one.mcp_enabled,
            )
        return found

    def charge(self, one: Receipt, charge: Charge) -> tuple[Quota, bool, bool]:
        """A counter after a receipt's request: whether it had room, and whether that is a guess."""
        if charge.scope == USES:
            spent = one.code == TOKEN_RESTRICTED.code and one.detail == "its uses are spent"
            remaining = 0 if spent else 1
            return Quota(USES, charge.limit, remaining, one.at), not spent, False
        limit, window = charge.limit.requests, charge.limit.window_ms
        counter = self._counters.get((charge.tag, charge.name))
        if counter is None:
            counter = self._counters[charge.tag, charge.name] = _Counter()
        extra = counter.within(one.at, window)
        refused = one.code == RATE_LIMITED.code
        recorded = next((quota for quota in one.counters if quota.scope == charge.scope), None)
        if recorded is not None and recorded.limit.window_ms == window:
            used = recorded.limit.requests - recorded.remaining + (1 if refused else 0)
            guess = recorded.limit.requests != limit
            weight = 1.0 if refused else 0.0
        else:
            used, guess, weight = 1, True, one.weight
        total = used + extra
        room = total <= limit
        if guess and weight and room:
            counter.add(one.at, weight)  # admitted now, and it was not counted then
        elif guess and not weight and not room:
            counter.add(one.at, -one.weight)  # counted then, and refused now
        reset_at = one.at + window if recorded is None else recorded.reset_at
        left = max(0, limit - int(total)) if room else 0
        return Quota(charge.scope, charge.limit, left, UnixMs(reset_at)), room, guess


@dataclass(slots=True)
class _Recorded:
    """What a receipt says, in the place of Redis.

    Attributes:
        replay: whose it is.
        one: the receipt.
        naming: raise _NamedError where it is looked up what a token restricted to resources names.
        inside: leave that restriction out: what is named is taken to lie inside.
        doubt: why what it is judged is an estimate.
    """

    replay: Replay
    one: Receipt
    naming: bool = False
    inside: bool = False
    doubt: Doubt | None = None

    def now(self) -> UnixMs:
        return self.one.at

    def current(self) -> Instance | None:
        return self.replay.instance_of(self.one)

    async def instance(self, *, fresh: bool) -> Instance:  # noqa: ARG002
        return self.replay.instance_of(self.one)

    def known(self, credential: Credential) -> TokenRecord | None:
        record = self.replay.record(self.one)
        if record is None and credential.digest == TAKEN:
            record = self.replay.tokens.get(credential.token_id)
            if record is not None:
                self.doubt = "secret"
        return self.replay.anywhere(record) if self.inside and record is not None else record

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:  # noqa: ARG002
        return self.known(credential)

    async def charge(
        self,
        claim: Claim,
        *,
        repeat_key: bytes | None,  # noqa: ARG002
        peek: bool = False,  # noqa: ARG002
    ) -> Charged:
        one = self.one
        if one.code == STORE_UNAVAILABLE.code:
            raise StoreError((one.detail or "").removeprefix("redis: "), "as it was")
        found = [self.replay.charge(one, charge) for charge in claim.counters]
        admitted = all(room for _, room, _ in found)
        refused = one.code == RATE_LIMITED.code
        if any(guess for _, _, guess in found) and (refused or not admitted):
            self.doubt = self.doubt or "counters"
        return Charged(admitted, tuple(quota for quota, _, _ in found), one.at)

    async def places(self, keys: tuple[str, ...]) -> Places:
        if self.one.code == RESOURCE_NOT_FOUND.code:
            return dict.fromkeys(keys, _ELSEWHERE)
        if self.one.isolated or self.replay.places is None:
            return dict.fromkeys(keys)
        return await self.replay.places(keys)

    def held_places(self, keys: tuple[str, ...]) -> None:
        """Nothing is held."""

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        if self.naming:
            raise _NamedError
        return await self.places(keys)

    def may_look_up(self, address: str, credential: Credential) -> bool:  # noqa: ARG002
        paced = self.one.counters[:1]
        return not (
            self.one.code == RATE_LIMITED.code and paced and paced[0].limit.window_ms == 1000
            and paced[0].scope == "failed"
        )  # fmt: skip

    def refused_address(self, address: str, until: UnixMs) -> None:
        """Take no note: it was refused long ago."""
