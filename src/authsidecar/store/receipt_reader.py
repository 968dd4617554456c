"""Receipts of decisions read from Redis: forwards, backwards, and one by its decision's id."""

import heapq
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from authsidecar.observe.receipts import Receipt, read
from authsidecar.store.keys import Keys
from authsidecar.store.receipts import DROPPED, FIELD, stream_of, streams
from authsidecar.times import UnixMs

PAGE: Final = 200
"""How many receipts of one stream one trip reads."""

LOOKED_THROUGH: Final = 1000
"""How many of them one trip reads that looks for a decision."""

_Entry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Kept:
    """What was read.

    Attributes:
        receipts: in the order of their time.
        dropped: how many more there would be, had all been written.
    """

    receipts: tuple[Receipt, ...]
    dropped: int


class Reader:
    """Reads receipts; remembers where it was, so that the next reading goes on from there."""

    def __init__(self, client: Any, keys: Keys, since: UnixMs) -> None:
        """Begin at a time.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            since: the first millisecond, by Redis's clock, at which they were written.
        """
        self._client = client
        self._next = dict.fromkeys(streams(keys), f"{max(since, 0)}")
        self._ended = False

    async def read(self) -> Kept:
        """What was written next, at most PAGE of each stream, in the order of its time.

        Raises:
            RedisError: Redis is away.
        """
        async with self._client.pipeline(transaction=False) as pipe:
            for key, start in self._next.items():
                pipe.xrange(key, min=start, count=PAGE)
            pages = await pipe.execute()
        full = [page[-1] for page in pages if len(page) == PAGE]
        self._ended = not full
        horizon = min((_written_at(entry) for entry, _ in full), default=None)
        found: list[Receipt] = []
        dropped = 0
        for key, page in zip(self._next, pages, strict=True):
            for entry, values in page:
                if horizon is not None and _written_at(entry) > horizon:
                    break  # another stream has older ones to be read first
                self._next[key] = "(" + entry.decode()
                one = read(values.get(FIELD, b""))
                if one is not None:
                    found.append(one)
                dropped += int(values.get(DROPPED, 0))
        return Kept(tuple(sorted(found, key=_order)), dropped)

    async def pages(self) -> AsyncIterator[Kept]:
        """Page after page until everything is read."""
        self._ended = False
        while not self._ended:
            yield await self.read()


def _written_at(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _order(one: Receipt) -> tuple[UnixMs, str]:
    return one.at, one.id


class StreamPosition(NamedTuple):
    """Where an entry is among those of all streams.

    Attributes:
        written_at: when it was written, in milliseconds.
        number: of those that one stream got in that millisecond.
        stream: which one, by its place in `streams`.
    """

    written_at: int
    number: int
    stream: int


async def backwards(
    client: Any, keys: Keys, before: StreamPosition | None = None
) -> AsyncIterator[tuple[StreamPosition, Receipt | None]]:
    """Receipts, the one that was written last first; None is an entry that holds none.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        before: only what was written before this one.

    Raises:
        RedisError: Redis is away.
    """
    names = streams(keys)
    async with client.pipeline(transaction=False) as pipe:
        for number, name in enumerate(names):
            pipe.xrevrange(name, max=_below(before, number), count=PAGE // 4)
        pages: list[Iterator[_Entry]] = [iter(page) for page in await pipe.execute()]
    last: list[tuple[int, int, int, Mapping[bytes, bytes]]] = []

    async def follow(stream: int, entry: bytes | None) -> None:
        """Take a stream's next entry, if it has one."""
        following = next(pages[stream], None)
        if following is None and entry is not None:
            most = "(" + entry.decode()
            page = await client.xrevrange(names[stream], max=most, count=PAGE // 4)
            pages[stream] = iter(page)
            following = next(pages[stream], None)
        if following is not None:
            written_at, number = map(int, following[0].split(b"-"))
            heapq.heappush(last, (-written_at, -number, -stream, following[1]))

    for stream in range(len(names)):
        await follow(stream, None)
    while last:
        written_at, number, stream, values = heapq.heappop(last)
        place = StreamPosition(-written_at, -number, -stream)
        yield place, read(values.get(FIELD, b""))
        await follow(-stream, b"%d-%d" % place[:2])


def _below(before: StreamPosition | None, stream: int) -> str:
    """The end of a stream's range of entries before a place."""
    if before is None:
        return "+"
    mark = "" if stream < before.stream else "("
    return f"{mark}{before.written_at}-{before.number}"


async def find(client: Any, keys: Keys, decision_id: str) -> Receipt | None:
    """The receipt of a decision, or None if it was not kept.

    Raises:
        RedisError: Redis is away.
    """
    number = stream_of(decision_id)
    for key in (keys.receipts("token", number), keys.receipts("other", number)):
        last = "+"
        while page := await client.xrevrange(key, max=last, count=LOOKED_THROUGH):
            for entry, values in page:
                last = "(" + entry.decode()
                text = values.get(FIELD, b"")
                if decision_id.encode() in text:
                    one = read(text)
                    if one is not None and one.id == decision_id:
                        return one
    return None
