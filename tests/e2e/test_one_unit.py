"""One client request costs one unit, however often a proxy asks about it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

from authsidecar.decision.model import Proxy
from authsidecar.demo import proxies
from tests.e2e.scenarios import PROXIES
from tests.support import world as at
from tests.support.lab import Lab, laboratory
from tests.support.redis import RedisProcess
from tests.support.sidecar import SidecarProcess, get

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGAIN = """\
    location = /api/v1/teams {
      try_files /nowhere @again;
      include authsidecar-protected.conf;
    }
    location = /api/v1/servers/ {
      auth_request /_authsidecar;
      root DIRECTORY;
      index index.html;
    }
    location = /api/v1/servers/index.html {
      auth_request /_authsidecar;
      root DIRECTORY;
    }
    location = /api/v1/projects {
      auth_request /_authsidecar;
      root DIRECTORY;
      error_page 404 = @again;
    }
    location @again { include authsidecar-protected.conf; }
"""
"""Places in which nginx redirects a request within itself, and so asks again."""

GUARDED = "    location ^~ /api {"


async def asked(lab: Lab) -> int:
    """How many subrequests the sidecar has decided since it started."""
    answer = await asyncio.to_thread(get, lab.sidecar.management_port, "/metrics", {})
    found = re.findall(rb"^authsidecar_decisions_total\{[^}]*\} (\S+)", answer.body, re.MULTILINE)
    return int(sum(map(float, found)))


async def units(lab: Lab) -> int:
    """What the owner's counter holds."""
    return await lab.client.llen(f"authsidecar:rate:{{u:{at.OWNER}}}:user")


@pytest.fixture(scope="module")
def redirecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for nginx with those places, whose recipe puts them into the shipped file."""
    directory = tmp_path_factory.mktemp("redirecting")
    index = directory / "api" / "v1" / "servers" / "index.html"
    index.parent.mkdir(parents=True)
    index.write_text("here\n")
    recipe = proxies.RECIPES[Proxy.NGINX]
    more = {
        GUARDED: AGAIN.replace("DIRECTORY", str(directory)) + GUARDED,
        "worker_processes auto;": "worker_processes 1;",  # each has connections of its own
    }

    def files(places: proxies.Places) -> dict[str, dict[str, str]]:
        shipped = recipe.files(places)
        return {**shipped, "nginx.conf": {**shipped["nginx.conf"], **more}}

    with pytest.MonkeyPatch.context() as patch:
        recipes = {**proxies.RECIPES, Proxy.NGINX: replace(recipe, files=files)}
        patch.setattr(proxies, "RECIPES", recipes)
        yield directory


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def nginx(
    lab_redis: RedisProcess, lab_sidecar: SidecarProcess, redirecting: Path
) -> AsyncIterator[Lab]:
    async with laboratory(lab_redis, lab_sidecar, redirecting, proxies=(Proxy.NGINX,)) as lab:
        yield lab


@pytest.mark.parametrize(
    ("target", "times"),
    [("/api/v1/teams", 2), ("/api/v1/servers/", 2), ("/api/v1/projects", 2), ("/api/v1/team", 1)],
    ids=["try_files", "index", "error_page", "plain"],
)
async def test_nginx_asks_again_within_one_request_for_nothing(
    nginx: Lab, target: str, times: int
) -> None:
    """Pitfall 15: every internal redirect repeats the subrequest; its id is charged once."""
    for requests in (1, 2, 3):
        before = await asked(nginx)
        if requests == 1:
            await nginx.reset()
        assert (await nginx.ask(Proxy.NGINX, "GET", target, token=at.READ)).status == 200
        assert await asked(nginx) - before == times
        assert await units(nginx) == requests


async def test_a_repeat_is_judged_in_full(nginx: Lab) -> None:
    """What is free is the unit, not the judgement: each request needs its permission."""
    for target in ("/api/v1/teams", "/api/v1/servers/", "/api/v1/projects"):
        assert (await nginx.ask(Proxy.NGINX, "GET", target, token=at.DEPLOY)).status == 403


@dataclass(eq=False)
class Relay:
    """Between proxy and sidecar; drops an answer, and its connection, when it is told to.

    Attributes:
        target: the sidecar's port.
        drop: how many answers are still to be dropped.
    """

    target: int
    drop: int = 0
    address: str = ""
    _pumps: set[asyncio.Task[None]] = field(default_factory=set)
    _sinks: set[asyncio.StreamWriter] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)
            for sink in self._sinks:
                sink.close()
            ends = [sink.wait_closed() for sink in self._sinks]
            await asyncio.gather(*ends, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink, answers in ((reader, back, False), (there, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, answers=answers))
            self._pumps.add(pump)
            self._sinks.add(sink)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if answers and self.drop > 0:
                    self.drop -= 1
                    break
                sink.write(data)
        sink.close()


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def relayed(
    lab_redis: RedisProcess, lab_sidecar: SidecarProcess, redirecting: Path
) -> AsyncIterator[tuple[Lab, Relay]]:
    """All proxies, in front of a relay in front of the sidecar."""
    directory = redirecting / "relayed"
    async with (
        Relay(lab_sidecar.port).running() as relay,
        laboratory(lab_redis, lab_sidecar, directory, authz=relay.address) as lab,
    ):
        yield lab, relay


@pytest.mark.parametrize(
    ("proxy", "status", "times", "cost"),
    [
        (Proxy.TRAEFIK, 200, 2, 2),  # repeats, and has no id to say so: a documented limit
        (Proxy.NGINX, 200, 2, 1),
        (Proxy.CADDY, 200, 2, 1),
        (Proxy.ENVOY, 503, 1, 1),  # does not repeat
        (Proxy.HAPROXY, 200, 2, 1),
    ],
)
async def test_a_repeat_on_a_stale_connection(
    relayed: tuple[Lab, Relay], proxy: Proxy, status: int, times: int, cost: int
) -> None:
    """The sidecar has counted, its answer is lost, the proxy asks again on a new connection."""
    lab, relay = relayed
    target = "/api/v1/version"
    # Now there is a connection.
    assert (await lab.ask(proxy, "GET", target, token=at.READ)).status == 200
    await lab.reset()
    before = await asked(lab)
    relay.drop = 1
    assert (await lab.ask(proxy, "GET", target, token=at.READ)).status == status
    assert (await asked(lab) - before, await units(lab)) == (times, cost)
    assert len(lab.seen) == (status == 200)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_client_gains_nothing_by_an_id_of_its_own(lab: Lab, proxy: Proxy) -> None:
    """The proxy's own generator overwrites it: every request is counted."""
    ids = ("X-Authz-Request-Id: mine", "X-Request-Id: mine", "X-Correlation-Id: mine")
    for requests in (1, 2, 3):
        answer = await lab.ask(proxy, "GET", "/api/v1/teams", *ids, token=at.READ)
        assert (answer.status, await units(lab)) == (200, requests)
