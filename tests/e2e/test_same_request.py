"""Sidecar and Laravel see one request: whatever spelling a client chooses, on every proxy."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from authsidecar.demo.proxies import RECIPES
from authsidecar.model import AccessRequest
from tests.support.proxies import Stage, judged, stage
from tests.support.raw_http import send

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = (
    *("/api/v1/teams", "/API/v1/teams", "/apix", "/%61pi/v1/teams", "/api/v1/%74eams"),
    *("//api/v1/teams", "/api/v1//teams", "/x/../api/v1/teams", "/x/%2e%2e/api/v1/teams"),
    *("/x/..%2fapi/v1/teams", "/api/../dashboard", "/api%2Fv1%2Fteams", "/api/v1/teams%2F123"),
    *("/api/v1/teams%2F", "/api%5Cv1/teams", "/api\\v1\\teams", "/api;x=1/v1/teams"),
    *("/api/v1/..;/teams", "/x/..;/api/v1/teams", "/api/v1/teams%00", "/api/v1/teams%0a"),
    *("/api/v1/%2574eams", "/%2561pi/v1/teams", "/api/v1/teams?a=1;b=2", "/api/v1/teams?a=%zz"),
    *("/api/v1/teams?x=%2e%2e", "/api/v1/teams%3Fx=1", "/api/v1/teams#frag", "/dashboard#/api/v1"),
    *("/api/v1/%zz", "/api/v1/t\xe9ams", "/api/v1/%ff", "/api/v1/67|abc", "/api/v1/teams/"),
    *("http://evil.test/api/v1/teams", "*", "api/v1/teams", "/index.php/api/v1/teams"),
    *("/%69ndex.php/mcp", "/index%2ephp/api/v1/teams", "/index.phpapi/v1/teams", "/index.php/mcp"),
    *("/INDEX.PHP/api/v1/teams", "/index.php/%61pi/v1/teams", "/index.php%2Fapi/v1/teams"),
    *("//index.php/api/v1/teams", "/x/../index.php/api/v1/teams", "/./api/v1/teams", "/mcp"),
    *("/api/v1/servers/a%2Fvalidate", "/api/v1/teams/./current", "/mcp/", "/mcp%2F", "/%6dcp"),
    *("/api/v1/teams?_method=DELETE", "/api/v1/enable", "/api/v1/enable?%5fmethod=GET"),
    *("/api/v1/applications/x?.method=DELETE", "/api/v1/applications/x?_method%00=DELETE"),
    *("/api/v1/applications/x?+_method=DELETE", "/api/v1/applications/x?_method[]=DELETE"),
)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=list(RECIPES))
async def running(request, tmp_path_factory) -> AsyncIterator[Stage]:
    proxy = request.param
    async with stage(proxy, tmp_path_factory.mktemp(proxy.value)) as started:
        yield started


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_sidecar_judges_what_laravel_runs(running, method):
    """No API route runs unasked; what is asked and readable is what runs, method and path."""
    compared = 0
    for path in PATHS:
        running.clear()
        await send(running.url, method, path, "Authorization: Bearer 67|s")
        for seen in running.backend.seen:
            if seen.routed is None or not (seen.routed.is_api or seen.routed.template):
                continue
            assert running.authz.asked, f"{path!r} ran {seen.routed} unasked"
            access = judged(running.proxy, running.authz.asked[-1])
            if isinstance(access, AccessRequest) and access.path != "/index.php":
                assert (access.method, access.path) == (seen.routed.method, seen.routed.path), path
                compared += 1
    assert compared >= 5
