"""A walk over all keys under a prefix, a few at a time, on every primary."""

import re
from typing import Any, Final

from authsidecar.store.cluster import Cluster

COUNT: Final = 1000
"""How many of Redis's keys, whoever's they are, one step looks at: a fraction of a millisecond."""

_GLOB: Final = re.compile(r"([\\*?\[\]])")


class Scan:
    """Where the walk is; it begins again by itself, with whatever primaries there then are."""

    def __init__(self) -> None:
        """Nothing is sent yet."""
        self._cursor = 0
        self._nodes: list[Any] = []

    @property
    def complete(self) -> bool:
        """Whether the walk is about to begin again."""
        return self._cursor == 0 and not self._nodes

    async def some(self, client: Any, prefix: str) -> list[str]:
        """The names of some keys without their prefix; those that stay are seen in each walk.

        Args:
            client: redis-py's asyncio client.
            prefix: what the keys begin with.
        """
        where = {}
        if isinstance(client, Cluster):
            if not self._nodes:
                self._nodes, self._cursor = client.get_primaries(), 0
            where = {"target_nodes": self._nodes[-1:]}
        match = _GLOB.sub(r"\\\1", prefix) + "*"
        # Not redis-py's scan of a cluster: it would ask all nodes at once.
        try:
            found = await client.execute_command(
                "SCAN", self._cursor, "MATCH", match, "COUNT", COUNT, **where
            )
        except BaseException:
            self._cursor, self._nodes = 0, []  # that primary may be gone for good
            raise
        cursor, names = _answer(found)
        self._cursor = cursor
        if cursor == 0 and self._nodes:
            self._nodes.pop()
        return [name.decode("utf-8", "replace")[len(prefix) :] for name in names]


def _answer(found: Any) -> tuple[int, list[bytes]]:
    """The next cursor and the names; a cluster's client has a cursor for each node."""
    cursor, names = found
    if isinstance(cursor, dict):
        (cursor,) = cursor.values()
    return int(cursor), names
