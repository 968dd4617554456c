"""A console in this very process, on a real Redis, as a browser that has signed in sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from io import StringIO
from re import search
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from authsidecar.admin.keys import prove_key
from authsidecar.admin.questions import Sources
from authsidecar.admin.what_if import RoutesNow
from authsidecar.config import Settings
from authsidecar.coolify.status import read_owner
from authsidecar.observe.log import Log
from authsidecar.run.terms import terms
from authsidecar.serving.console import add_console
from authsidecar.serving.manage.access import Access
from authsidecar.serving.manage.operations import ReloadResult, Sidecar
from authsidecar.store.audit import Origin, Via
from authsidecar.store.console_sessions import ConsoleSessions
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.management_keys import ManagementKeys, Scope
from authsidecar.store.registry import Registry
from tests.support import seed

HOSTILE = 'a<b>"x"</b>\'&amp; \u202egnp.\u2066 =cmd|0 <script>alert(1)</script>'
"""A name that tries everything: HTML, bidirectional characters, a formula."""


@dataclass
class Page:
    """What a browser was given."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def csrf(self) -> str:
        found = search(r'name="csrf" value="([0-9a-f]{64})"', self.text)
        assert found, self.text
        return found[1]

    def has(self, words: str) -> bool:
        """Whether its text, tags left as they are, holds these words."""
        return words in unescape(self.text)


@dataclass
class Browser:
    """A browser with the console open; `log` is what the sidecar has logged."""

    client: TestClient
    redis: Any
    log: StringIO
    sidecar: Sidecar
    csrf: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def registry(self) -> Registry:
        return seed.registry(self.redis)

    @property
    def origin(self) -> str:
        return f"http://{self.client.host}:{self.client.port}"

    async def sign_in(self, scope: Scope = Scope.WRITE, actor: str = "alice") -> None:
        """Sign in by a link."""
        sessions = ConsoleSessions(self.redis, self.sidecar.keys)
        link = await sessions.make_link(Origin(actor, Via.CLI, "test"), scope)
        page = await self.post("/sign-in", {"link": link})
        assert page.status == 303, page.text
        self.csrf = (await self.get("/audit")).csrf

    async def get(self, path: str = "", **headers: str) -> Page:
        """A page below /console; redirections are not followed."""
        answer = await self.client.get(
            f"/console{path}", headers=self.headers | headers, allow_redirects=False
        )
        return await _page(answer)

    async def post(
        self,
        path: str,
        fields: Mapping[str, object],
        *,
        csrf: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Page:
        """Send a form as a page of ours does; redirections are not followed."""
        sent: list[tuple[str, str]] = [("csrf", self.csrf if csrf is None else csrf)]
        for name, value in fields.items():
            sent += [(name, str(v)) for v in (value if isinstance(value, list) else [value])]
        own = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"}
        answer = await self.client.post(
            f"/console{path}",
            data=sent,
            headers=own | self.headers | dict(headers or {}),
            allow_redirects=False,
        )
        return await _page(answer)


async def _page(answer: ClientResponse) -> Page:
    return Page(answer.status, await answer.text(), answer.headers)


def console_app(
    client: Any, log: Log, *, hosts: tuple[str, ...] = (), warnings: tuple[str, ...] = ()
) -> tuple[web.Application, Sidecar]:
    """The application of a management listener that has a console alone."""
    settings = Settings()
    keys = Keys(settings.redis.prefix)
    now = terms(settings)

    async def nothing() -> dict[str, str]:
        return {}

    async def nothing_changed() -> ReloadResult:
        return ReloadResult(now.digest)

    store = DecisionStore(client, keys, budget_ms=5000)

    async def ask(question: Any) -> Any:
        return await question(Sources(client, keys, Registry(client, keys), store))

    sidecar = Sidecar(
        client=client,
        keys=keys,
        decisions=store,
        rules=lambda: now.rules,
        routes=lambda: RoutesNow(now.release, now.extra_routes),
        peers=lambda: now.trusted_peers,
        hops=lambda: now.trusted_hops,
        ask=ask,
        reload=nothing_changed,
        replicas=(0, 0),
        owner=partial(read_owner, client, keys),
        missing=nothing,
        sync=nothing,
        background=dict,
        warnings=lambda: warnings,
        version="1.2.3",
    )
    app = web.Application(client_max_size=128 * 1024)
    access = Access(partial(prove_key, ManagementKeys(client, keys)))
    add_console(app, sidecar, access, log, hosts)
    return app, sidecar
