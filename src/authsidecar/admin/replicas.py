"""Waiting for the replicas that a revocation waits for, on a client that many use at once."""

from typing import Any, Final

from redis.asyncio import Redis

from authsidecar.store.cluster import Cluster
from authsidecar.store.full import SET_IN_FULL, beside
from authsidecar.store.keys import Keys

WAIT_SLICE_MS: Final = 500
"""Milliseconds of one WAIT: less than the connection's own patience with an answer."""


async def late_replicas(client: "Redis", keys: Keys, wanted: int, timeout_ms: int) -> str | None:
    """Wait until replicas have what was written; what is to be said if they are late.

    Args:
        client: redis-py's asyncio client.
        keys: the key names.
        wanted: how many replicas; 0: none is waited for.
        timeout_ms: for how long, in milliseconds.
    """
    if not wanted:
        return None
    anyway: Any = client
    if isinstance(client, Cluster):
        found = int(await anyway.wait(wanted, timeout_ms))
    else:
        # WAIT counts for its own connection, and what is written now comes after all before.
        async with anyway.pipeline(transaction=False) as pipe:
            pipe.eval(SET_IN_FULL, 1, beside(keys.instance, "written"), "", 1000, "")
            for start in range(0, timeout_ms, WAIT_SLICE_MS):
                pipe.wait(wanted, min(WAIT_SLICE_MS, timeout_ms - start))
            _, *answers = await pipe.execute()
        found = int(answers[-1])
    if found >= wanted:
        return None
    return (
        f"only {found} of {wanted} replicas have confirmed it within {timeout_ms} ms; a failover "
        "now could undo it"
    )
