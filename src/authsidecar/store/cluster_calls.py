"""Script calls on Redis Cluster: all that wait go out at once, one call for each slot.

A call's keys are in one slot, as the cluster demands. Each node has its own line of calls, so a
node that is slow or gone holds up nobody whose keys are elsewhere.
"""

import asyncio
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from redis import exceptions
from redis.asyncio.cluster import ClusterNode

from authsidecar.authorize import StoreError
from authsidecar.store.calls import ChargeCalls, Part, Result, Trip, Waiting, bulk, packed, run
from authsidecar.store.cluster import REDIRECTS, Cluster, answer, slot_of


class ClusterCalls:
    """Runs charge.lua for all who wait, wherever their slots are."""

    def __init__(self, client: Cluster, trip: Trip) -> None:
        """Nothing is sent yet.

        Args:
            client: the cluster's client.
            trip: bounds one trip and turns what goes wrong into a StoreError.
        """
        self._client = client
        self._trip = trip
        self._lines: dict[str, tuple[ClusterNode, _NodeCalls]] = {}

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
                    following = self._trip("charge", self._client.moved(error))
                    await asyncio.ensure_future(following)
                except exceptions.AskError as error:
                    asked = self._client.nodes_manager.get_node(error.host, error.port)
                    if asked is None:
                        break
                    return await asyncio.ensure_future(self._line(asked).asked(part))
        except StoreError:
            self._client.look_again()
            raise
        except exceptions.RedisError:  # the cluster is down, or a slot is half way to another node
            pass
        self._client.look_again()
        raise StoreError("connection", "charge: no node serves the slot")

    async def close(self) -> None:
        """End what waits and what is under way."""
        for _, line in self._lines.values():
            await line.close()
        self._lines.clear()

    def _line(self, node: ClusterNode) -> "_NodeCalls":
        """The calls of a node; redis-py may have made it anew."""
        held = self._lines.get(node.name)
        if held is not None and held[0] is node:
            return held[1]
        line = _NodeCalls(_NodePool(node), self._trip)
        self._lines[node.name] = (node, line)
        return line


class _NodeCalls(ChargeCalls):
    """The calls of one node: a request's result may be the error that its slot gave."""

    async def asked(self, part: Part) -> Result:
        """One request's answer from the node that is taking over its slot."""
        result: Result = await self._trip("charge", self._asked(part))
        return result

    async def _asked(self, part: Part) -> Result:
        connection = await self._pool.get_connection()
        try:
            await run(connection, b"*1\r\n" + bulk("ASKING"))
            # The script's text: the node may not have it, and this happens once in a long while.
            now, result = await run(connection, packed("EVAL", self._script, [part]))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)
        return now, result

    async def _answers(self, connection: Any, batch: list[Waiting]) -> list[Result | Exception]:
        slots: dict[int, list[Part]] = {}
        for _, part in batch:
            slots.setdefault(slot_of(part.key), []).append(part)
        answers = await _sent(
            connection, {slot: packed("EVALSHA", self._sha, parts) for slot, parts in slots.items()}
        )
        lost = {
            slot: packed("EVAL", self._script, slots[slot])
            for slot, reply in answers.items()
            if isinstance(reply, exceptions.NoScriptError)  # nothing ran
        }
        answers |= await _sent(connection, lost)
        results = {slot: _each(answers[slot], parts) for slot, parts in slots.items()}
        return [next(results[slot_of(part.key)]) for _, part in batch]


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
    """A node's connections, as ChargeCalls asks a pool for them."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node
        self.connection_kwargs = node.connection_kwargs

    async def get_connection(self) -> Any:
        connection: Any = self._node.acquire_connection()
        try:
            await self._node.disconnect_if_needed(connection)
            await connection.connect()
        except BaseException:
            self._node.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        self._node.release(connection)

    async def disconnect(self, *, inuse_connections: bool = True) -> None:  # noqa: ARG002
        await self._node.disconnect_free_connections()
