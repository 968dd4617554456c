"""When, from where and for what each token was last used, without a write per request.

A process keeps the latest use of each token in memory and writes them every few seconds, in a
few trips for all. What is lost is at most those seconds, in a crash; what Redis itself loses in a
failover is lost as well, until the token is used again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from redis import exceptions

from authsidecar.decision.model import Address, TokenId
from authsidecar.decision.usage import Used
from authsidecar.observe.background import Background
from authsidecar.observe.log import Log
from authsidecar.store.keys import Keys
from authsidecar.store.usage import UsageNotes
from authsidecar.times import UnixMs

EVERY_S: Final = 3.0
"""The time between two writes, in seconds."""

LAST_WRITE_S: Final = 2.0
"""How long a stop waits for its last write, in seconds."""

KEPT: Final = 100_000
"""Of how many tokens a process remembers the use, while it can't be written."""

BATCH: Final = 500
"""How many uses one trip writes: Redis serves nobody else meanwhile."""

SHORT: Final = 64
"""Bytes of the longest value that Redis keeps in its compact form of a hash: a longer one would
cost a kilobyte a token. Longer routes go on in a second field."""

_FIELDS: Final = ("used", "used_route", "used_route_rest")

# A token that is gone stays gone, and of two processes the later use wins.
_WRITE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local last = redis.call('HGET', KEYS[1], 'used')
if last and (tonumber(last:match('^%d+')) or 0) >= tonumber(ARGV[1]:match('^%d+')) then return end
redis.call('HSET', KEYS[1], 'used', ARGV[1], 'used_route', ARGV[2])
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], 'used_route_rest')
else redis.call('HSET', KEYS[1], 'used_route_rest', ARGV[3]) end
"""


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a token: a request that was authenticated by it, whatever came of it.

    Attributes:
        at: when, by Redis's clock.
        client: the address that was judged.
        route: the route's template.
    """

    at: UnixMs
    client: str
    route: str


class LastUses:
    """What one process has still to write."""

    def __init__(self, client: Any, keys: Keys, *, kept: int = KEPT) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            kept: tokens to remember at most; beyond, the one that waits longest is forgotten.
        """
        self._client = client
        self._keys = keys
        self._kept = kept
        self._latest: dict[TokenId, tuple[UnixMs, Address, str]] = {}
        self._notes = UsageNotes(client, keys)

    def note(self, token: TokenId, at: UnixMs, use: Used) -> UnixMs:
        """Note what an admitted request has used; until when that need not be noted again."""
        return self._notes.note(token, at, use)

    def has_named_too_much(self, token: TokenId, at: UnixMs) -> bool:
        """Whether this token has named more today than is kept, so that no name need be noted."""
        return self._notes.is_full(token, at)

    def used(self, token: TokenId, at: UnixMs, client: Address, route: str) -> None:
        """Remember a use; costs no trip."""
        latest = self._latest
        if len(latest) >= self._kept and token not in latest:
            del latest[next(iter(latest))]
        latest[token] = (at, client, route)

    async def write(self) -> None:
        """Write what is remembered; what could not be written is still remembered.

        Raises:
            RedisError, OSError: Redis is away.
        """
        await self._write_latest()
        await self._notes.write()

    async def _write_latest(self) -> None:
        while self._latest:
            batch = dict(islice(self._latest.items(), BATCH))
            async with self._client.pipeline(transaction=False) as pipe:
                for token, (at, client, route) in batch.items():
                    key = self._keys.token(token)
                    when = f"{at} {client}"
                    pipe.eval(_WRITE, 1, key, when, route[:SHORT], route[SHORT:])
                await pipe.execute()
            for token, use in batch.items():
                if self._latest.get(token) is use:
                    del self._latest[token]
            if any(token in self._latest for token in batch):
                return  # used again meanwhile: that is for the next time

    async def keep_writing(self, log: Log) -> None:
        """Write every few seconds; an outage is told once, and everything is tried again."""
        away = False
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.write()
            except (exceptions.RedisError, OSError) as error:
                if not away:
                    log.event("warning", "last_used_waits", error=type(error).__name__)
                away = True
            else:
                away = False


@contextlib.asynccontextmanager
async def last_uses(
    client: Any, keys: Keys, log: Log, background: Background
) -> AsyncIterator[LastUses]:
    """Uses that are written beside other work, and a last time at the end."""
    uses = LastUses(client, keys)
    try:
        async with background.running("last_used", lambda: uses.keep_writing(log)):
            yield uses
    finally:
        with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(LAST_WRITE_S):
                await uses.write()


async def last_use(client: Any, keys: Keys, tokens: Iterable[TokenId]) -> Mapping[TokenId, Use]:
    """The last use of those of these tokens that were ever used; a trip for 500."""
    numbers, found = iter(tokens), dict[TokenId, Use]()
    while page := tuple(islice(numbers, BATCH)):
        async with client.pipeline(transaction=False) as pipe:
            for token in page:
                pipe.hmget(keys.token(token), _FIELDS)
            rows = await pipe.execute()
        for token, row in zip(page, rows, strict=True):
            when, route, rest = ((field or b"").decode("utf-8", "replace") for field in row)
            at, _, client_text = when.partition(" ")
            if at.isdecimal():
                found[token] = Use(UnixMs(int(at)), client_text, route + rest)
    return found
