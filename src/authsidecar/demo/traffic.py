"""Plausible requests that the demo sends itself, so that its console has something to show."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp

from authsidecar.demo.seed import CLIENTS, DemoToken

PER_SECOND: Final = 6.0
"""Requests a second, on average."""


@dataclass(frozen=True, slots=True)
class Habit:
    """What one client asks again and again.

    Attributes:
        share: how often, beside the others.
        token: whose it is; None: it has none.
        method: as it is sent.
        targets: one of them each time.
    """

    share: int
    token: DemoToken | None
    method: str
    targets: tuple[str, ...]


_DASHBOARD, _DEPLOYS, _MONITOR = CLIENTS

HABITS: Final[Sequence[Habit]] = (
    Habit(
        *(40, _DASHBOARD, "GET"),
        ("/api/v1/applications", "/api/v1/servers", "/api/v1/projects", "/api/v1/resources"),
    ),
    Habit(25, _MONITOR, "GET", ("/api/v1/servers", "/api/v1/deployments")),
    Habit(12, _DEPLOYS, "POST", ("/api/v1/deploy?uuid=shop", "/api/v1/deploy?uuid=blog")),
    Habit(6, _DEPLOYS, "GET", ("/api/v1/deployments",)),  # its token may only deploy
    Habit(4, _MONITOR, "POST", ("/api/v1/servers",)),
    Habit(1, None, "GET", ("/api/v1/teams", "/api/v1/version")),
    Habit(2, _DASHBOARD, "GET", ("/api/v1/settings/secrets",)),  # no such route
)


async def keep_asking(urls: Sequence[str]) -> None:
    """Send requests through these proxies until cancelled; whatever they answer is right."""
    chance = random.Random()  # noqa: S311  # no secret
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            await asyncio.sleep(chance.expovariate(PER_SECOND))
            (habit,) = chance.choices(HABITS, [one.share for one in HABITS])
            with suppress(aiohttp.ClientError, TimeoutError):
                await _ask(session, chance.choice(urls) + chance.choice(habit.targets), habit)


async def _ask(session: aiohttp.ClientSession, url: str, habit: Habit) -> None:
    token = habit.token
    headers = {} if token is None else {"Authorization": f"Bearer {token.plain}"}
    async with session.request(habit.method, url, headers=headers) as answer:
        await answer.read()
