"""The alarm that a canary token was used: a line in the log, the webhook, and a mail.

No request waits for it. For each address there is one a minute at the most, whatever the number of
processes.
"""

import asyncio
import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from redis import exceptions

from authsidecar.decision.addresses import address_bucket
from authsidecar.decision.model import UserId
from authsidecar.expiry.channel import Channel, NotTakenError, UnreachableError
from authsidecar.expiry.notice import page
from authsidecar.observe.canary import CanaryUse
from authsidecar.observe.log import Log
from authsidecar.store.entities import User
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs, for_people, rfc3339

QUIET_S: Final = 60.0
"""The least time between two alarms about one address, in seconds."""

WAITING: Final = 100
"""How many alarms wait at the most; more are counted in the metric alone."""

ADDRESSES: Final = 10_000
"""How many addresses are remembered at the most; the one that was told of first goes first."""

PAUSES_S: Final = (1.0, 5.0, 30.0)
"""The time before each further try of a channel that failed, in seconds."""


@dataclass(frozen=True, slots=True)
class CanaryAlarm:
    """One alarm, as a channel sends it.

    Attributes:
        use: what happened.
        note: where the canary was put.
        now: when.
        user: the operator, or None: no mail is sent.
    """

    use: CanaryUse
    note: str
    now: UnixMs
    user: User | None

    @property
    def id(self) -> str:
        """The same name in every try."""
        return f"canary:{self.use.decision_id}"

    @property
    def subject(self) -> str:
        """One line; nothing in it is the client's."""
        return f"Canary token {self.use.token} was used from {self.use.client}"

    def text(self) -> str:
        """The mail as plain text."""
        return "\n\n".join(self._paragraphs()) + "\n"

    def html(self) -> str:
        """The mail as HTML; the same words."""
        return page(self.subject, self._paragraphs())

    def json(self) -> bytes:
        """What is posted."""
        use = self.use
        told = {
            "event": "canary_used",
            "id": self.id,
            "sent_at": rfc3339(self.now),
            "canary": {"id": use.token, "note": self.note},
            "address": str(use.client),
            "method": use.method,
            "route": use.route,
            "user_agent_sha256": use.agent,
            "decision_id": use.decision_id,
        }
        return json.dumps(told).encode("ascii")

    def _paragraphs(self) -> tuple[str, ...]:
        use = self.use
        details = (
            f"Its note: {self.note or '-'}",
            f"Request: {use.method} {use.route or '-'}",
            f"User-Agent: {use.agent or 'not shown'} (SHA-256, first 16 digits)",
            f"Decision: {use.decision_id}",
        )
        return (
            f"{self.subject}: {for_people(self.now)}.",
            "\n".join(details),
            "Nobody has a reason to use it: where it was put, somebody has read it.",
        )


class CanaryAlarms:
    """Alarms that wait, and the work of telling of them."""

    def __init__(
        self,
        channels: tuple[Channel, ...],
        operator: str | None,
        client: Any,
        keys: Keys,
        *,
        log: Log,
        ipv6_prefix: int,
    ) -> None:
        """Nothing is sent yet.

        Args:
            channels: where alarms go beside the log; may be empty.
            operator: the address of a mail; None: none is sent.
            client: redis-py's asyncio client.
            keys: the key names.
            log: told of every alarm.
            ipv6_prefix: how much of an IPv6 address is one address.
        """
        self._operator = None if operator is None else User(UserId(0), "operator", operator)
        self._channels = [c for c in channels if c.name != "mail" or operator is not None]
        self._client = client
        self._keys = keys
        self._registry = Registry(client, keys)
        self._log = log
        self._prefix = ipv6_prefix
        self._quiet: OrderedDict[str, float] = OrderedDict()
        self._waiting: asyncio.Queue[CanaryUse] = asyncio.Queue(WAITING)

    def used(self, use: CanaryUse) -> None:
        """Have an alarm told of, unless there was one about this address; never waits."""
        address, now = address_bucket(use.client, self._prefix), time.monotonic()
        if now < self._quiet.get(address, now) or self._waiting.full():
            return
        self._quiet[address] = now + QUIET_S
        self._quiet.move_to_end(address)
        if len(self._quiet) > ADDRESSES:
            self._quiet.popitem(last=False)
        self._waiting.put_nowait(use)

    async def run(self) -> None:
        """Tell of what waits, one after the other, until it is cancelled."""
        while True:
            await self._tell(await self._waiting.get())

    async def _tell(self, use: CanaryUse) -> None:
        key = self._keys.canary_alarm(address_bucket(use.client, self._prefix))
        note, now = "", UnixMs(int(time.time() * 1000))
        try:
            if not await self._client.set(key, "", nx=True, px=round(QUIET_S * 1000)):
                return  # another process tells
            note = next((c.note for c in await self._registry.canaries() if c.id == use.token), "")
            now = await self._registry.now()
        except (exceptions.RedisError, OSError):
            pass  # rather twice than never
        self._log.event(
            "warning",
            "canary_used",
            token=use.token,
            note=note,
            client=str(use.client),
            method=use.method,
            route=use.route,
            user_agent_sha256=use.agent,
            decision_id=use.decision_id,
        )
        alarm = CanaryAlarm(use, note, now, self._operator)
        await asyncio.gather(*(self._send(channel, alarm) for channel in self._channels))

    async def _send(self, channel: Channel, alarm: CanaryAlarm) -> None:
        why = ""
        for pause in (0.0, *PAUSES_S):
            await asyncio.sleep(pause)
            try:
                await channel.send(alarm)
            except UnreachableError as error:
                why = str(error)
            except NotTakenError as error:
                why = str(error)
                break
            else:
                return
        self._log.event("error", "canary_alarm_failed", channel=channel.name, why=why)
