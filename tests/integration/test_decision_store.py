"""What a decision asks of Redis: as little as can be, never too little."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from authsidecar.decision.authorize import STALE, Charged, Claim, Stale, StoreError
from authsidecar.decision.credentials import TOKEN_MALFORMED
from authsidecar.decision.model import (
    Credential,
    Deny,
    Limit,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.store.calls import BATCH
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.refusals import RECHECK_MS
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs
from tests.support import seed
from tests.support.decisions import (
    Sidecar,
    code,
    commands,
    credential,
    outside_a_task,
    rules,
    sidecar,
    world,
)
from tests.support.redis import RedisProcess, start_redis
from tests.support.waiting import eventually

KEYS = Keys()
TEAM, USER, TOKEN = TeamId(3), UserId(7), TokenId(67)
USER_COUNTER = Charge("user", "u:7", "user", Limit(200))


@pytest.fixture
async def registry(redis_client: Redis) -> Registry:
    return await world(redis_client)


@pytest.fixture
async def here(redis_url: str, registry: Registry) -> AsyncIterator[Sidecar]:
    async with sidecar(redis_url) as made:
        yield made


# Changes are seen at once

Change = Callable[[Registry], Awaitable[object]]


def again(**changed: Any) -> Change:
    """Token 67 is written again, changed."""
    fields: dict[str, Any] = {"user": 7, "team": 3, "permissions": ("read", "write"), **changed}
    return lambda registry: registry.put_tokens([seed.token(67, **fields)])


CHANGES: dict[str, tuple[Change, str]] = {
    "revoked": (lambda r: r.remove_token(TOKEN), "token_unknown"),
    "role": (lambda r: r.set_member(TEAM, USER, Role.MEMBER), "team_role_required"),
    "member removed": (lambda r: r.remove_member(TEAM, USER), "token_unknown"),
    "user removed": (lambda r: r.remove_user(USER), "token_unknown"),
    "team removed": (lambda r: r.remove_team(TEAM), "token_unknown"),
    "permissions": (again(permissions=("write",)), "permission_missing"),
    "expiry": (again(expires_at=round(time.time() * 1000) - 60_000), "token_expired"),
    "secret": (again(secret="another"), "token_unknown"),
    "user's limit": (lambda r: r.set_limit("user", 7, Limit(1)), "rate_limited"),
    "allowlist": (lambda r: r.set_instance(allowlist="198.51.100.1"), "address_not_allowed"),
    "switch": (lambda r: r.set_instance(api_enabled=False), "api_disabled"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_39_a_change_is_seen_by_the_very_next_request_of_another_process(
    redis_url: str, registry: Registry, here: Sidecar, name: str
) -> None:
    """Pitfall 39: whatever the registry changes, no other process answers from an old record."""
    change, expected = CHANGES[name]
    async with sidecar(redis_url) as elsewhere:
        for each in (here, elsewhere):
            assert await each.ask(67) == "allow"
        await change(registry)
        for each in (here, elsewhere):
            assert await each.ask(67) == expected


@pytest.mark.parametrize(("scope", "number"), [("token", 67), ("team", 3)])
async def test_a_new_counter_is_charged_by_the_very_next_request(
    redis_url: str, registry: Registry, here: Sidecar, scope: str, number: int
) -> None:
    """A first limit of a token or team starts to count at once, on every process together."""
    async with sidecar(redis_url) as elsewhere:
        for each in (here, elsewhere):
            assert await each.ask(67) == "allow"
        await registry.set_limit(scope, number, Limit(1))
        assert await here.ask(67) == "allow"
        assert await elsewhere.ask(67) == "rate_limited"
        await registry.set_limit(scope, number, None)
        assert await here.ask(67) == "allow"


async def test_an_mcp_switch_is_seen_by_the_very_next_request(
    registry: Registry, here: Sidecar
) -> None:
    """The instance's and the team's MCP switch work as the others do."""
    assert await here.ask(67, "POST", "/mcp") == "allow"
    await registry.set_team_mcp(TEAM, enabled=False)
    assert await here.ask(67, "POST", "/mcp") == "team_mcp_disabled"
    await registry.set_instance(mcp_enabled=False)
    assert await here.ask(67, "POST", "/mcp") == "mcp_disabled"


async def test_a_token_that_was_unknown_is_known_once_it_is_there(
    registry: Registry, here: Sidecar
) -> None:
    """That a token is unknown is never remembered."""
    assert await here.ask(99) == "token_unknown"
    await registry.put_tokens([seed.token(99, user=7, team=3)])
    assert await here.ask(99) == "allow"


class Stepped:
    """A client whose every round trip begins with a step of the test's."""

    def __init__(self, client: Redis, step: Callable[[], Awaitable[None]]) -> None:
        self._client, self._step = client, step

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._client, name)

        async def stepped(*args: Any, **kwargs: Any) -> Any:
            await self._step()
            return await command(*args, **kwargs)

        return stepped

    @asynccontextmanager
    async def pipeline(self, **kwargs: Any) -> AsyncIterator[Any]:
        async with self._client.pipeline(**kwargs) as pipe:
            execute = pipe.execute

            async def stepped() -> Any:
                await self._step()
                return await execute()

            pipe.execute = stepped
            yield pipe


class Moment:
    """Lets something happen once, before so many more commands were sent."""

    def __init__(self) -> None:
        self.countdown = -1
        self.happen: Callable[[], Awaitable[object]]

    async def __call__(self) -> None:
        self.countdown -= 1
        if self.countdown == -1:
            await self.happen()

    def arm(self, commands_before: int, happen: Callable[[], Awaitable[object]]) -> None:
        self.countdown, self.happen = commands_before, happen


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("name", ["revoked", "role", "user removed", "switch", "permissions"])
async def test_no_interleaving_revalidates_an_old_record(
    redis_url: str, redis_client: Redis, name: str, warm: bool
) -> None:
    """A change between any two commands of a request is seen by the next request, if not by it."""
    change, expected = CHANGES[name]
    for commands_before in range(20):
        await redis_client.flushall()
        registry, moment = await world(redis_client), Moment()
        async with sidecar(redis_url, before=moment) as busy:
            if warm:
                assert await busy.ask(67) == "allow"
            moment.arm(commands_before, lambda reg=registry: change(reg))
            assert await busy.ask(67) in {"allow", expected}
            if moment.countdown >= 0:  # the request is shorter than that: all moments are done
                assert commands_before >= (1 if warm else 3)
                return
            assert await busy.ask(67) == expected
    pytest.fail("a request takes fewer than twenty commands")


async def test_a_change_between_load_and_charge_is_judged_again(
    redis_url: str, registry: Registry
) -> None:
    """The request that was loaded before a revocation, and charged after it, is refused."""
    moment = Moment()
    async with sidecar(redis_url, before=moment) as busy:
        assert await busy.ask(67) == "allow"
        moment.arm(0, lambda: registry.remove_token(TOKEN))
        assert await busy.ask(67) == "token_unknown"
        assert moment.countdown < 0


async def test_state_that_changes_all_the_time_is_decided_in_the_end(
    redis_url: str, registry: Registry
) -> None:
    """A nonce that is renewed before every charge cannot hold a request up for ever."""

    class Restless(DecisionStore):
        async def charge(self, *args: Any, **kwargs: Any) -> Charged | Stale:
            await registry.set_member(TEAM, USER, Role.OWNER)
            return await super().charge(*args, **kwargs)

    async with sidecar(redis_url, kind=Restless) as restless:
        assert await restless.ask(67) == "allow"
        assert restless.lookups.count("stale") == 2


async def test_a_flushed_redis_lets_nobody_in(redis_client: Redis, here: Sidecar) -> None:
    """FLUSHALL takes tokens, switch and nonces: what is cached proves nothing any more."""
    assert await here.ask(67) == "allow"
    await redis_client.flushall()
    assert await here.ask(67) == "token_unknown"


@pytest.mark.parametrize("key", [KEYS.instance_nonce, KEYS.user_nonce(USER)])
async def test_a_missing_nonce_means_stale(redis_client: Redis, here: Sidecar, key: str) -> None:
    """An evicted nonce costs a reload, and the record that is read then is a true one."""
    assert await here.ask(67) == "allow"
    old = await redis_client.get(key)
    await redis_client.delete(key)
    await redis_client.hdel(KEYS.token(TOKEN), "sha256")
    assert await here.ask(67) == "token_unknown" if "u:7" in key else "allow"
    await redis_client.hset(KEYS.token(TOKEN), "sha256", credential(67).digest)
    assert await here.ask(67) == "allow"
    assert await redis_client.get(key) not in {None, old}


async def test_a_nonce_never_comes_back(registry: Registry, redis_client: Redis) -> None:
    """Ten changes leave ten different nonces: a number that counts could repeat after a loss."""
    seen = set()
    for _ in range(10):
        await registry.set_member(TEAM, USER, Role.OWNER)
        seen.add(await redis_client.get(KEYS.user_nonce(USER)))
    assert len(seen) == 10
    assert all(nonce and len(nonce) == 24 for nonce in seen)


async def test_a_record_changed_by_raw_commands_is_noticed_after_the_maximum_age(
    redis_url: str, registry: Registry, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever edits Redis by hand and renews no nonce is heard after `cache_max_age_s`."""
    async with sidecar(redis_url, cache_max_age_s=5.0) as aged:
        assert await aged.ask(67) == "allow"
        await redis_client.hset(KEYS.token(TOKEN), "permissions", "write")
        await redis_client.hset(KEYS.instance, "api_enabled", 0)
        assert await aged.ask(67) == "allow"
        real = time.monotonic
        later = SimpleNamespace(
            monotonic=lambda: real() + 5.1, time=time.time, perf_counter=time.perf_counter
        )
        for module in ("decisions", "instance_cache"):
            monkeypatch.setattr(f"authsidecar.store.{module}.time", later)
        assert await aged.ask(67) == "api_disabled"
        await registry.set_instance(api_enabled=True)
        assert await aged.ask(67) == "permission_missing"


# What it costs


async def test_a_warm_request_is_one_command(redis_client: Redis, here: Sidecar) -> None:
    """One EVALSHA proves the records and charges; the rest is what the script itself runs."""
    assert await here.ask(67) == "allow"
    here.trips.clear()
    async with commands(redis_client) as seen:
        assert await here.ask(67) == "allow"
    assert here.trips == ["charge"]
    inside = {"time": 1, "get": 2, "lindex": 2, "llen": 1, "rpush": 1, "pexpire": 1}
    assert seen == {"evalsha": 1, **inside}


async def test_many_waiting_requests_share_one_script_call(
    redis_client: Redis, here: Sidecar
) -> None:
    """A hundred requests in one tick are one EVALSHA, and each has its own answer."""
    await here.ask(67)
    for _ in range(2):  # after a lone one the first is sent at once, and then they share a call
        await asyncio.gather(*(here.ask(67) for _ in range(3)))
    async with commands(redis_client) as seen:
        answers = await asyncio.gather(*(here.outcome(67 + i % 2) for i in range(100)))
    # Token 68 was not known yet: those who ask for it wait for its one load, and come second.
    assert seen["evalsha"] == 2
    assert sorted(a.quotas[0].remaining for a in answers) == list(range(93, 193))


async def test_a_script_call_carries_a_bounded_number_of_requests(
    redis_client: Redis, here: Sidecar
) -> None:
    """Redis serves nobody else meanwhile, so a flood is cut into calls."""
    assert await here.ask(67) == "allow"
    async with commands(redis_client) as seen:
        await asyncio.gather(*(here.ask(67) for _ in range(2 * BATCH + 1)))
    assert seen["evalsha"] == 3


async def test_a_cold_start_loads_each_record_once(
    redis_url: str, registry: Registry, redis_client: Redis
) -> None:
    """Fifty requests of one token that nobody knows yet read no more than one does."""
    reads = []
    for requests in (1, 50):
        async with sidecar(redis_url) as cold, commands(redis_client) as seen:
            answers = await asyncio.gather(*(cold.ask(67) for _ in range(requests)))
        assert set(answers) == {"allow"}
        assert seen["evalsha"] == 1
        reads.append((seen["hmget"], seen.get("hget"), len(cold.trips)))
    assert reads[0] == reads[1]


async def test_a_load_that_began_before_a_request_is_no_proof_that_its_token_is_unknown(
    redis_url: str, registry: Registry
) -> None:
    """Nothing proves an absence: who joins a load that finds nothing looks once more."""
    read, let_go = asyncio.Event(), asyncio.Event()

    class Held(DecisionStore):
        async def _load_record(self, credential: Credential) -> TokenRecord | None:
            record = await super()._load_record(credential)
            if not read.is_set():  # the first answer of Redis is held back
                read.set()
                await let_go.wait()
            return record

    async with sidecar(redis_url, kind=Held) as busy:
        first = asyncio.ensure_future(busy.ask(99))
        await read.wait()
        await registry.put_tokens([seed.token(99, user=7, team=3)])
        second = asyncio.ensure_future(busy.ask(99))
        await asyncio.sleep(0.01)  # it waits for the first one's load
        let_go.set()
        assert (await first, await second) == ("token_unknown", "allow")


async def test_a_load_that_has_just_ended_is_nobody_elses(
    redis_url: str, registry: Registry
) -> None:
    """A request that comes in the very tick in which a load ends begins one of its own."""
    async with sidecar(redis_url) as busy:
        ended: asyncio.Future[TokenRecord | None] = asyncio.get_running_loop().create_future()
        store, asked = busy.store, credential(99)

        async def load_record(_: Credential) -> TokenRecord | None:
            store._load_record = partial(DecisionStore._load_record, store)  # type: ignore[method-assign]
            record = await store._load_record(asked)
            await registry.put_tokens([seed.token(99, user=7, team=3)])
            # The next thing that the loop does, before it tells of the end of this load.
            asyncio.get_running_loop().call_soon(arrive)
            return record

        def arrive() -> None:
            late = outside_a_task(store.load(asked, fresh=False))
            late.add_done_callback(lambda done: ended.set_result(done.result()))

        store._load_record = load_record  # type: ignore[method-assign]
        assert await store.load(asked, fresh=False) is None
        assert await ended is not None


async def test_different_secrets_never_share_a_load(here: Sidecar) -> None:
    """Two requests for one id at the same time, one with a wrong secret: each gets its own."""
    answers = await asyncio.gather(here.ask(67), here.ask(credential(67, "wrong")))
    assert answers == ["allow", "token_unknown"]


async def test_unknown_ids_and_wrong_secrets_cost_the_same_commands(
    redis_client: Redis, here: Sidecar
) -> None:
    """Whether an id exists can't be told from what is asked of Redis, cached or not."""
    for _ in range(2):  # the script's counter has its first entry
        await here.ask(credential(99, "x"))
    costs = []
    for asked in (credential(99), credential(67, "wrong"), credential(9999999)):
        async with commands(redis_client) as seen:
            assert await here.ask(asked) == "token_unknown"
        costs.append(dict(seen))
    assert await here.ask(67) == "allow"
    async with commands(redis_client) as seen:
        assert await here.ask(credential(67, "wrong")) == "token_unknown"
    costs.append(dict(seen))
    assert costs == [costs[0]] * 4
    assert costs[0]["hmget"] == 1


async def test_a_wrong_secret_does_not_drop_the_right_one(here: Sidecar) -> None:
    """Guessing at an id costs its owner nothing: the cached record stays."""
    assert await here.ask(67) == "allow"
    assert await here.ask(credential(67, "wrong")) == "token_unknown"
    here.trips.clear()
    assert await here.ask(67) == "allow"
    assert here.trips == ["charge"]


async def test_a_malformed_token_is_not_looked_up(redis_client: Redis, here: Sidecar) -> None:
    """Its refusal is only charged to the address."""
    await here.ask(67)
    async with commands(redis_client) as seen:
        assert await here.ask(Deny(TOKEN_MALFORMED)) == "token_malformed"
    assert here.trips[-1] == "charge"
    assert "hmget" not in seen


async def test_a_record_in_use_is_read_again_beside_its_requests(
    redis_url: str, registry: Registry
) -> None:
    """No request waits for a reload: after the first there is no miss, and the age stays low."""
    async with sidecar(redis_url, cache_max_age_s=4.0) as busy:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert await busy.ask(67) == "allow"
            await asyncio.sleep(0.04)
    assert busy.lookups.count("miss") == 1
    assert busy.trips.count("token") == 2


async def test_the_cache_is_bounded(redis_url: str, registry: Registry) -> None:
    """The longest unused record goes first."""
    await registry.put_tokens([seed.token(i, user=7, team=3) for i in range(100, 110)])
    async with sidecar(redis_url, cache_records=3) as small:
        for number in (100, 101, 102, 100, 103):
            assert await small.ask(number) == "allow"
        assert len(small.store._records) == 3
        small.trips.clear()
        assert await small.ask(100) == "allow"
        assert small.trips == ["charge"]
        assert await small.ask(101) == "allow"
        assert "token" in small.trips
    async with sidecar(redis_url, cache_records=0) as none:
        assert [await none.ask(67) for _ in range(2)] == ["allow"] * 2
        assert not none.store._records


# The script and the wire


async def test_a_lost_script_is_loaded_again_and_charges_once(
    redis_client: Redis, here: Sidecar
) -> None:
    """SCRIPT FLUSH (a restart, a failover) between two requests: the next one counts as one."""
    assert await here.ask(67) == "allow"
    await redis_client.script_flush()
    outcomes = await asyncio.gather(*(here.outcome(67) for _ in range(20)))
    assert sorted(o.quotas[0].remaining for o in outcomes) == list(range(179, 199))
    assert await redis_client.llen(KEYS.counter(USER_COUNTER)) == 21


async def test_26_parallel_requests_of_many_processes_pass_exactly_up_to_the_limit(
    redis_url: str, registry: Registry
) -> None:
    """Pitfall 26: four stores, 80 requests each at once, a limit of 200: 200 pass."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(sidecar(redis_url)) for _ in range(4)]
        answers = await asyncio.gather(*(s.ask(67) for s in stores for _ in range(80)))
    assert answers.count("allow") == 200
    assert answers.count("rate_limited") == 120


async def test_a_refusal_by_any_counter_charges_none(redis_client: Redis, here: Sidecar) -> None:
    """Token, user, team and address at once: the tightest refuses, and the others lose nothing."""
    limits = rules({"token": Limit(3), "user": Limit(9), "team": Limit(9), "address": Limit(2)})
    outcomes = await asyncio.gather(*(here.outcome(67, rules=limits) for _ in range(4)))
    assert [code(o) for o in outcomes] == ["allow", "allow", "rate_limited", "rate_limited"]
    assert [(q.scope, q.remaining) for q in outcomes[-1].quotas] == [
        ("token", 1),
        ("user", 7),
        ("team", 7),
        ("address", 0),
    ]
    assert await here.ask(67, rules=limits, client="192.0.2.2") == "allow"
    assert await here.ask(67, rules=limits, client="192.0.2.3") == "rate_limited"
    assert await here.ask(68, rules=limits, client="192.0.2.3") == "allow"


async def test_a_repeated_request_id_costs_one_unit_on_any_process(
    redis_url: str, registry: Registry, here: Sidecar
) -> None:
    """The same id, token, method and target are judged in full and charged once."""
    async with sidecar(redis_url) as elsewhere:
        asks = [s.outcome(67, request_id="r-1") for s in (here, elsewhere, here)]
        remaining = [(await one).quotas[0].remaining for one in asks]
        assert remaining == [199, 199, 199]
        others = [
            await here.outcome(67, request_id="r-2"),
            await here.outcome(68, request_id="r-1"),
            await here.outcome(67, "HEAD", "/api/v1/teams", request_id="r-1"),
            await here.outcome(67, "GET", "/api/v1/servers", request_id="r-1"),
        ]
        assert [o.quotas[0].remaining for o in others] == [198, 197, 196, 195]
        await registry.remove_token(TOKEN)
        assert await here.ask(67, request_id="r-1") == "token_unknown"


async def test_30_the_expiry_of_a_token_is_judged_by_the_clock_of_redis(
    redis_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 30: a worker 30 s ahead or behind neither expires a token early nor late."""
    now = await registry.now()
    await registry.put_tokens(
        [
            seed.token(70, user=7, team=3, expires_at=now + 20_000),
            seed.token(71, user=7, team=3, expires_at=now - 20_000),
        ]
    )
    real = time.time
    for skew in (-30, 30):
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        async with sidecar(redis_url) as wrong:
            assert abs(wrong.store.clock_offset_ms + skew * 1000) < 2000
            assert await wrong.ask(70) == "allow"
            assert await wrong.ask(71) == "token_expired"


# Bad tokens and their addresses


async def test_33_failed_authentication_is_charged_to_the_address_alone(
    redis_client: Redis, here: Sidecar
) -> None:
    """Pitfall 33: guesses at user 7's token never touch user 7's counter, and run into a wall."""
    limits = rules({"user": Limit(200), "failed": Limit(3), "team": Limit(50)})
    guess = credential(67, "wrong")
    answers = [await here.ask(guess, rules=limits) for _ in range(5)]
    assert answers == ["token_unknown"] * 3 + ["rate_limited"] * 2
    assert await redis_client.keys("authsidecar:rate:*") == [
        b"authsidecar:rate:{a:192.0.2.1}:failed"
    ]
    assert await here.ask(guess, rules=limits, client="192.0.2.2") == "token_unknown"
    assert await here.ask(67, rules=limits) == "allow"


async def test_33_every_sort_of_401_before_the_limiter_counts(here: Sidecar) -> None:
    """Pitfall 33: missing, malformed, unknown and expired share one bucket of the address."""
    limits = rules({"user": Limit(200), "failed": Limit(3)})
    answers = [
        await here.ask(who, rules=limits)
        for who in (None, Deny(TOKEN_MALFORMED), 99, None, Deny(TOKEN_MALFORMED), 99)
    ]
    assert answers == ["token_missing", "token_malformed", "token_unknown"] + ["rate_limited"] * 3


async def test_32_addresses_of_one_ipv6_network_share_a_bucket(here: Sidecar) -> None:
    """Pitfall 32: a client that owns a /64 gets no new budget from each of its addresses."""
    limits = rules({"user": Limit(200), "failed": Limit(10)})
    network = int(IPv6Address("2001:db8:0:1::"))
    answers = [
        await here.ask(99, rules=limits, client=str(IPv6Address(network + (i << 48 | i))))
        for i in range(1, 15)
    ]
    assert answers == ["token_unknown"] * 10 + ["rate_limited"] * 4
    assert await here.ask(99, rules=limits, client="2001:db8:0:2::1") == "token_unknown"


async def test_a_refused_addresss_lookups_are_paced_while_known_tokens_pass(
    redis_client: Redis, here: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its bucket an address may look up ten unknown tokens a second; what is known passes."""
    limits = rules({"user": Limit(200), "failed": Limit(1)})
    clock = [here.store.now()]
    monkeypatch.setattr(here.store, "now", lambda: UnixMs(clock[0]))
    assert await here.ask(67, rules=limits) == "allow"
    assert await here.ask(900, rules=limits) == "token_unknown"
    assert await here.ask(900, rules=limits) == "rate_limited"
    async with commands(redis_client) as seen:
        for i in range(30):
            outcome = await here.outcome(1000 + i, rules=limits)
            assert isinstance(outcome.verdict, Deny)
            assert outcome.verdict.reason.code == "rate_limited"
        assert outcome.quotas[0].reset_at - outcome.now == 1000
        assert await here.ask(67, rules=limits) == "allow"
        assert await here.ask(68, rules=limits) == "rate_limited"
    assert seen["hmget"] == 10
    assert await here.ask(68, rules=limits, client="192.0.2.2") == "allow"
    clock[0] += 1000
    async with commands(redis_client) as seen:
        for i in range(30):
            await here.ask(2000 + i, rules=limits)
    assert seen["hmget"] == 10


async def test_guesses_cannot_push_out_a_token_that_is_known(
    here: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one address with an attacker, a token in use outlives both guesses and its own age.

    A record too old to be trusted is read again without a place in the pace.
    """
    limits = rules({"user": Limit(200), "failed": Limit(1)})
    clock = here.store.now()
    monkeypatch.setattr(here.store, "now", lambda: clock)
    assert await here.ask(67, rules=limits) == "allow"
    for i in range(20):
        await here.ask(credential(67, f"guess {i}"), rules=limits)
    assert await here.ask(99, rules=limits) == "rate_limited"
    assert await here.ask(67, rules=limits) == "allow"
    held = here.store.known(credential(67))
    assert held is not None
    here.store._records.outdate(held)
    assert here.store.known(credential(67)) is None
    assert await here.ask(67, rules=limits) == "allow"
    assert await here.ask(credential(67, "wrong"), rules=limits) == "rate_limited"


# Redis in trouble

IN_TIME_S = 0.07
"""How soon an answer comes whose budget is 50 ms."""

HANG_S = 0.95
"""A loaded machine may be late, but redis-py's own limit is a second."""

TRIES = 10


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    server = start_redis(tmp_path / "redis", port=0)
    async with Redis.from_url(server.url) as client:
        await world(client)
    yield server
    server.stop()


async def alone(client: Redis) -> bool:
    """Whether it is the only client; Redis ends those it was told to kill a moment later."""
    return len(await client.client_list()) == 1


@contextlib.contextmanager
def no_tasks_left() -> Iterator[None]:
    """Whatever was started meanwhile has ended."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before


async def test_35_a_frozen_redis_is_an_outage_within_the_budget(own: RedisProcess) -> None:
    """Pitfall 35: after SIGSTOP each request, warm or cold, is a 503 once its budget is over."""
    async with sidecar(own.tcp_url, budget_ms=50) as impatient:
        await impatient.until_allowed(67)
        with no_tasks_left():
            own.freeze()
            try:
                for who in (67, 68):
                    took: list[float] = []
                    while len(took) < 2 or (len(took) < TRIES and min(took) >= IN_TIME_S):
                        impatient.store._trips._breaker.answered()  # none is let off a trip
                        start = time.perf_counter()
                        outcome = await impatient.outcome(who)
                        took.append(time.perf_counter() - start)
                        assert isinstance(outcome.verdict, Deny)
                        assert outcome.verdict.reason.code == "store_unavailable"
                        assert outcome.verdict.detail == "redis: timeout"
                    assert 0.045 < min(took) < IN_TIME_S
                    assert max(took) < HANG_S
            finally:
                own.thaw()
            assert await impatient.ask(67) == "allow"
            await asyncio.sleep(0)


async def test_35_a_process_that_lags_still_keeps_its_budget(own: RedisProcess) -> None:
    """Pitfall 35: the budget may end in the very tick that a command was sent in, and counts."""
    async with sidecar(own.tcp_url, budget_ms=50) as lagging:
        for ticks in range(8):
            assert await lagging.ask(67) == "allow"
            own.freeze()
            try:
                asking = asyncio.ensure_future(lagging.ask(67))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                time.sleep(0.06)  # noqa: ASYNC251  # the lag itself
                start = time.perf_counter()
                assert await asking == "store_unavailable"
                assert time.perf_counter() - start < HANG_S
            finally:
                own.thaw()


async def test_a_frozen_redis_charges_a_timed_out_request_at_most_once(own: RedisProcess) -> None:
    """An unclear call is never sent again: whatever was asked once is counted once at the most."""
    async with sidecar(own.tcp_url, budget_ms=50) as hasty, sidecar(own.tcp_url) as patient:
        await hasty.until_allowed(67)
        before = (await patient.outcome(67)).quotas[0].remaining
        own.freeze()
        try:
            assert await hasty.ask(67) == "store_unavailable"
        finally:
            own.thaw()
        after = (await patient.outcome(67)).quotas[0].remaining
        assert before - after in {1, 2}


async def test_a_killed_redis_is_an_outage_until_it_is_back(own: RedisProcess) -> None:
    """Connection refused is told at once; after a restart the same store works again."""
    async with sidecar(own.tcp_url) as here:
        assert await here.ask(67) == "allow"
        with no_tasks_left():
            own.kill()
            for who in (67, 68, 67):
                outcome = await here.outcome(who)
                assert isinstance(outcome.verdict, Deny)
                assert outcome.verdict.detail == "redis: connection"
            own.start()
            assert await here.ask(67) == "token_unknown"  # it kept nothing on disk
            async with Redis.from_url(own.url) as client:
                await world(client)
            assert await here.ask(67) == "allow"
            await asyncio.sleep(0)


async def test_a_connection_that_redis_closed_costs_no_request(
    own: RedisProcess,
) -> None:
    """Idle connections cut by a restart, a proxy or Redis's `timeout` are opened again unseen."""
    async with sidecar(own.tcp_url) as here:
        for _ in range(2):
            assert await here.ask(67) == "allow"
            async with Redis.from_url(own.url) as client:
                await client.client_kill_filter(_type="normal", skipme=True)
                await eventually(lambda: alone(client), "the end of all others")
            await asyncio.sleep(0.02)  # the end of the stream is read
            assert set(await asyncio.gather(*(here.ask(67) for _ in range(20)))) == {"allow"}


async def test_a_loading_or_read_only_redis_has_its_own_kind(own: RedisProcess) -> None:
    """A replica refuses to charge: `replica`, not an unexplained failure."""
    async with sidecar(own.tcp_url) as here, Redis.from_url(own.url) as client:
        assert await here.ask(67) == "allow"
        await client.config_set("replica-serve-stale-data", "yes")
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        outcome = await here.outcome(67)
        assert isinstance(outcome.verdict, Deny)
        assert outcome.verdict.detail == "redis: replica"


async def test_a_cancelled_request_does_not_hurt_the_others(
    redis_client: Redis, here: Sidecar
) -> None:
    """One of three that share a load and a script call goes away: the others are answered."""
    for who in (68, 68):  # cold: they share a load; warm: they share a charge
        tasks = [asyncio.ensure_future(here.ask(who)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert await asyncio.gather(*tasks[1:]) == ["allow", "allow"]
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
    assert not here.store._calls._waiting
    assert not here.store._loads


async def test_36_a_storm_of_cancellations_never_crosses_answers(
    registry: Registry, here: Sidecar
) -> None:
    """Pitfall 36: whoever is cancelled when, each answer is the asker's own."""
    await seed.user(registry, 8, t4="member")
    await registry.put_tokens(
        [seed.token(80 + i, user=7 + i % 2, team=3 + i % 2) for i in range(10)]
    )
    generous = rules({"user": Limit(100_000)})
    for round_ in range(20):
        tasks = [
            asyncio.ensure_future(here.outcome(80 + i % 10, rules=generous)) for i in range(40)
        ]
        for step in range(round_ % 7):
            await asyncio.sleep(0)
            tasks[step * 5].cancel()
        if round_ % 3 == 0:
            here.store._records.clear()
        for i, outcome in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
            if isinstance(outcome, asyncio.CancelledError):
                continue
            assert not isinstance(outcome, BaseException)
            assert outcome.record is not None
            assert outcome.record.token == 80 + i % 10


async def test_closing_ends_what_is_under_way(own: RedisProcess) -> None:
    """A request that waits while the process stops is cancelled, not left hanging."""
    async with sidecar(own.tcp_url) as here:
        assert await here.ask(67) == "allow"
        own.freeze()
        try:
            asking = [asyncio.ensure_future(here.outcome(who)) for who in (68, *[67] * 4 * BATCH)]
            await asyncio.sleep(0.02)
            with no_tasks_left():
                await here.store.close()
            done, pending = await asyncio.wait(asking, timeout=2)
            assert not pending
            assert {task.cancelled() or task.result() for task in done} == {True}
        finally:
            own.thaw()


async def test_a_charge_of_nothing_asks_nobody(redis_client: Redis, here: Sidecar) -> None:
    """No counters and nothing to prove: no trip."""
    async with commands(redis_client) as seen:
        charged = await here.store.charge(Claim(()), repeat_key=None)
    assert isinstance(charged, Charged)
    assert charged.admitted
    assert seen == {}


async def test_an_errors_text_holds_nothing_of_the_request(own: RedisProcess) -> None:
    """StoreError says the operation and a closed kind, never a key, an id or a secret."""
    async with sidecar(own.tcp_url) as here:
        own.kill()
        with pytest.raises(StoreError) as caught:
            await here.store.load(credential(67), fresh=False)
        assert str(caught.value) == "token: connection"
        with pytest.raises(StoreError) as caught:
            await here.store.charge(Claim((USER_COUNTER,)), repeat_key=b"x")
        assert str(caught.value) == "charge: connection"


async def test_a_stale_answer_forgets_only_what_failed(here: Sidecar, registry: Registry) -> None:
    """A user's change does not cost the instance's record, nor the other way round."""
    assert await here.ask(67) == "allow"
    instance = await here.store.instance(fresh=False)
    record = here.store.known(credential(67))
    await registry.set_member(TEAM, USER, Role.ADMIN)
    claim = Claim((USER_COUNTER,), instance, record)
    charged = await here.store.charge(claim, repeat_key=None)
    assert charged is STALE
    assert here.store.known(credential(67)) is None
    assert here.store.current() is instance


async def test_a_defect_below_the_call_leaves_nobody_waiting(here: Sidecar) -> None:
    """An error that nobody foresaw is a refusal, at once, for all who share the call."""

    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    assert await here.ask(67) == "allow"
    here.store._calls._begin = lambda *_: False  # type: ignore[method-assign]
    here.store._calls._evaluate = broken  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(here.ask(67) for _ in range(20)))
    assert set(answers) == {"store_unavailable"}


async def test_a_defect_in_a_call_without_a_task_leaves_nobody_waiting(here: Sidecar) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    assert await here.ask(67) == "allow"
    here.store._calls._settle = broken  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(here.ask(67) for _ in range(20)))
    assert set(answers) == {"store_unavailable"}


async def test_a_limit_raised_in_a_flood_admits_the_first_request_that_asks_again(
    registry: Registry, here: Sidecar
) -> None:
    """The request that asks for all finds its record stale, is judged again, and is admitted."""
    await registry.set_limit("user", USER, Limit(1))
    assert [await here.ask(67) for _ in range(6)] == ["allow", *["rate_limited"] * 5]
    await registry.set_limit("user", USER, Limit(100))
    await asyncio.sleep(RECHECK_MS / 1000)  # the refusals' own time
    assert await here.ask(67) == "allow"
