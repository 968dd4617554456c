"""One table of scenarios, real proxies, the real sidecar: what clients and backend see."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from authsidecar.admin.decisions import show
from authsidecar.admin.explain import Result
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import Proxy
from authsidecar.decision.policy import Policy
from authsidecar.decision.proxies.replies import EXPOSED
from authsidecar.decision.routes import coolify
from authsidecar.demo.proxies import deploy_dir, start_proxy
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from tests.e2e.scenarios import PROXIES, SCENARIOS, page
from tests.e2e.scenarios.table import ByProxy, Refused, Runs, Scenario
from tests.support import world as at
from tests.support.lab import IDENTITY, Lab
from tests.support.seed import bearer, registry
from tests.support.sidecar import Answer
from tests.support.waiting import eventually
from tests.support.wire import Wire

DEBIANS_NGINX = next(filter(Path.is_file, [Path("/usr/sbin/nginx")]), None)
"""What the distribution's package installs; the other proxies are wheels'."""

on_proxies = pytest.mark.asyncio(loop_scope="session")

COUNT = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "RateLimit", "RateLimit-Policy")
HELD = {at.READ: "read", at.WRITE: "write", at.ROOT: "root"}


REFUSALS: dict[str, str] = {}
"""The codes of the refusals that the scenarios met, by the decision's id."""


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("row", SCENARIOS, ids=lambda row: row.name)
async def test_scenario(lab: Lab, row: Scenario, proxy: Proxy) -> None:
    """The client sees what the table says, and the backend runs nothing else."""
    await play(lab, row, proxy)


async def play(lab: Lab, row: Scenario, proxy: Proxy) -> None:
    given = await row.given(lab) if row.given else None
    token = row.token if given is None else given
    answer = await lab.ask(proxy, row.method, row.target, *row.lines, token=token, body=row.body)
    match row.through(proxy):
        case Refused() as refused:
            whole(answer, refused, has_body=row.method != "HEAD")
            if row.method != "HEAD":
                REFUSALS[json.loads(answer.body)["decision_id"]] = refused.code
            assert lab.seen == []
        case ByProxy(status, code):
            assert (answer.status, code_of(answer)) == (status, code)
            if status == 503:
                assert answer.header("Retry-After") == "5"
                assert answer.header("Access-Control-Allow-Origin") == "*"
            assert lab.seen == []
        case Runs() as runs:
            ran(lab, answer, runs, proxy)


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_the_log_has_the_proxys_own_id_of_a_request(lab: Lab, proxy: Proxy) -> None:
    """Never the client's; Traefik can't send one."""
    ids = "X-Authz-Request-Id: mine", "X-Request-Id: mine"
    answer = await lab.ask(proxy, "GET", "/api/v1/teams", *ids)
    decision = json.loads(answer.body)["decision_id"]

    found: list[dict[str, Any]] = []

    async def logged() -> bool:
        lines = lab.sidecar.events("decision")
        found[:] = [line for line in lines if line["decision_id"] == decision]
        return bool(found)

    await eventually(logged, "the log of the decision")
    said = found[0]["request_id"]
    assert (said is None) == (proxy is Proxy.TRAEFIK)
    assert said is None or re.fullmatch("[0-9a-f-]{32,36}", said, re.IGNORECASE)


@on_proxies
@pytest.mark.skipif(DEBIANS_NGINX is None, reason="no nginx of the system's is installed")
async def test_every_scenario_holds_with_the_distributions_nginx(lab: Lab, tmp_path: Path) -> None:
    """Debian 12's is 1.22: the shipped file asks nothing newer of it."""
    running = await start_proxy(
        Proxy.NGINX,
        authz=f"127.0.0.1:{lab.sidecar.port}",
        backend=lab.backend.address,
        directory=tmp_path,
        binary=DEBIANS_NGINX,
    )
    differ = {}
    try:
        other = replace(lab, proxies={Proxy.NGINX: running})
        for row in SCENARIOS:
            await other.reset()
            try:
                await play(other, row, Proxy.NGINX)
            except AssertionError as error:
                differ[row.name] = str(error)
    finally:
        await running.stop()
    assert differ == {}


@on_proxies
async def test_each_of_these_refusals_is_shown_by_its_id(lab: Lab) -> None:
    """One of each code: its check, what was needed and found, and what to do."""
    await asyncio.sleep(1)  # until the last receipts are written
    settings = lab.sidecar.environ
    async with Redis.from_url(settings["AUTHSIDECAR_REDIS__URL"]) as client:
        store = DecisionStore(client, Keys(), budget_ms=5000)
        for code, name in {code: name for name, code in REFUSALS.items()}.items():
            shown = await show(
                name,
                client=client,
                keys=Keys(),
                rules=Rules(Policy(coolify("4.3")), {}),
                store=store,
                registry=registry(client),
            )
            assert shown is not None, code
            assert shown.receipt.code == shown.then.code == code
            (failed,) = [row for row in shown.then.rows if row.result is Result.FAIL]
            assert failed.detail or code in {"request_unreadable", "headers_too_large"}
            assert shown.advice is not None
            assert shown.advice.what_to_do
        await store.close()


def whole(answer: Answer, refused: Refused, *, has_body: bool = True) -> None:
    """The refusal has everything that decisions.md promises, and no more."""
    assert answer.status == refused.status, answer
    assert (answer.header("Content-Type") or "").startswith("application/json")
    if has_body:
        body = json.loads(answer.body)
        assert body["code"] == refused.code
        assert refused.message is None or body["message"] == refused.message
        assert body["message"]
        assert re.fullmatch("[0-9a-f]+", body["decision_id"])
        assert body.get("missing_permissions") == ([refused.missing] if refused.missing else None)
        assert ("docs" in body) == (refused.code == "route_unknown")
        assert answer.body.isascii()
        assert len(answer.body.splitlines()) == 1
        assert len(answer.body) < 4096
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Expose-Headers") == ", ".join(EXPOSED)
    bare = refused.code == "token_missing" and refused.realm != "mcp"
    tail = "" if bare else ', error="invalid_token"'
    challenge = f'Bearer realm="{refused.realm}"{tail}' if refused.status == 401 else None
    assert answer.header("WWW-Authenticate") == challenge
    assert (answer.header("Allow") is not None) == (refused.status == 405)
    retry = answer.header("Retry-After")
    assert (retry is not None) == (refused.status in {429, 503})
    assert retry is None or int(retry) >= 1
    assert (answer.header("X-RateLimit-Reset") is not None) == (refused.status == 429)
    counted = refused.status in {401, 403, 404, 429} and refused.code != "untrusted_peer"
    assert [answer.header(name) is not None for name in COUNT] == [counted] * len(COUNT)
    assert not [name for name, _ in answer.headers if name.lower().startswith("x-auth")]


def code_of(answer: Answer) -> str | None:
    """The stable code of a refusal in JSON, or None."""
    try:
        return json.loads(answer.body)["code"]
    except (ValueError, KeyError):
        return None


def ran(lab: Lab, answer: Answer, runs: Runs, proxy: Proxy) -> None:
    """One request has reached the backend, as this route, with exactly this identity."""
    assert answer.status == runs.status, answer
    [seen] = lab.seen
    assert seen.routed is not None
    assert " ".join(filter(None, (seen.routed.method, seen.routed.template))) == runs.route
    identity = {name.lower(): value for name, value in seen.identity().items()}
    assert sorted(identity) == sorted(f"x-auth-{name}" for name in IDENTITY)
    client, decision = identity.pop("x-auth-client-ip"), identity.pop("x-auth-decision-id")
    assert client == "127.0.0.1" or proxy is Proxy.ENVOY  # which says the host's own address
    assert re.fullmatch("[0-9a-f]+", decision)
    assert identity == (nobody() if runs.token is None else owner(runs.token))
    assert answer.header("Access-Control-Expose-Headers") == ", ".join(EXPOSED)
    fields = [answer.header(name) for name in COUNT]
    if proxy is Proxy.TRAEFIK:  # shows Coolify's own count, and nobody's on an answer without
        assert fields[2:] == [None, None]
    else:
        assert [field is not None for field in fields] == [runs.counted] * len(COUNT)
    assert not [name for name, _ in answer.headers if name.lower().startswith("x-auth")]


def nobody() -> dict[str, str]:
    names = ("user-id", "team-id", "team-role", "token-id", "permissions")
    return {f"x-auth-{name}": "none" for name in names} | {"x-auth-read-sensitive": "false"}


def owner(token: int) -> dict[str, str]:
    """What the backend is told of a token of the world's owner."""
    return {
        "x-auth-user-id": str(at.OWNER),
        "x-auth-team-id": "0",
        "x-auth-team-role": "owner",
        "x-auth-token-id": str(token),
        "x-auth-permissions": HELD[token],
        "x-auth-read-sensitive": "true" if token == at.ROOT else "false",
    }


@on_proxies
async def test_address_buckets_are_seen_through_every_proxy(lab: Lab) -> None:
    """Past its limit a 401, a 404 and a public 200 become 429, with a time to come back."""
    tight: dict[str, Any] = {
        f"LIMITS__{name}": "1" for name in ("FAILED", "UNKNOWN", "HEALTH", "FEEDBACK")
    }
    over = Refused(429, "rate_limited", "Too Many Attempts.")
    requests = (
        ("GET", "/api/v1/teams", 401),
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/health", 200),
        ("POST", "/api/feedback", 200),
    )
    async with lab.replaced(**tight):
        for proxy in lab.proxies:
            await lab.reset()
            for method, target, status in requests:
                assert (await lab.ask(proxy, method, target)).status == status
                whole(await lab.ask(proxy, method, target), over)


@on_proxies
async def test_a_sidecar_that_does_not_know_the_proxy_lets_nobody_in(lab: Lab) -> None:
    """Pitfall 3: whoever may not ask gets 403, through every proxy, and so does its client."""
    refused = Refused(403, "untrusted_peer")
    async with lab.replaced(TRUSTED_PEERS="192.0.2.0/24"):
        for proxy in lab.proxies:
            whole(await lab.ask(proxy, token=at.READ), refused)
        assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_the_client_address_is_the_connections_own(lab: Lab, proxy: Proxy) -> None:
    """Pitfall 10: no header of the client's moves the address that the allowlist judges."""
    claims = ("X-Forwarded-For: 6.6.6.6", "X-Real-Ip: 6.6.6.6", "Forwarded: for=6.6.6.6")
    await lab.ask(proxy, "GET", "/api/v1/teams", *claims, token=at.READ, source="127.7.7.7")
    [seen] = lab.seen
    address = seen.headers["X-Auth-Client-Ip"]
    assert address != "6.6.6.6"
    assert address == "127.7.7.7" or proxy is Proxy.ENVOY
    await lab.world.registry.set_instance(allowlist=address)
    assert (await lab.ask(proxy, token=at.READ, source="127.7.7.7")).status == 200
    await lab.world.registry.set_instance(allowlist="6.6.6.6")
    refused = Refused(403, "address_not_allowed", "You are not allowed to access the API.")
    whole(await lab.ask(proxy, "GET", "/api/v1/teams", *claims, token=at.READ), refused)


@on_proxies
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_large_body_arrives_whole_or_not_at_all(
    lab: Lab, proxy: Proxy, chunked: bool
) -> None:
    """Five megabytes with and without a length, for a token that may and one that may not."""
    size = 5_000_000
    async with aiohttp.ClientSession() as http:
        for token, arrived in ((at.WRITE, [size]), (at.READ, [])):
            lab.seen.clear()
            body = pieces(size) if chunked else BytesIO(b"x" * size)
            headers = {"Authorization": bearer(token)}
            url = f"{lab.proxies[proxy].url}/api/v1/projects"
            try:
                async with http.post(url, headers=headers, data=body) as answer:
                    status = answer.status
                    await answer.read()
            except aiohttp.ClientError:
                assert proxy in {Proxy.TRAEFIK, Proxy.CADDY, Proxy.HAPROXY}
                assert not arrived
                status = 403
            assert status == (200 if arrived else 403)
            assert [len(seen.body) for seen in lab.seen] == arrived


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(50):
        yield b"x" * (size // 50)


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_requests_on_one_connection_are_judged_one_by_one(lab: Lab, proxy: Proxy) -> None:
    """Pitfall 20: a POST with a body spoils nothing for what follows on any connection."""
    post = partial(lab.request, proxy, "POST", "/api/v1/projects", "Connection: keep-alive")
    get = partial(lab.request, proxy, "GET", "/api/v1/teams", "Connection: keep-alive")
    async with Wire(lab.port(proxy)) as wire:
        for _ in range(3):
            assert (await wire.ask(post(token=at.WRITE, body=b"x" * 5000))).status == 200
            assert (await wire.ask(get(token=at.READ))).status == 200
            assert (await wire.ask(get(token=at.WRITE))).status == 403
            assert (await wire.ask(get())).status == 401
    identities = [seen.headers["X-Auth-Token-Id"] for seen in lab.seen]
    assert identities == [str(at.WRITE), str(at.READ)] * 3


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_websocket_is_judged_like_any_request(lab: Lab, proxy: Proxy) -> None:
    """Pitfall 18: it passes with a token, is refused without one, and harms no connection."""
    url = f"{lab.proxies[proxy].url}/api/v1/teams"
    async with aiohttp.ClientSession() as http:
        for _ in range(2):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(url)
            assert refused.value.status == 401
            async with http.ws_connect(url, headers={"Authorization": bearer(at.READ)}) as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello"
    assert [seen.headers["X-Auth-Token-Id"] for seen in lab.seen] == [str(at.READ)] * 2


def test_the_page_shows_the_table() -> None:
    """docs/reference/scenarios.md is what `python -m tests.e2e.scenarios` prints."""
    path = deploy_dir().parent / "docs" / "reference" / "scenarios.md"
    assert path.read_text(encoding="utf-8") == page()
