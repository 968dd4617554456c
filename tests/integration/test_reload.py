"""A configuration that is read again while requests come in: nobody notices but by its answers."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from authsidecar.decision.model import Permission, Place, ResourceKind, TokenId
from authsidecar.decision.restrictions import parse
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.records import write_place
from tests.integration.test_life import GOOD as GOOD_REQUEST
from tests.integration.test_life import children, load, populate
from tests.support import seed
from tests.support.broken_configs import BROKEN, GOOD, break_file, mend_file
from tests.support.manage import Api, key
from tests.support.seed import bearer
from tests.support.sidecar import SidecarProcess, get, start_sidecar
from tests.support.waiting import until

BY_ENVIRONMENT = (
    "no Redis URL",
    "no listener at all",
    "both listeners in one place",
    "a port that is too high",
    "an unknown log format",
    "a budget of 0",
    "unknown decisions",
)
"""What the file says of these, the tests' environment says otherwise."""

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
async def ready_redis(redis_client: Redis, redis_url: str) -> str:
    await populate(redis_client)
    return redis_url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    mend_file(path, good(path))
    return path


def good(path: Path, more: str = "") -> str:
    return GOOD.format(directory=path.parent).replace("data_dir", "# data_dir") + more


def started(path: Path, url: str, workers: int, **settings: str) -> SidecarProcess:
    process = start_sidecar(
        path.parent, url, "--workers", str(workers), CONFIG=str(path), **settings
    )
    until(lambda: workers == 1 or len(children(process)) == workers, "all workers")
    until(lambda: digests(process) == {digest(process): workers}, "all on the first digest")
    return process


def digest(process: SidecarProcess) -> str:
    found: str = get(process.management_port, "/readyz", {}).json["config_digest"]
    return found


def digests(process: SidecarProcess) -> dict[str, int]:
    """How many processes decide by which configuration."""
    text = get(process.management_port, "/metrics", {}).body.decode()
    return {
        sample.labels["digest"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "authsidecar_config_info"
    }


def reloaded(process: SidecarProcess, event: str) -> None:
    """Send SIGHUP, and wait for its line."""
    before = len(process.events(event))
    process.signal(signal.SIGHUP)
    until(lambda: len(process.events(event)) > before, event)


def deployed(process: SidecarProcess) -> tuple[int, str | None]:
    """What a restricted token is answered that deploys its application and sends a body."""
    connection = HTTPConnection("127.0.0.1", process.port, timeout=10)
    headers = {
        "X-Forwarded-Method": "POST",
        "X-Forwarded-Uri": "/api/v1/deploy?uuid=app1",
        "X-Forwarded-For": "192.0.2.1",
        "Authorization": bearer(1),
        "Content-Type": "application/json",
    }
    with contextlib.closing(connection):
        connection.request("POST", "/authz/traefik", b'{"force": true}', headers)
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said)["code"] if said else None


async def test_bodies_are_looked_at_from_the_reload_on_that_says_so(
    redis_client: Redis, ready_redis: str, path: Path
) -> None:
    """And no longer from the one on that says the contrary: the very next request each time."""
    registry = seed.registry(redis_client)
    token = await registry.token(TokenId(1))
    assert token is not None
    assert token.team is not None
    place = write_place(Place(token.team, ResourceKind.APPLICATION))
    await redis_client.hset(Keys().owners(owner_bucket("app1")), "app1", place)
    await registry.put_tokens([replace(token, permissions=frozenset({Permission.DEPLOY}))])
    await registry.set_restriction("token", TokenId(1), parse({"resources": ["app1"]}))
    process = started(path, ready_redis, 1)
    refused = (403, "token_restricted")
    assert deployed(process) == refused
    for _ in range(2):
        mend_file(path, good(path, "restrictions: {body: forwarded}\n"))
        reloaded(process, "config_reloaded")
        assert deployed(process) == (200, None)
        mend_file(path, good(path, "restrictions: {body: refused}\n"))
        reloaded(process, "config_reloaded")
        assert deployed(process) == refused
    assert process.stop() == 0


@WORKERS
async def test_a_reload_under_load_fails_no_request(
    ready_redis: str, path: Path, workers: int
) -> None:
    """All processes decide by the new configuration within a second; no connection is lost."""
    process = started(path, ready_redis, workers)
    pids, before = children(process), digest(process)
    async with load(process.port) as asked:
        for number in range(3):
            await asked.more()
            mend_file(
                path, good(path).replace("user: 100000", f"user: {90_000 + number}, failed: 31")
            )
            process.signal(signal.SIGHUP)
            start = time.monotonic()

            def all_follow() -> bool:
                found = digests(process)
                return before not in found and list(found.values()) == [workers]  # noqa: B023

            await asyncio.to_thread(until, all_follow, "the new digest")
            assert time.monotonic() - start < 1
            before = digest(process)
            answer = await asyncio.to_thread(
                process.ask, "GET", "/api/v1/teams", authorization=bearer(1)
            )
            assert answer.header("X-RateLimit-Limit") == str(90_000 + number)
        await asked.more()
    assert children(process) == pids
    assert len(process.events("config_reloaded")) == 3
    assert process.stop() == 0


@WORKERS
async def test_broken_files_leave_the_old_configuration_in_force(
    ready_redis: str, path: Path, workers: int
) -> None:
    """Each is refused with its problems; requests go on, and a good file is taken afterwards."""
    process = started(path, ready_redis, workers, LOG__DECISIONS="none")
    before = digest(process)
    async with load(process.port) as asked:
        for kind in [kind for kind in BROKEN if kind not in BY_ENVIRONMENT]:
            await asyncio.to_thread(break_file, path, kind)
            await asyncio.to_thread(reloaded, process, "reload_refused")
        assert len(process.events("reload_refused")) >= 50
        await asked.more()
        assert digests(process) == {before: workers}
        assert digest(process) == before
        assert not process.events("config_reloaded")
    mend_file(path, good(path, "enforcement: report\n"))
    reloaded(process, "config_reloaded")
    until(lambda: process.ask("GET", "/api/v1/teams").status == 200, "a refusal that passes")
    assert "Traceback" not in process.log
    assert process.stop() == 0


async def test_what_needs_a_restart_is_said(ready_redis: str, path: Path) -> None:
    """A line for each such setting; what can change does, and secrets are in no line."""
    process = started(path, ready_redis, 1)
    mend_file(
        path,
        good(path, "mail: {webhook_url: 'https://x.example/planted'}\nlog: {decisions: none}\n"),
    )
    reloaded(process, "config_reloaded")
    assert [one["setting"] for one in process.events("setting_left")] == ["mail.webhook_url"]
    assert process.events("config_reloaded")[0]["changed"] == ["log.decisions"]
    assert "planted" not in process.log
    process.ask("GET", "/api/v1/teams", authorization=bearer(1))
    assert not process.events("decision")
    assert process.stop() == 0


@WORKERS
def test_the_api_reloads_for_who_may_write(redis_url: str, path: Path, workers: int) -> None:
    """All of it or nothing, every problem named; 200 once the new digest is in force."""
    process = started(path, redis_url, workers)
    api = Api(process, redis_url, key(redis_url, "read"), key(redis_url, "write"))
    before = digest(process)
    assert api.ask("POST", "/reload", key=api.reading).status == 403
    same = api.ask("POST", "/reload").json
    assert same == {"config_digest": before, "changed": [], "left": []}
    mend_file(path, "limits: {user: 0, team: no}\nenforcement: maybe\n")
    refused = api.ask("POST", "/reload")
    assert refused.status == 422
    named = [one["detail"].split(": ")[1] for one in refused.json["errors"]]
    assert sorted(named) == ["enforcement", "limits.team.limit", "limits.user.limit"]
    assert digests(process) == {before: workers}
    mend_file(path, good(path, "enforcement: report\nlisten: {max_connections: 100}\n"))
    asked = time.monotonic()
    changed = api.ask("POST", "/reload").json
    assert changed["changed"] == ["enforcement"]
    assert changed["left"] == ["listen.max_connections"]
    after = changed["config_digest"]
    until(lambda: digests(process) == {after: workers}, "the new digest")
    assert time.monotonic() - asked < 5
    assert any("enforcement" in line for line in api.ask("GET", "/warnings").json["items"])
    (record,) = [one for one in api.all("/audit") if one["after"] and one["after"].get("changed")]
    assert (record["action"], record["actor"]) == ("config.reload", "key 2 (test)")
    assert record["after"] == {"config_digest": after, "changed": ["enforcement"]}
    assert process.stop() == 0


async def test_a_worker_that_starts_later_has_what_is_in_force(
    ready_redis: str, path: Path
) -> None:
    """Not what the file says, which may be broken by then."""
    process = started(path, ready_redis, 2)
    mend_file(path, good(path).replace("100000", "90000"))
    reloaded(process, "config_reloaded")
    until(lambda: list(digests(process).values()) == [2], "both on the new digest")
    after = digest(process)
    break_file(path, "no YAML")
    before = children(process)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(children(process) - before) == 1, "a new worker")
    until(lambda: digests(process) == {after: 2}, "the new worker's digest")
    assert process.stop() == 0


async def test_a_connection_of_a_peer_that_is_trusted_no_more_is_refused(
    ready_redis: str, path: Path
) -> None:
    """Also where another peer's same request was answered a moment ago, and is remembered."""
    process = started(path, ready_redis, 1)
    async with connection(process.port, "127.0.0.1") as old:
        for _ in range(4):
            assert (await answered(*old)) == 200
        mend_file(path, good(path, "trusted_peers: [127.0.0.2/32]\n"))
        await asyncio.to_thread(reloaded, process, "config_reloaded")
        async with connection(process.port, "127.0.0.2") as new:
            for _ in range(4):
                assert (await answered(*new)) == 200
            assert (await answered(*old)) == 403
            mend_file(path, good(path).replace("100000", "1"))
            await asyncio.to_thread(reloaded, process, "config_reloaded")
            assert (await answered(*new)) == 429
    assert process.stop() == 0


@contextlib.asynccontextmanager
async def connection(
    port: int, peer: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(peer, 0))
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The status that the usual request gets on this connection."""
    writer.write(GOOD_REQUEST)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split()[1])
