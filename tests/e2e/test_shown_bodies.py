"""Traefik shows the sidecar the client's body: the answer gets through all the same."""

import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from authsidecar.decision.model import Proxy
from authsidecar.demo import proxies
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import RunningProxy, start_proxy
from tests.support.redis import RedisProcess, start_redis
from tests.support.seed import bearer
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.world import READ, WRITE, populate

TIMES = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    populate(server)
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def sidecar(
    request: pytest.FixtureRequest, server: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SidecarProcess]:
    directory = tmp_path_factory.mktemp("sidecar")
    settings = {"LISTEN__SERVER": request.param, "LIMITS__USER": "100000"}
    sidecar = start_sidecar(directory, server.url, **settings)
    yield sidecar
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log
    assert '"library"' not in sidecar.log


@pytest.fixture
async def traefik(
    sidecar: SidecarProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningProxy]:
    """Traefik from its deploy file, with `forwardBody: true`."""
    recipe = proxies.RECIPES[Proxy.TRAEFIK]

    def files(places):
        given = recipe.files(places)
        dynamic = {**given["dynamic.yml"], "forwardBody: false": "forwardBody: true"}
        return {**given, "dynamic.yml": dynamic}

    changed = {**proxies.RECIPES, Proxy.TRAEFIK: replace(recipe, files=files)}
    monkeypatch.setattr(proxies, "RECIPES", changed)
    async with Backend() as backend:
        running = await start_proxy(
            Proxy.TRAEFIK,
            authz=f"127.0.0.1:{sidecar.port}",
            backend=backend.address,
            directory=tmp_path,
        )
        try:
            yield running
        finally:
            await running.stop()


@pytest.mark.parametrize("size", [5, 60_000, 8_000_000])
async def test_a_refusal_gets_through_beside_a_body(size: int, traefik: RunningProxy) -> None:
    """Twenty of twenty, however large the body is: never the proxy's own 500."""
    answers: Counter[tuple[int, str]] = Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(TIMES):
            async with session.post(
                f"{traefik.url}/api/v1/projects",
                data=io.BytesIO(b"x" * size),
                headers={"Authorization": bearer(READ)},
            ) as answer:
                body = await answer.text()
                answers[answer.status, json.loads(body)["code"] if body else ""] += 1
    assert answers == {(403, "permission_missing"): TIMES}


@pytest.mark.parametrize("size", [5, 60_000, 900_000])
async def test_an_admitted_body_reaches_the_backend(size: int, traefik: RunningProxy) -> None:
    """Shown to the sidecar and passed on."""
    statuses: Counter[int] = Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(TIMES):
            async with session.post(
                f"{traefik.url}/api/v1/projects",
                data=io.BytesIO(b"x" * size),
                headers={"Authorization": bearer(WRITE)},
            ) as answer:
                await answer.read()
                statuses[answer.status] += 1
    assert statuses == {200: TIMES}
