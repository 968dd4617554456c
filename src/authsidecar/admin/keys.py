"""Use cases of management keys: make one, prove one, revoke one.

A key is written `authsidecar_ID_SECRET`: its beginning tells people and secret scanners what it is.
"""

import re
import secrets
import string
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from redis.exceptions import RedisError

from authsidecar.admin.refusal import LeftoverError, Refusal
from authsidecar.admin.tokens import DAY_MS, unprintable
from authsidecar.store.management_keys import ManagementKey, ManagementKeys, Scope
from authsidecar.times import UnixMs

LONGEST_NAME: Final = 255

MOST_DAYS: Final = 3650
"""The longest lifetime of a key that expires, in days."""

SECRET_LENGTH: Final = 40
"""Characters of a secret, out of 62: more than 237 bits."""

_ALPHABET: Final = string.ascii_letters + string.digits

_WRITTEN: Final = re.compile(rf"authsidecar_([1-9][0-9]{{0,17}})_([A-Za-z0-9]{{{SECRET_LENGTH}}})")

_NOBODYS: Final = bytes(32)
"""What the digest of an unknown key's secret is compared with."""


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key that was just made; nobody can ask for `plain` again.

    Attributes:
        key: what is stored.
        plain: what is sent as Bearer.
    """

    key: ManagementKey
    plain: str = field(repr=False)


async def create_key(
    kept: ManagementKeys, *, name: str, scope: Scope, days: int | None
) -> CreatedKey | Refusal:
    """Make a key; its secret exists in the answer and nowhere else.

    Args:
        kept: where it is stored.
        name: what it is for, 1 to 255 characters.
        scope: what it may do.
        days: 1 to MOST_DAYS, or None: it does not expire.

    Raises:
        LeftoverError: it may have been stored, and could not be taken back.
    """
    if not name.strip() or len(name) > LONGEST_NAME:
        return Refusal(f"the name needs 1 to {LONGEST_NAME} characters")
    if (why := unprintable(name)) is not None:
        return Refusal(why)
    if days is not None and not 1 <= days <= MOST_DAYS:
        return Refusal(f"a key expires after 1 to {MOST_DAYS} days or never, not after {days}")
    now = await kept.now()
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_LENGTH))
    key = ManagementKey(
        id=await kept.next_id(),
        sha256=sha256(secret.encode("ascii")).digest(),
        name=name,
        scope=scope,
        created_at=now,
        expires_at=None if days is None else UnixMs(now + days * DAY_MS),
    )
    try:
        await kept.add(key)
    except BaseException as error:
        await _unmake(kept, key, error)
        raise
    return CreatedKey(key, f"authsidecar_{key.id}_{secret}")


async def _unmake(kept: ManagementKeys, key: ManagementKey, error: BaseException) -> None:
    """Take back a key that may have been stored, and whose secret nobody will be shown."""
    try:
        await kept.remove(key.id)
    except (RedisError, OSError):
        raise LeftoverError("key", key.id, error) from None


async def prove_key(kept: ManagementKeys, presented: str) -> ManagementKey | None:
    """The key that somebody has shown, or None if it is no valid one.

    Redis is asked each time, so a revoked key opens nothing. An unknown id and a wrong secret are
    told apart neither by the answer nor by its time.

    Args:
        kept: where keys are stored.
        presented: what was sent behind `Bearer`.
    """
    match = _WRITTEN.fullmatch(presented)
    if match is None:
        return None
    found = await kept.find(int(match[1]))
    digest = sha256(match[2].encode("ascii")).digest()
    right = compare_digest(digest, _NOBODYS if found is None else found.sha256)
    if found is None or not right:
        return None
    if found.expires_at is not None and found.expired(await kept.now()):
        return None
    return found
