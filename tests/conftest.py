"""Fixtures that every suite may ask for."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from redis.asyncio import Redis

from tests.support.redis import RedisProcess, start_redis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One Redis server for the whole run (for each worker of xdist); do not stop it."""
    server = start_redis(tmp_path_factory.mktemp("redis"), port=0)
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisProcess) -> str:
    """The url of an empty Redis that has never seen a script."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[Redis]:
    """A client of that empty Redis; its answers are bytes."""
    async with Redis.from_url(redis_url) as client:
        yield client
