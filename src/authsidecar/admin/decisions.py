"""Decisions that were made, from their receipts: listed, found again and explained."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

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
from authsidecar.store.receipt_reader import Reader, StreamPosition, backwards, find
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs


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


async def matching(
    client: Any, keys: Keys, since: UnixMs, wanted: Filter
) -> AsyncIterator[Receipt]:
    """Those since a time that are wanted, in their order.

    Raises:
        RedisError: Redis is away.
    """
    async for page in Reader(client, keys, since).pages():
        for one in page.receipts:
            if wanted.takes(one):
                yield one


LOOKED_THROUGH: Final = 2000
"""Of how many receipts a page is chosen, at most."""

AT_ONCE: Final = 50
"""How many receipts are looked at between two turns of everything else."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the receipts that are wanted.

    Attributes:
        receipts: those, the newest first.
        before: where the next page begins; None: there is no older one.
    """

    receipts: tuple[Receipt, ...]
    before: StreamPosition | None


async def page(
    client: Any,
    keys: Keys,
    wanted: Filter,
    most: int,
    *,
    since: UnixMs,
    before: StreamPosition | None,
) -> Page:
    """The last receipts that are wanted: of LOOKED_THROUGH, so there can be few and yet more.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        wanted: which.
        most: how many, at most.
        since: none that was written before this time.
        before: where the page before has ended; None: the newest.

    Raises:
        RedisError: Redis is away.
    """
    found: list[Receipt] = []
    looked = 0
    following = None
    async for place, one in backwards(client, keys, before):
        if place.written_at < since:
            break
        looked += 1
        if one is not None and wanted.takes(one):
            found.append(one)
        if len(found) >= most or looked >= LOOKED_THROUGH:
            following = place
            break
        if looked % AT_ONCE == 0:
            await asyncio.sleep(0)
    found.sort(key=lambda one: one.at, reverse=True)  # many are written at once
    return Page(tuple(found), following)


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


def not_kept(decision_id: str) -> str:
    """What is said where there is no receipt."""
    return (
        f"no receipt of decision {decision_id} is kept: it is too old, an admission outside the "
        "share that is kept, or was dropped (receipts in the configuration)"
    )


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
