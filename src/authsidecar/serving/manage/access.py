"""Who may use the management listener: the key in `Authorization`, and a pace for wrong ones."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aiohttp import web
from redis.exceptions import RedisError

from authsidecar.decision.addresses import address_bucket, parse_address
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.store.management_keys import ManagementKey, Scope
from authsidecar.times import UnixMs

REFUSED_MS: Final = 60_000
"""For how long an address that has shown a wrong key is slowed down, in milliseconds."""

TRIES_PER_SECOND: Final = 1
"""How many keys such an address may still show to each process, a second."""

IPV6_PREFIX: Final = 64
"""What counts as one address of IPv6: who has one has a whole network."""

KNOWN: Final = 256
"""How many pairs of an address and a key that was right are remembered."""

_LONGEST: Final = 512
"""Characters of the longest Authorization header that is looked at."""

Prove = Callable[[str], Awaitable[ManagementKey | None]]
"""Tells whose key a text is; None: nobody's."""


@dataclass(frozen=True, slots=True)
class BadKey:
    """Why a request may not do what it asks.

    Attributes:
        status: 401, 403, 429 or 503.
        why: one line for people.
        headers: what goes with it.
    """

    status: int
    why: str
    headers: tuple[tuple[str, str], ...] = ()


def _now() -> UnixMs:
    return UnixMs(int(time.monotonic() * 1000))


class Access:
    """Judges keys; addresses that show wrong ones are slowed down, in each process for itself.

    A key that was right from an address is asked of Redis at any pace, so that nobody behind the
    same address is kept out by another one's guesses; it opens nothing once it is revoked.
    """

    def __init__(self, prove: Prove, now: Callable[[], UnixMs] = _now) -> None:
        """Every address may show a key.

        Args:
            prove: asked for each key; may raise RedisError or OSError.
            now: a clock that never goes back, in milliseconds.
        """
        self._prove = prove
        self._now = now
        self._pace = AddressPace(TRIES_PER_SECOND)
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def key(self, request: web.Request, needed: Scope) -> ManagementKey | BadKey:
        """The key that a request has shown, if it is a right one and may do this."""
        shown = request.headers.getall("Authorization", [])
        if not shown:
            return _unauthorized("a management key is needed: `Authorization: Bearer KEY`", "")
        scheme, _, text = shown[0].partition(" ")
        if len(shown) > 1 or scheme.lower() != "bearer" or len(text) > _LONGEST:
            return _unauthorized(
                "the Authorization header is not one `Bearer KEY`", "invalid_request"
            )
        return await self.proven(text, request, needed)

    async def proven(
        self, text: str, request: web.Request, needed: Scope
    ) -> ManagementKey | BadKey:
        """The key that a text is, if it is a right one and may do this."""
        if len(text) > _LONGEST:
            return _unauthorized("this is no management key", "invalid_token")
        address = _address(request)
        pair = (address, sha256(text.encode("utf-8", "surrogateescape")).digest())
        if pair not in self._known and (slowed := self.slowed(request)) is not None:
            return slowed
        try:
            found = await self._prove(text)
        except (RedisError, OSError, TimeoutError):
            wait = (("Retry-After", "1"),)
            return BadKey(503, "Redis does not answer, so no key can be checked", wait)
        if found is None:
            self._known.pop(pair, None)
            self.failed(request)
            return _unauthorized(
                "the key is unknown, revoked or expired; `authsidecar key list` shows the keys",
                "invalid_token",
            )
        self._remember(pair)
        if not found.may(needed):
            return BadKey(403, f"key {found.id} may only read; this needs the scope write")
        return found

    def slowed(self, request: web.Request) -> BadKey | None:
        """Why an address may not try now, or None; a try of one that has failed is counted."""
        if self._pace.may_look_up(_address(request), self._now()):
            return None
        wait = (("Retry-After", "1"),)
        return BadKey(429, "too many wrong keys from this address; try again in a second", wait)

    def failed(self, request: web.Request) -> None:
        """Slow down an address that has shown what opens nothing."""
        self._pace.refuse(_address(request), UnixMs(self._now() + REFUSED_MS))

    def _remember(self, pair: tuple[str, bytes]) -> None:
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)


def _unauthorized(why: str, error: str) -> BadKey:
    tail = f', error="{error}"' if error else ""
    return BadKey(401, why, (("WWW-Authenticate", f'Bearer realm="authsidecar"{tail}'),))


def _address(request: web.Request) -> str:
    """The peer's address, as it is counted."""
    address = parse_address(request.remote or "")
    return "?" if address is None else address_bucket(address, IPV6_PREFIX)
