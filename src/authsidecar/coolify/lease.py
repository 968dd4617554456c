"""Who may write: several syncs elect one by a lease in Redis, and the others stand by."""

import asyncio
import secrets
import socket
import time
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.store.epoch import Fence, FenceBroken
from authsidecar.store.keys import Keys

LEASE_MS: Final = 3000
"""After how long another takes over from a killed one, in milliseconds."""

RENEW_S: Final = 0.5
"""The time between two renewals, and between two tries of those who stand by, in seconds."""

# What follows a first write that needs no memory is done on a full Redis, too.
_ACQUIRE: Final = """
redis.call('DEL', KEYS[3])
local ours = redis.call('GET', KEYS[1]) == ARGV[1]
if ours or redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[1])
  return 1
end
return 0
"""
_RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('GET', KEYS[2]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class Lease:
    """One sync's claim to be the one that writes."""

    def __init__(self, client: "Redis", keys: Keys) -> None:
        """Nothing is sent yet; every Lease is another claimant."""
        self._client: Any = client
        self._keys = [keys.sync_lease, keys.sync_fence, keys.sync_room]
        self.holder = f"{socket.gethostname()}/{secrets.token_hex(6)}"

    @property
    def fence(self) -> Fence:
        """What proves that nobody has taken over."""
        return Fence(self._keys[1], self.holder.encode())

    async def acquire(self) -> bool:
        """Whether it is ours now."""
        return bool(await self._script(_ACQUIRE, LEASE_MS))

    async def holder_now(self) -> str | None:
        """Who has it."""
        found: bytes | None = await self._client.get(self._keys[0])
        return None if found is None else found.decode("utf-8", "replace")

    async def keep(self) -> None:
        """Renew it until it is lost.

        Raises:
            FenceBroken: another has it, or it could not be renewed in time.
        """
        sure_until = time.monotonic() + LEASE_MS / 1000
        while True:
            await asyncio.sleep(RENEW_S)
            asked = time.monotonic()
            try:
                kept = await self._script(_RENEW, LEASE_MS)
            except (exceptions.RedisError, OSError):
                if asked > sure_until:
                    raise FenceBroken from None
                continue
            if not kept:
                raise FenceBroken
            sure_until = asked + LEASE_MS / 1000

    async def release(self) -> None:
        """Let another have it at once; nothing happens if it is lost already."""
        await self._script(_RELEASE)

    async def _script(self, text: str, *args: int) -> int:
        return int(await self._client.eval(text, 3, *self._keys, self.holder, *args))
