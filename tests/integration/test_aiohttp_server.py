"""aiohttp's own server: chosen when aiohttp is new, and as safe as the quick connection."""

from pathlib import Path

import pytest
from aiohttp import web

from authsidecar.decision.proxies.replies import Reply
from authsidecar.serving.aiohttp_server import application
from authsidecar.serving.servers import TESTED, choose
from authsidecar.serving.subrequest import Subrequest
from tests.integration.test_connection import failed
from tests.support import newer_aiohttp
from tests.support.redis import start_redis
from tests.support.sidecar import start_sidecar


async def test_the_application_answers_in_process(aiohttp_client) -> None:
    """Every path and method reaches the same function, and a failure is a 503."""

    async def answer(asked: Subrequest) -> Reply:
        if asked.target == "/fails":
            raise ZeroDivisionError
        return Reply(403, "X-Seen: 1\r\n", f"{asked.method} {asked.target}".encode())

    client = await aiohttp_client(application(answer, failed))
    got = await client.request("PURGE", "/authz/envoy/api?x=1")
    assert (got.status, await got.text()) == (403, "PURGE /authz/envoy/api?x=1")
    assert (got.headers["X-Seen"], got.headers["Server"]) == ("1", "authsidecar")
    assert (await client.get("/fails")).status == 503
    assert isinstance(client.app, web.Application)


@pytest.mark.parametrize(
    ("setting", "version", "server"),
    [
        ("auto", "3.14.5", "fast"),
        ("auto", "3.15.0", "aiohttp"),
        ("auto", "4.0.0a1", "aiohttp"),
        ("fast", "3.15.0", "fast"),
        ("aiohttp", "3.14.5", "aiohttp"),
    ],
)
def test_auto_is_quick_with_a_tested_aiohttp_alone(setting, version: str, server: str) -> None:
    """A new minor version may change what the quick connection stands on."""
    assert choose(setting, version) == server
    assert "3.15" not in TESTED


def test_with_a_newer_aiohttp_the_sidecar_starts_its_server_and_says_so(tmp_path: Path) -> None:
    """Not even importing the quick connection: what it imports may be gone."""
    redis = start_redis(tmp_path / "redis")
    program = ("-P", str(Path(newer_aiohttp.__file__)))
    sidecar = start_sidecar(tmp_path, redis.url, program=program)
    assert [line["server"] for line in sidecar.events("listening")] == ["aiohttp"]
    assert sidecar.ask("TRACE", "/api/v1/teams").status == 405
    assert sidecar.stop() == 0
    redis.stop()


def test_the_default_is_the_quick_one_with_the_locked_aiohttp(tmp_path: Path) -> None:
    """A lock that moves on without its tests would show here."""
    redis = start_redis(tmp_path / "redis")
    sidecar = start_sidecar(tmp_path, redis.url)
    assert [line["server"] for line in sidecar.events("listening")] == ["fast"]
    assert sidecar.stop() == 0
    redis.stop()
