"""Sidecar and Laravel see one request: whatever spelling a client chooses, on every proxy."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from authsidecar.decision.model import AccessRequest
from authsidecar.demo.proxies import RECIPES
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


PAGE = Path(__file__).parents[2] / "docs/explanation/deviations.md"
NAMES = {"Traefik", "nginx", "Caddy", "Envoy", "HAProxy"}


def said_of_slashes(proxy: str) -> dict[str, str]:
    """What the page says becomes of each target behind this proxy."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith(("| target | Coolify alone |", "| `/"))
    ]
    start = next(n for n, row in enumerate(rows) if row[0] == "target")
    head, table = rows[start], rows[start + 1 :]
    assert set(head[2:]) == NAMES
    column = [name.lower() for name in head].index(proxy)
    return {row[0]: row[column] for row in table if len(row) == len(head)}


async def test_empty_segments_are_treated_as_the_page_says(running):
    """Merged before the sidecar is asked, or shown to it and refused."""
    told = said_of_slashes(running.proxy.value)
    assert len(told) == 4
    for target, expected in told.items():
        running.clear()
        status, _ = await send(running.url, "GET", target, "Authorization: Bearer 67|s")
        seen = f"{status}, unasked"
        if running.authz.asked:
            access = judged(running.proxy, running.authz.asked[-1])
            known = isinstance(access, AccessRequest)
            seen = access.path if known else str(access.reason.status)
        assert seen.removesuffix(", unasked") == expected, (target, seen)


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
