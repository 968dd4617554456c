"""Fixtures that every suite may ask for."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis
from redis.asyncio import Redis

from tests.support.redis import RedisProcess, start_redis

if TYPE_CHECKING:
    from tests.support.coolify import Coolify
    from tests.support.postgres import PostgresProcess

# What one example takes says how busy the machine is, not what the program does.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

# jsonschema imports it if it can, for the format `iri` that no schema here names: 38 parsers are
# built, for 3 seconds in each worker.
sys.modules["rfc3987_syntax"] = None


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


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Writes a line, a measurement say, that is seen although the test passes."""

    def line(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return line


@pytest.fixture(scope="session")
def postgres_server() -> Iterator["PostgresProcess"]:
    """One PostgreSQL for the whole run (for each worker of xdist); leave it running."""
    from tests.support.postgres import start_postgres

    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def coolify_name(postgres_server: "PostgresProcess") -> str:
    """The name of a database for Coolify's tables: tests share it, one after the other."""
    return asyncio.run(postgres_server.database())


@pytest.fixture
async def coolify_db(
    postgres_server: "PostgresProcess", coolify_name: str
) -> AsyncIterator["Coolify"]:
    """Coolify's tables as coolify-seed.sql leaves them, for one test."""
    from tests.support.coolify import coolify_at
    from tests.support.postgres import fill

    async with coolify_at(postgres_server.dsn(coolify_name), coolify_name) as database:
        await fill(database.connection)
        yield database


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_remembered() -> None:
    """Under `make mutate`: what was remembered before a mutant came would hide it."""
    if "MUTANT_UNDER_TEST" in os.environ:
        for name, module in tuple(sys.modules.items()):
            if name.startswith("authsidecar."):
                for one in vars(module).values():
                    getattr(one, "cache_clear", int)()
