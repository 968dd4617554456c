"""The subrequests that are sent, and the state that they meet."""

from typing import Any

from redis.asyncio import Redis

from authsidecar.decision.model import Limit
from authsidecar.decision.restrictions import parse
from authsidecar.store.keys import Keys, owner_bucket
from benchmarks.contestants import FLAT
from benchmarks.load import NUMBER
from tests.support.seed import bearer, registry, token, user

USERS = 500
"""Users whose tokens take turns, so that no limit is reached."""

RESTRICTED = 1_000
"""The token of user N that is restricted has this number more than the other."""

COUNTED = 2_000
"""The one that has counters of its own, too, has this number more."""

_NARROW = {
    "permissions": ["read"],
    "routes": ["GET /api/v1/teams", "GET /api/v1/servers"],
    "from": ["0.0.0.0/1", "128.0.0.0/1"],
    "hours": ["Mon-Sun 00:00-12:30 Europe/Berlin", "Mon-Sun 12:30-24:00 Europe/Berlin"],
}

RESTRICTION = parse(_NARROW)
"""Narrow, yet what the benchmark asks is inside at any time."""

WITH_COUNTERS = parse({**_NARROW, "uses": 1_000_000_000, "rate": "100000/60s"})
"""The same with two counters of its own, which no round fills."""

SERVER = "server-of-team-0"
"""The uuid of a resource that is known to be the team's."""

FLOODER = USERS + 1
"""A user, and its token, far over its limit."""

ALLOWLIST = ",".join(["192.0.2.0/24", "127.0.0.1", *(f"10.{n}.0.0/16" for n in range(8))])
"""Ten entries."""

STRANGERS = 5_000
"""Unknown tokens that take turns in the bad-token flood."""


def subrequest(
    authorization: str, client: str = "192.0.2.7", uri: str = "/api/v1/servers"
) -> bytes:
    """A subrequest as Traefik sends it."""
    return (
        f"GET /authz/traefik HTTP/1.1\r\nHost: 127.0.0.1:4190\r\nUser-Agent: curl/8.5.0\r\n"
        f"Authorization: {authorization}\r\nX-Forwarded-For: {client}\r\n"
        f"X-Forwarded-Host: coolify.example.test\r\nX-Forwarded-Method: GET\r\n"
        f"X-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Server: proxy\r\n"
        f"X-Forwarded-Uri: {uri}\r\nAccept-Encoding: gzip\r\n\r\n"
    ).encode()


def allowed() -> list[bytes]:
    """One request of each user."""
    return [subrequest(bearer(n)) for n in range(1, USERS + 1)]


def of_clients(port: int, path: str, users: int) -> list[bytes]:
    """One request of each of the first users' clients to a proxy on 127.0.0.1."""
    return [
        (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: curl/8.5.0\r\n"
            f"Accept: */*\r\nAuthorization: {bearer(n)}\r\n\r\n"
        ).encode()
        for n in range(1, users + 1)
    ]


def restricted(more: int = RESTRICTED) -> list[bytes]:
    """One request by the restricted token of each user: RESTRICTED or COUNTED."""
    return [subrequest(bearer(more + n)) for n in range(1, USERS + 1)]


def of_the_team() -> list[bytes]:
    """One request of each user about a resource whose owner is known."""
    uri = f"/api/v1/servers/{SERVER}"
    return [subrequest(bearer(n), uri=uri) for n in range(1, USERS + 1)]


def never_seen() -> list[bytes]:
    """One request of each user, for another server each time: its bytes never come again."""
    return [subrequest(bearer(n), uri=f"/api/v1/servers/{NUMBER}") for n in range(1, USERS + 1)]


def flood() -> list[bytes]:
    """The one user far over its limit."""
    return [subrequest(bearer(FLOODER))]


def strangers() -> list[bytes]:
    """Tokens that nobody has, all from one address."""
    return [subrequest(bearer(1_000_000 + n), "198.51.100.66") for n in range(STRANGERS)]


async def seed(url: str) -> None:
    """Users with one token each that may read, and the same flattened for the two-trip versions."""
    async with Redis.from_url(url) as client:
        state, keys = registry(client), Keys()
        await state.set_instance(api_enabled=True, allowlist=ALLOWLIST)
        for number in range(1, FLOODER + 1):
            await user(state, number, t0="member")
        await state.put_tokens([token(n, user=n, team=0) for n in range(1, FLOODER + 1)])
        numbers = range(1, USERS + 1)
        for more, restriction in ((RESTRICTED, RESTRICTION), (COUNTED, WITH_COUNTERS)):
            await state.put_tokens([token(more + n, user=n, team=0) for n in numbers])
            for number in numbers:
                await state.set_restriction("token", more + number, restriction)
        await state.set_limit("user", FLOODER, Limit(5, 3_600_000))
        redis: Any = client
        await redis.hset(keys.owners(owner_bucket(SERVER)), SERVER, 0)
        for number in numbers:
            fields = await redis.hgetall(keys.token(token(number, user=number, team=0).id))
            await redis.hset(f"{FLAT}{number}", mapping={**fields, "role": "member"})
