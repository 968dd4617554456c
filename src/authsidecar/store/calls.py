"""Charges that wait at the same time share one script call.

While a call is under way, charges gather; when it returns, or when they are many, all that gathered
go out together. So a call is as large as the load makes it, an idle process answers at once, and
nothing ever waits for a timer. An unclear call is never sent again: it may have charged.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol, Self

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from authsidecar.decision.authorize import StoreError
from authsidecar.store.deadlines import LONGEST, TICKS
from authsidecar.store.redis_internals import DirectConnection
from authsidecar.store.trips import Trips, kind_of
from authsidecar.tasks import end
from authsidecar.times import UnixMs

BATCH: Final = 128
"""The most requests that share one script call: Redis serves nobody else meanwhile."""

IN_FLIGHT: Final = 2
"""Calls under way at once, at the most: while Redis works on one, the next is packed."""

BESIDE: Final = 16
"""How many wait at the most before a call is made beside one that is under way. It is made once as
many wait as are in the other, so that the two take turns: while Redis works on one, this process
works on the other. Measured beside a fixed number of 16: 1.1 times the requests a second at 32
connections, 1.3 at 16, with 0.9 of the processor."""

AGAIN_S: Final = 0.05
"""After how long a call or a load that goes on after its end is cancelled again, in seconds."""

Result = tuple[UnixMs, list[int]]
"""Redis's clock, and what charge.lua says of one request."""


def charge_script() -> str:
    """The text of the charge script: the algorithm, then the driver that applies it."""
    algorithm = (
        files("authsidecar.decision.ratelimit").joinpath("sliding_window.lua").read_text("ascii")
    )
    driver = files("authsidecar.store").joinpath("charge.lua").read_text("ascii")
    return algorithm + driver


def bulk(*values: str | bytes | int) -> bytes:
    """Values as Redis reads the words of a command."""
    words = [v if isinstance(v, bytes) else str(v).encode() for v in values]
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Part(NamedTuple):
    """One request's part of a script call, packed once and sent as often as it is asked.

    Attributes:
        key: its first key, which tells its slot on a cluster.
        keys: how many KEYS it has, as charge.lua reads them.
        args: how many ARGV.
        packed_keys: the KEYS as they are sent.
        packed_args: the ARGV.
    """

    key: str
    keys: int
    args: int
    packed_keys: bytes
    packed_args: bytes

    @classmethod
    def of(cls, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Self:
        """The part with these KEYS, at least one, and ARGV."""
        return cls(keys[0], len(keys), len(args), bulk(*keys), bulk(*args))


class Waiter(Protocol):
    """Who waits for the answer to a part: a future, or what has these parts of one."""

    def done(self) -> bool:
        """Whether it waits no more."""

    def cancel(self) -> object:
        """Nobody will answer."""

    def set_result(self, result: Result, /) -> None:
        """The answer; it must not raise."""

    def set_exception(self, error: Exception, /) -> None:
        """Why there is none; it must not raise."""

    def exception(self) -> BaseException | None:
        """Take note of the error: who waited may be gone."""


Waiting = tuple[Waiter, Part]
"""A request whose part is not answered yet."""


_OWN_CLOCK: Final = bulk("")
"""The ARGV that says that Redis's own clock counts."""


def _nothing() -> None:
    """Nobody wants to know."""


def packed(call: bytes, parts: Sequence[Part]) -> bytes:
    """A script call for all of these as it is sent.

    Args:
        call: the words before the number of keys: EVALSHA and a digest, or EVAL and a text.
        parts: in the order in which they are answered.
    """
    _, key_counts, arg_counts, packed_keys, packed_args = zip(*parts, strict=True)
    keys = sum(key_counts)
    number = b"%d" % keys
    words = 4 + keys + sum(arg_counts)
    head = b"*%d\r\n%b$%d\r\n%b\r\n" % (words, call, len(number), number)
    return b"".join([head, *packed_keys, _OWN_CLOCK, *packed_args])


class ConnectionPool(Protocol):
    """Where script calls get their connections."""

    def make_connection(self) -> Any:
        """A new connection of redis-py's, not open yet; who asked for it closes it."""

    def renew(self) -> None:
        """Have every connection opened anew before it is used again."""


class ChargeCalls:
    """Runs charge.lua for all who wait.

    Script calls have connections of their own, one for each call that may be under way. One that
    is not known to be in order after a call is closed and dropped, so none can be lost. The first
    call on a connection is made by redis-py in a task, which opens it; those that follow need none.

    Attributes:
        settled: called once all who share a call have their answers.
    """

    takes_over = True
    """Whether connections are taken over from redis-py after their first call."""

    def __init__(self, pool: ConnectionPool, trips: Trips) -> None:
        """Nothing is sent yet; the event loop is the running one.

        Args:
            pool: makes connections to one node.
            trips: bounds each trip and turns what goes wrong into a StoreError.
        """
        self._pool = pool
        self._idle: list[Any] = []
        self._direct: list[DirectConnection] = []
        self._trips = trips
        self._deadlines = trips.deadlines
        script = charge_script()
        digest = sha1(script.encode()).hexdigest()  # noqa: S324  # Redis names it so
        self._by_digest = bulk("EVALSHA", digest)
        self._with_text = bulk("EVAL", script)
        self._waiting: list[Waiting] = []
        self._taken = 0
        self._alone = False
        self.settled: Callable[[], None] = _nothing
        self._under_way: dict[asyncio.Task[None] | _Call, tuple[int, list[Waiting]]] = {}
        self._worth_a_call = 1
        self._woken = False
        self._tick = -1
        self._mark: list[int] = []
        self._answered = -1
        self._spared: deque[tuple[int, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()  # asking for it is a system call

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are idle, and how many are used by calls under way."""
        return len(self._idle) + len(self._direct), len(self._under_way)

    def charge(self, part: Part) -> "asyncio.Future[Result]":
        """One request's answer, to be awaited; a StoreError if Redis did not answer well in time.

        Args:
            part: its part of the call.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self.enqueue(future, part)
        return future

    def enqueue(self, waiter: Waiter, part: Part) -> None:
        """Have one request's answer given to who waits for it.

        Args:
            waiter: gets the answer, or a StoreError, within the call that brought it.
            part: its part of the call.
        """
        if self._tick != self._deadlines.tick:
            self._begin_tick()
        self._waiting.append((waiter, part))
        if not self._woken and len(self._waiting) >= self._worth_a_call:
            if self._alone and not self._under_way:  # as before, nobody else is waited for
                self._wake()
            else:
                self._woken = True
                self._loop.call_soon(self._wake)

    async def close(self) -> None:
        """End what waits and what is under way."""
        for future, _ in self._waiting:
            future.cancel()
        self._waiting.clear()
        for call in [one for one in self._under_way if isinstance(one, _Call)]:
            for waiter, _ in self._over(call):
                waiter.cancel()
            call.give_up()
        await end(self._tasks(), again_s=AGAIN_S)
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)
        while self._direct:
            self._direct.pop().close()

    def _tasks(self) -> "list[asyncio.Task[None]]":
        """The calls under way that are tasks."""
        return [one for one in self._under_way if isinstance(one, asyncio.Task)]

    def _wake(self) -> None:
        """Send what waits, as far as calls may be under way."""
        self._woken = False
        while len(self._waiting) >= self._worth_a_call:
            batch = self._waiting[:BATCH]
            del self._waiting[:BATCH]
            self._alone = len(batch) == 1
            first = self._taken
            self._taken += len(batch)
            if self._begin(first, batch):
                continue
            task = self._loop.create_task(self._call(batch))
            self._begun(task, first, batch)
            task.add_done_callback(self._returned)

    def _begin(self, first: int, batch: list[Waiting]) -> bool:
        """Make a call on a connection that is there; False: a task must."""
        while self._direct:
            connection = self._direct.pop()
            if not connection.usable:
                connection.close()
                continue
            start = time.monotonic()
            if not self._trips.lets_through(start):
                self._direct.append(connection)
                _refuse(batch, "open")
                return True
            call = _Call(self, connection, start)
            self._begun(call, first, batch)
            self._deadlines.at_end(call.expire)
            connection.send(packed(self._by_digest, [part for _, part in batch]), call.answered)
            return True
        return False

    def repeat_with_text(self, call: "_Call") -> None:
        """Redis has lost the script, so nothing ran: send its text."""
        parts = [part for _, part in self._under_way[call][1]]
        call.connection.send(packed(self._with_text, parts), call.answered)

    def end(self, call: "_Call", answer: Any) -> None:
        """A call is over.

        Args:
            call: which one.
            answer: Redis's, or the error that it is, or that ended it.
        """
        batch = self._over(call)
        try:
            if isinstance(answer, exceptions.ResponseError):  # whole, so the connection is in order
                kind = self._trips.failed("charge", call.start, answer)
                if kind in _LEAVE:
                    self._pool.renew()
                    call.connection.close()
                else:
                    self._direct.append(call.connection)
                _refuse(batch, kind)
            elif isinstance(answer, Exception):
                call.connection.close()
                _refuse(batch, self._trips.failed("charge", call.start, answer))
            else:
                now, *results = answer
                self._trips.answered("charge", call.start)
                self._direct.append(call.connection)
                self._settle(batch, now, results)
        except Exception as defect:  # noqa: BLE001  # whatever it is, nobody may wait for ever
            call.connection.close()
            self._broken(batch, defect)
        if self._waiting and not self._woken:
            self._woken = True
            self._loop.call_soon(self._wake)

    def _begun(self, call: "asyncio.Task[None] | _Call", first: int, batch: list[Waiting]) -> None:
        """A call is under way from now on."""
        self._under_way[call] = first, batch
        self._weigh()

    def _over(self, call: "asyncio.Task[None] | _Call") -> list[Waiting]:
        """A call is under way no more: whom it was made for."""
        _, batch = self._under_way.pop(call)
        self._weigh()
        return batch

    def _weigh(self) -> None:
        """How many must wait from now on to be worth a call."""
        others = [batch for _, batch in self._under_way.values()]
        if len(others) == IN_FLIGHT:
            self._worth_a_call = sys.maxsize
        else:
            self._worth_a_call = min(BESIDE, len(others[0])) if others else 1

    def _returned(self, task: "asyncio.Task[None]") -> None:
        self._over(task)
        self._wake()

    def _begin_tick(self) -> None:
        """Have those who come in this tick refused when their budget is used up.

        Requests are numbered as they come, so that nothing is kept of each: `_taken` were taken
        from those who wait, and the mark of a tick is the number of the first one after it.
        """
        self._tick = self._deadlines.tick
        self._mark.append(self._taken + len(self._waiting))
        self._mark = []
        self._deadlines.at_end(partial(self._expire, self._tick, self._mark))

    def _expire(self, tick: int, mark: list[int]) -> None:
        """Refuse who came before a mark, if Redis has been silent since, or they wait for too long.

        Redis that answers is not silent: who then still waits, waits for us or for their turn. The
        mark of the last answer's own tick is the one that refuses them.
        """
        if self._answered <= tick:
            self._spared.clear()
            self._refuse_before(mark)
            return
        self._spared.append((tick, mark))
        while tick - self._spared[0][0] >= LONGEST * TICKS:
            self._refuse_before(self._spared.popleft()[1])

    def _refuse_before(self, mark: list[int]) -> None:
        """Refuse who came before a mark and has no answer yet, sent or not."""
        end_ = mark[0] if mark else self._taken + len(self._waiting)
        for first, batch in self._under_way.values():
            if first < end_:
                _refuse(batch[: end_ - first], "timeout")
        unsent = end_ - self._taken
        if unsent > 0:
            _refuse(self._waiting[:unsent], "timeout")
            del self._waiting[:unsent]
            self._taken += unsent

    async def _call(self, batch: list[Waiting]) -> None:
        """Make one call; who waits for the next one has lost nothing if this one fails."""
        try:
            now, *results = await self._trips.make("charge", self._evaluate(batch))
            self._settle(batch, now, results)
        except StoreError as error:
            _refuse(batch, error.kind)
        except Exception as defect:  # noqa: BLE001  # whatever it is, nobody may wait for ever
            self._broken(batch, defect)
        except asyncio.CancelledError:
            for future, _ in batch:
                future.cancel()
            raise

    def _settle(self, batch: list[Waiting], now: UnixMs, results: Sequence[list[int]]) -> None:
        """Give each who waits what Redis says."""
        self._note_answer()
        try:
            for (waiter, _), numbers in zip(batch, results, strict=True):
                if not waiter.done():
                    waiter.set_result((now, numbers))
        finally:
            self.settled()

    def _broken(self, batch: list[Waiting], defect: Exception) -> None:
        """Refuse who has no answer yet, and have the defect logged."""
        _refuse(batch, "other")
        self._loop.call_exception_handler({"message": "a script call", "exception": defect})

    def _note_answer(self) -> None:
        """Redis is there in this tick."""
        self._answered = self._deadlines.tick
        if self._tick != self._answered:
            self._begin_tick()

    async def _evaluate(self, batch: list[Waiting]) -> list[Any]:
        """Redis's clock and each request's answer, on a connection that nobody else uses."""
        connection = await self._connection()
        try:
            answers = await self._answers(connection, batch)
        except exceptions.ResponseError as error:  # whole, so the connection is in order
            if kind_of(error) in _LEAVE:
                self._pool.renew()
                await connection.disconnect(nowait=True)
            else:
                self._keep(connection)
            raise
        except BaseException:
            # An answer may still come: it must never be read as the next call's.
            await connection.disconnect(nowait=True)
            raise
        self._keep(connection)
        return answers

    def _keep(self, connection: Any) -> None:
        """Use a connection that is in order for the calls to come."""
        if self.takes_over and isinstance(connection, AbstractConnection):
            self._direct.append(DirectConnection(connection))
        else:
            self._idle.append(connection)

    async def _answers(self, connection: Any, batch: list[Waiting]) -> list[Any]:
        """Run the script; load it where Redis lost it, never run an unclear call again."""
        parts = [part for _, part in batch]
        try:
            answer: list[Any] = await run(connection, packed(self._by_digest, parts))
        except exceptions.NoScriptError:  # nothing ran
            answer = await run(connection, packed(self._with_text, parts))
        return answer

    async def _connection(self) -> Any:
        """A connection that no other call uses, open as far as anybody knows.

        They are kept between calls: taking one from a pool and giving it back costs as much as
        the call.
        """
        while self._idle:
            connection = self._idle.pop()
            with suppress(exceptions.RedisError, OSError):
                # Open, to whom it should be, with nothing left to read.
                if (
                    connection.is_connected
                    and not connection.should_reconnect()
                    and not await connection.can_read()
                ):
                    return connection
            await connection.disconnect(nowait=True)
        return self._made()

    def _made(self) -> Any:
        """A new connection."""
        connection = self._pool.make_connection()
        # The trip's budget bounds it. redis-py's own limit costs a task for each command, and
        # on Python 3.11 it can swallow the very cancellation that the budget ends with.
        connection.socket_timeout = None
        return connection


_LEAVE: Final = frozenset({"replica", "noreplicas"})
"""Kinds of a server that is no primary, or one that its replicas have left: the next call asks
again who the primary is."""


class _Call:
    """A call under way that needs no task."""

    __slots__ = ("_calls", "_over", "_with_text", "connection", "start")

    def __init__(self, calls: ChargeCalls, connection: DirectConnection, start: float) -> None:
        self._calls = calls
        self._over = False
        self._with_text = False
        self.connection = connection
        self.start = start

    def answered(self, answer: Any) -> None:
        """Redis has answered, or the connection is lost."""
        if self._over:
            return
        if isinstance(answer, exceptions.NoScriptError) and not self._with_text:
            self._with_text = True
            self._calls.repeat_with_text(self)
            return
        self._over = True
        self._calls.end(self, answer)

    def expire(self) -> None:
        """Its budget is used up: an answer that still comes must not be read as another's."""
        if not self._over:
            self._over = True
            self.connection.close()
            self._calls.end(self, TimeoutError())

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self._over = True
        self.connection.close()


def _refuse(waiting: Iterable[Waiting], kind: str) -> None:
    """Tell all that have no answer yet that there is none."""
    for future, _ in waiting:
        if not future.done():
            future.set_exception(StoreError(kind, f"charge: {kind}"))
            future.exception()  # its request may be gone; that is no leak


async def run(connection: Any, command: bytes) -> Any:
    """The answer to one command."""
    await connection.send_packed_command(command)
    return await connection.read_response()
