"""Waiting for what another process does: by looking, with a bound."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 30.0
"""How long a busy machine may take over what an idle one does at once."""


def until(true: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> float:
    """Wait until it is true; how many seconds that took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < patience_s, f"{what} did not come in {patience_s} s"
        time.sleep(0.005)
    return time.monotonic() - start


async def eventually(
    true: Callable[[], Awaitable[bool]], what: str, *, patience_s: float = PATIENCE_S
) -> float:
    """Wait until it is true; how many seconds that took."""
    start = time.monotonic()
    while not await true():
        assert time.monotonic() - start < patience_s, f"{what} did not come in {patience_s} s"
        await asyncio.sleep(0.002)
    return time.monotonic() - start
