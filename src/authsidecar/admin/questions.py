"""Questions to all receipts of a time: they take seconds, and each can be sent to another process.

Where requests are decided, they are asked by `Ask`, which has a process of its own answer them.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from redis.asyncio import Redis

from authsidecar.admin.decisions import Filter, matching
from authsidecar.admin.refusal_report import By, Count, RefusalReport, report, top
from authsidecar.admin.simulate import SimulatedChange, Simulation, simulate
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.receipt_reader import Kept, Reader
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sources:
    """What questions are answered from.

    Attributes:
        client: redis-py's asyncio client.
        keys: the key names.
        registry: users, teams and tokens.
        store: the hot path's store.
        progress: called with how many receipts are done.
    """

    client: "Redis"
    keys: Keys
    registry: Registry
    store: DecisionStore
    progress: Callable[[int], None] = lambda _: None

    async def since(self, span_ms: int) -> UnixMs:
        """So long ago, by Redis's clock."""
        return UnixMs(await self.registry.now() - span_ms)

    def pages(self, since: UnixMs) -> AsyncIterator[Kept]:
        """The receipts since a time, in their order."""
        return Reader(self.client, self.keys, since).pages()


class Question(Protocol[T_co]):
    """What can be asked: plain data, which can be pickled."""

    async def __call__(self, sources: Sources) -> T_co:
        """The answer.

        Raises:
            RedisError, StoreError: Redis is away.
        """


class Ask(Protocol):
    """Asks, and waits for the answer."""

    async def __call__(self, question: Question[T]) -> T:
        """The answer.

        Raises:
            UnansweredError: there is none.
            RedisError: Redis is away.
        """


class UnansweredError(Exception):
    """A question is not answered; says why, and what to do.

    Attributes:
        why: one line.
        busy: others are being answered; it may be asked again.
    """

    def __init__(self, why: str, *, busy: bool) -> None:
        super().__init__(why)
        self.why = why
        self.busy = busy


@dataclass(frozen=True, slots=True)
class WouldFlip:
    """What a change would have done.

    Attributes:
        change: what receipts are judged by.
        span_ms: how far back, in milliseconds.
    """

    change: SimulatedChange
    span_ms: int

    async def __call__(self, sources: Sources) -> Simulation:
        """The answer."""
        return await simulate(
            sources.pages(await sources.since(self.span_ms)),
            self.change,
            registry=sources.registry,
            store=sources.store,
            progress=sources.progress,
        )


@dataclass(frozen=True, slots=True)
class MostRefused:
    """Who, or what, is refused most.

    Attributes:
        wanted: which receipts are counted.
        by: what is counted.
        most: how many are named.
        span_ms: how far back, in milliseconds.
    """

    wanted: Filter
    by: By
    most: int
    span_ms: int

    async def __call__(self, sources: Sources) -> tuple[Count, ...]:
        """The answer."""
        since = await sources.since(self.span_ms)
        found = matching(sources.client, sources.keys, since, self.wanted)
        return await top(found, self.by, self.most)


@dataclass(frozen=True, slots=True)
class AllRefused:
    """What was refused, counted in every way.

    Attributes:
        span_ms: how far back, in milliseconds.
        most: how many values of each sort are named; None: all.
    """

    span_ms: int
    most: int | None = None

    async def __call__(self, sources: Sources) -> RefusalReport:
        """The answer."""
        since = await sources.since(self.span_ms)
        until = UnixMs(since + self.span_ms)
        return await report(sources.pages(since), since, until, most=self.most)
