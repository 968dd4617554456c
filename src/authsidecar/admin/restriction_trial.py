"""What a restriction would have refused of what a token was admitted to lately, by receipts.

It is an outlook for a form, not a simulation: the newest receipts alone are looked at, and what
needs counters or the resources that a request names is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from authsidecar.decision.model import Restriction, TokenId
from authsidecar.decision.restrictions import refusal, refusal_now
from authsidecar.decision.routes import RouteTable
from authsidecar.observe.receipts import Receipt, read
from authsidecar.store.keys import RECEIPT_STREAMS, Keys

LOOKED_AT: Final = 500
"""Receipts of each stream that one trial reads, the newest."""


@dataclass(frozen=True, slots=True)
class LateRefusal:
    """Admitted requests that would have been refused, of one route and for one reason.

    Attributes:
        route: method and template.
        why: what the restriction says of it, as `explain` does.
        requests: how many these stand for, about.
    """

    route: str
    why: str
    requests: float


@dataclass(frozen=True, slots=True)
class RestrictionTrial:
    """What would have been refused.

    Attributes:
        requests: how many admitted requests of the token were in view, about.
        refused: those that would have been refused, the most frequent first.
    """

    requests: float
    refused: tuple[LateRefusal, ...]


async def try_restriction(
    client: Any, keys: Keys, routes: RouteTable, token: TokenId, restriction: Restriction
) -> RestrictionTrial:
    """Judge the newest receipts of a token by a restriction that is not set yet.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        routes: the table that decides.
        token: whose receipts.
        restriction: its routes, permissions, addresses and times are tried.

    Raises:
        RedisError: Redis is away.
    """
    tried = replace(
        restriction,
        projects=frozenset(),
        environments=frozenset(),
        resources=frozenset(),
        tags=frozenset(),
    )
    found: dict[tuple[str, str], float] = {}
    requests = 0.0
    for one in await _admitted(client, keys, token):
        requests += one.weight
        if (refused := _refused(one, routes, tried)) is not None:
            found[refused] = found.get(refused, 0.0) + one.weight
    rows = (LateRefusal(route, why, count) for (route, why), count in found.items())
    return RestrictionTrial(
        requests, tuple(sorted(rows, key=lambda one: (-one.requests, one.route)))
    )


async def _admitted(client: Any, keys: Keys, token: TokenId) -> list[Receipt]:
    async with client.pipeline(transaction=False) as pipe:
        for number in range(RECEIPT_STREAMS):
            pipe.xrevrange(keys.receipts("token", number), count=LOOKED_AT)
        streams = await pipe.execute()
    marked = f'"token":{token},'.encode()
    texts: Iterable[bytes] = (
        text for stream in streams for _, values in stream for text in values.values()
    )
    receipts = (read(text) for text in texts if marked in text)
    return [
        one for one in receipts if one is not None and one.token == token and one.outcome == "allow"
    ]


def _refused(one: Receipt, routes: RouteTable, restriction: Restriction) -> tuple[str, str] | None:
    """Route and reason, if it would have been refused."""
    if one.method is None or one.path is None or one.client is None:
        return None
    route = routes.find(one.method, one.path)
    if route is None:
        return None
    why = refusal(restriction, route, ip_address(one.client)) or refusal_now(restriction, one.at)
    return None if why is None else (f"{one.method} {route.template}", why)
