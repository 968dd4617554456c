"""A canary token: its user is told nothing, its operator everything."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from statistics import median
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from authsidecar.expiry.canaries import CanaryAlarm
from authsidecar.observe.canary import CanaryUse, agent_digest
from authsidecar.times import UnixMs
from tests.support.cli import Result, invoke
from tests.support.redis import RedisProcess, free_port, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import PATIENCE_S
from tests.support.wire import Wire, subrequest
from tests.support.world import address, populate

COUNTS = {"x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "date"}
"""Headers whose values differ in any two answers: what is left, and when."""

PAIRS = 1000
"""Requests with a canary, and as many with an unknown token."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def sidecar(
    server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, port: int
) -> Iterator[SidecarProcess]:
    sidecar = start_sidecar(
        tmp_path_factory.mktemp("sidecar"),
        server.url,
        LIMITS__FAILED="100000",
        MAIL__WEBHOOK_URL=f"http://127.0.0.1:{port}/hook",
        MAIL__WEBHOOK_SECRET="a-secret-of-the-webhook",
    )
    yield sidecar
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log


@pytest.fixture
async def posted(port: int) -> AsyncIterator[list[Any]]:
    """What the webhook was sent."""
    taken: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        taken.append(await request.json())
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield taken
    await runner.cleanup()


@pytest.fixture(scope="module")
def canary(server: RedisProcess) -> tuple[int, str]:
    """Its id and its text."""
    made = cli(server, "create", "--note", "in the backup", "--json").json
    return made["id"], made["token"]


def cli(server: RedisProcess, *words: object) -> Result:
    return invoke("canary", *words, url=server.url)


def asking(token: str, client: str, *headers: tuple[str, str]) -> bytes:
    return subrequest(authorization=f"Bearer {token}", client=client, headers=headers)


async def until(found: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while not (got := found()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return got


def alarms(sidecar: SidecarProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in sidecar.log.splitlines()]
    return [line for line in lines if line["event"] == "canary_used"]


async def test_the_operator_is_told_once_a_minute_and_address(
    sidecar: SidecarProcess, canary: tuple[int, str], posted: list[Any]
) -> None:
    """Log and webhook, with address, route, note and the digest of the user agent."""
    number, token = canary
    first, second = address(), address()
    agent = ("User-Agent", "thief/1.0")
    async with Wire(sidecar.port) as wire:
        for client in (first, first, second, first):
            answer = await wire.ask(asking(token, client, agent))
            assert (answer.status, answer.json["code"]) == (401, "token_unknown")
        wrong = f"{number}|not-the-canary"
        assert (await wire.ask(asking(wrong, address()))).json["code"] == "token_unknown"
    await until(lambda: len(posted) == 2)
    assert [one["address"] for one in posted] == [first, second]
    assert posted[0]["canary"] == {"id": number, "note": "in the backup"}
    assert (posted[0]["method"], posted[0]["route"]) == ("GET", "/api/v1/teams")
    assert posted[0]["user_agent_sha256"] == agent_digest(b"thief/1.0")
    await until(lambda: len(alarms(sidecar)) == 2)
    assert [line["client"] for line in alarms(sidecar)] == [first, second]
    assert token.partition("|")[2] not in sidecar.log
    assert "thief" not in sidecar.log
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{sidecar.management_url}/metrics") as metrics,
    ):
        assert "authsidecar_canary_uses_total 4.0" in await metrics.text()


async def test_its_user_cannot_tell_it_from_an_unknown_token(
    sidecar: SidecarProcess, canary: tuple[int, str], posted: list[Any]
) -> None:
    """The same bytes but for what differs in any two answers, and neither is the slower one.

    In random order on one connection; of the pairs, each is the slower one in half, within 5 sigma.
    """
    number, token = canary
    unknown = (f"{number + 1}|{'x' * 40}", f"{number}|{'x' * 40}")
    client = address()
    dice = random.Random(7)
    slower = 0
    times: dict[str, list[float]] = {"canary": [], "unknown": []}
    async with Wire(sidecar.port) as wire:
        for pair in range(-50, PAIRS):
            order = [("canary", token), ("unknown", unknown[pair % 2])]
            dice.shuffle(order)
            took: dict[str, float] = {}
            shapes = {}
            for who, text in order:
                request = asking(text, client)
                start = time.perf_counter()
                answer = await wire.ask(request)
                took[who] = time.perf_counter() - start
                body = {**answer.json, "decision_id": ""}
                fields = [(n, None if n.lower() in COUNTS else v) for n, v in answer.headers]
                shapes[who] = (answer.status, body, fields)
            assert shapes["canary"] == shapes["unknown"]
            if pair >= 0:
                slower += took["canary"] > took["unknown"]
                for who, seconds in took.items():
                    times[who].append(seconds)
    assert abs(slower - PAIRS / 2) < 5 * (PAIRS / 4) ** 0.5
    assert median(times["canary"]) == pytest.approx(median(times["unknown"]), rel=0.15)


async def test_one_that_is_removed_is_an_unknown_token(
    server: RedisProcess, sidecar: SidecarProcess
) -> None:
    """From the next request on nobody is told."""
    made = (await asyncio.to_thread(cli, server, "create", "--note", "gone", "--json")).json
    removed = await asyncio.to_thread(cli, server, "remove", made["id"], "--json")
    assert removed.json == {"id": made["id"], "removed": True}
    before = len(alarms(sidecar))
    async with Wire(sidecar.port) as wire:
        answer = await wire.ask(asking(made["token"], address()))
        assert answer.json["code"] == "token_unknown"
    assert len(alarms(sidecar)) == before


def test_the_command_line_shows_the_secret_once(server: RedisProcess) -> None:
    """And refuses what is no note."""
    made = cli(server, "create", "--note", "a wiki page", "--quiet")
    number, _, secret = made.out.strip().partition("|")
    assert len(secret) == 40
    listed = cli(server, "list", "--json").json["items"]
    assert {"id": int(number), "note": "a wiki page"}.items() <= listed[-1].items()
    assert secret not in cli(server, "list").out
    assert cli(server, "remove", number).code == 0
    assert cli(server, "remove", number).code == 1
    for note in ("", "two\nlines", "x" * 501):
        assert cli(server, "create", "--note", note).code == 2


def test_a_mail_says_the_same() -> None:
    """In text and in HTML, where the note is escaped."""
    from ipaddress import ip_address

    use = CanaryUse(68, ip_address("192.0.2.1"), "GET", "/api/v1/teams", None, "d1")  # type: ignore[arg-type]
    alarm = CanaryAlarm(use, "<b>", UnixMs(0), None)
    assert "192.0.2.1" in alarm.subject
    assert "/api/v1/teams" in alarm.text()
    assert "&lt;b&gt;" in alarm.html()
    assert "<b>" not in alarm.html()
