"""`token advise` on a month of a simulated fleet: its proposals refuse nothing of that month."""

import random
import shlex
from ipaddress import ip_address

import pytest
from redis.asyncio import Redis

from authsidecar.admin.advice import TokenAdvice, advise_on
from authsidecar.decision.authorize import Rules, authorize
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Proxy,
    Restriction,
    TokenId,
)
from authsidecar.decision.policy import Policy
from authsidecar.decision.restrictions import parse, widened
from authsidecar.decision.routes import Guard, Route, RouteTable, coolify
from authsidecar.decision.usage import used
from authsidecar.store import usage
from authsidecar.store.keys import Keys, owner_bucket
from authsidecar.store.last_used import LastUses
from authsidecar.store.records import write_place
from authsidecar.store.usage import DAY_MS
from authsidecar.times import UnixMs
from tests.property.test_restricted_resources import World, filled, grown, queried, restricted
from tests.support import seed
from tests.support.cases import record

FLEETS = 10
TOKENS = 12
DAYS = 30
CLIENT = ip_address("192.0.2.1")
HOLDS = (("read",), ("read", "deploy"), ("root",), ("read", "read:sensitive"), ("read", "write"))


def asking(method: str, path: str, query: str, *, body: bool = False) -> AccessRequest:
    target = f"{path}?{query}".encode()
    who = Credential(TokenId(67), record().digest)
    return AccessRequest(Proxy.TRAEFIK, method, path, target, CLIENT, who, body=body)


def job(
    dice: random.Random, world: World, table: RouteTable, routes: list[Route]
) -> list[AccessRequest]:
    """What a job asks again and again: a few routes, of some resources."""
    found: list[AccessRequest] = []
    odd, wanted = dice.random() < 0.3, dice.randint(1, 8)
    while len(found) < wanted:
        route = dice.choice(routes)
        path, said = filled(dice, world, route)
        query = queried(dice, world, route, said)[0] if odd else ""
        if route.template == "/api/v1/deploy" and not odd:
            query = f"uuid={dice.choice(world.of('application', 'service') or world.nodes).uuid}"
        if table.find(route.method, path) is route and (odd or "nobodys" not in path):
            found.append(asking(route.method, path, query, body=odd and dice.random() < 0.1))
    return found


async def admits(world: World, rules: Rules, asked: AccessRequest) -> bool:
    outcome = await authorize(asked, rules, world)  # type: ignore[arg-type]
    return isinstance(outcome.verdict, Allow)


@pytest.mark.parametrize(
    ("most", "forwarded"), [(usage.MOST, False), (3, False), (usage.MOST, True)]
)
async def test_what_is_proposed_refuses_no_request_of_that_month(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, most: int, forwarded: bool
) -> None:
    """Judged by the very core; written and read as by a sidecar; also where little is kept.

    With bodies that the proxy shows, a creation is held to what it names.
    """
    monkeypatch.setattr(usage, "MOST", most)
    table = coolify("4.3")
    rules = Rules(Policy(table), {}, forwarded_bodies=forwarded)
    guarded = {Guard.ORDINARY, Guard.MCP}
    routes = [r for r in table if r.guard in guarded and r.method != "HEAD"]
    likely = [r for r in routes if "{" in r.template or "deploy" in r.template] * 4 + routes
    proposals = to_resources = judged = 0
    for fleet in range(FLEETS):
        dice = random.Random(f"fleet {fleet}")
        await redis_client.flushall()
        world = grown(dice)
        for key, place in world.places.items():
            await redis_client.hset(Keys().owners(owner_bucket(key)), key, write_place(place))
        registry = seed.registry(redis_client)
        await seed.user(registry, 7, t3="owner")
        now = await registry.now()
        await redis_client.set(Keys().usage_since, now - DAYS * DAY_MS)
        tokens = [
            seed.token(n, user=7, team=3, permissions=dice.choice(HOLDS))
            for n in range(1, 1 + TOKENS)
        ]
        await registry.put_tokens(tokens)
        uses, asked, old = LastUses(redis_client, Keys()), {}, {}
        for token in tokens:
            if dice.random() < 0.3:
                old[token.id] = parse(restricted(dice, world, routes))
                await registry.set_restriction("token", token.id, old[token.id])
        jobs = {one.id: job(dice, world, table, likely) for one in tokens}
        for day in range(DAYS):
            for token in tokens:
                narrow = {"token": old[token.id]} if token.id in old else {}
                world.held = record(*token.permissions, token=token.id, restrictions=narrow)
                for one in jobs[token.id]:
                    if dice.random() < 0.3 and await admits(world, rules, one):
                        route = table.find(one.method, one.path)
                        assert route is not None
                        use = used(one.method, route.template, one.path, one.target, body=one.body)
                        at = UnixMs(now - (DAYS - 1 - day) * DAY_MS)
                        uses.note(token.id, at, use)
                        asked.setdefault(token.id, set()).add(one)
            await uses.write()
        found = await advise_on(registry, redis_client, Keys(), table, tokens, days=DAYS)
        for token, advice in zip(tokens, found, strict=True):
            assert bool(advice.used) == (token.id in asked)
            if advice.proposal is None:
                continue
            before = old.get(token.id, Restriction())
            assert widened(before, advice.proposal, world.places) is None
            same = parse(_given(advice))
            assert same == advice.proposal
            world.held = record(*token.permissions, token=token.id, restrictions={"token": same})
            for one in asked[token.id]:
                assert await admits(world, rules, one), (fleet, token.id, one, advice)
                judged += 1
            proposals += 1
            to_resources += advice.proposal.to_resources
    assert proposals > FLEETS * TOKENS / (2 if most > 3 else 4)
    assert to_resources > proposals / (3 if most > 3 else 6)
    assert judged > proposals * (2 if most > 3 else 1)


def _given(advice: TokenAdvice) -> dict[str, object]:
    """The restriction that the command spells, word for word."""
    assert advice.command is not None
    words = shlex.split(advice.command)[4:]
    given: dict[str, object] = {}
    single = {"rate", "uses", "until", "note", "not-before"}
    plural = {"permission": "permissions", "route": "routes", "project": "projects"} | {
        "environment": "environments",
        "resource": "resources",
        "tag": "tags",
    }
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.removeprefix("--")
        if name in single:
            given[name.replace("-", "_")] = int(value) if name == "uses" else value
        else:
            given.setdefault(plural.get(name, name), []).append(value)  # type: ignore[attr-defined]
    return given
