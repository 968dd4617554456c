"""Another site of the same entry point: what guards Coolify's host leaves the rest as it is."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import pytest_asyncio

from authsidecar.decision.model import Proxy
from authsidecar.demo.proxies import RECIPES, Places
from tests.support.proxies import Stage, stage
from tests.support.raw_http import exchanged, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER = "other.test"


def second_site(proxy: Proxy, places: Places) -> tuple[str, str, str]:
    """A file of the proxy's, a text that stands in it once, and that text with a site beside it."""
    match proxy:
        case Proxy.TRAEFIK:
            at = "    coolify-rest:\n"
            router = f'rule: "Host(`{OTHER}`)", entryPoints: [https], service: coolify'
            return "dynamic.yml", at, f"    other: {{{router}}}\n{at}"
        case Proxy.NGINX:
            at = "  upstream coolify {"
            site = f"listen {places.listen}; server_name {OTHER}; client_max_body_size 0;"
            to = "proxy_pass http://coolify; proxy_http_version 1.1;"
            return "nginx.conf", at, f"  server {{ {site} location / {{ {to} }} }}\n{at}"
        case Proxy.CADDY:
            at = "# One header of the sidecar's answer, towards Coolify."
            site = f"http://{OTHER}:{places.listen.rpartition(':')[2]}"
            to = f"\tbind {places.host}\n\treverse_proxy {places.backend}\n"
            return "Caddyfile", at, f"{site} {{\n{to}}}\n\n{at}"
        case Proxy.ENVOY:
            at = "                    - name: coolify\n                      domains:"
            route = "{match: {prefix: /}, route: {cluster: coolify}}"
            site = f'{{name: other, domains: ["{OTHER}"], routes: [{route}]}}'
            return "envoy.yaml", at, f"                    - {site}\n{at}"
        case Proxy.HAPROXY:
            at = "  use_backend coolify if coolify\n"
            named = f"{{ req.hdr(host) {OTHER} }} or !{{ req.hdr(host) -m found }}"
            site = f"  use_backend other if {named}\n"
            backend = f"backend other\n  server coolify {places.backend}\n"
            return "haproxy.cfg", at, f"{at}{site}{backend}"
    raise AssertionError(proxy)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=list(RECIPES))
async def running(request, tmp_path_factory) -> AsyncIterator[Stage]:
    """The proxy with its shipped files and one more site, which goes to the same backend."""
    proxy: Proxy = request.param
    recipe = RECIPES[proxy]

    def files(places: Places) -> Mapping[str, Mapping[str, str]]:
        name, at, both = second_site(proxy, places)
        shipped = dict(recipe.files(places))
        return {**shipped, name: {at: both, **shipped[name]}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, proxy, replace(recipe, files=files))
        async with stage(proxy, tmp_path_factory.mktemp(proxy.value)) as started:
            yield started


@pytest.fixture
def it(running: Stage) -> Stage:
    running.clear()
    return running


async def get(it: Stage, target: str, *lines: str, host: str = OTHER, method: str = "GET") -> int:
    """The status that a client of the other site gets."""
    status, _ = await send(it.url, method, target, f"Host: {host}", *lines)
    return status


@pytest.mark.parametrize(
    "target",
    [
        *("/files/100%25.txt", "/a%2Fb", "/a%5Cb", "/c%23d", "/e%3Bf", "/g%3Fh", "/%66iles/%C3%BC"),
        *("/api/v1/teams", "/mcp", "/index.php", "/?_method=DELETE", f"/{'x' * 4000}"),
    ],
)
async def test_its_paths_are_its_own(it, target):
    """None is refused, and nobody is asked."""
    assert await get(it, target) == 200
    [seen] = it.backend.seen
    assert seen.target in {target, target.replace("%66", "f")}
    assert it.authz.asked == []


async def test_a_path_of_its_own_is_only_tidied(it):
    """Traefik and Envoy resolve dot segments and doubled slashes, here as everywhere."""
    tidied = it.proxy in {Proxy.TRAEFIK, Proxy.ENVOY}
    assert await get(it, "/x//y/../z") == 200
    assert it.backend.seen[0].target == ("/x/z" if tidied else "/x//y/../z")


async def test_its_headers_are_its_own(it):
    """Whatever they are called; because of the guard, Traefik drops those with `_` or `.`."""
    names = ("X-Auth-User-Id", "X-Original-Url", "X-HTTP-Method-Override", "X-Authz-Request-Id")
    odd = ("X_Custom", "api_key", "X.Custom", "X_Auth_User_Id")
    assert await get(it, "/", *(f"{name}: mine" for name in (*names, *odd))) == 200
    headers = it.backend.seen[0].headers
    assert {name: headers.get(name) for name in names} == dict.fromkeys(names, "mine")
    kept = {name: headers.get(name) for name in odd}
    # nginx and Caddy do so on every site, whatever stands in a file.
    kept_by = {Proxy.ENVOY, Proxy.HAPROXY}
    assert kept == dict.fromkeys(odd, "mine" if it.proxy in kept_by else None)


@pytest.mark.parametrize("length", ["Content-Length: 3000000", "Transfer-Encoding: chunked"])
async def test_its_uploads_are_its_own(it, length):
    """Of any size and path, and nobody looks for a method in them."""
    body = b"_method=DELETE&".ljust(3_000_000, b"x")
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if "chunked" in length else body
    lines = ("POST /upload?_method=PUT HTTP/1.1", f"Host: {OTHER}", "Connection: close", length)
    answer = await exchanged(it.url, "\r\n".join((*lines, "", "")).encode() + sent)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert it.backend.seen[0].body == body
    assert it.authz.asked == []


@pytest.mark.parametrize("method", ["PROPFIND", "PURGE", "OPTIONS"])
async def test_its_methods_are_its_own(it, method):
    """And what it makes of them."""
    await get(it, "/api/v1/teams", method=method)
    assert it.backend.seen[0].method == method
    assert it.authz.asked == []


@asynccontextmanager
async def pages(it: Stage) -> AsyncIterator[None]:
    """In the backend's place, what answers /404 with a page of its own and 404."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b" ")[1][1:]
            writer.write(b"HTTP/1.1 %b Its\r\nContent-Type: text/x-own\r\n" % status)
            writer.write(b"Content-Length: 3\r\nConnection: close\r\n\r\nown")
        writer.close()

    await it.backend.stop()
    host, _, port = it.backend.address.rpartition(":")
    server = await asyncio.start_server(answer, host, int(port))
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
        await it.backend.start()


async def test_its_status_pages_are_its_own(it):
    """Whatever it says passes, and none of our words or headers stands beside it."""
    async with pages(it):
        for status in (400, 401, 403, 404, 405, 413, 414, 429, 431, 500, 501, 502, 503, 504):
            said, answer = await send(it.url, "GET", f"/{status}", f"Host: {OTHER}")
            head, _, body = answer.lower().partition(b"\r\n\r\n")
            assert (said, body) == (status, b"own")
            assert b"\r\ncontent-type: text/x-own" in head
            assert b"access-control" not in head


async def test_without_its_backend_the_proxy_says_so_in_its_own_words(it):
    """A site that is down is none of our business."""
    await it.backend.stop()
    targets = ("/", "/authz/whoami", "/api/v1/teams")
    try:
        sent = (send(it.url, "GET", target, f"Host: {OTHER}") for target in targets)
        answers = await asyncio.gather(*sent)
    finally:
        await it.backend.start()
    for status, answer in answers:
        assert status in {502, 503}
        assert b'"code"' not in answer
        assert b"access-control" not in answer.lower()


async def test_a_client_that_names_no_host_is_not_ours(it):
    """HTTP/1.0 has none. Envoy can't tell then whom it refuses: in the guarded host's words."""
    answer = await exchanged(it.url, b"GET /health HTTP/1.0\r\n\r\n")
    assert (b'"code"' in answer) == (it.proxy is Proxy.ENVOY)
    assert it.authz.asked == []
    if it.proxy in {Proxy.NGINX, Proxy.HAPROXY}:  # to the first site, or to one that takes it
        assert [seen.target for seen in it.backend.seen] == ["/health"]


async def test_its_count_is_its_own(it):
    """The headers that the guard replaces on Coolify's answers stay on another site's."""
    _, answer = await send(it.url, "GET", "/api/v1/teams", f"Host: {OTHER}")
    assert b"x-ratelimit-limit: 200" in answer.lower()


async def test_the_guarded_host_is_still_asked_about(it):
    """Beside it, so the two do not change places."""
    host = it.url.removeprefix("http://")
    it.authz.status = 403
    for target in ("/api/v1/teams", "/%61pi/v1/teams", "/mcp", "/index.php/api/v1/teams"):
        it.clear()
        it.authz.status = 403
        assert await get(it, target, host=host) == 403
        assert len(it.authz.asked) == 1
        assert it.backend.seen == []
