"""deploy/coolify on a Coolify host: its own Traefik, its database, its files beside ours."""

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from authsidecar.config import load
from authsidecar.decision.model import Proxy
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import deploy_dir, find_binary, free_port, render
from tests.support.compose_specification import objections
from tests.support.coolify import SECRETS
from tests.support.postgres import PostgresProcess, coolify_database
from tests.support.raw_http import send
from tests.support.redis import guarded, start_redis
from tests.support.sidecar import SidecarProcess, start_sidecar
from tests.support.waiting import eventually, until

HERE = deploy_dir() / "coolify"
COMPOSE = yaml.safe_load((HERE / "compose.yaml").read_text())
PAGE = (deploy_dir().parent / "docs/how-to/install-on-coolify.md").read_text("utf-8")

OWN_FLAGS = (
    "--ping=true",
    "--ping.entrypoint=https",
    "--api.dashboard=true",
    "--entrypoints.https.http.encodequerysemicolons=true",
    "--entryPoints.https.http2.maxConcurrentStreams=250",
    "--providers.file.watch=true",
    "--api.insecure=false",
)
"""How Coolify starts its Traefik, without Docker, port 80 and certificates."""


def own_file(host: str, coolify: str, realtime: str) -> dict:
    """What Coolify writes to dynamic/coolify.yaml, without TLS."""
    routers = {
        "coolify-https": {"middlewares": ["gzip"], "service": "coolify", "rule": f"Host(`{host}`)"},
        "coolify-realtime-wss": {
            "service": "coolify-realtime",
            "rule": f"Host(`{host}`) && PathPrefix(`/app`)",
        },
        "coolify-terminal-wss": {
            "service": "coolify-realtime",
            "rule": f"Host(`{host}`) && PathPrefix(`/terminal/ws`)",
        },
    }
    servers = {"coolify": coolify, "coolify-realtime": realtime}
    return {
        "http": {
            "middlewares": {"gzip": {"compress": True}},
            "routers": {name: {**one, "entryPoints": ["https"]} for name, one in routers.items()},
            "services": {
                name: {"loadBalancer": {"servers": [{"url": f"http://{place}"}]}}
                for name, place in servers.items()
            },
        }
    }


# ---------------------------------------------------------------------------------- the files


def variables() -> dict[str, str]:
    """The assignments of .env.example."""
    text = (HERE / ".env.example").read_text()
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))


def used() -> dict[str, tuple[str, str]]:
    """The variables that compose.yaml uses: how a missing one is met, and with what."""
    text = (HERE / "compose.yaml").read_text()
    found = re.findall(r"\$\{(\w+)(?::([-?])([^}]*))?\}", text)
    return {name: (how, what) for name, how, what in found}


def environment(**given: str) -> dict[str, str]:
    """The sidecar's settings as compose would fill them in."""
    values = {**variables(), **given}
    told = COMPOSE["services"]["authsidecar"]["environment"]
    return {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: values[m[1]], str(text))
        for name, text in told.items()
    }


def test_the_compose_file_keeps_to_the_compose_specification():
    """Against the specification's JSON schema, which check-jsonschema ships."""
    assert objections(HERE / "compose.yaml") == ""


def test_every_variable_of_the_compose_file_is_explained_and_no_other():
    """Each has a comment right above it in .env.example."""
    assert used().keys() == variables().keys()
    lines = (HERE / ".env.example").read_text().splitlines()
    for name in variables():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}=")]
        assert lines[at - 1].startswith("# "), name


def test_the_example_shows_the_defaults():
    """What is not required is shown as it is anyway; what has no default must be given."""
    defaults = {name: what for name, (how, what) in used().items() if how == "-"}
    differs = {name for name, value in defaults.items() if variables()[name] != value}
    assert differs == {"ENFORCEMENT"}
    assert (defaults["ENFORCEMENT"], variables()["ENFORCEMENT"]) == ("enforce", "report")
    assert used().keys() - defaults.keys() == {"COOLIFY_SUBNET", "COOLIFY_DB_PASSWORD"}


@pytest.mark.parametrize("cdn", ["", "192.0.2.0/24,2001:db8::/32"])
def test_the_settings_of_the_compose_file_can_be_used(cdn):
    """The sidecar's own loader reads them; Redis is one of compose's, and evicts nothing."""
    settings = load(None, environment(CDN_NETWORKS=cdn, COOLIFY_DB_PASSWORD="a/b@c"))
    assert settings.enforcement == "report"
    assert settings.sync.source == "coolify"
    assert settings.sync.url is not None
    assert settings.sync.url.get_secret_value() == (
        "postgresql://authsidecar:a%2Fb%40c@coolify-db/coolify"
    )
    assert settings.trusted_peers == ("10.0.1.0/24",)
    assert settings.trusted_hops == tuple(filter(None, cdn.split(",")))
    redis = COMPOSE["services"][settings.redis.url.removeprefix("redis://").partition(":")[0]]
    assert "noeviction" in redis["command"]
    assert redis["networks"] == ["state"]
    assert COMPOSE["networks"] == {"coolify": {"external": True}, "state": {"internal": True}}


def test_the_middlewares_are_those_that_are_tested_behind_every_traefik():
    """deploy/traefik's, word for word, but for where the sidecar is, and compression."""
    ours = yaml.safe_load((HERE / "authsidecar.yaml").read_text())["http"]
    theirs = yaml.safe_load((deploy_dir() / "traefik/dynamic.yml").read_text())["http"]
    del ours["middlewares"]["authsidecar-gzip"]
    address = ours["middlewares"]["authsidecar"]["forwardAuth"].pop("address")
    del theirs["middlewares"]["authsidecar"]["forwardAuth"]["address"]
    assert ours["middlewares"] == theirs["middlewares"]
    name = COMPOSE["services"]["authsidecar"]["container_name"]
    assert address == f"http://{name}:4190/authz/traefik"
    for mine, other in (
        ("authsidecar-api", "coolify-api"),
        ("authsidecar-uploads", "coolify-uploads"),
        ("authsidecar-rest", "coolify-rest"),
    ):
        names = ours["routers"][mine]["middlewares"]
        assert names == ["authsidecar-gzip", *theirs["routers"][other]["middlewares"]]
    asked = ours["routers"]["authsidecar-uploads"]["middlewares"]
    asked = [name for name in asked if name != "authsidecar-whole"]
    assert asked == ours["routers"]["authsidecar-api"]["middlewares"]
    for name in ("api", "uploads"):
        rules = [ours["routers"][f"authsidecar-{name}"], theirs["routers"][f"coolify-{name}"]]
        assert rules[0]["rule"] == rules[1]["rule"]


def test_bodies_are_shown_as_by_a_traefik_of_one_s_own():
    """By the same lines, taken in by the same command; nobody is shown one before."""
    ours, theirs = (
        yaml.safe_load(path.read_text().replace("#bodies# ", ""))["http"]
        for path in (HERE / "authsidecar.yaml", deploy_dir() / "traefik/dynamic.yml")
    )
    router, other = ours["routers"]["authsidecar-bodies"], theirs["routers"]["coolify-bodies"]
    assert router["rule"] == other["rule"]
    assert router["middlewares"] == ["authsidecar-gzip", *other["middlewares"]]
    assert router["tls"] == ours["routers"]["authsidecar-api"]["tls"]
    assert router["priority"] > ours["routers"]["authsidecar-api"]["priority"]
    shown, unseen = (
        ours["middlewares"][name]["forwardAuth"] for name in ("authsidecar-bodies", "authsidecar")
    )
    assert shown == unseen | {"forwardBody": True, "maxBodySize": 99999}
    other = theirs["middlewares"]["authsidecar-bodies"]["forwardAuth"]
    assert shown["maxBodySize"] == other["maxBodySize"]
    plain = yaml.safe_load((HERE / "authsidecar.yaml").read_text())["http"]
    assert not any("bodies" in name for part in plain.values() for name in part)


def test_the_page_shows_the_proxy_s_lines_and_every_file():
    """A reader who copies them gets what is booted here."""
    for line in (HERE / "proxy-command.txt").read_text().splitlines():
        assert f"      - '{line}'\n" in PAGE
    linked = re.findall(r"\]\(\.\./\.\./deploy/coolify/([^)]+)\)", PAGE)
    assert set(linked) == {path.name for path in HERE.iterdir()}


# ------------------------------------------------------------------------------ the whole host


@dataclass(frozen=True)
class Host:
    """A Coolify host in small: what its Traefik listens on, and who stands behind it."""

    port: int
    coolify: Backend
    realtime: Backend
    sidecar: SidecarProcess
    dynamic: Path

    async def ask(
        self, method: str, target: str, token: int | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """One request of a client."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}|{SECRETS[token]}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"http://127.0.0.1:{self.port}{target}", headers=headers
            ) as answer,
        ):
            return answer.status, await answer.read()

    async def knows(self, target: str) -> bool:
        """Whether Traefik has a router for it."""
        return (await self.ask("GET", target))[1] != b"404 page not found\n"


def start_traefik(directory: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A real Traefik; nothing of this environment reaches it."""
    with (directory / "traefik.log").open("wb") as log:
        return subprocess.Popen(
            guarded(str(find_binary(Proxy.TRAEFIK)), *arguments),
            stdout=log,
            stderr=log,
            env={"HOME": str(directory), "PATH": os.defpath},
        )


def flags(port: int, dynamic: Path) -> list[str]:
    """Coolify's command line with our lines."""
    ours = (HERE / "proxy-command.txt").read_text().split()
    places = [f"--entrypoints.https.address=127.0.0.1:{port}"]
    return [*OWN_FLAGS, *places, f"--providers.file.directory={dynamic}/", *ours]


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _host(
    directory: Path, postgres: PostgresProcess, given: Mapping[str, str]
) -> AsyncIterator[Host]:
    redis = start_redis(directory / "redis")
    database = await coolify_database(postgres)
    told = environment(COOLIFY_SUBNET="127.0.0.0/8", **given)
    own: dict[str, Any] = {
        name.removeprefix("AUTHSIDECAR_"): told[name] for name in told if "__" in name
    }
    own |= {"ENFORCEMENT": told["AUTHSIDECAR_ENFORCEMENT"]}
    own |= {"TRUSTED_PEERS": told["AUTHSIDECAR_TRUSTED_PEERS"]}
    own |= {"REDIS__URL": redis.url, "SYNC__HOST": "127.0.0.1", "SYNC__PORT": str(postgres.port)}
    own |= {"SYNC__USER": "postgres", "SYNC__DATABASE": database}
    sidecar = start_sidecar(directory, redis.url, **own)
    until(lambda: "sync_following" in sidecar.log, "the first round")
    dynamic, port = directory / "dynamic", free_port()
    dynamic.mkdir()
    traefik = None
    try:
        async with Backend() as coolify, Backend() as realtime:
            theirs = own_file("127.0.0.1", coolify.address, realtime.address)
            (dynamic / "coolify.yaml").write_text(yaml.safe_dump(theirs))
            text = render(
                (HERE / "authsidecar.yaml").read_text(),
                {"coolify.example.com": "127.0.0.1", "authsidecar:4190": sidecar.url[7:]},
            )
            (dynamic / "authsidecar.yaml").write_text(text)
            traefik = start_traefik(directory, flags(port, dynamic))
            await asyncio.to_thread(until, lambda: accepts(port), "Traefik")
            host = Host(port, coolify, realtime, sidecar, dynamic)
            await eventually(lambda: host.knows("/"), "Traefik's routers")
            yield host
    finally:
        if traefik is not None:
            traefik.terminate()
            traefik.wait(10)
        sidecar.stop()
        redis.stop()


@pytest.fixture
async def host(tmp_path, postgres_server) -> AsyncIterator[Host]:
    """The host as the compose file sets it up, refusing."""
    given = {"ENFORCEMENT": "enforce"}
    async for one in _host(tmp_path, postgres_server, given):
        yield one


@pytest.fixture
async def watching(tmp_path, postgres_server) -> AsyncIterator[Host]:
    """The host on its first day, as .env.example has it."""
    async for one in _host(tmp_path, postgres_server, {}):
        yield one


async def test_coolify_s_tokens_are_judged_before_coolify_is_asked(host: Host):
    """Tokens of the seed, through real Traefik: who may, who may not, and who is told apart."""
    host.coolify.seen.clear()
    assert (await host.ask("GET", "/api/v1/teams", 2))[0] == 200
    assert (await host.ask("POST", "/api/v1/projects", 2))[0] == 403
    assert (await host.ask("GET", "/api/v1/teams", 9))[0] == 401
    assert (await host.ask("GET", "/api/v1/teams"))[0] == 401
    assert (await host.ask("GET", "/api/v1/teams", 8))[0] == 403
    assert (await host.ask("GET", "/api/v1/nothing/here", 1))[0] == 404
    (seen,) = host.coolify.seen
    identity = seen.identity()
    assert (identity["X-Auth-User-Id"], identity["X-Auth-Team-Id"]) == ("1", "1")
    assert identity["X-Auth-Token-Id"] == "2"


async def test_every_way_to_the_api_leads_past_the_sidecar(host: Host):
    """index.php, odd cases and spellings, /mcp: Coolify sees none of them without a token."""
    host.coolify.seen.clear()
    for target in (
        "/index.php/api/v1/teams",
        "/index.php",
        "/api",
        "/api/",
        "/mcp",
        "/api/v1/teams?x=/app",
        "/api//v1/teams",
        "/%61pi/v1/teams",
    ):
        status, _ = await host.ask("GET", target)
        assert status in {400, 401, 404, 405}, target
    for target in ("/api%2Fv1%2Fteams", "//api/v1/teams", "/x/../api/v1/teams"):
        status, _ = await send(f"http://127.0.0.1:{host.port}", "GET", target)
        assert status in {400, 401, 404}, target
    assert host.coolify.seen == []


async def test_the_dashboard_and_its_websockets_go_on_as_ever(host: Host):
    """No token is asked for; nobody is named; what goes to the realtime server still does."""
    for seen in (host.coolify.seen, host.realtime.seen):
        seen.clear()
    status, _ = await host.ask("GET", "/login", token=None, **{"X-Auth-User-Id": "0"})
    assert status == 200
    assert (await host.ask("GET", "/app/key"))[0] == 200
    assert (await host.ask("GET", "/terminal/ws"))[0] == 200
    assert [seen.target for seen in host.coolify.seen] == ["/login"]
    assert host.coolify.seen[0].identity() == {}
    assert [seen.target for seen in host.realtime.seen] == ["/app/key", "/terminal/ws"]


async def test_a_client_s_own_identity_does_not_reach_coolify(host: Host):
    """Overwritten on the API, and other spellings are dropped by Traefik."""
    host.coolify.seen.clear()
    assert (await host.ask("GET", "/api/v1/teams", 2, **{"X-Auth-User-Id": "0"}))[0] == 200
    assert host.coolify.seen[0].identity()["X-Auth-User-Id"] == "1"
    aliases = {"X_Auth_User_Id": "0", "X.Auth.User.Id": "0", "X_Forwarded_Uri": "/login"}
    assert (await host.ask("GET", "/api/v1/teams", 2, **aliases))[0] == 200
    assert host.coolify.seen[1].identity()["X-Auth-User-Id"] == "1"
    assert not aliases.keys() & set(host.coolify.seen[1].headers)


async def test_the_first_day_refuses_nothing_and_tells_all(watching: Host):
    """ENFORCEMENT=report, as in .env.example: what would be refused passes and is logged."""
    watching.coolify.seen.clear()
    assert (await watching.ask("GET", "/api/v1/teams", 2))[0] == 200
    assert (await watching.ask("POST", "/api/v1/projects", 2))[0] == 200
    assert (await watching.ask("GET", "/api/v1/teams"))[0] == 200
    assert len(watching.coolify.seen) == 3
    for code in ("permission_missing", "token_missing"):
        told = re.compile(rf'"outcome": "deny".*"code": "{code}"')
        until(lambda told=told: told.search(watching.sidecar.log) is not None, code)


async def test_removing_the_file_takes_the_sidecar_out_of_the_way(host: Host):
    """The rollback of the how-to: seen at once, without a restart."""
    assert (await host.ask("GET", "/api/v1/teams"))[0] == 401
    (host.dynamic / "authsidecar.yaml").unlink()

    async def passes() -> bool:
        return (await host.ask("GET", "/api/v1/teams"))[0] == 200

    await eventually(passes, "Coolify's own router")
