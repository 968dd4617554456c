"""Who sends a warning: one process at a time, and nobody once it was sent.

A warning's key is absent, holds the name of the process that is about to send it (for a minute),
or says `sent`. A process that is killed before it could say so is followed by another after that
minute, which can't know whether the warning went out: that is one way to a duplicate. The other is
a Redis that loses what it was told, in a failover say: the process that has sent it says so again,
unless another one has looked before or it is gone itself.
"""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from authsidecar.expiry.notice import LATE_MS, Due
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs

LEASE_MS: Final = 60_000
"""For how long a claim keeps others away, in milliseconds; longer than a try may take."""

HELD_MS: Final = 15 * 60_000
"""After how long a warning that was not taken is tried again, in milliseconds."""

SENT: Final = b"sent"

KEPT: Final = 10_000
"""How many of the warnings that it has sent a process remembers; the oldest goes first."""

_PAGE: Final = 500

_IF_OURS: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


class Claims:
    """One process's claims on the warnings of one channel."""

    def __init__(self, client: Any, keys: Keys, channel: str) -> None:
        """Nothing is sent yet; every Claims is another claimant."""
        self._client = client
        self._keys = keys
        self._channel = channel
        self._name = secrets.token_hex(12)
        self._sent: OrderedDict[str, None] = OrderedDict()

    async def open(self, warnings: Sequence[Due]) -> list[Due]:
        """Those that nobody has sent or is about to; nothing is claimed by asking."""
        found: list[Due] = []
        for start in range(0, len(warnings), _PAGE):
            page = warnings[start : start + _PAGE]
            async with self._client.pipeline(transaction=False) as pipe:
                for one in page:  # no MGET: in a Cluster, they are in many slots
                    pipe.get(self._key(one))
                values = await pipe.execute()
            free = [one for one, value in zip(page, values, strict=True) if value is None]
            for one in free:
                if self._key(one) in self._sent:
                    await self.sent(one)  # Redis has lost it
                else:
                    found.append(one)
        return found

    async def claim(self, warning: Due) -> bool:
        """Whether this process, and no other, may send it now."""
        return bool(await self._client.set(self._key(warning), self._name, nx=True, px=LEASE_MS))

    async def sent(self, warning: Due) -> None:
        """Say that it was sent, whoever has claimed it meanwhile."""
        until = UnixMs(warning.expires_at + 2 * LATE_MS)
        key = self._key(warning)
        self._sent[key] = None
        if len(self._sent) > KEPT:
            self._sent.popitem(last=False)
        await self._client.set(key, SENT, pxat=until)

    async def release(self, warning: Due) -> None:
        """Let anybody try again at once."""
        await self._if_ours(warning, 0)

    async def hold(self, warning: Due) -> None:
        """Keep everybody from trying again for a while."""
        await self._if_ours(warning, HELD_MS)

    async def _if_ours(self, warning: Due, milliseconds: int) -> None:
        await self._client.eval(_IF_OURS, 1, self._key(warning), self._name, milliseconds)

    def _key(self, warning: Due) -> str:
        return self._keys.warning(f"{warning.id}:{self._channel}")
