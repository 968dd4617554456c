"""The sidecar killed, restarted and frozen under load: nobody gets in unjudged, nobody waits."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from authsidecar.decision.model import Proxy
from tests.support import world as at
from tests.support.lab import IDENTITY, Lab
from tests.support.seed import bearer
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENTS = 3
"""Clients that ask at the same time, through each proxy."""

REFUSAL_S = 2.0
BACK_S = 1.0
PAUSE_S = 0.005
TRAEFIK_S = 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one client was told; times in seconds of the monotonic clock."""

    proxy: Proxy
    began: float
    ended: float
    status: int
    code: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def refused(self) -> bool:
        """In the words that this proxy has for a sidecar that does not answer."""
        if self.proxy is Proxy.TRAEFIK:
            return (self.status, self.code) == (500, None)
        return (self.status, self.code) == (503, "authorization_unavailable")


@dataclass(eq=False)
class Load:
    """Clients of all proxies, and what each was told."""

    lab: Lab
    proxies: tuple[Proxy, ...]
    told: list[Told]

    def since(self, proxy: Proxy, start: float) -> list[Told]:
        """What began after `start`."""
        return [told for told in self.told if told.proxy is proxy and told.began > start]

    async def until(self, enough: Callable[[list[Told]], bool], start: float) -> None:
        """Wait until what has begun after `start` is enough, through every proxy."""
        async with asyncio.timeout(PATIENCE_S):
            while not all(enough(self.since(proxy, start)) for proxy in self.proxies):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)

    async def client(self, proxy: Proxy) -> None:
        while True:
            began = time.monotonic()
            answer = await self.lab.ask(proxy, token=at.READ)
            code = json.loads(answer.body).get("code") if answer.body else None
            self.told.append(Told(proxy, began, time.monotonic(), answer.status, code))
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def load(lab: Lab, proxies: tuple[Proxy, ...] = ()) -> AsyncIterator[Load]:
    """Clients that ask one request after the other until this ends."""
    proxies = proxies or tuple(lab.proxies)
    loading = Load(lab, proxies, [])
    async with asyncio.TaskGroup() as group:
        clients = [
            group.create_task(loading.client(proxy)) for proxy in proxies for _ in range(CLIENTS)
        ]
        await loading.until(lambda told: len(told) >= 10, 0)
        yield loading
        for client in clients:
            client.cancel()


def admitted(told: list[Told]) -> bool:
    return any(one.status == 200 for one in told)


def unjudged(lab: Lab) -> Iterator[str]:
    """Whatever has reached the backend without a decision of its own that names the owner."""
    decisions = set()
    for seen in lab.seen:
        told = {name.lower().removeprefix("x-auth-"): v for name, v in seen.identity().items()}
        if sorted(told) != sorted(IDENTITY) or told["token-id"] != str(at.READ):
            yield f"no identity: {told}"
        elif told["decision-id"] in decisions:
            yield f"a decision twice: {told}"
        else:
            decisions.add(told["decision-id"])


async def test_a_killed_sidecar_lets_nobody_in_and_is_back_at_once(lab: Lab) -> None:
    """Refused within two seconds while it is gone, served within one when it is back."""
    async with lab.replaced(), load(lab) as clients:
        lab.sidecar.kill()
        gone = time.monotonic()
        await clients.until(lambda told: len(told) >= 10, gone)
        returning = time.monotonic()
        await asyncio.to_thread(lab.sidecar.start)
        back = time.monotonic()
        await clients.until(admitted, back)
        served = time.monotonic()
        await clients.until(lambda told: len(told) >= 5, served)
    for proxy in lab.proxies:
        without = [one for one in clients.since(proxy, gone) if one.ended < returning]
        assert len(without) >= 10
        assert [one for one in without if not one.refused] == []
        with_again = [one for one in clients.since(proxy, back) if one.status == 200]
        assert min(one.ended for one in with_again) - back < BACK_S
        assert [one for one in clients.since(proxy, served) if one.status != 200] == []
    assert [one for one in clients.told if one.seconds > REFUSAL_S] == []
    assert [one for one in clients.told if one.status != 200 and not one.refused] == []
    assert list(unjudged(lab)) == []


async def test_a_restart_in_good_order_loses_nobody_to_the_backend(lab: Lab) -> None:
    """SIGTERM under load: what was admitted is served, the rest refused, none unjudged."""
    async with lab.replaced(), load(lab) as clients:
        assert await asyncio.to_thread(lab.sidecar.stop) == 0
        await asyncio.to_thread(lab.sidecar.start)
        back = time.monotonic()
        await clients.until(lambda told: len(told) >= 5 and admitted(told), back)
    assert [one for one in clients.told if one.status != 200 and not one.refused] == []
    assert [one for one in clients.told if one.seconds > REFUSAL_S] == []
    assert list(unjudged(lab)) == []


async def test_a_frozen_sidecar_is_given_up_in_time(lab: Lab) -> None:
    """SIGSTOP: the time limits of the deploy files end the wait; thawed, it serves at once."""
    proxies = tuple(proxy for proxy in lab.proxies if proxy is not Proxy.TRAEFIK)
    async with lab.replaced(), load(lab, proxies) as clients:
        lab.sidecar.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await clients.until(lambda told: len(told) >= 2 * CLIENTS, frozen)
            thawing = time.monotonic()
        finally:
            lab.sidecar.signal(signal.SIGCONT)
        await clients.until(admitted, thawing)
        served = time.monotonic()
        await clients.until(lambda told: len(told) >= 5, served)
    for proxy in proxies:
        during = [one for one in clients.since(proxy, frozen) if one.ended < thawing]
        assert [one for one in during if not one.refused] == []
        again = [one for one in clients.told if one.proxy is proxy and one.status == 200]
        assert min(one.ended for one in again if one.ended > thawing) - thawing < BACK_S
    assert [one for one in clients.told if one.seconds > REFUSAL_S] == []
    assert list(unjudged(lab)) == []


async def test_a_frozen_redis_is_the_sidecars_own_503(lab: Lab) -> None:
    """Pitfalls 22 and 35: its deadline is far below every proxy's, Traefik's 30 s included."""
    async with lab.replaced(REDIS__BUDGET_MS="250"):
        lab.redis.freeze()
        try:
            for proxy in lab.proxies:
                began = time.monotonic()
                answer = await lab.ask(proxy, token=at.READ)
                assert time.monotonic() - began < REFUSAL_S
                own = "store_unavailable"
                code = "authorization_unavailable" if proxy is Proxy.ENVOY else own
                assert (answer.status, answer.json["code"]) == (503, code)
                assert answer.header("Retry-After") is not None
        finally:
            lab.redis.thaw()
        assert lab.seen == []


@pytest.mark.slow
async def test_traefik_waits_half_a_minute_for_a_frozen_sidecar(lab: Lab) -> None:
    """A documented limit: its time limit is fixed; even then nobody gets in."""
    headers = {"Authorization": bearer(at.READ)}
    async with lab.replaced(), aiohttp.ClientSession() as http:
        lab.sidecar.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            url = f"{lab.proxies[Proxy.TRAEFIK].url}/api/v1/teams"
            async with http.get(url, headers=headers) as answer:
                assert (answer.status, await answer.read()) == (500, b"")
            assert TRAEFIK_S - 1 < time.monotonic() - began < TRAEFIK_S + 5
        finally:
            lab.sidecar.signal(signal.SIGCONT)
        assert lab.seen == []
