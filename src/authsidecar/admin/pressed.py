"""Who has come near a limit lately, or over it: read from the latest receipts."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from authsidecar.decision.model import Limit, Quota
from authsidecar.decision.policy import RATE_LIMITED
from authsidecar.observe.metrics import NEAR_LIMIT
from authsidecar.observe.receipts import Receipt
from authsidecar.store.keys import Keys
from authsidecar.store.receipt_reader import backwards
from authsidecar.times import UnixMs

LOOKED_THROUGH: Final = 2000
"""How many receipts are looked at, at most."""

AT_ONCE: Final = 50
"""How many of them between two turns of everything else."""


@dataclass(slots=True)
class Pressed:
    """One counter that is, or was, nearly full.

    Attributes:
        scope: what sort of counter it is.
        holder: whose: the id of a token, user or team, or an address.
        limit: what it admits.
        remaining: the least that was left.
        refused: how many of these requests found no room in it.
        at: when the last of them came.
        example: that one's decision.
    """

    scope: str
    holder: str
    limit: Limit
    remaining: int
    refused: int
    at: UnixMs
    example: str


async def pressed(client: Any, keys: Keys, since: UnixMs) -> tuple[Pressed, ...]:
    """Counters of which less than a tenth was left, those that refused most first.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        since: the first millisecond; at most LOOKED_THROUGH receipts are looked at.

    Raises:
        RedisError: Redis is away.
    """
    found: dict[tuple[str, str], Pressed] = {}
    looked = 0
    async for place, one in backwards(client, keys):
        if place.written_at < since or looked >= LOOKED_THROUGH:
            break
        looked += 1
        if one is not None:
            for quota in one.counters:
                if quota.remaining * NEAR_LIMIT < quota.limit.requests:
                    _add(found, one, quota)
        if looked % AT_ONCE == 0:
            await asyncio.sleep(0)
    return tuple(sorted(found.values(), key=lambda of: (-of.refused, of.remaining, -of.at)))


def _add(found: dict[tuple[str, str], Pressed], one: Receipt, quota: Quota) -> None:
    holder = _holder(one, quota.scope)
    refused = int(one.code == RATE_LIMITED.code and quota.remaining == 0)
    if (of := found.get((quota.scope, holder))) is None:
        found[quota.scope, holder] = Pressed(
            quota.scope, holder, quota.limit, quota.remaining, refused, one.at, one.id
        )
        return
    of.remaining = min(of.remaining, quota.remaining)
    of.refused += refused
    if one.at > of.at:
        of.at, of.example, of.limit = one.at, one.id, quota.limit


def _holder(one: Receipt, scope: str) -> str:
    match scope:
        case "user":
            return str(one.user)
        case "team":
            return str(one.team)
        case "token" | "restriction" | "uses":
            return str(one.token)
        case _:
            return one.address or "?"
