"""Decisions that were made: found again, explained, counted and reported, from their receipts."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from authsidecar.admin.explain import (
    Explanation,
    Result,
    as_if_known,
    explain_access,
    refused_at,
)
from authsidecar.admin.reasons import Advice, advice
from authsidecar.admin.replay import Replay
from authsidecar.decision.authorize import Rules
from authsidecar.decision.checks import CHECKS
from authsidecar.decision.model import Address, Allow, Credential, Deny, Kind, Reason, TokenId
from authsidecar.observe.receipts import Receipt
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.receipts import Kept, Reader, find
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs

Progress = Callable[[int], None]
"""Called with how many receipts are done."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which receipts are wanted; None or False: whatever they say.

    Attributes:
        deny: refusals alone.
        code: of this reason.
        token: of this token, also where its secret was wrong.
        user: of this user's tokens.
        team: of this team's tokens.
        address: from this address.
        route: of this template, or `METHOD TEMPLATE`.
    """

    deny: bool = False
    code: str | None = None
    token: int | None = None
    user: int | None = None
    team: int | None = None
    address: Address | None = None
    route: str | None = None

    def takes(self, one: Receipt) -> bool:
        """Whether a receipt is wanted."""
        route = self.route
        return (
            (not self.deny or one.outcome == "deny")
            and (self.code is None or one.code == self.code)
            and (self.token is None or self.token in {one.token, one.claimed})
            and (self.user is None or one.user == self.user)
            and (self.team is None or one.team == self.team)
            and (self.address is None or one.address == str(self.address))
            and (route is None or route in {one.route, f"{one.method} {one.route}"})
        )


EVERYTHING: Final = Filter()


async def recent(
    client: Any, keys: Keys, since: UnixMs, *, progress: Progress = lambda _: None
) -> Kept:
    """All receipts since a time, in their order.

    Raises:
        RedisError: Redis is away.
    """
    found: list[Receipt] = []
    dropped = 0
    async for page in Reader(client, keys, since).pages():
        found += [one for one in page.receipts if one.at >= since]
        dropped += page.dropped
        progress(len(found))
    return Kept(tuple(sorted(found, key=lambda one: (one.at, one.id))), dropped)


async def matching(
    client: Any, keys: Keys, since: UnixMs, wanted: Filter
) -> AsyncIterator[Receipt]:
    """Those since a time that are wanted, page by page, in order within each page.

    Raises:
        RedisError: Redis is away.
    """
    async for page in Reader(client, keys, since).pages():
        for one in page.receipts:
            if wanted.takes(one):
                yield one


# -------------------------------------------------------------------------------------- one of them


@dataclass(frozen=True, slots=True)
class Shown:
    """One decision explained.

    Attributes:
        receipt: what was kept of it.
        then: each check as it was.
        now: each check as it is; None if the request could not be read.
        advice: what the reason means, and what to do; None if it was allowed.
    """

    receipt: Receipt
    then: Explanation
    now: Explanation | None
    advice: Advice | None


async def show(
    decision_id: str,
    *,
    client: Any,
    keys: Keys,
    rules: Rules,
    store: DecisionStore,
    registry: Registry,
) -> Shown | None:
    """Explain a decision by its id; None if no receipt of it was kept.

    Args:
        decision_id: as the answer's body has it.
        client: redis-py's asyncio client.
        keys: the key names.
        rules: what decisions depend on now.
        store: the hot path's store.
        registry: users, teams and tokens.

    Raises:
        RedisError: Redis is away.
    """
    one = await find(client, keys, decision_id)
    if one is None:
        return None
    replay = Replay(rules, await registry.instance())
    now = None
    if _was_read(one):
        access = replay.access(one)
        known = one.token or one.claimed
        if known is not None:
            credential = await as_if_known(TokenId(known), registry)
            nobody = Credential(TokenId(known), bytes(32))
            wrong = one.code == "token_unknown" and one.token is None
            access = access._replace(
                credential=nobody if credential is None or wrong else credential
            )
        now = await explain_access(access, rules=rules, store=store, registry=registry)
    return Shown(one, await _then(one, replay), now, advice().get(one.code or ""))


async def _then(one: Receipt, replay: Replay) -> Explanation:
    """Each check as it was; of what other rules decided, no more than the check that refused."""
    deny = _refusal(one)
    if _was_read(one):
        recorded = replay.store(one)
        found = await explain_access(
            replay.access(one), rules=replay.rules, store=recorded, registry=None
        )
        if found.code == one.code:
            return found if deny is None else _in_its_words(found, one)
    if deny is None:
        return Explanation(Allow(None), ())
    return refused_at(row_of(deny.reason, read=_was_read(one)), one.detail or "", deny)


def _was_read(one: Receipt) -> bool:
    return None not in (one.path, one.method, one.client, one.proxy)


def _in_its_words(found: Explanation, one: Receipt) -> Explanation:
    """The same, the refusal in the words of that time."""
    rows = found.rows
    failed = [row for row in rows if row.result is Result.FAIL]
    if not failed or not one.detail or failed[-1].name == "rate_limit":
        return found
    return Explanation(
        found.verdict,
        tuple(
            type(row)(row.name, row.result, one.detail) if row is failed[-1] else row
            for row in rows
        ),
    )


def row_of(reason: Reason, *, read: bool) -> str:
    """The check that refuses with a reason.

    Args:
        reason: why it was refused.
        read: whether the request could be read.
    """
    if not read:
        return "target"
    named = {check.reason.code: check.name for check in CHECKS}
    match reason.kind:
        case Kind.RATE_LIMITED:
            return "rate_limit"
        case Kind.UNAVAILABLE:
            return "store"
        case Kind.UNAUTHENTICATED:
            return named.get(reason.code, "token")
        case _:
            return named.get(reason.code, "route")


_KINDS: Final = {
    400: Kind.MALFORMED,
    401: Kind.UNAUTHENTICATED,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    429: Kind.RATE_LIMITED,
    503: Kind.UNAVAILABLE,
}


def _refusal(one: Receipt) -> Deny | None:
    """The verdict of a receipt that refused."""
    if one.code is None:
        return None
    kind = _KINDS.get(one.status, Kind.MALFORMED)
    return Deny(Reason(one.code, kind, one.status, ""), one.detail or "")


# ------------------------------------------------------------------------------------ many of them

By = Literal["token", "user", "address", "route", "code"]

BY: Final[tuple[By, ...]] = ("token", "user", "address", "route", "code")

OWN: Final = frozenset(
    {
        "untrusted_peer",
        "headers_too_large",
        "request_unreadable",
        "request_timeout",
        "reserved_header",
        "forwarded_header_invalid",
        "client_address_invalid",
        "method_override",
        "ambiguous_target",
        "token_prefix_missing",
        "authorization_ambiguous",
        "token_restricted",
        "store_unavailable",
        "internal_error",
    }
)
"""Reasons for which Coolify itself would not have refused (docs/explanation/deviations.md)."""


def value_of(one: Receipt, by: By) -> str:
    """What a receipt is counted under; `-` where it has none."""
    match by:
        case "token":
            token = one.token or one.claimed
            return "-" if token is None else str(token)
        case "user":
            return "-" if one.user is None else str(one.user)
        case "address":
            return one.address or "-"
        case "route":
            return f"{one.method} {one.route}" if one.method and one.route else "-"
        case "code":
            return one.code or "-"


@dataclass(frozen=True, slots=True)
class Count:
    """How often one value was refused.

    Attributes:
        by: what is counted.
        value: of that; `-` is none.
        refused: how often the sidecar refused where Coolify would not have.
        refused_by_coolify_too: how often it refused what Coolify refuses anyway.
        codes: how often for each reason, the commonest first.
        example: a decision's id.
    """

    by: By
    value: str
    refused: int
    refused_by_coolify_too: int
    codes: Mapping[str, int]
    example: str


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """Refusals of a time.

    Attributes:
        since: the first millisecond.
        until: the last one.
        refused: where Coolify would not have refused.
        refused_by_coolify_too: what Coolify refuses anyway.
        reported: of both, how many passed all the same since `enforcement` is `report`.
        admitted: admissions, as an estimate: each receipt counts for those that were not kept.
        dropped: receipts that were not kept.
        counts: by token, owner, address, route and code, the most refused first.
    """

    since: UnixMs
    until: UnixMs
    refused: int
    refused_by_coolify_too: int
    reported: int
    admitted: float
    dropped: int
    counts: Mapping[By, tuple[Count, ...]]


@dataclass(slots=True)
class _Tally:
    own: int = 0
    too: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    example: str = ""


def report(kept: Kept, since: UnixMs, until: UnixMs, *, most: int | None = None) -> RefusalReport:
    """Count what was refused.

    Args:
        kept: the receipts.
        since: the first millisecond.
        until: the last one.
        most: how many values of each sort are named; None: all.
    """
    tallies: dict[tuple[By, str], _Tally] = {}
    total = _Tally()
    reported, admitted = 0, 0.0
    for one in kept.receipts:
        if one.code is None:
            admitted += one.weight
            continue
        reported += one.reported
        _add(total, one)
        for by in BY:
            _add(tallies.setdefault((by, value_of(one, by)), _Tally()), one)
    return RefusalReport(
        since,
        until,
        total.own,
        total.too,
        reported,
        admitted,
        kept.dropped,
        {by: _counts(by, tallies)[:most] for by in BY},
    )


def _add(tally: _Tally, one: Receipt) -> None:
    code = one.code or ""
    if code in OWN:
        tally.own += 1
    else:
        tally.too += 1
    tally.codes[code] += 1
    tally.example = one.id


def _counts(by: By, tallies: Mapping[tuple[By, str], _Tally]) -> tuple[Count, ...]:
    found = [
        Count(by, value, of.own, of.too, dict(of.codes.most_common()), of.example)
        for (sort, value), of in tallies.items()
        if sort == by
    ]
    return tuple(sorted(found, key=lambda c: (-c.refused - c.refused_by_coolify_too, c.value)))


def top(receipts: Iterable[Receipt], by: By, most: int) -> tuple[Count, ...]:
    """Who, or what, is refused most.

    Args:
        receipts: of any outcome.
        by: what is counted.
        most: how many are named.
    """
    kept = Kept(tuple(receipts), 0)
    return report(kept, UnixMs(0), UnixMs(0), most=most).counts[by]
