"""Receipts of decisions in Redis, written in batches beside requests.

A request leaves a tuple of values that are there anyway in a queue; a task renders and writes
them. Whatever hinders it (no room in the queue, too many a second, Redis away) drops receipts and
counts them, and nobody waits.

They lie in streams, each bounded by number and age: eight for tokens, and eight for everything
without one, so that strangers who are refused can't push out what concerns tokens. The id of a
decision says which of the eight, so that one is found by its id, and on Redis Cluster writes go to
as many slots.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import log1p
from typing import Any, Final, Literal
from zlib import crc32

from prometheus_client import CollectorRegistry, Counter
from redis import exceptions

from authsidecar.decision.authorize import Outcome, Store
from authsidecar.decision.model import AccessRequest, Deny, Proxy, TokenId
from authsidecar.observe.background import Background
from authsidecar.observe.receipts import Decided, MadeUnder, receipt, write
from authsidecar.store.keys import RECEIPT_STREAMS, Keys

EVERY_S: Final = 0.25
"""The time between two writes, in seconds."""

LAST_WRITE_S: Final = 2.0
"""How long a stop waits for its last write, in seconds."""

TRIM_EVERY_S: Final = 60.0
"""The time between two looks for receipts that are too old, in seconds."""

QUEUED: Final = 10_000
"""Receipts that wait to be written, at most."""

BATCH: Final = 100
"""How many receipts one trip writes: Redis, and this process, serve nobody else meanwhile."""

FIRSTS: Final = 50_000
"""Of how many pairs of token and route a process remembers that the hour's first was kept."""

HOUR_S: Final = 3600

CAUSES: Final = ("rate", "queue", "redis")
"""Why a receipt is dropped."""

FIELD: Final = b"r"
"""The field of an entry that has a receipt's text."""

DROPPED: Final = b"dropped"
"""The field of one that says how many were not kept."""

Whose = Literal["token", "other"]
"""Which streams a receipt lies in: whether it is one of a token that was proven."""


@dataclass(frozen=True, slots=True)
class ReceiptOptions:
    """How much is kept.

    Attributes:
        share: the part of the admissions that is kept, 0 to 1.
        max_entries: receipts in Redis, about, at most.
        max_age_ms: how long they stay, in milliseconds.
        max_per_second: receipts that one process writes a second, at most.
    """

    share: float
    max_entries: int
    max_age_ms: int
    max_per_second: int


class ReceiptWriter:
    """What one process has still to write of what it decided.

    Attributes:
        hour: changes when there is a first of the hour again.
    """

    def __init__(
        self,
        client: Any,
        keys: Keys,
        options: ReceiptOptions,
        made_under: MadeUnder,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            client: redis-py's asyncio client.
            keys: the key names.
            options: how much is kept.
            made_under: what all receipts have in common.
            registry: where the metrics are; None: nowhere.
        """
        self._client = client
        self._keys = keys
        self._options = options
        self.made_under = made_under
        self._queue: deque[Decided] = deque()
        self._firsts: set[tuple[TokenId, str | None]] = set()
        self.hour = 0
        self._weight = 1 / options.share if options.share else 0.0
        self._skip = self._skipped()
        self._second = 0.0
        self._left = {"token": 0, "other": 0}
        self._dropped = dict.fromkeys(CAUSES, 0)
        self._untold = 0
        self._trim_at = 0.0
        self._written_count: Counter | None = None
        self._dropped_count: Counter | None = None
        if registry is not None:
            self._written_count = Counter(
                "authsidecar_receipts_written",
                "Receipts of decisions that were written.",
                registry=registry,
            )
            self._dropped_count = Counter(
                "authsidecar_receipts_dropped",
                "Receipts of decisions that were not kept, by cause.",
                ["cause"],
                registry=registry,
            )
            for cause in CAUSES:
                self._dropped_count.labels(cause)

    def admitted(
        self,
        decision_id: str,
        proxy: Proxy | None,
        access: AccessRequest,
        outcome: Outcome,
        store: Store,
    ) -> None:
        """Keep an admission if it is of the share, or its token's first of the hour on its route.

        Args:
            decision_id: names the decision.
            proxy: the endpoint that was asked.
            access: what was asked.
            outcome: what was decided.
            store: what it was decided by.
        """
        token = None if outcome.record is None else outcome.record.token
        weight = self.weight(token, outcome.route)
        if weight:
            self.keep(Decided(decision_id, proxy, access, outcome, "", store.current(), weight))

    def weight(self, token: TokenId | None, route: str | None) -> float:
        """For how many admissions the receipt of this one is to stand; 0: it is not kept.

        Args:
            token: what was proven; None: nothing.
            route: the template that was reached.
        """
        if token is not None:
            first = (token, route)
            if first not in self._firsts and len(self._firsts) < FIRSTS:
                self._firsts.add(first)
                return 1
        return self.weight_of_share()

    def weight_of_share(self) -> float:
        """The same of one that is not its token's first of the hour on its route."""
        if self._skip:
            self._skip -= 1
            return 0
        self._skip = self._skipped()
        return self._weight

    def refused(  # noqa: PLR0917  # in the path of every request
        self,
        decision_id: str,
        proxy: Proxy | None,
        access: AccessRequest | Deny,
        outcome: Outcome,
        peer: str,
        store: Store,
    ) -> None:
        """Keep a refusal.

        Args:
            decision_id: names the decision.
            proxy: the endpoint that was asked; None if it could not be told.
            access: what was asked, or why it could not be read.
            outcome: what was decided.
            peer: who called.
            store: what it was decided by.
        """
        self.keep(Decided(decision_id, proxy, access, outcome, peer, store.current(), 1))

    def keep(self, decided: Decided) -> None:
        """Have a receipt of a decision written, if there is room."""
        now = time.monotonic()
        if now - self._second >= 1:
            self._second = now
            half = self._options.max_per_second / 2
            self._left = {"token": int(half + 0.5), "other": int(half)}
        whose = "other" if decided.outcome.record is None else "token"
        if self._left[whose] <= 0:
            self._drop("rate")
        elif len(self._queue) >= QUEUED:
            self._drop("queue")
        else:
            self._left[whose] -= 1
            self._queue.append(decided)

    def _drop(self, cause: str, count: int = 1) -> None:
        self._dropped[cause] += count
        self._untold += count

    def _skipped(self) -> int:
        """How many admissions are passed over until the next one is kept."""
        share = self._options.share
        if share >= 1:
            return 0
        if share <= 0:
            return 1 << 62
        return int(log1p(-random.random()) / log1p(-share))  # noqa: S311  # no secret

    async def write(self) -> None:
        """Write what waits; what Redis does not take is dropped, and counted."""
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            try:
                await self._write(batch)
            except (exceptions.RedisError, OSError, TimeoutError):
                self._drop("redis", len(batch))
                break
            if self._written_count is not None:
                self._written_count.inc(len(batch))
            await asyncio.sleep(0)
        self._tell()

    async def _write(self, batch: list[Decided]) -> None:
        untold = self._untold
        most = max(1, self._options.max_entries // (2 * RECEIPT_STREAMS))
        async with self._client.pipeline(transaction=False) as pipe:
            for decided in batch:
                whose: Whose = "other" if decided.outcome.record is None else "token"
                key = self._keys.receipts(whose, stream_of(decided.id))
                text = write(receipt(decided, self.made_under))
                pipe.execute_command("XADD", key, "MAXLEN", "~", most, "*", FIELD, text)
            if untold:
                pipe.xadd(self._keys.receipts("other", 0), {DROPPED: untold}, maxlen=most)
            await pipe.execute()
        self._untold -= untold

    def _tell(self) -> None:
        if self._dropped_count is not None:
            for cause, count in self._dropped.items():
                if count:
                    self._dropped_count.labels(cause).inc(count)
                    self._dropped[cause] = 0

    async def _trim(self) -> None:
        """Take away what is too old; a stream that nobody trims any more goes as a whole."""
        age = self._options.max_age_ms
        oldest = int(time.time() * 1000) - age
        with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError):
            async with self._client.pipeline(transaction=False) as pipe:
                for key in streams(self._keys):
                    pipe.xtrim(key, minid=oldest, approximate=False)
                    pipe.pexpire(key, age)
                await pipe.execute()

    async def keep_writing(self) -> None:
        """Write every quarter of a second, and take away what is too old every minute."""
        while True:
            await asyncio.sleep(EVERY_S)
            hour = int(time.time() // HOUR_S)
            if hour != self.hour:
                self.hour = hour
                self._firsts.clear()
            await self.write()
            if time.monotonic() >= self._trim_at:
                self._trim_at = time.monotonic() + TRIM_EVERY_S
                await self._trim()


@contextlib.asynccontextmanager
async def written(receipts: ReceiptWriter, background: Background) -> AsyncIterator[ReceiptWriter]:
    """Receipts that are written beside other work, and a last time at the end."""
    try:
        async with background.running("receipts", receipts.keep_writing):
            yield receipts
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_S):
                await receipts.write()


def streams(keys: Keys) -> tuple[str, ...]:
    """Every stream that receipts are in."""
    owners: tuple[Whose, ...] = ("token", "other")
    return tuple(keys.receipts(whose, n) for whose in owners for n in range(RECEIPT_STREAMS))


def stream_of(decision_id: str) -> int:
    """Which stream a decision's receipt is in, 0 to RECEIPT_STREAMS - 1."""
    return crc32(decision_id.encode()) % RECEIPT_STREAMS
