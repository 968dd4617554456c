"""Which layout the state in Redis has: a newer program brings it forward, an older one refuses.

An older program would misread what it does not know, and what it misreads it might grant.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis

from authsidecar.store import records
from authsidecar.store.changes import Changes
from authsidecar.store.keys import Keys

SCHEMA: Final = 1
"""The layout that this program reads and writes; 0: that of releases that wrote no number."""

Step = Callable[["Redis", Keys], Awaitable[None]]
"""Brings the state from one layout to the next; done twice, or by two at once, it does no harm."""


async def _nothing(_: "Redis", __: Keys) -> None:
    """Releases before 0.3.0 have the same layout."""


STEPS: Final[Mapping[int, Step]] = {0: _nothing}
"""By the layout that each begins with."""


class NewerSchemaError(Exception):
    """The state was written by a newer program."""


async def read_schema(client: "Redis", keys: Keys) -> int:
    """The layout of what is there.

    Raises:
        NewerSchemaError: this program does not know it.
    """
    found: Any = await client.get(keys.schema)
    number = 0 if found is None else records.number(found)
    if number is None or number > SCHEMA:
        raise NewerSchemaError(
            f"the state in Redis has schema {records.text(found)[:20]!a}, and this release knows "
            f"{SCHEMA} at the most; use the release that wrote it, or a newer one"
        )
    return number


async def migrate(client: "Redis", keys: Keys, *, steps: Mapping[int, Step] = STEPS) -> int:
    """Bring the state to this program's layout; from which one.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        steps: one for each layout before this one.

    Raises:
        NewerSchemaError: this program does not know the layout; nothing was changed.
    """
    first = await read_schema(client, keys)
    for number in range(first, SCHEMA):
        await steps[number](client, keys)
        await _say(client, keys, number + 1)
    return first


async def _say(client: "Redis", keys: Keys, number: int) -> None:
    """Write the number, unless another process is further."""

    async def change(pipe: Any) -> None:
        found = records.number(await pipe.get(keys.schema)) or 0
        pipe.multi()
        if found < number:
            pipe.set(keys.schema, number)

    await Changes(client, keys).transaction(change, [keys.schema], allow_oom=True)
