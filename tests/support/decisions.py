"""Decisions on a real Redis without a server around them: a world, stores, and what they cost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from types import MappingProxyType, SimpleNamespace
from typing import Any

from redis.asyncio import Redis

from authsidecar.decision.authorize import Outcome, Rules, StoreError, authorize
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import AccessRequest, Allow, Credential, Deny, Limit, Proxy, TokenId
from authsidecar.decision.policy import Policy
from authsidecar.decision.ratelimit.pace import AddressPace
from authsidecar.decision.routes import coolify
from authsidecar.serving.connection import _Waiting
from authsidecar.store.connect import Connection, connected
from authsidecar.store.decisions import DecisionStore
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from tests.support import seed
from tests.support.waiting import PATIENCE_S

LIMITS = MappingProxyType({"user": Limit(200), "failed": Limit(30), "unknown": Limit(200)})
READ_ROUTE = ("GET", "/api/v1/teams")


def rules(limits: Mapping[str, Limit] = LIMITS) -> Rules:
    """Coolify 4.3's routes and the default limits."""
    return Rules(Policy(coolify("4.3")), limits)


RULES = rules()


def credential(token: int, secret: str | None = None) -> Credential:
    """What the parser leaves of the token."""
    text = seed.secret_of(token) if secret is None else secret
    return Credential(TokenId(token), sha256(text.encode()).digest())


def request(
    who: Credential | Deny | int | None,
    route: tuple[str, str] = READ_ROUTE,
    *,
    client: str = "192.0.2.1",
    request_id: str | None = None,
    body: bool = False,
) -> AccessRequest:
    """One request; `who` is a token's id, what the parser made of another, or None for none."""
    method, target = route
    path = target.partition("?")[0]
    held = Deny(TOKEN_MISSING) if who is None else credential(who) if isinstance(who, int) else who
    return AccessRequest(
        proxy=Proxy.NGINX,
        method=method,
        path=path,
        target=target.encode(),
        client=ip_address(client),
        credential=held,
        request_id=request_id,
        body=body,
    )


def code(outcome: Outcome) -> str:
    """`allow`, or the code of the refusal."""
    match outcome.verdict:
        case Allow():
            return "allow"
        case Deny() as deny:
            return deny.reason.code


@dataclass(eq=False)
class Sidecar:
    """One process's share of the work: a store with a client and a cache of its own."""

    store: DecisionStore
    trips: list[str] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)

    async def outcome(self, who: Any, *route: str, rules: Rules = RULES, **more: Any) -> Outcome:
        """The whole answer: `outcome(67)`, `outcome(67, "POST", "/mcp", client="192.0.2.9")`."""
        asked = request(who, (route[0], route[1]) if route else READ_ROUTE, **more)
        return await authorize(asked, rules, self.store)

    async def ask(self, who: Any, *route: str, **more: Any) -> str:
        """Only the code of the answer."""
        return code(await self.outcome(who, *route, **more))

    async def until_reached(self) -> None:
        """Ping until Redis answers within the budget, which may be far less than `serve` has."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await self.store.ping()
                except StoreError as error:
                    if error.kind not in {"timeout", "open"}:
                        raise
                    await asyncio.sleep(0.05)

    async def decided(self, who: Any, *route: str, **more: Any) -> str:
        """The code of the first answer that is a decision, however busy the machine."""
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self.ask(who, *route, **more)) == "store_unavailable":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return answer

    async def until_allowed(self, who: Any) -> None:
        """Ask until Redis, or a slow machine, has come to itself."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.ask(who) != "allow":  # noqa: ASYNC110  # nothing would set an event
                await asyncio.sleep(0.05)


def outside_a_task(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
    """Run it at once and as a connection does: in no task, so what needs one must have its own."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def told() -> Any:
        try:
            return True, await coroutine
        except Exception as error:  # noqa: BLE001  # it is the caller's to see
            return False, error

    def tell(answer: Any) -> None:
        well, value = answer
        if well:
            ended.set_result(value)
        else:
            ended.set_exception(value)

    telling = told()
    try:
        awaited = telling.send(None)
    except StopIteration as answer:
        tell(answer.value)
    else:
        asking = SimpleNamespace(answered_later=tell, failed_later=ended.set_exception)
        _Waiting(telling, asking).on(awaited)
    return ended


@asynccontextmanager
async def sidecar(
    url: str,
    *,
    kind: type[DecisionStore] = DecisionStore,
    lookups_per_second: int = 10,
    budget_ms: int = 5000,
    before: Callable[[], Awaitable[object]] | None = None,
    how: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Sidecar]:
    """A store as `serve` makes it, with its own connections.

    Args:
        url: its Redis.
        kind: DecisionStore, or a test's own.
        lookups_per_second: the pace of a refused address.
        budget_ms: generous, since a loaded test machine is no outage.
        before: called before everything that is sent to Redis.
        how: more of Connection's own.
        options: more of DecisionStore's own.
    """
    made = Sidecar(store=None)  # type: ignore[arg-type]  # the store tells it of its trips
    async with connected(Connection(url, data_dir=None, **how)) as client:  # type: ignore[arg-type]
        if before is not None:
            pool = client.connection_pool
            pool.connection_class = _told(pool.connection_class, before)
        made.store = kind(
            client,
            Keys(),
            budget_ms=budget_ms,
            pace=AddressPace(lookups_per_second),
            observe=lambda operation, _seconds, _kind: made.trips.append(operation),
            looked_up=made.lookups.append,
            **options,
        )
        if before is not None:
            made.store._calls.takes_over = False  # all is sent by redis-py, which waits for it
        await made.until_reached()
        made.trips.clear()
        yield made
        await made.store.close()


def _told(connection: type[Any], before: Callable[[], Awaitable[object]]) -> type[Any]:
    """The same kind of connection, calling `before` before it sends."""

    class Told(connection):
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            await before()
            await super().send_packed_command(*args, **kwargs)

    return Told


async def world(client: Redis) -> Registry:
    """User 7, owner of team 3, with token 67 (read, write) and 68 (read); the API is on."""
    registry = seed.registry(client)
    await seed.user(registry, 7, t3="owner")
    await registry.put_tokens(
        [
            seed.token(67, user=7, team=3, permissions=("read", "write")),
            seed.token(68, user=7, team=3),
        ]
    )
    await registry.set_instance(api_enabled=True, mcp_enabled=True)
    return registry


class Commands(dict[str, int]):
    """How often Redis ran each command, those of scripts included."""


@asynccontextmanager
async def commands(client: Redis) -> AsyncIterator[Commands]:
    """Counts what Redis runs meanwhile, by INFO commandstats; filled at the end."""
    await client.ping()
    await client.config_resetstat()
    seen = Commands()
    yield seen
    stats = await client.info("commandstats")
    seen.update({name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()})
    for own in ("config|resetstat", "info"):
        seen.pop(own, None)
