"""A revocation waits for its replicas, and says so if they are late."""

import asyncio
from contextlib import ExitStack

import pytest
from redis import Redis

from tests.support import seed
from tests.support.cli import invoke, with_registry
from tests.support.redis import start_redis


@pytest.fixture
def pair(tmp_path):
    """A Redis and its replica, in step."""
    with ExitStack() as stack:
        first = start_redis(tmp_path / "first", "--repl-diskless-sync-delay", "0", port=0)
        stack.callback(first.stop)
        replica = start_redis(
            tmp_path / "replica", "--replicaof", "127.0.0.1", str(first.port), port=0
        )
        stack.callback(replica.stop)
        with Redis.from_url(first.url, socket_timeout=20) as client:
            client.set("seen", 1)
            assert client.wait(1, 10_000) == 1
        yield first, replica


def test_revocation_waits_for_its_replicas(pair):
    """A replica in step is waited for in silence; one that is stuck, or missing, is warned of."""
    first, replica = pair

    async def tokens(registry):
        await seed.user(registry, 7, t3="owner")
        await registry.put_tokens([seed.token(i, user=7, team=3) for i in (1, 2, 3)])

    asyncio.run(with_registry(first.url, tokens))
    wait = {"url": first.url, "REDIS__WAIT_REPLICAS": "1", "REDIS__WAIT_TIMEOUT_MS": "5000"}
    done = invoke("token", "revoke", 1, **wait)
    assert (done.code, done.err) == (0, "")
    wait["REDIS__WAIT_TIMEOUT_MS"] = "100"
    replica.freeze()
    late = invoke("token", "revoke", 2, **wait)
    replica.thaw()
    assert late.code == 0
    assert "only 0 of 1 replicas have confirmed it within 100 ms" in late.err
    wait["REDIS__WAIT_TIMEOUT_MS"] = "1500"
    missing = invoke("token", "revoke", 3, **{**wait, "REDIS__WAIT_REPLICAS": "2"})
    assert missing.code == 0
    assert "only 1 of 2 replicas have confirmed it within 1500 ms" in missing.err
