"""All proxies between one client and one backend, with a real sidecar and a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from authsidecar.decision.model import Proxy, TeamId
from authsidecar.demo.backend import Backend, Seen
from authsidecar.demo.proxies import RECIPES, RunningProxy, start_proxy
from tests.support import seed
from tests.support.proxies import is_missing, need
from tests.support.redis import RedisProcess
from tests.support.sidecar import PROGRAM, Answer, SidecarProcess
from tests.support.waiting import PATIENCE_S
from tests.support.wire import Wire
from tests.support.world import READ, World

IDENTITY = (
    *("user-id", "team-id", "team-role", "token-id"),
    *("permissions", "read-sensitive", "client-ip", "decision-id"),
)
"""The names that decisions.md promises to the backend, after `x-auth-`."""


@dataclass(slots=True)
class Lab:
    """What runs; the sidecar can be put in the place of another for a while.

    Attributes:
        redis: its server.
        client: a client of that.
        sidecar: the process that all proxies ask.
        backend: the stand-in for Coolify behind all proxies.
        proxies: every proxy that this machine can boot.
    """

    redis: RedisProcess
    client: Redis
    sidecar: SidecarProcess
    backend: Backend
    proxies: Mapping[Proxy, RunningProxy]

    @property
    def world(self) -> World:
        return World(self.sidecar, self.client)

    @property
    def seen(self) -> list[Seen]:
        """What has reached the backend since the last `reset`."""
        return self.backend.seen

    def port(self, proxy: Proxy) -> int:
        need(proxy)
        return int(self.proxies[proxy].url.rpartition(":")[2])

    async def reset(self) -> None:
        """All as it was at first: switches, allowlist, counters; the backend has seen nothing."""
        await self.client.config_set("min-replicas-to-write", 0)
        registry = seed.registry(self.client)
        await registry.set_instance(api_enabled=True, mcp_enabled=True, allowlist="")
        await registry.set_team_mcp(TeamId(0), enabled=True)
        await self.forget_counts()
        self.backend.seen.clear()

    async def forget_counts(self) -> None:
        """Empty every rate-limit counter."""
        if keys := [key async for key in self.client.scan_iter("authsidecar:rate:*", count=1000)]:
            await self.client.delete(*keys)

    async def ask(
        self,
        proxy: Proxy,
        method: str = "GET",
        target: str = "/api/v1/teams",
        *lines: str,
        token: int | None = None,
        body: bytes = b"",
        source: str | None = None,
    ) -> Answer:
        """One client request on a connection of its own.

        Args:
            proxy: which proxy is asked.
            method: sent as it is.
            target: sent as it is, in Latin-1.
            lines: header lines beside Host, Connection, Content-Length and Authorization.
            token: stands for its Authorization.
            body: sent with its length.
            source: the client's address, one of 127.0.0.0/8.

        Raises:
            ConnectionError: the proxy has closed without an answer.
        """
        request = self.request(proxy, method, target, *lines, token=token, body=body)
        async with Wire(self.port(proxy), source) as wire:
            try:
                return await wire.ask(request, head=method == "HEAD")
            except asyncio.IncompleteReadError:
                raise ConnectionError(f"{proxy} closed without an answer") from None

    def request(
        self,
        proxy: Proxy,
        method: str,
        target: str,
        *lines: str,
        token: int | None = None,
        body: bytes = b"",
    ) -> bytes:
        """The bytes of such a request."""
        head = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port(proxy)}", *lines]
        if token is not None:
            head.append(f"Authorization: {seed.bearer(token)}")
        if not any(line.lower().startswith("connection:") for line in lines):
            head.append("Connection: close")
        if body or method in {"POST", "PUT", "PATCH"}:
            head.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body

    @asynccontextmanager
    async def replaced(self, *, program: Any = PROGRAM, **settings: str) -> AsyncIterator[None]:
        """Another sidecar in the place of the first, on the same ports, for as long as this lasts.

        Args:
            program: what Python runs.
            settings: more settings by the environment's names without the prefix.
        """
        first = self.sidecar
        environ = {**first.environ, **{f"AUTHSIDECAR_{k}": v for k, v in settings.items()}}
        other = replace(first, environ=environ, program=program, _process=None)
        first.stop()
        other.start()
        self.sidecar = other
        try:
            await self.settle()
            yield
        finally:
            other.stop()
            first.start()
            self.sidecar = first
            await self.settle()

    async def settle(self, proxies: Iterable[Proxy] | None = None) -> None:
        """Return once the sidecar answers through the proxies, whatever their old connections.

        With a token: the bucket of failed ones may hold one request, and a process remembers that.
        """
        for proxy in proxies or self.proxies:
            async with asyncio.timeout(PATIENCE_S):
                while (await self.ask(proxy, token=READ)).status >= 500:  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(0.01)
        await self.reset()


class _Booted(dict[Proxy, RunningProxy]):
    """The proxies of this machine; a test of one that it does not have is skipped."""

    def __missing__(self, proxy: Proxy) -> RunningProxy:
        need(proxy)
        raise KeyError(proxy)


@asynccontextmanager
async def laboratory(
    redis: RedisProcess,
    sidecar: SidecarProcess,
    directory: Path,
    *,
    authz: str | None = None,
    proxies: Iterable[Proxy] | None = None,
    show_bodies: bool = False,
) -> AsyncIterator[Lab]:
    """Boot backend and proxies in front of a sidecar that runs; end them afterwards.

    Args:
        redis: the sidecar's server, populated.
        sidecar: whom the proxies ask.
        directory: where files and logs go.
        authz: `host:port` that the proxies ask in place of the sidecar's own.
        proxies: which of them; all that this machine has.
        show_bodies: whether they show the sidecar bodies, where they can.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Redis.from_url(redis.url))
        backend = await stack.enter_async_context(Backend())
        running = _Booted()
        if proxies is None:
            proxies = [proxy for proxy in RECIPES if not is_missing(proxy)]
        for proxy in proxies:
            place = directory / proxy.value
            place.mkdir(parents=True)
            running[proxy] = await start_proxy(
                proxy,
                authz=authz or f"127.0.0.1:{sidecar.port}",
                backend=backend.address,
                directory=place,
                show_bodies=show_bodies,
            )
            stack.push_async_callback(running[proxy].stop)
        lab = Lab(redis, client, sidecar, backend, running)
        await lab.reset()
        yield lab
