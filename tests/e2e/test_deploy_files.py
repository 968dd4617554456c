"""The deploy files, on the real proxies, in front of a scripted authorization server."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from io import BytesIO

import aiohttp
import pytest
import pytest_asyncio
from multidict import CIMultiDict

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import RECIPES
from tests.support.proxies import COUNTED, IDENTITY, Stage, Subrequest, stage
from tests.support.raw_http import exchanged, send
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPOOFED_IDENTITY = {
    **dict.fromkeys(IDENTITY, "evil"),
    "x-auth-TEAM-id": "0",
}
SPOOFED_FORWARDING = {
    "X-Forwarded-Uri": "/api/v1/health",
    "X-Forwarded-Method": "OPTIONS",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil.test",
    "X-Original-URI": "/api/v1/health",
    "X-Real-Ip": "6.6.6.6",
    "X-Authz-Request-Id": "spoofed",
    "X-Request-Id": "spoofed",
}
ALIASES = (
    "X_Auth_User_Id",
    "X.Auth.User.Id",
    "X_Auth-User.Id",
    "X_Forwarded_Uri",
    "X.Forwarded.For",
)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=list(RECIPES))
async def running(request, tmp_path_factory) -> AsyncIterator[Stage]:
    proxy = request.param
    async with stage(proxy, tmp_path_factory.mktemp(proxy.value)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
def it(running: Stage) -> Stage:
    running.clear()
    return running


def bearer(**more: str) -> dict[str, str]:
    return {"Authorization": "Bearer 67|secret", **more}


def described(proxy: Proxy, asked: Subrequest) -> tuple[str, str]:
    """Method and target, from the place where the sidecar looks for this proxy's."""
    endpoint = f"/authz/{proxy.value}"
    if proxy is Proxy.ENVOY:
        assert not {"X-Forwarded-Uri", "X-Forwarded-Method"} & set(asked.headers)
        return asked.method, asked.target.removeprefix(endpoint)
    assert asked.target == endpoint
    [method] = asked.headers.getall("X-Forwarded-Method")
    [target] = asked.headers.getall("X-Forwarded-Uri")
    return method, target


def forwarded_for(headers: CIMultiDict[str]) -> list[str]:
    """The hops, oldest first, over all lines."""
    return [hop.strip() for hop in ",".join(headers.getall("X-Forwarded-For")).split(",")]


async def test_the_backend_sees_exactly_the_identity_of_the_sidecar(it, http):
    """Nothing that the client says about who it is reaches the backend."""
    headers = bearer(**SPOOFED_IDENTITY, **SPOOFED_FORWARDING)
    async with http.get(f"{it.url}/api/v1/teams?a=1", headers=headers) as answer:
        assert answer.status == 200
        assert (await answer.json())["template"] == "/api/v1/teams"
    [seen] = it.backend.seen
    assert {name.lower(): value for name, value in seen.identity().items()} == {
        name.lower(): value for name, value in IDENTITY.items()
    }
    assert seen.target == "/api/v1/teams?a=1"
    assert forwarded_for(seen.headers)[-1] != "6.6.6.6"
    assert seen.headers.get("X-Real-Ip") is None


async def test_the_subrequest_describes_the_real_request(it, http):
    """What the client claims to be forwarded is replaced by what it did."""
    headers = bearer(**SPOOFED_FORWARDING)
    async with http.post(f"{it.url}/api/v1/enable?a=1", headers=headers, data=b"x" * 9) as answer:
        assert answer.status == 200
    [asked] = it.authz.asked
    assert described(it.proxy, asked) == ("POST", "/api/v1/enable?a=1")
    assert asked.headers.getall("Authorization") == ["Bearer 67|secret"]
    assert forwarded_for(asked.headers)[-1] != "6.6.6.6"
    if it.proxy is not Proxy.ENVOY:  # sends the whole chain, and the last hop is what counts
        assert len(forwarded_for(asked.headers)) == 1
    assert "X-Real-Ip" not in asked.headers
    assert "evil.test" not in str(asked.headers)
    assert "X-Original-URI" not in asked.headers


async def test_the_subrequest_is_in_the_trace_of_the_request(it, http):
    """The header by which a trace goes on reaches the sidecar and the backend as it is."""
    parent = {"traceparent": f"00-{1:032x}-{2:016x}-01"}
    async with http.get(f"{it.url}/api/v1/teams", headers=bearer(**parent)) as answer:
        assert answer.status == 200
    [asked], [seen] = it.authz.asked, it.backend.seen
    assert asked.headers.getall("traceparent") == [parent["traceparent"]]
    assert seen.headers.getall("traceparent") == [parent["traceparent"]]
    async with http.get(f"{it.url}/api/v1/teams", headers=bearer()):
        pass
    assert "traceparent" not in it.authz.asked[-1].headers


async def test_each_request_has_an_id_of_the_proxys_own(it, http):
    """The id by which a request is counted once can't be chosen by the client."""
    for _ in range(2):
        async with http.get(f"{it.url}/api/v1/teams", headers=bearer(**SPOOFED_FORWARDING)):
            pass
    ids = [asked.headers.getall("X-Authz-Request-Id", []) for asked in it.authz.asked]
    if it.proxy is Proxy.TRAEFIK:
        assert ids == [[], []]
        return
    [first], [second] = ids
    assert uuid.UUID(first) != uuid.UUID(second)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 414, 429, 431])
async def test_a_denial_reaches_the_client_whole(it, http, status):
    """Status, body and every header once; the backend is not asked."""
    it.authz.status = status
    it.authz.headers = dict(COUNTED)
    if status == 401:
        it.authz.headers["WWW-Authenticate"] = 'Bearer realm="coolify"'
    if status == 405:
        it.authz.headers["Allow"] = "POST"
    if status == 429:
        it.authz.headers |= {"Retry-After": "7", "X-RateLimit-Reset": "1790000000"}
    async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
        assert answer.status == status
        assert await answer.text() == it.authz.body
        assert answer.headers.getall("Content-Type")[0].startswith("application/json")
        for name, value in it.authz.headers.items():
            assert answer.headers.getall(name) == [value], name
        assert answer.headers.getall("Cache-Control") == ["no-store"]
        assert not [name for name in answer.headers if name.lower().startswith("x-auth")]
    assert it.backend.seen == []


async def test_a_sidecar_that_says_503_is_understood(it, http):
    """Redis is down, say: the client may retry; Envoy says it in its own words."""
    it.authz.status, it.authz.headers = 503, {"Retry-After": "1"}
    async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
        assert answer.status == 503
        code = json.loads(await answer.text())["code"]
        assert code == ("authorization_unavailable" if it.proxy is Proxy.ENVOY else "stub_503")
        assert answer.headers.getall("Retry-After") == ["5" if it.proxy is Proxy.ENVOY else "1"]
    assert it.backend.seen == []


async def test_without_a_sidecar_nobody_gets_in(it, http):
    """503 with JSON; from Traefik, which can't, 500."""
    await it.authz.stop()
    try:
        async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
            assert answer.status == (500 if it.proxy is Proxy.TRAEFIK else 503)
            if it.proxy is not Proxy.TRAEFIK:
                assert (await answer.json())["code"] == "authorization_unavailable"
                assert answer.headers.getall("Retry-After") == ["5"]
    finally:
        await it.authz.start()
    assert it.backend.seen == []


@pytest.mark.parametrize(
    "running", [proxy for proxy in RECIPES if proxy is not Proxy.TRAEFIK], indirect=True
)
async def test_a_silent_sidecar_is_given_up(it, http):
    """Nobody waits for it longer than two seconds, nor gets in; Traefik waits for 30.

    Its time limit is fixed; the sidecar's own deadline is the remedy (test_sidecar_down.py).
    """
    it.authz.silent = True
    async with asyncio.timeout(4):
        async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
            assert answer.status == 503
            assert (await answer.json())["code"] == "authorization_unavailable"
    assert it.backend.seen == []


async def test_a_backend_that_is_down_is_not_taken_for_the_sidecar(it, http):
    """Whoever reads the answer looks for the fault in the right place."""
    await it.backend.stop()
    try:
        async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
            assert answer.status == (503 if it.proxy in {Proxy.ENVOY, Proxy.HAPROXY} else 502)
            assert "authorization" not in await answer.text()
    finally:
        await it.backend.start()


async def test_the_sidecars_count_is_the_only_one_on_success(it, http):
    """Coolify's own count does not stand beside it; Traefik can only show Coolify's."""
    async with http.get(f"{it.url}/api/v1/teams", headers=bearer()) as answer:
        shown = {name: answer.headers.getall(name, []) for name in COUNTED}
    if it.proxy is Proxy.TRAEFIK:
        assert shown["X-RateLimit-Limit"] == ["200"]
        assert shown["RateLimit"] == []
        return
    assert shown == {name: [value] for name, value in COUNTED.items()}


async def test_a_preflight_is_recognisable(it, http):
    """Both CORS headers reach the sidecar, and Coolify's own answer the browser."""
    headers = {"Origin": "https://app.test", "Access-Control-Request-Method": "PATCH"}
    async with http.options(f"{it.url}/api/v1/teams", headers=headers) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    [asked] = it.authz.asked
    assert {name: asked.headers.getall(name) for name in headers} == {
        name: [value] for name, value in headers.items()
    }
    assert "Authorization" not in asked.headers


async def test_a_method_override_is_shown_to_the_sidecar_and_kept_from_the_backend(it, http):
    """The sidecar refuses it with 400; if it did not, Coolify would still not see it."""
    headers = bearer(**{"X-HTTP-Method-Override": "DELETE"})
    async with http.post(f"{it.url}/api/v1/enable", headers=headers) as answer:
        assert answer.status == 200
    [asked] = it.authz.asked
    assert asked.headers.getall("X-HTTP-Method-Override") == ["DELETE"]
    assert "X-HTTP-Method-Override" not in it.backend.seen[0].headers


@pytest.mark.parametrize(("method", "path"), [("GET", "x"), ("POST", "x/restart")])
async def test_the_type_of_a_body_is_shown_to_the_sidecar(it, http, method, path):
    """The body itself is not: by its type the sidecar knows that it may name something."""
    headers = bearer(**{"Content-Type": "application/json; charset=utf-8"})
    url = f"{it.url}/api/v1/applications/{path}"
    async with http.request(method, url, headers=headers, data=b'{"uuid": "y"}') as answer:
        assert answer.status == 200
    [asked] = it.authz.asked
    assert asked.headers.getall("Content-Type") == ["application/json; charset=utf-8"]


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("path", ["/api/v1/teams", "/login"])
async def test_another_spelling_never_reaches_the_backend(it, name, path):
    """PHP would fold it into ours; the proxy refuses it or strips it."""
    status, _ = await send(it.url, "GET", path, "Authorization: Bearer 67|s", f"{name}: evil")
    assert status in {200, 400}
    assert all("evil" not in str(seen.headers) for seen in it.backend.seen)


async def test_the_rest_of_the_site_passes_without_identity(it, http):
    """It is not guarded, so nobody may claim to be somebody there."""
    headers = {**SPOOFED_IDENTITY, "X-HTTP-Method-Override": "DELETE"}
    async with http.get(f"{it.url}/login", headers=headers) as answer:
        assert answer.status == 200
    assert it.authz.asked == []
    assert it.backend.seen[0].identity() == {}
    assert "X-HTTP-Method-Override" not in it.backend.seen[0].headers


async def test_an_odd_spelling_is_refused_in_json(it):
    """nginx and Caddy refuse it themselves, in the sidecar's words and with its header."""
    status, answer = await send(it.url, "GET", "/api/v1/x/%2e%2e/teams")
    if it.proxy in {Proxy.NGINX, Proxy.CADDY}:
        assert status == 400
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["code"] == "ambiguous_target"
        assert b"Content-Type: application/json" in answer
        assert b"Access-Control-Allow-Origin: *" in answer
        assert it.authz.asked == []
    else:
        [asked] = it.authz.asked
        assert described(it.proxy, asked) == ("GET", "/api/v1/teams")
        assert it.backend.seen[0].target == "/api/v1/teams"


@pytest.mark.parametrize("running", [Proxy.NGINX], indirect=True)
async def test_what_nginx_refuses_by_itself_is_json_too(it):
    """A client that reads codes need not know which of the two has refused."""
    for method, target, line, expected in (
        ("TRACE", "/api/v1/teams", "A: b", (405, "method_not_allowed")),
        ("GET", f"/api/{'a' * 20_000}", "A: b", (414, "target_too_long")),
        ("GET", "/api/%zz", "A: b", (400, "request_unreadable")),
        ("GET", "/api/v1/teams", "Authorization: Bearer 2|b", (400, "request_unreadable")),
        ("GET", "/api/v1/teams", f"A: {'b' * 20_000}", (431, "headers_too_large")),
    ):
        status, answer = await send(it.url, method, target, "Authorization: Bearer 1|a", line)
        assert (status, json.loads(answer.partition(b"\r\n\r\n")[2])["code"]) == expected
        assert b"Content-Type: application/json" in answer
    assert it.authz.asked == it.backend.seen == []


async def test_the_count_stays_with_the_final_answer(it):
    """Coolify's nginx says 100 Continue first, to curl for each body over a megabyte."""
    head = "PUT /api/v1/nothing HTTP/1.1", f"Host: {it.url.removeprefix('http://')}"
    more = "Authorization: Bearer 67|s", "Expect: 100-continue", "Content-Length: 5"
    request = "\r\n".join([*head, *more, "Connection: close", "", "hello"]).encode()
    host, _, port = it.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    final = answer[answer.index(b" 404 ") :].lower()
    shown = {name: final.count(f"\r\n{name}: ".lower().encode()) for name in COUNTED}
    expected = dict.fromkeys(COUNTED, 1)
    if it.proxy is Proxy.TRAEFIK:  # can only show Coolify's
        expected |= dict.fromkeys(("RateLimit", "RateLimit-Policy"), 0)
    assert shown == expected
    assert b"access-control-expose-headers: allow, " in final
    assert it.backend.seen[0].body == b"hello"


async def test_http_1_0_is_served(it):
    """By every proxy, and judged as any other request."""
    place = it.url.removeprefix("http://")
    request = f"GET /api/v1/teams HTTP/1.0\r\nHost: {place}\r\nAuthorization: Bearer 67|s\r\n\r\n"
    assert b" 200 " in (await exchanged(it.url, request.encode()))[:16]
    assert len(it.authz.asked) == len(it.backend.seen) == 1


async def test_naming_our_headers_in_connection_does_not_delete_them(it):
    """Hop-by-hop tricks leave the identity and the question whole."""
    trick = "Connection: close, X-Auth-User-Id, X-Forwarded-Uri, X-Forwarded-For"
    await send(it.url, "GET", "/api/v1/teams", "Authorization: Bearer 67|s", trick)
    for seen in it.backend.seen:
        assert seen.headers["X-Auth-User-Id"] == "7"
    for asked in it.authz.asked:
        assert described(it.proxy, asked) == ("GET", "/api/v1/teams")


async def test_a_large_body_arrives_whole_and_is_not_sent_to_the_sidecar(it, http):
    """Five megabytes, with and without a length."""
    size = 5_000_000

    async def chunks():
        yield b"x" * size

    for data in (BytesIO(b"x" * size), chunks()):
        async with http.post(f"{it.url}/api/v1/enable", headers=bearer(), data=data) as answer:
            assert answer.status == 200
    assert [len(seen.body) for seen in it.backend.seen] == [size, size]
    assert len(it.authz.asked) == 2


async def test_a_websocket_passes_once_it_is_admitted(it, http):
    """The upgrade reaches the backend, with identity, and messages flow both ways."""
    async with http.ws_connect(f"{it.url}/api/v1/teams", headers=bearer()) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
    assert it.backend.seen[0].headers["X-Auth-User-Id"] == "7"


async def test_a_backends_own_refusal_passes_untouched(it, http):
    """Coolify's 404 keeps its body and is not taken for the sidecar's."""
    async with http.get(f"{it.url}/api/v1/nothing", headers=bearer()) as answer:
        assert answer.status == 404
        assert await answer.json() == {"message": "Not found.", "docs": "https://coolify.io/docs"}
