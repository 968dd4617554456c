"""What requests with an Idempotency-Key have created, so that a repeat creates nothing more.

Only the id of what was created is kept, never an answer: it may hold a secret.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from authsidecar.store.keys import Keys

KEPT_MS: Final = 24 * 3600 * 1000
"""For how long a repeat is known, in milliseconds."""

UNDER_WAY_MS: Final = 60_000
"""For how long a request that was never finished holds its key, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Before:
    """What an earlier request with the same key is.

    Attributes:
        fingerprint: names its content.
        created: the id of what it has created, or None: it is under way.
    """

    fingerprint: str
    created: int | None


class Idempotency:
    """Keeps them; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys) -> None:
        """Nothing is sent yet."""
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys

    async def begin(self, request: str, fingerprint: str) -> Before | None:
        """Take the key for a request; what it was used for before, or None: go on.

        Args:
            request: names who asks for what under which key, without telling any of it.
            fingerprint: names the content.
        """
        name, mine = self._keys.idempotency(request), json.dumps([fingerprint, None])
        if await self._client.set(name, mine, nx=True, px=UNDER_WAY_MS):
            return None
        found = await self._client.get(name)
        if found is None:  # it has just ended, or been given back
            return Before(fingerprint, None)
        known, created = json.loads(found)
        return Before(known, created)

    async def created(self, request: str, fingerprint: str, number: int) -> None:
        """Remember what a request has created."""
        said = json.dumps([fingerprint, number])
        await self._client.set(self._keys.idempotency(request), said, px=KEPT_MS)

    async def give_back(self, request: str) -> None:
        """Forget a request that has created nothing."""
        await self._client.delete(self._keys.idempotency(request))
