"""The doctor's one-time key: for a minute, and as a digest only, Redis knows of it."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from authsidecar.serving.doctor_probe import Sighting, digest, sighting
from authsidecar.store.keys import Keys

ARMED_S: Final = 60
"""How long a key is good for, in seconds."""


@dataclass(frozen=True, slots=True)
class Armed:
    """A doctor that the sidecar answers.

    Attributes:
        key: 32 random bytes, as text.
    """

    key: str = field(repr=False)
    _client: Any = field(repr=False)
    _keys: Keys

    async def sightings(self) -> list[Sighting]:
        """All that the sidecar has seen of this doctor's probes, oldest first."""
        records = await self._client.lrange(self._keys.doctor_sightings(digest(self.key)), 0, -1)
        return [sighting(record) for record in records]


@asynccontextmanager
async def armed(client: Any, keys: Keys) -> AsyncIterator[Armed]:
    """Arm a new key for as long as the context lasts, and for ARMED_S at the longest."""
    key = secrets.token_urlsafe(32)
    known_as = digest(key)
    await client.set(keys.doctor(known_as), "", ex=ARMED_S)
    try:
        yield Armed(key, client, keys)
    finally:
        await client.delete(keys.doctor(known_as))
        await client.delete(keys.doctor_sightings(known_as))
