"""The subrequests that are sent, and the state that they meet."""

from typing import Any

from redis.asyncio import Redis

from authsidecar.decision.model import Limit
from authsidecar.store.keys import Keys
from benchmarks.contestants import FLAT
from benchmarks.load import NUMBER
from tests.support.seed import bearer, registry, token, user

USERS = 500
"""Users whose tokens take turns, so that no limit is reached."""

FLOODER = USERS + 1
"""A user, and its token, far over its limit."""

ALLOWLIST = ",".join(["192.0.2.0/24", *(f"10.{n}.0.0/16" for n in range(9))])
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
        await state.set_limit("user", FLOODER, Limit(5, 3_600_000))
        redis: Any = client
        for number in range(1, USERS + 1):
            fields = await redis.hgetall(keys.token(token(number, user=number, team=0).id))
            await redis.hset(f"{FLAT}{number}", mapping={**fields, "role": "member"})
