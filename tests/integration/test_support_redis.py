"""The Redis that the tests run on keeps what it promises to them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.support.redis import start_redis


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_gets_an_empty_redis(redis_client: Redis, turn: int) -> None:
    """Neither keys nor scripts of the test before are there."""
    assert await redis_client.dbsize() == 0
    sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
    assert await redis_client.script_exists(sha) == [False]
    await redis_client.set("left", turn)
    assert await redis_client.script_load("return 1") == sha


async def test_a_server_comes_back_on_the_same_addresses(tmp_path: Path) -> None:
    """A crash and a start later, clients of both addresses are served again."""
    server = start_redis(tmp_path, port=0)
    for end in (server.kill, server.stop):
        end()
        server.start()
        for url in (server.url, server.tcp_url):
            async with Redis.from_url(url) as client:
                assert await client.ping() is True
    server.stop()


async def test_a_frozen_server_keeps_its_clients_waiting(tmp_path: Path) -> None:
    """Freezing is what a network that swallows packets looks like; thawing ends it."""
    server = start_redis(tmp_path)
    async with Redis.from_url(
        server.url, socket_timeout=0.05, retry=Retry(NoBackoff(), 0)
    ) as client:
        assert await client.ping() is True
        server.freeze()
        with pytest.raises(exceptions.TimeoutError):
            await client.ping()
        server.thaw()
        assert await client.ping() is True
    server.stop()


def test_a_server_ends_with_a_killed_test_run(tmp_path: Path) -> None:
    """SIGKILL of whoever started it ends the server too."""
    code = """
import os, signal, sys
from pathlib import Path
from tests.support.redis import start_redis
print(start_redis(Path(sys.argv[1])).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "src")])
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=False,
    )
    stat = Path(f"/proc/{int(run.stdout)}/stat")
    for _ in range(500):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the server outlives its test run")
