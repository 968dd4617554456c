"""The layout of the state: a newer release goes on from an older one, never the other way."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from authsidecar.store.keys import Keys
from authsidecar.store.schema import SCHEMA, STEPS, NewerSchemaError, migrate, read_schema
from tests.support.cli import invoke
from tests.support.sidecar import start_sidecar

KEYS = Keys()


async def test_state_without_a_number_is_brought_forward(redis_client: Redis) -> None:
    """By any number of processes at once; then there is nothing to do."""
    assert await read_schema(redis_client, KEYS) == 0
    found = await asyncio.gather(*(migrate(redis_client, KEYS) for _ in range(8)))
    assert 0 in found
    assert await redis_client.get(KEYS.schema) == str(SCHEMA).encode()
    assert await migrate(redis_client, KEYS) == SCHEMA


async def test_each_step_is_done_and_a_later_number_stays(redis_client: Redis) -> None:
    """A step that another process overtakes does not set the number back."""
    done: list[str] = []

    async def step(client: Redis, keys: Keys) -> None:
        done.append(keys.schema)
        await client.set(keys.schema, SCHEMA + 5)

    await migrate(redis_client, KEYS, steps={0: step})
    assert done == [KEYS.schema]
    assert await redis_client.get(KEYS.schema) == str(SCHEMA + 5).encode()


def test_there_is_a_step_from_each_layout() -> None:
    """From that of the first release on."""
    assert STEPS.keys() == set(range(SCHEMA))


@pytest.mark.parametrize("value", [str(SCHEMA + 1), "999999", "two", ""])
async def test_what_is_not_known_is_refused(redis_client: Redis, value: str) -> None:
    """Also what is no number: nobody can say what it stands for."""
    await redis_client.set(KEYS.schema, value)
    with pytest.raises(NewerSchemaError, match="use the release that wrote it"):
        await migrate(redis_client, KEYS)
    assert await redis_client.get(KEYS.schema) == value.encode()


async def test_a_newer_state_ends_the_start_with_a_sentence(
    redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """One worker or two, and a command: exit code 1 and one line."""
    await redis_client.set(KEYS.schema, SCHEMA + 1)
    for workers in ("1", "2"):
        process = start_sidecar(tmp_path / workers, redis_url, "--workers", workers, wait=False)
        assert await asyncio.to_thread(process.wait) == 1
        assert f"has schema '{SCHEMA + 1}'" in process.log.splitlines()[-1]
        assert "Traceback" not in process.log
    result = await asyncio.to_thread(invoke, "team", "list", url=redis_url)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert f"has schema '{SCHEMA + 1}'" in result.err


async def test_a_start_writes_the_number(
    redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    """So that an older release can know."""
    process = start_sidecar(tmp_path, redis_url)
    assert process.stop() == 0
    assert await redis_client.get(KEYS.schema) == str(SCHEMA).encode()
