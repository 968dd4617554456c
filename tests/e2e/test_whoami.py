"""`/api/v1/whoami` through every proxy: the sidecar's own answer, and no way past it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp.shared._httpx_utils import create_mcp_http_client

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies.replies import EXPOSED
from tests.e2e.scenarios import PROXIES
from tests.support import seed
from tests.support.lab import Lab
from tests.support.world import READ

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/reference/whoami.schema.json").read_text("utf-8")
)
WHOAMI = "/api/v1/whoami"
COUNT = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "RateLimit", "RateLimit-Policy")

on_proxies = pytest.mark.asyncio(loop_scope="session")


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_client_is_told_what_its_token_may(lab: Lab, proxy: Proxy) -> None:
    """By curl and by a browser's script, with its count; the backend is not asked."""
    source = "127.0.0.7"
    for lines in (("User-Agent: curl/8.5.0", "Accept: */*"), ("Origin: https://app.test",)):
        answer = await lab.ask(proxy, "GET", f"{WHOAMI}?a=1", *lines, token=READ, source=source)
        assert answer.status == 200
        jsonschema.validate(answer.json, SCHEMA)
        assert (answer.json["id"], answer.json["address"]) == (READ, source)
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("Access-Control-Allow-Origin") == "*"
        assert answer.header("Access-Control-Expose-Headers") == ", ".join(EXPOSED)
        assert answer.header("Cache-Control") == "no-store"
        assert all(answer.header(name) for name in COUNT)
    head = await lab.ask(proxy, "HEAD", WHOAMI, token=READ, source=source)
    assert (head.status, head.header("X-RateLimit-Remaining")) == (200, "57")
    assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_tool_of_an_mcp_server_is_told(lab: Lab, proxy: Proxy) -> None:
    """Through the MCP SDK: its client calls a tool of its server, which asks by its HTTP client."""
    server = MCPServer("coolify")

    @server.tool()
    async def whoami(url: str) -> dict[str, Any]:
        """What the server's token may do."""
        async with create_mcp_http_client({"Authorization": seed.bearer(READ)}) as http:
            answer = await http.get(url)
        return {"status": answer.status_code, "told": answer.json()}

    async with Client(server) as client:
        result = await client.call_tool("whoami", {"url": lab.proxies[proxy].url + WHOAMI})
    found = result.structured_content
    assert found is not None
    assert found["status"] == 200
    jsonschema.validate(found["told"], SCHEMA)
    assert found["told"]["id"] == READ
    assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_browser_may_ask(lab: Lab, proxy: Proxy) -> None:
    """The preflight allows the token, and costs nothing."""
    asks = "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"
    answer = await lab.ask(proxy, "OPTIONS", WHOAMI, "Origin: https://app.test", *asks)
    assert answer.status == 200
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("Access-Control-Allow-Methods") == "GET, HEAD"
    assert answer.header("Access-Control-Allow-Headers") == "Authorization, *"
    assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_whoever_has_no_good_token_is_told_nothing(lab: Lab, proxy: Proxy) -> None:
    """The refusal of every other route, whole; what the client says of itself is not believed."""
    spoofed = "X-Auth-Token-Id: 11", "X-Forwarded-Uri: /api/health", "X-Forwarded-Method: GET"
    for authorization, code in (
        ((), "token_missing"),
        ((f"Authorization: {seed.bearer(READ, 'wrong')}",), "token_unknown"),
    ):
        answer = await lab.ask(proxy, "GET", WHOAMI, *authorization, *spoofed)
        assert (answer.status, answer.json["code"]) == (401, code)
        assert answer.header("WWW-Authenticate")
        assert answer.header("Access-Control-Allow-Origin") == "*"
    assert (await lab.ask(proxy, "POST", WHOAMI, token=READ)).status == 405
    assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(
    "target", [f"{WHOAMI}x", f"{WHOAMI}/x", "/api/v1/whoam%69%20", "/api/v1/whoami/../teams2"]
)
async def test_only_that_path_is_the_sidecars(lab: Lab, proxy: Proxy, target: str) -> None:
    """Its neighbours are guarded as ever, and reach no other of the sidecar's paths."""
    answer = await lab.ask(proxy, "GET", target, token=READ)
    assert answer.status in {400, 404}
    assert lab.seen == []


@on_proxies
@pytest.mark.parametrize("proxy", PROXIES)
async def test_without_a_sidecar_nobody_is_told(lab: Lab, proxy: Proxy) -> None:
    """503 in the proxy's words, or Traefik's own 502; never Coolify's answer."""
    lab.sidecar.stop()
    try:
        answer = await lab.ask(proxy, "GET", WHOAMI, token=READ)
    finally:
        lab.sidecar.start()
        await lab.settle()
    assert answer.status == (502 if proxy is Proxy.TRAEFIK else 503)
    assert answer.header("Access-Control-Allow-Origin") == "*"
    if proxy is not Proxy.TRAEFIK:
        assert answer.json["code"] == "authorization_unavailable"
        assert answer.header("Retry-After") == "5"
    assert lab.seen == []
