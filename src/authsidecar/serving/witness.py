"""The sidecar's side of the doctor: it says what it saw of a probe, while one is armed.

It is asked only about requests that are refused already, for want of a readable token or request,
so no ordinary request costs anything. Whoever holds an armed key gets answers on one path that
has no route, and nothing else: everywhere else the request is decided as if there were no doctor.
"""

import asyncio
import time
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import RedisError

from authsidecar.decision.authorize import Outcome
from authsidecar.decision.model import AccessRequest, Allow, Deny, Kind, Limit, Proxy, Quota, Reason
from authsidecar.decision.proxies.endpoints import Endpoint, RequestLine
from authsidecar.decision.proxies.headers import IDENTITY, Fields
from authsidecar.decision.proxies.replies import Reply, lines
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.observe.log import Log
from authsidecar.serving.doctor_probe import (
    ALLOW,
    CODE,
    PATH,
    RETRY_AFTER_S,
    Offer,
    Sighting,
    headers_seen,
    identity,
)
from authsidecar.serving.shown_body import SHOWING
from authsidecar.serving.subrequest import Subrequest
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs

KEPT: Final = 500
"""Sightings that are kept of one doctor at the most."""

KEPT_S: Final = 120
"""How long they are kept, in seconds."""

_PACED_MS: Final = 60_000
"""How long an address is paced that has offered a key which is not armed."""

_KNOWN: Final = 64

_KINDS: Final = {
    "400": Kind.MALFORMED,
    "401": Kind.UNAUTHENTICATED,
    "403": Kind.FORBIDDEN,
    "404": Kind.NOT_FOUND,
    "429": Kind.RATE_LIMITED,
    "503": Kind.UNAVAILABLE,
}


class Witness:
    """Answers probes; one instance serves a process."""

    def __init__(
        self,
        client: Any,
        keys: Keys,
        *,
        budget_ms: int,
        log: Log,
        report_only: bool = False,
        forwarded: bool = False,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            budget_ms: how long Redis may take, in milliseconds.
            log: told of every probe that is let through or refused on request.
            report_only: what is refused passes all the same; the doctor is told so.
            forwarded: the operator says that bodies are shown; the doctor is told so.
        """
        self._client = client
        self._keys = keys
        self._budget_s = budget_ms / 1000
        self._log = log
        self._report_only = report_only
        self._forwarded = forwarded
        self._pace = AddressPace()
        self._known: set[str] = set()

    def report(self, report_only: bool, *, forwarded: bool) -> None:
        """Say from now on whether what is refused passes, and whether bodies should be shown."""
        self._report_only = report_only
        self._forwarded = forwarded

    async def outcome(
        self,
        offer: Offer,
        asked: Subrequest,
        fields: Fields,
        access: AccessRequest | Deny,
        endpoint: Endpoint,
    ) -> Outcome | None:
        """Take down a probe of an armed doctor; the outcome it asks for, or None: decide as usual.

        Args:
            offer: the credential that it may be a probe by.
            asked: the subrequest.
            fields: its headers.
            access: what was read of it; it, or its credential, is refused.
            endpoint: the endpoint that was asked.
        """
        if endpoint.proxy is None:
            return None
        line = endpoint.line(asked.method, asked.target)
        line = line or (b", ".join(fields.method), b", ".join(fields.uri))
        seen = _seen(offer, asked, access, endpoint.proxy, line)
        forwarded = self._forwarded and seen.proxy in SHOWING
        seen = replace(seen, report_only=self._report_only, forwarded=forwarded)
        if not await self._taken_down(offer, seen):
            return None
        if isinstance(access, Deny) or not offer.alone or access.path != PATH:
            return None
        self._log.event("info", CODE, probe=offer.probe, answer=offer.answer)
        return _asked_for(offer)

    async def _taken_down(self, offer: Offer, seen: Sighting) -> bool:
        """Whether a doctor of this key is armed now, and has the record."""
        address = seen.client or "unreadable"
        now = UnixMs(int(time.time() * 1000))
        if offer.key not in self._known and not self._pace.may_look_up(address, now):
            return False
        sightings = self._keys.doctor_sightings(offer.key)
        try:
            async with asyncio.timeout(self._budget_s):
                if not await self._client.exists(self._keys.doctor(offer.key)):
                    self._known.discard(offer.key)
                    self._pace.refuse(address, UnixMs(now + _PACED_MS))
                    return False
                async with self._client.pipeline(transaction=False) as pipe:
                    pipe.rpush(sightings, seen.encoded())
                    pipe.ltrim(sightings, -KEPT, -1)
                    pipe.expire(sightings, KEPT_S)
                    await pipe.execute()
        except (TimeoutError, OSError, RedisError):
            return False  # no doctor: the request is decided, and refused, as any other
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(offer.key)
        return True


def _seen(
    offer: Offer,
    asked: Subrequest,
    access: AccessRequest | Deny,
    proxy: Proxy,
    line: RequestLine,
) -> Sighting:
    method, target = line
    names, shown = headers_seen(asked.headers)
    refused = None
    if isinstance(access, Deny):
        refused = access.reason.code
    elif isinstance(access.credential, Deny) and not offer.alone:
        refused = access.credential.reason.code
    return Sighting(
        probe=offer.probe,
        proxy=proxy,
        method=method.decode("latin-1"),
        target=target.decode("latin-1"),
        client=None if isinstance(access, Deny) else str(access.client),
        refused=refused,
        names=names,
        shown=shown,
        body=asked.body,
    )


def _asked_for(offer: Offer) -> Outcome:
    """The outcome that the probe asks for; its route is one that no table has."""
    now = UnixMs(int(time.time() * 1000))
    if offer.answer == ALLOW:
        return Outcome(Allow(None), now, route=PATH)
    kind = _KINDS[offer.answer]
    reason = Reason(CODE, kind, int(offer.answer), "The doctor asked for this refusal.")
    full = Quota("user", Limit(200), 0, UnixMs(now + RETRY_AFTER_S * 1000))
    quotas = (full,) if kind is Kind.RATE_LIMITED else ()
    return Outcome(Deny(reason), now, quotas, route=PATH)


def is_probe(outcome: Outcome) -> bool:
    """Whether a doctor asked for this outcome: it is meant for it, whatever is enforced."""
    return outcome.route is PATH


def identify_doctor(reply: Reply) -> Reply:
    """An admission with the identity of the doctor, which is nobody's."""
    fields = [
        (name, identity(name) if name in IDENTITY else value) for name, value in reply.headers
    ]
    return Reply(reply.status, lines(*fields), reply.body)
