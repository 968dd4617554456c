"""The audit: who changed what, when, from where, and what it was before; in a bounded stream.

Whoever changes the state writes the record in the change's own MULTI, so that neither is there
without the other (on Redis Cluster each slot has a MULTI of its own, and the record comes first of
those that follow). A record holds names, permissions and times; no secret and no digest.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.observe.log import Log, redact
from authsidecar.store.keys import Keys
from authsidecar.store.records import text
from authsidecar.times import UnixMs

RECORDS: Final = 10_000
"""How many records are kept, about; the oldest go first."""

LONGEST_TEXT: Final = 2000
"""Characters of the longest text in a record; a longer one is cut, and says so."""

MOST_ITEMS: Final = 50
"""Items of the longest list in a record; more are counted."""

LOG_EVERY_S: Final = 1.0
"""The time between two looks for records that nobody has logged, in seconds."""

LOG_AT_ONCE: Final = 100
"""How many of them one look takes."""

_GROUP: Final = "log"

Facts = Mapping[str, Any]
"""What something is: plain values by name."""


class Via(StrEnum):
    """How a change came."""

    API = "api"
    AUTHZ = "authz"
    CLI = "cli"
    CONSOLE = "console"
    SYNC = "sync"
    TIME = "time"
    """Nobody: a setting was not confirmed in time."""
    OTHER = "other"
    """What a newer version knows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who makes a change, and from where.

    Attributes:
        actor: a user of the machine, a management key, a token, or whom a sync follows.
        via: how it comes.
        place: an address, or the name of a machine.
    """

    actor: str
    via: Via
    place: str


@dataclass(frozen=True, slots=True)
class Record:
    """One change that was made.

    Attributes:
        id: its name in the stream; ids rise.
        at: when, by Redis's clock.
        action: what was done, as `token.revoke`.
        target: to what, as `token 67`.
        origin: who did it.
        before: what it was, or None: it was not there.
        after: what it is, or None: it is gone.
    """

    id: str
    at: UnixMs
    action: str
    target: str
    origin: Origin
    before: Facts | None
    after: Facts | None

    @classmethod
    def read(cls, name: bytes, fields: Mapping[bytes, bytes]) -> "Record":
        """The record with this name and these fields of the stream."""
        said = {text(key): text(value) for key, value in fields.items()}
        return cls(
            id=text(name),
            at=UnixMs(int(text(name).partition("-")[0] or 0)),
            action=said.get("action", ""),
            target=said.get("target", ""),
            origin=Origin(
                said.get("actor", ""), Via(said.get("via", "cli")), said.get("place", "")
            ),
            before=_facts(said.get("before", "null")),
            after=_facts(said.get("after", "null")),
        )


def write(
    pipe: Any,
    keys: Keys,
    origin: Origin | None,
    action: str,
    target: str,
    *,
    before: Facts | None = None,
    after: Facts | None = None,
) -> None:
    """Have a change recorded with it.

    Args:
        pipe: redis-py's pipeline, which makes the change.
        keys: the key names.
        origin: who makes it; None: nobody's change, and not recorded (a seed, a test).
        action: what is done, as `token.revoke`.
        target: to what, as `token 67`.
        before: what it was; no secret and no digest.
        after: what it will be; the same.
    """
    if origin is None:
        return
    fields = {
        "action": action,
        "target": target,
        "actor": redact(origin.actor),
        "via": origin.via.value,
        "place": origin.place,
        "before": json.dumps(_bounded(before)),
        "after": json.dumps(_bounded(after)),
    }
    pipe.xadd(keys.audit, fields, maxlen=RECORDS, approximate=True)


class Trail:
    """Reads the audit; redis-py's own exceptions pass through to the caller."""

    def __init__(self, client: "Redis", keys: Keys) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
        """
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys
        self._key = keys.audit

    async def add(
        self, origin: Origin, action: str, target: str, *, after: Facts | None = None
    ) -> None:
        """Record what was done elsewhere than in Redis."""
        async with self._client.pipeline(transaction=False) as pipe:
            write(pipe, self._keys, origin, action, target, after=after)
            await pipe.execute()

    async def latest(self, count: int, before: str | None = None) -> list[Record]:
        """The last records, the newest first.

        Args:
            count: how many at the most, above 0.
            before: only those older than the record with this id.
        """
        newest = "+" if before is None else f"({before}"
        found = await self._client.xrevrange(self._key, max=newest, min="-", count=count)
        return [Record.read(*one) for one in found]

    async def after(self, record: str, count: int) -> list[Record]:
        """The records after one, the oldest first; "0-0" is before all."""
        found = await self._client.xrange(self._key, min=f"({record}", max="+", count=count)
        return [Record.read(*one) for one in found]

    async def find(self, record: str) -> Record | None:
        """One record, or None."""
        found = await self._client.xrange(self._key, min=record, max=record, count=1)
        return Record.read(*found[0]) if found else None

    async def keep_logging(self, log: Log) -> None:
        """Log each record once, on whichever process finds it first, until cancelled."""
        while True:
            try:
                records = await self._unlogged()
            except (exceptions.RedisError, OSError):
                records = []  # it is told elsewhere that Redis is away; nothing is lost
            for one in records:
                log.event("info", "audit", **as_data(one))
            if len(records) < LOG_AT_ONCE:
                await asyncio.sleep(LOG_EVERY_S)

    async def _unlogged(self) -> list[Record]:
        """Records that no process has taken; they are this one's to log."""
        if not await self._client.exists(self._key):
            return []
        try:
            found = await self._client.xreadgroup(
                _GROUP, "sidecar", {self._key: ">"}, count=LOG_AT_ONCE, noack=True
            )
        except exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self._client.xgroup_create(self._key, _GROUP, id="0")
            return []
        streams = found.values() if isinstance(found, dict) else [rows for _, rows in found or ()]
        return [Record.read(*one) for rows in streams for one in _flat(rows)]


def as_data(record: Record) -> dict[str, Any]:
    """A record as --json, the log and the API show it, without its time."""
    return {
        "id": record.id,
        "action": record.action,
        "target": record.target,
        "actor": record.origin.actor,
        "via": record.origin.via.value,
        "place": record.origin.place,
        "before": record.before,
        "after": record.after,
    }


def _flat(rows: Any) -> list[Any]:
    """The rows of one stream; RESP3 wraps them once more."""
    return rows[0] if rows and isinstance(rows[0], list) else list(rows)


def _via(said: str | None) -> Via:
    try:
        return Via(said or "")
    except ValueError:
        return Via.OTHER


def _facts(said: str) -> Facts | None:
    try:
        found = json.loads(said)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _bounded(value: Any) -> Any:
    """The same, with long texts and lists cut, and without anything that looks like a token."""
    match value:
        case str():
            cut = value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}… ({len(value)})"
            return redact(cut)
        case Mapping():
            return {str(key): _bounded(one) for key, one in value.items()}
        case list() | tuple():
            shown = [_bounded(one) for one in value[:MOST_ITEMS]]
            return shown if len(value) <= MOST_ITEMS else [*shown, f"… ({len(value)} in all)"]
        case _:
            return value
