"""Who is signed in to the console: links that work once, and sessions, by digest, in Redis.

So a session holds in every worker and process, and ends in all of them at once. What a browser
holds is a random text; Redis knows its SHA-256 alone.
"""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from redis.asyncio import Redis

from authsidecar.store import audit, records
from authsidecar.store.audit import Origin
from authsidecar.store.changes import Changes
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import Scope

LINK_MS: Final = 5 * 60_000
"""How long a link works, in milliseconds."""

IDLE_MS: Final = 30 * 60_000
"""How long a session lives without a request, in milliseconds."""

LONGEST_MS: Final = 12 * 3600_000
"""How long a session lives at the most, in milliseconds."""

SECRET_BYTES: Final = 32
"""Random bytes of a link and of a session."""

LONGEST_NOTICE: Final = 500
"""Characters of the longest notice that is kept for the next page."""

LONGEST_UNDO: Final = 16 * 1024
"""Characters of the longest way back that is kept."""

_FIELDS: Final = ("actor", "scope", "key", "began_at", "said", "undo")


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session that holds.

    Attributes:
        actor: who is signed in, for the audit.
        scope: READ may look, WRITE may change as well.
        key: the management key that it was made from, or None: from a link.
        said: what the next page is to tell, or the empty text.
        undo: what takes the last change back, as the console writes it, or the empty text.
    """

    actor: str
    scope: Scope
    key: int | None
    said: str = ""
    undo: str = ""


class ConsoleSessions:
    """Keeps links and sessions; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
        """
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys
        self._changes = Changes(client, keys)

    async def make_link(self, origin: Origin, scope: Scope) -> str:
        """The secret of a link that signs in once, within LINK_MS.

        Args:
            origin: who asks for it; the session is this one's.
            scope: what the session may do.
        """
        link = _secret()
        key = self._keys.console_link(_digest(link))
        async with self._changes.multi() as pipe:
            pipe.hset(key, mapping={"actor": origin.actor, "scope": scope.value})
            pipe.pexpire(key, LINK_MS)
            audit.write(
                pipe, self._keys, origin, "console.link", "console", after={"scope": scope.value}
            )
            await pipe.execute()
        return link

    async def use_link(self, link: str) -> SignedIn | None:
        """Whom a link signs in; None: it is unknown, used or too old. It works no second time."""
        key = self._keys.console_link(_digest(link))
        actor, scope = await self._client.hmget(key, "actor", "scope")
        if actor is None or not await self._client.delete(key):
            return None
        return SignedIn(records.text(actor), _scope(scope), None)

    async def begin(self, session: SignedIn, place: str) -> str:
        """The secret of a new session.

        Args:
            session: whose.
            place: the address that signs in, for the audit.
        """
        secret = _secret()
        key = self._keys.console_session(_digest(secret))
        fields: dict[str, str | int] = {
            "actor": session.actor,
            "scope": session.scope.value,
            "began_at": _now(),
        }
        if session.key is not None:
            fields["key"] = session.key
        after: Mapping[str, object] = {"scope": session.scope.value}
        origin = Origin(session.actor, audit.Via.CONSOLE, place)
        async with self._changes.multi() as pipe:
            pipe.hset(key, mapping=fields)
            pipe.pexpire(key, IDLE_MS)
            audit.write(pipe, self._keys, origin, "console.sign-in", "console", after=after)
            await pipe.execute()
        return secret

    async def find(self, secret: str, *, used: bool = True) -> SignedIn | None:
        """The session of a secret, which then lives for IDLE_MS more; None: there is none.

        Args:
            secret: as the cookie holds it.
            used: False if a page asks by itself: the session then ends as if it had not.
        """
        key = self._keys.console_session(_digest(secret))
        actor, scope, number, began_at, said, undo = await self._client.hmget(key, _FIELDS)
        if actor is None:
            return None
        left = (records.number(began_at) or 0) + LONGEST_MS - _now()
        if left <= 0 or (used and not await self._client.pexpire(key, min(left, IDLE_MS))):
            return None
        return SignedIn(
            records.text(actor),
            _scope(scope),
            None if number is None else records.number(number) or 0,
            "" if said is None else records.text(said),
            "" if undo is None else records.text(undo),
        )

    async def end(self, secret: str) -> None:
        """End a session, in every process."""
        await self._client.delete(self._keys.console_session(_digest(secret)))

    async def say(self, secret: str, notice: str, undo: str = "") -> None:
        """Keep a notice for the next page that the session is shown, and the way back.

        What is longer than LONGEST_UNDO is not kept.
        """
        key = self._keys.console_session(_digest(secret))
        async with self._changes.multi() as pipe:
            pipe.hset(key, "said", notice[:LONGEST_NOTICE])
            pipe.hset(key, "undo", undo if len(undo) <= LONGEST_UNDO else "")
            pipe.pexpire(key, IDLE_MS)  # it may have ended meanwhile: nothing is left for ever
            await pipe.execute()

    async def heard(self, secret: str) -> None:
        """Forget the notice: it was shown."""
        await self._client.hdel(self._keys.console_session(_digest(secret)), "said")


def _secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _scope(value: records.Field) -> Scope:
    """What can't be read may only look."""
    return Scope.WRITE if value == Scope.WRITE.value.encode() else Scope.READ


def _now() -> int:
    return int(time.time() * 1000)
