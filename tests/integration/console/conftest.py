"""A browser in front of a console in this process; and every page that a test looks at."""

from collections.abc import AsyncIterator
from io import StringIO

import pytest
from redis.asyncio import Redis

from authsidecar.observe.log import Log
from tests.support.console import Browser, console_app

PAGES_SHOWN = ("", "/access", "/ask", "/decisions", "/limits", "/tokens", "/audit")
"""Below /console: each is looked at for policy, size, hostile names and secrets."""


@pytest.fixture
async def stranger(aiohttp_client, redis_client: Redis) -> AsyncIterator[Browser]:
    """A browser that has not signed in."""
    lines = StringIO()
    app, sidecar = console_app(redis_client, Log(json_lines=True, level="info", stream=lines))
    yield Browser(await aiohttp_client(app), redis_client, lines, sidecar)
    await sidecar.decisions.close()


@pytest.fixture
async def console(stranger: Browser) -> Browser:
    """A browser that is signed in, and may change everything."""
    await stranger.sign_in()
    return stranger
