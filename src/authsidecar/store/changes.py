"""How the state is changed: a change and the renewal of the nonces that prove it are one MULTI.

So the very next request on any process is judged by the new state. A change that can take rights
away must not fail for want of room in Redis: it is made with `allow_oom` (see full.py). What adds
users, teams or tokens is not, so that it never drives Redis past its limit.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import Redis

from authsidecar.decision.model import UserId
from authsidecar.store.cluster import Cluster
from authsidecar.store.full import FullPipeline
from authsidecar.store.keys import Keys
from authsidecar.store.loading import NONCE_BYTES

END_OF_SERIES: Final = 2**62
"""Ids are given from 1 on, above the last that was chosen; one from here on counts for none."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Precondition:
    """What must hold at the very moment of a change.

    Attributes:
        keys: those that say whether it holds; whoever writes one has the change begun anew.
        check: raises what the caller is to get, if it does not hold.
    """

    keys: tuple[str, ...]
    check: Callable[[], Awaitable[None]]


class Changes:
    """Makes changes; what they write is the caller's to say, on redis-py's pipeline."""

    def __init__(
        self, client: "Redis", keys: Keys, precondition: Precondition | None = None
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: redis-py's asyncio client, decode_responses off.
            keys: the key names.
            precondition: what must hold when the first transaction is made.
        """
        self._client: Any = client  # redis-py's own annotations mix sync, async, bytes and str
        self._keys = keys
        self._precondition = precondition

    def multi(self, *, allow_oom: bool = False) -> AbstractAsyncContextManager[Any]:
        """A pipeline whose commands are one MULTI, once the caller executes it.

        Args:
            allow_oom: make it on a full Redis too; its answers are then one for each key.
        """
        pipe: AbstractAsyncContextManager[Any]
        if isinstance(self._client, Cluster):
            pipe = self._client.change(allow_oom=allow_oom)
        elif allow_oom:
            pipe = FullPipeline(self._client)
        else:
            pipe = self._client.pipeline(transaction=True)
        return pipe

    async def transaction(
        self,
        change: Callable[[Any], Awaitable[_T]],
        watched: Iterable[str],
        *,
        allow_oom: bool = False,
    ) -> _T:
        """Read under WATCH, then write in one MULTI; again from the start if it moved.

        Args:
            change: reads on the pipeline, calls its `multi` once it is to write, and tells what
                the transaction answers.
            watched: the keys that decide what is written.
            allow_oom: write on a full Redis too.
        """
        needed = self._precondition
        names = [*watched] if needed is None else [*watched, *needed.keys]
        async with Changes.multi(self, allow_oom=allow_oom) as pipe:
            while True:
                try:
                    await pipe.watch(*dict.fromkeys(names))
                    if needed is not None:
                        await needed.check()
                    result = await change(pipe)
                    await pipe.execute()
                except exceptions.WatchError:
                    continue
                self._precondition = None  # the change itself may have ended it
                return result

    def renew(self, pipe: Any, users: Iterable[UserId]) -> None:
        """Make whatever was read of these users and their tokens stale."""
        for user in users:
            pipe.set(self._keys.user_nonce(user), _nonce())

    def renew_instance(self, pipe: Any) -> None:
        """Make whatever was read of the instance's settings stale."""
        pipe.set(self._keys.instance_nonce, _nonce())

    async def next_id(self, noun: str) -> int:
        """An id that was never given before to one of its noun; they count up."""
        return int(await self._client.incr(self._keys.next_id(noun)))

    async def raise_last_id(self, noun: str, number: int) -> None:
        """Make sure that ids given from now on are above this one."""
        key = self._keys.next_id(noun)

        async def change(pipe: Any) -> None:
            last = int(await pipe.get(key) or 0)
            pipe.multi()
            if number > last:
                pipe.set(key, number)

        await self.transaction(change, [key])

    async def add(
        self,
        noun: str,
        key: Callable[[int], str],
        wanted: int | None,
        write: Callable[[Any, int], None],
    ) -> int | None:
        """Write under the wanted id, or the next free one; None if the wanted one is taken.

        Args:
            noun: `user` or `team`.
            key: where the record of an id is.
            wanted: the id, 0 or above, or None.
            write: writes all of it under the id that was found.
        """

        async def change(pipe: Any, number: int) -> bool:
            if await pipe.exists(key(number)):
                return False
            pipe.multi()
            write(pipe, number)
            return True

        if wanted is not None:
            added = await self.transaction(partial(change, number=wanted), [key(wanted)])
            await self.raise_last_id(noun, last_id([wanted]))
            return wanted if added else None
        while True:
            number = await self.next_id(noun)
            if await self.transaction(partial(change, number=number), [key(number)]):
                return number


def last_id(numbers: Iterable[int]) -> int:
    """The largest of these ids that moves the series of ids on; 0 if none does.

    One that somebody chose near the end of all numbers would leave nothing to give.
    """
    return max((number for number in numbers if number < END_OF_SERIES), default=0)


def _nonce() -> str:
    return secrets.token_hex(NONCE_BYTES)
