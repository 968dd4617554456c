"""All state written down as JSON lines, a batch of keys at a time."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from authsidecar import __version__
from authsidecar.admin.state_lines import END, FORMAT, HEAD, Line
from authsidecar.store.keys import Keys
from authsidecar.store.kinds import KeyKind, kind_of
from authsidecar.store.listing import Listing
from authsidecar.store.scan import Scan
from authsidecar.store.schema import read_schema
from authsidecar.times import UnixMs, rfc3339

BATCH: Final = 500
"""Keys of one trip, and fields or entries of one line, at the most."""

NAMED: Final = 100
"""How many of the keys that are not known are named; all are counted."""

_LAST: Final = "{sync}:status"
"""Written at the end: it says that a sync owns what is there."""


@dataclass(slots=True)
class Exported:
    """What was written down.

    Attributes:
        keys: how many, by what they are for.
        unknown: the names of keys that are not known, as far as they are named.
        unknown_count: how many of these there are.
    """

    keys: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    unknown_count: int = 0

    @property
    def total(self) -> int:
        """How many keys were written down."""
        return self.keys.total()


async def export_state(
    client: "Redis",
    keys: Keys,
    write: Callable[[str], None],
    *,
    counters: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write all state down.

    Args:
        client: redis-py's asyncio client, decode_responses off.
        keys: the key names.
        write: called with each line, without its end.
        counters: with what has used up limits.
        progress: told now and then how many keys are done.

    Raises:
        NewerSchemaError: the state was written by a newer program.
    """
    return await _Export(client, keys, write, counters=counters, progress=progress).run()


class _Export:
    def __init__(
        self,
        client: "Redis",
        keys: Keys,
        write: Callable[[str], None],
        *,
        counters: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._client: Any = client
        self._keys = keys
        self._write = write
        self._roles = {"state", "counter"} if counters else {"state"}
        self._progress = progress
        self._lines = 0
        self._report = Exported()
        self._now = UnixMs(0)

    async def run(self) -> Exported:
        self._now = await Listing(self._client, self._keys).now()
        head = {
            HEAD: FORMAT,
            "schema": await read_schema(self._client, self._keys),
            "release": __version__,
            "exported_at": rfc3339(self._now),
            "counters": "counter" in self._roles,
        }
        self._write(json.dumps(head))
        await self._keep(["instance"])
        scan = Scan()
        while True:
            await self._keep_some(await scan.some(self._client, self._keys.prefix))
            if scan.complete:
                break
        await self._keep([_LAST])
        report = self._report
        end = {"lines": self._lines, "keys": dict(report.keys), "unknown": report.unknown_count}
        self._write(json.dumps({END: end}))
        return report

    async def _keep_some(self, names: Sequence[str]) -> None:
        wanted = []
        for name in dict.fromkeys(names):
            kind = kind_of(name)
            if kind is None:
                self._unknown(name)
            elif kind.role in self._roles and name not in {"instance", _LAST}:
                wanted.append(name)
        for start in range(0, len(wanted), BATCH):
            await self._keep(wanted[start : start + BATCH])
        self._progress(self._report.total)

    async def _keep(self, names: Sequence[str]) -> None:
        """Write these keys down; those that are gone by now are none."""
        self._now = await Listing(self._client, self._keys).now()
        known = [(name, kind) for name in names if (kind := kind_of(name)) is not None]
        small = [one for one in known if one[1].type in {"hash", "string"}]
        async with self._client.pipeline(transaction=False) as pipe:
            for name, kind in small:
                key = self._keys.prefix + name
                if kind.type == "hash":
                    pipe.hgetall(key)
                else:
                    pipe.get(key)
                pipe.pttl(key)
            answers = await pipe.execute(raise_on_error=False) if small else []
        for (name, kind), value, left in zip(small, answers[::2], answers[1::2], strict=True):
            if isinstance(value, exceptions.ResponseError):
                self._unknown(name)
            elif value and not (kind.name == "warning" and value != b"sent"):
                self._line(name, kind, value, left)
                self._report.keys[kind.name] += 1
        for name, kind in known:
            if kind.type not in {"hash", "string"}:
                await self._keep_large(name, kind)

    async def _keep_large(self, name: str, kind: KeyKind) -> None:
        """Write one key down that may have many fields or entries."""
        key, first = self._keys.prefix + name, True
        try:
            left = int(await self._client.pttl(key))
            async for part in self._parts(key, kind):
                self._line(name, kind, part, left, first=first)
                first = False
        except exceptions.ResponseError:
            self._unknown(name)
            return
        self._report.keys[kind.name] += not first

    async def _parts(self, key: str, kind: KeyKind) -> Any:
        if kind.type == "fields":
            part: dict[bytes, bytes] = {}
            async for name, value in self._client.hscan_iter(key, count=BATCH):
                part[name] = value
                if len(part) == BATCH:
                    yield part
                    part = {}
            if part:
                yield part
        elif kind.type == "list":
            start = 0
            while found := await self._client.lrange(key, start, start + BATCH - 1):
                yield found
                start += len(found)
        else:
            after = "-"
            while found := await self._client.xrange(key, after, "+", count=BATCH):
                yield found
                after = "(" + found[-1][0].decode()

    def _line(self, name: str, kind: KeyKind, value: Any, left: int, *, first: bool = True) -> None:
        expires_at = UnixMs(self._now + left) if left >= 0 else None
        self._write(Line(name, kind, value, expires_at, first).written())
        self._lines += 1

    def _unknown(self, name: str) -> None:
        self._report.unknown_count += 1
        if len(self._report.unknown) < NAMED:
            self._report.unknown.append(ascii(name[:100]))
