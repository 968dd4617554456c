"""The servers that are compared; `python -m benchmarks.contestants NAME PORT REDIS` runs one."""

import asyncio
import json
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import uvloop
from aiohttp import web
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis

from authsidecar.decision.addresses import Networks
from authsidecar.decision.authorize import Outcome
from authsidecar.decision.checks import judge
from authsidecar.decision.model import Credential, Deny, Limit, Proxy, Quota, TokenId, TokenRecord
from authsidecar.decision.policy import RATE_LIMITED, Case, Judgement, Policy, find_route, identify
from authsidecar.decision.proxies.forward_auth import read
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.replies import Reply, render
from authsidecar.decision.ratelimit import charges
from authsidecar.decision.routes import Route, coolify
from authsidecar.store import records
from authsidecar.store.calls import charge_script
from authsidecar.store.keys import Keys
from authsidecar.times import UnixMs

LIMIT = 100_000
"""Requests a minute of each user: nobody reaches it."""

CONNECTIONS = 512
"""To Redis, at most: redis-py's own 100 would refuse some of 256 requests at once."""

FLAT = "benchmark:token:"
"""HASH of a token with its owner's role beside it: all that the two-trip versions read."""

ADMITTED = 1
"""What charge.lua says of a request that it charged."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def empty(_: str) -> Handler:
    """One handler that does nothing."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    return handler


async def naive(redis_url: str) -> Handler:
    """Token, role and settings in one trip, the limiter in a second: no cache, nothing shared.

    What it checks, in which order, and what it answers is the sidecar's own code.
    """
    client: Any = Redis.from_url(redis_url, max_connections=CONNECTIONS)
    keys, policy, limits = Keys(), Policy(coolify("4.3")), {"user": Limit(LIMIT)}
    charge = client.register_script(charge_script())

    async def decide(request: web.Request, decision_id: str) -> Reply:
        proxy, line = Proxy(request.match_info["proxy"]), None
        if proxy is Proxy.ENVOY:
            line = request.method.encode(), request.raw_path.removeprefix("/authz/envoy").encode()
        access = read(Fields(request.raw_headers), proxy, Networks(), line)
        if isinstance(access, Deny) or isinstance(access.credential, Deny):
            raise web.HTTPBadRequest
        route = find_route(policy, access)
        assert isinstance(route, Route)
        pipe = client.pipeline(transaction=False)
        pipe.hgetall(f"{FLAT}{access.credential.token_id}")
        pipe.hgetall(keys.instance)
        token, settings = await pipe.execute()
        record = _record(access.credential, token)
        if record is None:
            raise web.HTTPUnauthorized
        instance = _instance(*(settings.get(name.encode()) for name in records.INSTANCE_FIELDS))
        counter = charges.of_principal(record, access.client, limits, 64)[0]
        now, (status, _, remaining, reset_at) = await charge(
            [keys.counter(counter)], ["", json.dumps([0, 0, 1, LIMIT, 60_000])]
        )
        known = identify(access, route, instance, record, UnixMs(now))
        if isinstance(known, Judgement):
            raise web.HTTPUnauthorized
        verdict = judge(Case(policy, access.client, route, instance, known)).verdict
        if status != ADMITTED:
            verdict = Deny(RATE_LIMITED)
        quota = Quota("user", counter.limit, remaining, UnixMs(reset_at))
        outcome = Outcome(verdict, UnixMs(now), (quota,), route.template, record)
        return render(outcome, access.client, decision_id)

    async def handler(request: web.Request) -> web.Response:
        reply = await decide(request, secrets.token_hex(13))
        return web.Response(status=reply.status, headers=list(reply.headers), body=reply.body)

    return handler


def _record(credential: Credential, token: dict[bytes, bytes]) -> TokenRecord | None:
    return records.token_record(
        TokenId(credential.token_id),
        [token.get(name.encode()) for name in records.TOKEN_FIELDS],
        user=[b"", None, None],
        team=[b"", None, None, None],
        member=token.get(b"role"),
        nonce=b"",
    )


@lru_cache(maxsize=8)
def _instance(*fields: bytes | None) -> Any:
    """The settings: even a naive version parses the allowlist once."""
    return records.instance(fields, b"")


async def limits(redis_url: str) -> Handler:
    """The moving window of PyPI's `limits`, by token: a limiter alone, no authorization."""
    storage = RedisStorage(
        redis_url.replace("unix://", "async+redis+unix://"),
        implementation="redispy",
        max_connections=CONNECTIONS,
    )
    limiter = MovingWindowRateLimiter(storage)
    item = RateLimitItemPerMinute(LIMIT)

    async def handler(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].partition("|")[0]
        if not await limiter.hit(item, token):
            raise web.HTTPTooManyRequests
        return web.Response()

    return handler


CONTESTANTS = {"empty": empty, "naive": naive, "limits": limits, "backend": empty}

ENDPOINTS = "/authz/{proxy:traefik|nginx|caddy|envoy}{rest:.*}"


async def serve(name: str, port: int, redis_url: str) -> None:
    """Serve one contestant on 127.0.0.1 until it is ended."""
    app = web.Application()
    path = "/{path:.*}" if name == "backend" else ENDPOINTS
    app.add_routes([web.route("*", path, await CONTESTANTS[name](redis_url))])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, name_, port_, redis_ = sys.argv
    uvloop.run(serve(name_, int(port_), redis_))
