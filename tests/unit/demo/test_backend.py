"""The stand-in answers as Coolify does, over a real socket."""

from collections.abc import AsyncIterator
from io import BytesIO

import aiohttp
import pytest

from authsidecar.demo.backend import Backend


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with Backend() as running:
        yield running


@pytest.fixture
async def http(backend: Backend) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{backend.address}") as session:
        yield session


async def test_it_says_which_route_it_ran_and_for_whom(backend, http):
    """The answer shows route, identity, raw target and the body's size."""
    headers = {"X-Auth-User-Id": "7", "X_Auth_Team_Id": "0", "Accept": "*/*"}
    target = "/api/v1/servers/abc?a=1"
    async with http.get(target, headers=headers, data=b"four") as answer:
        assert await answer.json() == {
            "method": "GET",
            "template": "/api/v1/servers/{uuid}",
            "identity": {"X-Auth-User-Id": "7", "X_Auth_Team_Id": "0"},
            "target": target,
            "body_bytes": 4,
        }
    assert [seen.target for seen in backend.seen] == [target]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/v1/enable", "API enabled."),
        ("/api/v1/disable", "API disabled."),
        ("/api/v1/mcp/enable", "MCP server enabled."),
        ("/api/v1/mcp/disable", "MCP server disabled."),
    ],
)
async def test_the_switches_answer_as_coolifys(http, path, message):
    """Word for word."""
    async with http.post(path) as answer:
        assert (answer.status, await answer.json()) == (200, {"message": message})


async def test_an_unknown_api_path_is_coolifys_404(http):
    """With the link to the documentation."""
    async with http.get("/api/v1/nothing") as answer:
        assert answer.status == 404
        assert await answer.json() == {"message": "Not found.", "docs": "https://coolify.io/docs"}


async def test_a_page_of_the_site_is_no_api_route(http):
    """Whatever lies outside the API is answered, with no template."""
    async with http.get("/login") as answer:
        assert answer.status == 200
        assert (await answer.json())["template"] is None
        assert "X-RateLimit-Limit" not in answer.headers


async def test_a_preflight_is_answered_by_coolify_itself(http):
    """204 with what browsers ask for; an OPTIONS that asks nothing is a 404."""
    asking = {"Access-Control-Request-Method": "PATCH", "Origin": "https://app.test"}
    async with http.options("/api/v1/teams", headers=asking) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Methods"] == "*"
    async with http.options("/api/v1/teams") as answer:
        assert answer.status == 404


async def test_a_bad_override_is_a_bad_request(http):
    """As Symfony answers it."""
    async with http.post("/api/v1/enable?_method=%21") as answer:
        assert answer.status == 400


async def test_an_override_is_obeyed(backend, http):
    """The stand-in is as unsafe as Coolify, so that tests can see it."""
    async with http.post("/api/v1/applications/x?_method=DELETE") as answer:
        assert (await answer.json())["method"] == "DELETE"
    assert backend.seen[0].method == "POST"


async def test_a_body_of_any_size_is_read(backend, http):
    """Past aiohttp's own limit of one MiB."""
    async with http.post("/api/v1/enable", data=BytesIO(b"x" * 2_000_000)) as answer:
        assert answer.status == 200
    assert len(backend.seen[0].body) == 2_000_000


async def test_it_comes_back_on_the_address_it_had(backend, http):
    """Tests stop and start it behind a proxy that knows one address."""
    before = backend.address
    await backend.stop()
    await backend.start()
    assert backend.address == before
    async with http.get("/api/v1/teams") as answer:
        assert answer.status == 200
