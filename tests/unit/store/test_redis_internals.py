"""What is used of redis-py's own parts is still there, and still means the same."""

from importlib import import_module

import pytest
from redis.asyncio import Connection
from redis.asyncio.cluster import ClusterNode, RedisCluster

from authsidecar.store.redis_internals import USED, must_look, node_connections, set_must_look

MADE = {
    "ClusterNode": lambda: ClusterNode("127.0.0.1", 1),
    "RedisCluster": lambda: RedisCluster(host="127.0.0.1", port=1),
    "Connection": Connection,
    "_AsyncHiredisParser": lambda: Connection()._parser,
}


@pytest.mark.parametrize(("where", "names"), USED.items())
def test_redis_py_still_has_what_is_used(where: str, names: tuple[str, ...]) -> None:
    """Otherwise redis_internals.py must be written anew for this version."""
    module, _, name = where.rpartition(".")
    assert hasattr(import_module(module), name)
    made = MADE[name]()
    gone = [part for part in names if not hasattr(made, part)]
    assert not gone, f"redis-py has no {where}.{gone} any more: see store/redis_internals.py"


def test_connections_of_a_node_are_counted() -> None:
    """One that is taken is used, and idle when it is given back."""
    node = ClusterNode("127.0.0.1", 1)
    assert node_connections(node) == (0, 0)
    connection = node.acquire_connection()
    assert node_connections(node) == (0, 1)
    node.release(connection)
    assert node_connections(node) == (1, 0)


def test_a_cluster_can_be_told_to_look_again() -> None:
    """As a new client does."""
    client = RedisCluster(host="127.0.0.1", port=1)
    assert must_look(client)
    set_must_look(client, must=False)
    assert not must_look(client)
    set_must_look(client, must=True)  # it is not open
