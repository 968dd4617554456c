"""Sends a scenario through a proxy and says the answer in one line."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from authsidecar.decision.model import Proxy
from authsidecar.demo.scenarios import Scenario, agrees

PATIENCE: Final = aiohttp.ClientTimeout(total=10)
"""An answer that takes longer is none."""


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """What was expected of a proxy and what it answered, each in one line."""

    scenario: Scenario
    proxy: Proxy
    seen: str

    @property
    def expected(self) -> str:
        """The scenario's promise for this proxy."""
        return self.scenario.expected

    @property
    def agrees(self) -> bool:
        """Whether both are the same."""
        return agrees(self.expected, self.seen)


async def results(proxy: Proxy, url: str, scenarios: Iterable[Scenario]) -> list[ScenarioResult]:
    """Send all scenarios, in order, to the proxy at `url`."""
    async with aiohttp.ClientSession(timeout=PATIENCE) as session:
        return [ScenarioResult(s, proxy, await _ask(session, url, s)) for s in scenarios]


async def _ask(session: aiohttp.ClientSession, url: str, scenario: Scenario) -> str:
    target = URL(url + scenario.target, encoded=True)
    seen: list[str] = []
    try:
        for _ in range(scenario.times):
            async with session.request(
                scenario.method, target, headers=scenario.all_headers(), allow_redirects=False
            ) as answer:
                text = await answer.text()
            seen.append(summary(answer.status, answer.headers, text, scenario.shown))
    except (aiohttp.ClientError, TimeoutError) as error:
        seen.append(f"no answer ({type(error).__name__})")
    *earlier, last = seen
    return " ".join([*(one.partition(" ")[0] for one in earlier), last])


def summary(status: int, headers: Mapping[str, str], body: str, shown: Iterable[str]) -> str:
    """An answer in one line: status, then code, identity or message, then headers.

    >>> summary(403, {}, '{"code": "permission_missing", "missing_permissions": ["write"]}', ())
    '403 permission_missing: write'
    >>> summary(429, {"Retry-After": "9"}, '{"code": "rate_limited"}', ("Retry-After",))
    '429 rate_limited, Retry-After: 9'
    """
    words = " ".join(filter(None, (str(status), _content(body))))
    return ", ".join([words, *(f"{n}: {headers[n]}" for n in shown if n in headers)])


def _content(body: str) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(document, dict):
        return ""
    if "identity" in document:
        return _identity(document["identity"])
    text = str(document.get("code") or document.get("message") or "")
    missing = document.get("missing_permissions")
    return f"{text}: {' '.join(missing)}" if missing else text


def _identity(identity: Mapping[str, Any]) -> str:
    """Who the backend was told is calling.

    `no identity` is said only where the sidecar itself said `none`: silence is something else.
    """
    user = identity.get("X-Auth-User-Id")
    if user is None:
        return "nothing was said about the caller"
    if user == "none":
        return "no identity"
    team, role = identity.get("X-Auth-Team-Id"), identity.get("X-Auth-Team-Role")
    permissions = identity.get("X-Auth-Permissions")
    sensitive = ", sensitive" if identity.get("X-Auth-Read-Sensitive") == "true" else ""
    return f"user {user}, team {team}, {role}, {permissions}{sensitive}"
