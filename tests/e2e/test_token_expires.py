"""X-Auth-Token-Expires through the real proxies: the sidecar's arrives, a client's never does."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from authsidecar.demo.proxies import RECIPES
from tests.support.proxies import Stage, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "X-Auth-Token-Expires"
WHEN = "2027-01-15T08:00:00Z"


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=list(RECIPES))
async def it(request, tmp_path_factory) -> AsyncIterator[Stage]:
    """One proxy from its deploy files, in front of a scripted authorization server."""
    proxy = request.param
    async with stage(proxy, tmp_path_factory.mktemp(proxy.value)) as started:
        yield started


@pytest.mark.parametrize("sent", [{}, {NAME: "evil"}, {NAME.lower(): "evil"}])
@pytest.mark.parametrize(
    ("told", "path"), [(WHEN, "/api/v1/teams"), (None, "/api/v1/teams"), (None, "/login")]
)
async def test_only_the_sidecar_says_when_a_token_expires(it, sent, told, path):
    """Near expiry its word arrives; else nothing does, on the rest of the site as well."""
    it.clear()
    it.authz.headers = {NAME: told} if told else {}
    headers = {"Authorization": "Bearer 67|secret", **sent}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{it.url}{path}", headers=headers) as answer,
    ):
        assert answer.status == 200
    [seen] = it.backend.seen
    assert seen.headers.getall(NAME, []) == ([told] if told else [])
