"""The decisions of this moment, for who watches: a few of them, at a cost that has a bound."""

from dataclasses import dataclass
from typing import Any, Final

from authsidecar.admin.decisions import Filter
from authsidecar.observe.receipts import Receipt, read
from authsidecar.store.keys import Keys
from authsidecar.store.receipts import FIELD, streams
from authsidecar.times import UnixMs

LOOKED_AT: Final = 12
"""Receipts of each stream that one look reads, at most: reading them must cost requests nothing."""


@dataclass(frozen=True, slots=True)
class Latest:
    """What was written lately.

    Attributes:
        receipts: those that are wanted, in the order of their time.
        more: there were, or may have been, others that are wanted.
    """

    receipts: tuple[Receipt, ...]
    more: bool


async def latest(  # a time has two ends
    client: Any, keys: Keys, wanted: Filter, most: int, *, since: UnixMs, before: UnixMs
) -> Latest:
    """The last receipts of a short time, of those that are wanted; all in one trip.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        wanted: which.
        most: how many, at most.
        since: the first millisecond at which they were written.
        before: the first millisecond that is too late; not in the future.

    Raises:
        RedisError: Redis is away.
    """
    if since >= before:
        return Latest((), more=False)
    async with client.pipeline(transaction=False) as pipe:
        for name in streams(keys):
            pipe.xrevrange(name, max=before - 1, min=since, count=LOOKED_AT)
        pages = await pipe.execute()
    found = sorted(
        (
            one
            for page in pages
            for _, values in page
            if (one := read(values.get(FIELD, b""))) is not None and wanted.takes(one)
        ),
        key=lambda one: (one.at, one.id),
    )
    more = len(found) > most or any(len(page) == LOOKED_AT for page in pages)
    return Latest(tuple(found[-most:]), more)
