"""`simulate`: the same rules flip nothing, and a known change flips exactly what it must."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from authsidecar.admin.replay import Replay
from authsidecar.admin.simulate import NAMED, SimulatedChange, simulate
from authsidecar.decision.allowlist import parse
from authsidecar.decision.authorize import Charged, Claim, Rules, authorize
from authsidecar.decision.credentials import TOKEN_MALFORMED, TOKEN_MISSING
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Limit,
    Permission,
    Place,
    Proxy,
    Quota,
    ResourceKind,
    Restriction,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.decision.policy import Instance, Policy
from authsidecar.decision.routes import coolify, extra
from authsidecar.observe import receipts
from authsidecar.observe.receipts import Decided, MadeUnder
from authsidecar.store.receipt_reader import Kept
from authsidecar.times import UnixMs

UUID = "abcdefghijklmnopqrstuvwx"
OTHER = UUID[::-1]
TABLE = coolify("4.3")
RULES = Rules(Policy(TABLE), {"user": Limit(20), "failed": Limit(5), "unknown": Limit(9)})
ORIGIN = MadeUnder("1", "c", receipts.words(TABLE), report_only=False)

requests = st.tuples(
    st.sampled_from(("GET", "POST", "DELETE")),
    st.sampled_from(
        (
            "/api/v1/teams",
            "/api/v1/projects",
            f"/api/v1/servers/{UUID}",
            f"/api/v1/servers/{OTHER}",
            "/api/v1/nothing/here",
            "/api/v1/enable",
            "/api/health",
            "/mcp",
        )
    ),
    st.sampled_from(("192.0.2.1", "192.0.2.99", "2001:db8::1")),
    st.sampled_from((1, 2, 3, 4, 5, 6, "wrong", TOKEN_MISSING, TOKEN_MALFORMED)),
    st.integers(0, 20_000),
)

worlds = st.builds(
    Instance,
    api_enabled=st.booleans(),
    allowlist=st.sampled_from((parse(""), parse("192.0.2.0/28"), parse("198.51.100.0/24"))),
    mcp_enabled=st.booleans(),
)


def record(number: int) -> TokenRecord:
    """Root, read, expired, a member's with write, and two narrowed ones: to a route, a server."""
    held = {1: "root", 4: "write"}.get(number, "read")
    narrowed = {
        5: Restriction(routes=frozenset({"GET /api/v1/teams"}), note="of one route"),
        6: Restriction(resources=frozenset({UUID})),
    }
    return TokenRecord(
        token=TokenId(number),
        digest=b"d" * 32,
        name="",
        user=UserId(number),
        team=TeamId(0),
        permissions=frozenset({Permission(held)}),
        expires_at=UnixMs(1) if number == 3 else None,
        role=Role.MEMBER if number == 4 else Role.OWNER,
        restrictions={"token": narrowed[number]} if number in narrowed else {},
    )


class Counting:
    """A store with exact sliding windows and one world."""

    def __init__(self, instance: Instance) -> None:
        self.instance_now = instance
        self.at = UnixMs(0)
        self.windows: dict[tuple[str, str], list[int]] = {}

    def now(self):
        return self.at

    def current(self):
        return self.instance_now

    async def instance(self, *, fresh):
        return self.instance_now

    def known(self, credential):
        held = record(credential.token_id)
        return held if held.digest == credential.digest else None

    async def load(self, credential, *, fresh):
        return self.known(credential)

    async def charge(self, claim: Claim, *, repeat_key):
        held = []
        for charge in claim.counters:
            key = (charge.tag, charge.name)
            window = [
                at for at in self.windows.get(key, []) if at > self.at - charge.limit.window_ms
            ]
            self.windows[key] = window
            held.append((charge, window))
        admitted = all(len(window) < charge.limit.requests for charge, window in held)
        quotas = []
        for charge, window in held:
            if admitted:
                window.append(self.at)
            left = max(0, charge.limit.requests - len(window))
            quotas.append(Quota(charge.scope, charge.limit, left, UnixMs(self.at + 1)))
        return Charged(admitted, tuple(quotas), self.at)

    async def places(self, keys):
        return dict.fromkeys(keys)

    def held_places(self, keys):
        return None

    async def provable_places(self, keys):
        return dict.fromkeys(keys, Place(TeamId(0), ResourceKind.SERVER))

    def may_look_up(self, address, credential):
        return True

    def refused_address(self, address, until):
        pass


class Registry:
    """Says what the switches are now: the contrary of whatever they were."""

    async def instance(self):
        return Instance(api_enabled=False, allowlist=parse("203.0.113.0/24"), mcp_enabled=False)


REGISTRY: Any = Registry()


async def pages(kept: Kept):
    """The receipts as a reader gives them."""
    yield kept


async def decided(asked, world: Instance, rules: Rules) -> Kept:
    """The receipts of requests that were decided in their order, all kept, and read back."""
    store = Counting(world)
    found = []
    for number, (method, path, address, token, wait) in enumerate(asked):
        store.at = UnixMs(store.at + wait)
        credential = (
            Credential(TokenId(token), b"d" * 32)
            if isinstance(token, int)
            else Credential(TokenId(9), b"x" * 32)
            if token == "wrong"
            else Deny(token)
        )
        access = AccessRequest(
            Proxy.NGINX, method, path, b"", ip_address(address), credential
        )  # fmt: skip
        outcome = await authorize(access, rules, store)
        one = receipts.receipt(
            Decided(f"{number:04}", Proxy.NGINX, access, outcome, "", world, 1), ORIGIN
        )
        assert receipts.read(receipts.write(one)) == one
        found.append(one)
    return Kept(tuple(found), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, max_size=60), worlds)
@example(
    [("GET", f"/api/v1/servers/{UUID}", "192.0.2.1", 6, 0)] * 25,
    Instance(api_enabled=True, allowlist=parse(""), mcp_enabled=True),
)
async def test_the_same_rules_flip_nothing(asked, world):
    """Whatever was asked, and whatever the switches and the allowlist are now."""
    kept = await decided(asked, world, RULES)
    found = await simulate(pages(kept), SimulatedChange(RULES), registry=REGISTRY)
    assert found.flips == ()
    assert found.judged == len(kept.receipts)
    replay = Replay(RULES, await Registry().instance())
    for one in kept.receipts:
        verdict = (await replay.judge(one)).outcome.verdict
        assert one.code == (None if isinstance(verdict, Allow) else verdict.reason.code)


@settings(max_examples=40, deadline=None)
@given(st.lists(requests, max_size=40), worlds)
async def test_another_allowlist_flips_what_it_must(asked, world):
    """Exactly the decisions that are others where that list is in force from the start."""
    rules = replace(RULES, limits={})
    other = parse("192.0.2.64/26")
    kept = await decided(asked, world, rules)
    would_be = await decided(asked, replace(world, allowlist=other), rules)
    found = await simulate(pages(kept), SimulatedChange(rules, other), registry=REGISTRY)
    flipped = {
        (one.id, was.code is None)
        for was, one in zip(kept.receipts, would_be.receipts, strict=True)
        if (was.code is None) != (one.code is None)
        and not (one.token == 6 and one.code is None)  # nobody had looked at what it names
    }
    assert sum(flip.receipts for flip in found.flips) == len(flipped)
    unseen = sum(one.decisions for one in found.unknown if one.why == NAMED)
    assert unseen == sum(
        was.code == "address_not_allowed" and one.token == 6 and "/servers/" in (one.path or "")
        and one.method == "GET" and one.code != was.code
        for was, one in zip(kept.receipts, would_be.receipts, strict=True)
    )  # fmt: skip
    assert all((flip.example.id, flip.direction == "refused") in flipped for flip in found.flips)
    assert not any(flip.estimated for flip in found.flips)


@settings(max_examples=40, deadline=None)
@given(st.lists(requests, max_size=40), worlds)
async def test_other_routes_flip_what_they_must(asked, world):
    """A route that is closed, and one that needs less."""
    table = extra("GET /api/v1/teams deny\nPOST /api/v1/projects read\n", TABLE)
    rules, other = (Rules(Policy(routes), {}) for routes in (TABLE, table))
    kept, would_be = await decided(asked, world, rules), await decided(asked, world, other)
    found = await simulate(pages(kept), SimulatedChange(other), registry=REGISTRY)
    flipped = [
        one.id
        for was, one in zip(kept.receipts, would_be.receipts, strict=True)
        if (was.code is None) != (one.code is None)
    ]
    assert sum(flip.receipts for flip in found.flips) == len(flipped)
    assert {flip.example.id for flip in found.flips} <= set(flipped)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=60), st.integers(1, 40))
@example([4000] * 60, 5)
@example([2000] * 90, 25)
async def test_another_limit_flips_what_it_must_where_all_is_kept(waits, limit):
    """With every decision kept, the estimate is what would have happened; and it is marked."""
    asked = [("GET", "/api/v1/teams", "192.0.2.1", 1, wait) for wait in waits]
    world = Instance(api_enabled=True, allowlist=parse(""), mcp_enabled=True)
    rules, other = (Rules(Policy(TABLE), {"user": Limit(n)}) for n in (20, limit))
    kept, would_be = await decided(asked, world, rules), await decided(asked, world, other)
    found = await simulate(pages(kept), SimulatedChange(other), registry=REGISTRY)
    flipped = [
        one.id
        for was, one in zip(kept.receipts, would_be.receipts, strict=True)
        if (was.code is None) != (one.code is None)
    ]
    assert sum(flip.receipts for flip in found.flips) == len(flipped)
    assert all(flip.estimated for flip in found.flips)
