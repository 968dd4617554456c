"""What a token is told about itself, over a store in memory."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from authsidecar.decision.allowlist import parse as parse_allowlist
from authsidecar.decision.authorize import ATTEMPTS, UNSYNCED
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import AccessRequest, Allow, Deny, Limit, Quota, Role
from authsidecar.decision.ratelimit.charges import Charge
from authsidecar.decision.restrictions import parse
from authsidecar.decision.whoami import METHODS, WHOAMI, whoami
from authsidecar.times import UnixMs, rfc3339
from tests.support.cases import NOW, OPEN, record, request
from tests.support.memory_store import RULES as OTHERS
from tests.support.memory_store import MemoryStore

RULES = replace(OTHERS, limits={**OTHERS.limits, "whoami": Limit(60)})
FIELDS = {
    "id", "name", "user", "team", "role", "permissions", "effective_permissions", "read_sensitive",
    "restrictions", "expires_at", "limits", "api_enabled", "mcp_enabled", "address",
    "address_allowed", "refused_with", "time",
}  # fmt: skip


async def told(store: MemoryStore, asked: AccessRequest | None = None) -> dict[str, Any]:
    outcome, facts = await whoami(asked or request(), RULES, store)
    assert isinstance(outcome.verdict, Allow)
    return dict(facts)


async def refused(store: MemoryStore, asked: AccessRequest | None = None) -> Deny:
    outcome, facts = await whoami(asked or request(), RULES, store)
    assert isinstance(outcome.verdict, Deny)
    assert facts == {}, "who is refused is told nothing"
    assert (outcome.now, outcome.route) == (NOW, WHOAMI.template)
    return outcome.verdict


async def test_a_token_is_told_who_it_is() -> None:
    """All that the reference lists, and nothing else."""
    held = record("deploy", "read", expires_at=UnixMs(NOW + 1000))
    facts = await told(MemoryStore(record=held))
    assert set(facts) == FIELDS
    assert {name: facts[name] for name in FIELDS - {"limits"}} == {
        "id": 67,
        "name": "ci",
        "user": 7,
        "team": 3,
        "role": Role.OWNER,
        "permissions": ["deploy", "read"],
        "effective_permissions": ["deploy", "read"],
        "read_sensitive": False,
        "restrictions": {},
        "expires_at": rfc3339(UnixMs(NOW + 1000)),
        "api_enabled": True,
        "mcp_enabled": True,
        "address": "192.0.2.1",
        "address_allowed": True,
        "refused_with": None,
        "time": rfc3339(NOW),
    }
    assert facts["limits"] == [
        {
            "name": "user",
            "limit": 200,
            "window_seconds": 60.0,
            "remaining": 3,
            "resets_at": rfc3339(UnixMs(NOW + 7)),
        }
    ]


async def test_a_token_without_an_end_has_none() -> None:
    """The member of a team without MCP is told that, too."""
    facts = await told(MemoryStore(record=record("root", team_mcp=False)))
    assert facts["expires_at"] is None
    assert facts["mcp_enabled"] is False
    assert facts["read_sensitive"] is True


@pytest.mark.parametrize(("instance", "team"), [(False, True), (True, False)])
async def test_mcp_is_on_where_both_switches_are(instance: bool, team: bool) -> None:
    """The instance's and the team's."""
    store = MemoryStore(record=record(team_mcp=team), state=replace(OPEN, mcp_enabled=instance))
    assert (await told(store))["mcp_enabled"] is False


async def test_only_its_own_bucket_is_charged() -> None:
    """By address, with both proofs; the token's counters are read."""
    store = MemoryStore()
    outcome, _ = await whoami(request(), RULES, store)
    [claim] = store.claims
    assert [(c.scope, c.tag, c.limit) for c in claim.counters] == [
        ("whoami", "a:192.0.2.1", Limit(60))
    ]
    assert (claim.instance, claim.record) == (OPEN, store.record)
    assert store.repeat_keys == [None]
    assert [quota.scope for quota in outcome.quotas] == ["whoami"]
    assert (outcome.route, outcome.record, outcome.now) == (WHOAMI.template, store.record, NOW)
    assert store.calls == []


async def test_what_narrows_it_is_told_but_for_the_note() -> None:
    """Its own rate and uses are among the limits; uses have no window."""
    narrower = parse({"permissions": ["deploy"], "rate": "10/3600s", "uses": 5, "note": "secret"})
    held = record("deploy", "read", restrictions={"token": narrower})
    facts = await told(MemoryStore(record=held))
    assert facts["restrictions"] == {
        "token": {"permissions": ["deploy"], "rate": "10/3600s", "uses": 5}
    }
    assert facts["permissions"] == ["deploy", "read"]
    assert facts["effective_permissions"] == ["deploy"]
    assert facts["refused_with"] is None
    _, rate, uses = facts["limits"]
    assert (rate["name"], rate["limit"], rate["window_seconds"]) == ("restriction", 10, 3600.0)
    assert uses == {
        "name": "uses",
        "limit": 5,
        "window_seconds": None,
        "remaining": 3,
        "resets_at": None,
    }


class Spent(MemoryStore):
    """Reads every counter as used up, or only those of one scope."""

    scope = "uses"

    async def charge_and_read(self, claim, others: tuple[Charge, ...]):
        charged, quotas = await super().charge_and_read(claim, others)
        return charged, tuple(
            Quota(q.scope, q.limit, 0 if q.scope == self.scope else q.remaining, q.reset_at)
            for q in quotas
        )


async def test_a_spent_budget_is_a_refusal_and_a_full_rate_is_none() -> None:
    """A rate opens again by itself."""
    held = record(restrictions={"token": parse({"uses": 5, "rate": "1/60s"})})
    assert (await told(Spent(record=held)))["refused_with"] == "token_restricted"
    full = Spent(record=held)
    full.scope = "restriction"
    assert (await told(full))["refused_with"] is None


@pytest.mark.parametrize(
    ("state", "narrower", "code", "allowed"),
    [
        (replace(OPEN, api_enabled=False), {}, "api_disabled", True),
        (replace(OPEN, allowlist=parse_allowlist("10.0.0.0/8")), {}, "address_not_allowed", False),
        (OPEN, {"from": ["10.0.0.0/8"]}, "token_restricted", False),
        (OPEN, {"until": rfc3339(UnixMs(NOW - 5000))}, "token_restricted", True),
        (OPEN, {"from": ["192.0.2.0/24"], "until": rfc3339(UnixMs(NOW + 5000))}, None, True),
    ],
)
async def test_what_refuses_every_request_is_told(state, narrower, code, allowed) -> None:
    """With its code; whether the address is the reason is a fact of its own."""
    held = record(restrictions={"team": parse(narrower)} if narrower else {})
    facts = await told(MemoryStore(record=held, state=state))
    assert facts["refused_with"] == code
    assert facts["address_allowed"] is allowed
    assert facts["api_enabled"] is state.api_enabled


@pytest.mark.parametrize(
    ("held", "code"),
    [
        (None, "token_unknown"),
        (record(digest=b"x" * 32), "token_unknown"),
        (record(expires_at=UnixMs(NOW - 1)), "token_expired"),
        (record(disabled=True), "token_disabled"),
    ],
)
async def test_a_bad_token_is_a_failed_authentication(held, code) -> None:
    """Counted for its address, and nothing of a token is read."""
    store = MemoryStore(record=held)
    deny = await refused(store)
    assert deny.reason.code == code
    [claim] = store.claims
    assert [(c.scope, c.limit) for c in claim.counters] == [("failed", Limit(30))]
    assert (claim.instance, claim.record) == (OPEN, held)
    assert store.refused == []


async def test_failures_past_their_limit_are_noted() -> None:
    """Until the bucket has room again."""
    store = MemoryStore(record=None, admits=False)
    deny = await refused(store)
    assert deny.reason.code == "rate_limited"
    assert store.refused == [("a:192.0.2.1", NOW + 5)]


async def test_its_own_limit_is_no_failed_authentication() -> None:
    """It is a 429 that names the limit, and the address is not noted."""
    store = MemoryStore(admits=False)
    deny = await refused(store)
    assert deny.reason.code == "rate_limited"
    assert deny.detail == "no room in whoami (60 in 60000 ms)"
    assert store.refused == []


@pytest.mark.parametrize("gone", [{"role": None}, {"team": None}])
async def test_whoever_left_the_team_is_told_that(gone: dict[str, Any]) -> None:
    """As on every other route."""
    store = MemoryStore(record=record(**gone))
    deny = await refused(store)
    assert deny.reason.code == "not_team_member"
    assert deny.detail == "the token's user is not in the token's team"
    assert [c.scope for c in store.claims[0].counters] == ["whoami"]


async def test_without_a_token_nothing_is_looked_up() -> None:
    """The refusal is the one of every route."""
    store = MemoryStore(cached=False)
    assert (await refused(store, request(credential=Deny(TOKEN_MISSING)))).reason is TOKEN_MISSING
    assert store.calls == ["instance fresh=False"]


async def test_a_cold_token_is_loaded_and_a_stale_one_again() -> None:
    """The last time for this request alone, with nothing left to prove."""
    store = MemoryStore(cached=False)
    await told(store)
    assert store.calls == ["instance fresh=False", "load fresh=False"]
    assert store.looked_up == [("a:192.0.2.1", request().credential)]
    store = MemoryStore(stale=ATTEMPTS)
    await told(store)
    assert len(store.claims) == ATTEMPTS
    assert store.calls == ["instance fresh=True", "load fresh=True"]
    assert (store.claims[-1].instance, store.claims[-1].record) == (None, None)
    assert store.claims[-1].counters == store.claims[0].counters


async def test_a_paced_address_must_wait() -> None:
    """Nothing is charged for it."""
    store = MemoryStore(cached=False, paced=True)
    deny = await refused(store)
    assert deny.detail == "too many unknown tokens from this address"
    assert store.claims == []


@pytest.mark.parametrize("method", METHODS)
async def test_it_is_read_by_get_and_head(method: str) -> None:
    """Another method is refused with these, before anything is charged."""
    assert (await told(MemoryStore(), request(method)))["id"] == 67
    store = MemoryStore()
    deny = await refused(store, request("POST"))
    assert (deny.reason.code, deny.allowed) == ("method_not_allowed", ("GET", "HEAD"))
    assert deny.detail == "/authz/whoami takes GET"
    assert store.claims == []


async def test_a_preflight_is_admitted_and_told_nothing() -> None:
    """A browser sends no token with it."""
    store = MemoryStore()
    outcome, facts = await whoami(request("OPTIONS", preflight=True), RULES, store)
    assert outcome.verdict == Allow(None)
    assert (outcome.now, outcome.route, facts) == (NOW, WHOAMI.template, {})
    assert store.claims == []


@pytest.mark.parametrize(
    ("kind", "detail"),
    [("timeout", "redis: timeout"), (UNSYNCED, "sync: not complete yet")],
)
async def test_without_redis_nobody_is_told_anything(kind: str, detail: str) -> None:
    """The refusal is the one of every route."""
    deny = await refused(MemoryStore(broken=kind))
    assert (deny.reason.code, deny.detail) == ("store_unavailable", detail)


async def test_an_ipv6_client_is_counted_by_its_network() -> None:
    """Of the configured length, for a good token and for a bad one."""
    rules = replace(RULES, ipv6_prefix=48)
    asked = request(client=ip_address("2001:db8:1:2:3::4"))
    for held in (record(), None):
        store = MemoryStore(record=held)
        await whoami(asked, rules, store)
        assert store.claims[0].counters[0].tag == "a:2001:db8:1::/48"
