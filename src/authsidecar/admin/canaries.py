"""Making a canary token: one that looks like any other and belongs to nobody."""

import secrets
from hashlib import sha256
from typing import Final

from authsidecar.admin.tokens import new_secret
from authsidecar.decision.model import TokenId
from authsidecar.store.records import Canary
from authsidecar.store.registry import Registry

LONGEST_NOTE: Final = 500
"""Characters of the longest note."""

_BEYOND: Final = 100_000
"""How far above all ids a canary's may be where none below is free."""


async def create(registry: Registry, note: str, *, synced: bool) -> tuple[Canary, str]:
    """Make a canary token; its secret exists in the answer and nowhere else.

    Args:
        registry: where it is kept.
        note: where it is put, for the alarm.
        synced: whether Coolify gives ids to tokens, and not this registry.

    Returns:
        What is kept, and `ID|SECRET`.
    """
    while True:
        number = await _free_id(registry) if synced else await registry.next_token_id()
        secret = new_secret()
        digest = sha256(secret.encode("ascii")).digest()
        canary = Canary(number, digest, await registry.now(), note)
        if await registry.add_canary(canary):
            return canary, f"{number}|{secret}"


async def _free_id(registry: Registry) -> TokenId:
    """An id that no token has; one of a gap, since Coolify gives none of these again."""
    taken = {i for user in await registry.user_ids() for i in await registry.token_ids_of(user)}
    highest = max(taken, default=0)
    for _ in range(1000):
        number = TokenId(secrets.randbelow(highest) + 1) if highest else TokenId(0)
        if number and number not in taken:
            return number
    return TokenId(highest + 1 + _BEYOND + secrets.randbelow(_BEYOND))
