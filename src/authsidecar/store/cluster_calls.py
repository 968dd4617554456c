"""Script calls on Redis Cluster: all that wait go out at once, one call for each slot.

A call's keys are in one slot, as the cluster demands. Each node has its own line of calls, so a
node that is slow or gone holds up nobody whose keys are elsewhere.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from redis import exceptions
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from authsidecar.decision.authorize import StoreError
from authsidecar.store.calls import AGAIN_S, ChargeCalls, Part, Result, Waiting, bulk, packed, run
from authsidecar.store.cluster import REDIRECTS, Cluster, answer, slot_of
from authsidecar.store.trips import Trips, kind_of
from authsidecar.tasks import end
from authsidecar.times import UnixMs


class ClusterCalls:
    """Runs charge.lua for all who wait, wherever their slots are."""

    def __init__(self, client: Cluster, trips: Trips) -> None:
        """Nothing is sent yet.

        Args:
            client: the cluster's client.
            trips: bounds each trip and turns what goes wrong into a StoreError.
        """
        self._client = client
        self._trips = trips
        self._lines: dict[str, tuple[ClusterNode, _NodeCalls]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are idle, and how many are used by calls under way."""
        counts = [line.connections for _, line in self._lines.values()]
        return sum(idle for idle, _ in counts), sum(used for _, used in counts)

    async def charge(self, part: Part) -> Result:
        """One request's answer.

        Only an answer that means that nothing ran is followed to another node.

        Args:
            part: its part of the call; all of its keys are in one slot.

        Raises:
            StoreError: the cluster did not answer well in time.
        """
        slot = slot_of(part.key)
        try:
            for _ in range(REDIRECTS):
                line = self._line(await self._client.node(slot))
                try:
                    return await line.charge(part)
                except exceptions.MovedError as error:
                    # In a task of its own, as all that is bounded in time: the request has none.
                    following = self._trips.make("charge", self._client.moved(error))
                    await asyncio.ensure_future(following)
                except exceptions.AskError as error:
                    asked = self._client.nodes_manager.get_node(error.host, error.port)
                    if asked is None:
                        break
                    return await asyncio.ensure_future(self._line(asked).evaluate_asking(part))
        except StoreError:
            self._client.look_again()
            raise
        except exceptions.RedisError as error:  # of this slot alone: it is down, or half moved
            self._client.look_again()
            kind = kind_of(error)
            raise StoreError(kind, f"charge: {kind}") from None
        self._client.look_again()
        raise StoreError("cluster", "charge: no node serves the slot")

    async def close(self) -> None:
        """End what waits and what is under way."""
        for _, line in self._lines.values():
            await line.close()
        self._lines.clear()
        await end(self._closing, again_s=AGAIN_S)

    def _line(self, node: ClusterNode) -> "_NodeCalls":
        """The calls of a node; redis-py may have made it anew."""
        held = self._lines.get(node.name)
        if held is not None and held[0] is node:
            return held[1]
        self._leave_nodes_that_are_gone()
        line = _NodeCalls(_NodePool(node), self._trips)
        self._lines[node.name] = (node, line)
        return line

    def _leave_nodes_that_are_gone(self) -> None:
        """Close the connections to nodes that the cluster has no more, or that were made anew."""
        for name, (node, line) in tuple(self._lines.items()):
            if self._client.nodes_manager.get_node(node_name=name) is not node:
                del self._lines[name]
                task = asyncio.get_running_loop().create_task(line.close_when_idle())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)


class _NodeCalls(ChargeCalls):
    """The calls of one node: a request's result may be the error that its slot gave."""

    takes_over = False

    async def evaluate_asking(self, part: Part) -> Result:
        """One request's answer from the node that is taking over its slot."""
        return await self._trips.make("charge", self._evaluate_asking(part))

    async def _evaluate_asking(self, part: Part) -> Result:
        connection = self._made()  # of its own, since this happens once in a long while
        try:
            await run(connection, b"*1\r\n" + bulk("ASKING"))
            # The script's text: the node may not have it.
            now, result = await run(connection, packed(self._with_text, [part]))
        finally:
            await connection.disconnect(nowait=True)
        return now, result

    async def close_when_idle(self) -> None:
        """Close, once what is under way has ended by itself."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)
        await self.close()

    def _settle(self, batch: list[Waiting], _: UnixMs, results: Sequence[Any]) -> None:
        """Give each who waits what its slot says: a result with a clock of its own, or an error."""
        self._note_answer()
        for (waiter, _part), result in zip(batch, results, strict=True):
            if waiter.done():
                continue
            if isinstance(result, Exception):
                waiter.set_exception(result)
                waiter.exception()  # its request may be gone; that is no leak
            else:
                waiter.set_result(result)

    async def _answers(self, connection: Any, batch: list[Waiting]) -> list[Any]:
        """A time that says nothing, and the result or error of each."""
        slots: dict[int, list[Part]] = {}
        for _, part in batch:
            slots.setdefault(slot_of(part.key), []).append(part)
        answers = await _sent(
            connection, {slot: packed(self._by_digest, parts) for slot, parts in slots.items()}
        )
        lost = {
            slot: packed(self._with_text, slots[slot])
            for slot, reply in answers.items()
            if isinstance(reply, exceptions.NoScriptError)  # nothing ran
        }
        answers |= await _sent(connection, lost)
        errors = [reply for reply in answers.values() if isinstance(reply, Exception)]
        redirected = any(isinstance(error, exceptions.AskError) for error in errors)
        if len(errors) == len(answers) and not redirected:  # it is the node, not a slot
            raise errors[0]
        results = {slot: _each(answers[slot], parts) for slot, parts in slots.items()}
        return [0, *(next(results[slot_of(part.key)]) for _, part in batch)]


def _each(reply: Any, parts: list[Part]) -> Iterator[Result | Exception]:
    """The answers to the parts of one slot's call, in order; its error for all of them."""
    if isinstance(reply, Exception):
        return repeat(reply)
    now, *results = reply
    return iter([(now, result) for result, _ in zip(results, parts, strict=True)])


async def _sent(connection: Any, calls: dict[int, bytes]) -> dict[int, Any]:
    """Each slot's answer to its call, or the error it is; all are sent before one is read."""
    if calls:
        await connection.send_packed_command(b"".join(calls.values()))
    return {slot: await answer(connection) for slot in calls}


class _NodePool:
    """A node as a pool of connections."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    def make_connection(self) -> Any:
        return self._node.connection_class(
            **{**self._node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        )

    def renew(self) -> None:
        """The look at the cluster, which follows every failure, finds another node."""
