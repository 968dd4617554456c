"""The laboratory that the end-to-end tests share: each proxy is booted once."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.lab import Lab, laboratory
from tests.support.redis import RedisProcess, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.world import populate


@pytest.fixture(scope="session")
def lab_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis of the laboratory's own: nobody else empties it."""
    server = start_redis(tmp_path_factory.mktemp("lab-redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lab_sidecar(
    lab_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    """The sidecar in its usual settings, but for limits that a test run would meet."""
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("lab-sidecar"),
        lab_redis.url,
        LIMITS__USER="100000",
        LIMITS__FAILED="100000",
        LIMITS__UNKNOWN="100000",
        LIMITS__HEALTH="100000",
        LIMITS__FEEDBACK="100000",
        LIMITS__LOOKUPS_PER_SECOND="1000",
    )
    yield sidecar
    sidecar.stop()


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def shared_lab(
    lab_redis: RedisProcess,
    lab_sidecar: SidecarProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    """All proxies in front of that sidecar."""
    async with laboratory(lab_redis, lab_sidecar, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="session")
async def lab(shared_lab: Lab) -> Lab:
    """The laboratory as it was at first."""
    await shared_lab.reset()
    return shared_lab
