"""A setting that nobody confirms is as it was before, whoever dies in between."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from authsidecar.store.registry import Registry
from authsidecar.store.trials import Trials
from authsidecar.times import UnixMs
from tests.support.cli import invoke
from tests.support.redis import start_redis
from tests.support.seed import bearer, registry, token, user
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import until

OLD, NEW = "192.0.2.0/24", "198.51.100.0/24"
LONG_MS = 60_000


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killed_at(step: int, *, sent: bool) -> Iterator[list[int]]:
    """Die at the step: when so many messages were sent to Redis; what was counted.

    Args:
        step: the number of the message, from 0.
        sent: whether that message still arrives; its answer is never read.
    """
    count = [0]
    send = AbstractConnection.send_packed_command

    async def counted(self: AbstractConnection, *args: Any, **kwargs: Any) -> None:
        number, count[0] = count[0], count[0] + 1
        if number == step and not sent:
            raise Killed
        await send(self, *args, **kwargs)
        if number == step:
            await asyncio.sleep(0.005)
            raise Killed

    with mock.patch.object(AbstractConnection, "send_packed_command", counted):
        yield count


@contextlib.contextmanager
def later() -> Iterator[None]:
    """Two minutes from now, by Redis's clock."""
    now = Trials._now

    async def in_two_minutes(self: Trials) -> UnixMs:
        return UnixMs(await now(self) + 2 * LONG_MS)

    with mock.patch.object(Trials, "_now", in_two_minutes):
        yield


async def steps(
    url: str, fresh: Callable[[], Awaitable[None]], do: Callable[[Registry], Awaitable[object]]
) -> list[str]:
    """The list after each death of a process that does this, once whoever lives has looked."""
    found, step = [], 0
    while True:
        ended = 0
        for sent in (False, True):
            await fresh()
            dying = Redis.from_url(url)
            with killed_at(step, sent=sent), contextlib.suppress(Killed):
                await do(registry(dying))
                ended += 1
            await dying.aclose()
            await dying.connection_pool.disconnect(inuse_connections=True)
            async with Redis.from_url(url) as living:
                state = registry(living)
                with later():
                    await state.trials.roll_back()
                assert await state.trials.pending() == []
                found.append((await state.instance()).allowlist.text)
        if ended == 2:
            assert step > 0
            return found
        step += 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_killed_at_every_step_of_a_trial_the_old_list_is_back(
    redis_client: Redis, redis_url: str
) -> None:
    """Nobody has confirmed it, however far it came."""
    state = registry(redis_client)

    async def fresh() -> None:
        await state.set_instance(allowlist=OLD)

    found = await steps(
        redis_url, fresh, lambda dying: dying.trials.begin("allowlist", NEW, LONG_MS)
    )
    assert set(found) == {OLD}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_killed_at_every_step_of_a_confirmation_it_is_one_or_the_other(
    redis_client: Redis, redis_url: str
) -> None:
    """Confirmed, or back; the last one of all was not killed."""
    state = registry(redis_client)

    async def fresh() -> None:
        await state.set_instance(allowlist=OLD)
        await state.trials.begin("allowlist", NEW, LONG_MS)

    async def confirm(dying: Registry) -> None:
        (trial,) = await dying.trials.pending()
        assert await dying.trials.confirm(trial)

    found = await steps(redis_url, fresh, confirm)
    assert set(found) == {OLD, NEW}
    assert found[-1] == NEW


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_killed_at_every_step_of_a_roll_back_the_next_one_ends_it(
    redis_client: Redis, redis_url: str
) -> None:
    """Who looks next finds the trial, or the old list."""
    state = registry(redis_client)

    async def fresh() -> None:
        await state.set_instance(allowlist=OLD)
        await state.trials.begin("allowlist", NEW, LONG_MS)

    async def roll_back(dying: Registry) -> None:
        with later():
            await dying.trials.roll_back()

    found = await steps(redis_url, fresh, roll_back)
    assert set(found) == {OLD}


async def test_a_trial_on_a_full_redis_is_made_and_ends(tmp_path: Path) -> None:
    """Neither a lock-out nor its end waits for room."""
    server = start_redis(tmp_path / "redis")
    async with Redis.from_url(server.url) as client:
        state = registry(client)
        await state.set_instance(allowlist=OLD, api_enabled=True)
        await client.config_set("maxmemory", 1)
        await state.trials.begin("allowlist", NEW, 1)
        assert (await state.instance()).allowlist.text == NEW
        await asyncio.sleep(0.01)
        assert [one.before for one in await state.trials.roll_back()] == [OLD]
        assert (await state.instance()).allowlist.text == OLD
    server.stop()


async def test_many_processes_end_it_once(redis_client: Redis, redis_url: str) -> None:
    """The change is made by one of them; a confirmation comes before, or too late."""
    state = registry(redis_client)
    for _ in range(5):
        await state.set_instance(allowlist=OLD)
        trial = await state.trials.begin("allowlist", NEW, 1)
        await asyncio.sleep(0.005)
        ended, *confirmed = await asyncio.gather(
            asyncio.gather(*(registry(redis_client).trials.roll_back() for _ in range(8))),
            *(registry(redis_client).trials.confirm(trial) for _ in range(2)),
        )
        assert isinstance(ended, list)
        assert len([one for one in ended if one]) <= 1
        assert not any(confirmed)
        await state.trials.roll_back()
        assert (await state.instance()).allowlist.text == OLD


async def test_tried_again_it_goes_back_to_what_was_confirmed_last(redis_client: Redis) -> None:
    """Not to a list that was itself on trial; what was never set is not set again."""
    state = registry(redis_client)
    await state.trials.begin("allowlist", NEW, 60_000)
    await state.trials.begin("allowlist", "203.0.113.0/24", 1)
    await asyncio.sleep(0.01)
    await state.trials.roll_back()
    assert (await state.instance()).allowlist.everyone
    assert not await redis_client.hexists("authsidecar:instance", "allowlist")


async def test_a_change_for_good_ends_the_trial(redis_client: Redis) -> None:
    """What is set without a time stays, whatever was tried before."""
    state = registry(redis_client)
    await state.trials.begin("allowlist", NEW, 1)
    await state.trials.begin("api_enabled", 0, 60_000)
    await state.set_instance(allowlist="203.0.113.0/24")
    await asyncio.sleep(0.01)
    assert await state.trials.roll_back() == []
    assert (await state.instance()).allowlist.text == "203.0.113.0/24"
    assert [one.setting for one in await state.trials.pending()] == ["api_enabled"]


@pytest.fixture
async def sidecar(redis_client: Redis, redis_url: str, tmp_path: Path) -> SidecarProcess:
    state = registry(redis_client)
    await state.set_instance(api_enabled=True, allowlist=OLD)
    await user(state, 1, t0="owner")
    await state.put_tokens([token(1, user=1, team=0)])
    process = start_sidecar(tmp_path, redis_url, LIMITS__USER="100000")
    yield process
    assert process.stop() == 0


def asked(sidecar: SidecarProcess, client: str) -> int:
    return sidecar.ask("GET", "/api/v1/teams", authorization=bearer(1), client=client).status


def test_a_sidecar_ends_it_and_the_next_request_is_judged_by_the_old_list(
    sidecar: SidecarProcess, redis_url: str
) -> None:
    """The command that tried it has ended long ago."""
    tried = invoke("allowlist", "set", NEW, "--confirm-within", "2s", "--json", url=redis_url)
    assert tried.code == 0
    assert "confirm_by" in tried.json
    assert asked(sidecar, "198.51.100.1") == 200
    assert asked(sidecar, "192.0.2.1") == 403
    until(lambda: asked(sidecar, "192.0.2.1") == 200, "the old list", patience_s=20)
    assert asked(sidecar, "198.51.100.1") == 403
    until(lambda: len(sidecar.events("rolled_back")) == 1, "a line about it")


def test_only_who_is_admitted_confirms(sidecar: SidecarProcess, redis_url: str) -> None:
    """Else the list that locks the operator out would stay."""
    assert invoke("allowlist", "confirm", "--my-ip", "198.51.100.1", url=redis_url).code == 1
    assert invoke("allowlist", "set", NEW, "--confirm-within", "10m", url=redis_url).code == 0
    assert "not confirmed" not in invoke("allowlist", "show", url=redis_url).out
    assert "confirm_by" in invoke("allowlist", "show", "--json", url=redis_url).json
    refused = invoke("allowlist", "confirm", url=redis_url)
    assert (refused.code, "--my-ip" in refused.err) == (1, True)
    refused = invoke("allowlist", "confirm", "--my-ip", "192.0.2.1", url=redis_url)
    assert (refused.code, "is on no entry" in refused.err) == (1, True)
    done = invoke("allowlist", "confirm", "--my-ip", "198.51.100.1", url=redis_url)
    assert (done.code, NEW in done.out) == (0, True)
    assert "confirm_by" not in invoke("allowlist", "show", "--json", url=redis_url).json
    assert asked(sidecar, "198.51.100.1") == 200


def test_the_switch_is_tried_and_confirmed(sidecar: SidecarProcess, redis_url: str) -> None:
    """The same for `api disable`; a command ends what is over before it does its own work."""
    assert invoke("api", "disable", "--confirm-within", "10m", url=redis_url).code == 0
    assert asked(sidecar, "192.0.2.1") == 403
    assert "confirm_by" in invoke("api", "status", "--json", url=redis_url).json
    assert invoke("api", "confirm", "--json", url=redis_url).json == {"api_enabled": False}
    assert invoke("api", "confirm", url=redis_url).code == 1
    assert invoke("api", "enable", url=redis_url).code == 0
    sidecar.stop()
    assert invoke("api", "disable", "--confirm-within", "1s", url=redis_url).code == 0
    until(
        lambda: invoke("api", "status", "--json", url=redis_url).json == {"api_enabled": True},
        "the switch",
    )
    sidecar.start()


@pytest.mark.parametrize("time", ["0", "999ms", "25h", "-1s", "soon", "1.5m"])
def test_a_time_that_is_none_is_a_usage_error(time: str) -> None:
    """Before anything is asked of Redis."""
    result = invoke("api", "disable", "--confirm-within", time)
    assert (result.code, "--confirm-within" in result.err) == (2, True)
