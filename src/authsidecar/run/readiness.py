"""Whether requests can be decided: what `/readyz` says."""

import asyncio
import time
from typing import Final

from authsidecar.decision.authorize import UNSYNCED, StoreError
from authsidecar.run.life import Life
from authsidecar.store.decisions import DecisionStore

READY_AGE_S: Final = 1.0
"""For how long `/readyz` repeats an answer, in seconds."""


class Readiness:
    """What is missing before requests can be decided, asked of Redis once a second at the most."""

    def __init__(self, decisions: DecisionStore) -> None:
        self._decisions = decisions
        self._asking: asyncio.Task[dict[str, str]] | None = None
        self._asked_at = 0.0

    async def __call__(self) -> dict[str, str]:
        """What is missing, by what it is missing from; empty: nothing."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= READY_AGE_S):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, str]:
        try:
            await self._decisions.ready()
        except StoreError as error:
            if error.kind == UNSYNCED:
                return {"sync": "not complete yet"}
            return {"redis": error.kind}
        return {}


async def missing(life: Life, ready: Readiness) -> dict[str, str]:
    """What is missing: at the start what that waits for, then what Redis says."""
    return life.missing or await ready()
