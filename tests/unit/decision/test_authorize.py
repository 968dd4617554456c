"""One request's way to a verdict, over a store in memory."""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from authsidecar.decision.authorize import (
    ATTEMPTS,
    STALE,
    UNSYNCED,
    Charged,
    Claim,
    Rules,
    Stale,
    StoreError,
    authorize,
)
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Limit,
    Place,
    Quota,
    Role,
    TeamId,
    TokenRecord,
)
from authsidecar.decision.policy import Instance, Policy
from authsidecar.decision.resources import MOST_NAMED, Places
from authsidecar.decision.routes import coolify
from authsidecar.times import UnixMs
from tests.support.cases import NOW, OPEN, record, request

RULES = Rules(
    Policy(coolify("4.3")),
    {"user": Limit(200), "failed": Limit(30), "unknown": Limit(200), "health": Limit(1000)},
)


@dataclass
class MemoryStore:
    """A Store that holds one instance and one record, and keeps what it is asked."""

    record: TokenRecord | None = field(default_factory=record)
    state: Instance = OPEN
    cached: bool = True
    stale: int = 0
    admits: bool = True
    paced: bool = False
    broken: str = ""
    team: TeamId | None = None
    calls: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    repeat_keys: list[bytes | None] = field(default_factory=list)
    refused: list[tuple[str, UnixMs]] = field(default_factory=list)
    looked_up: list[tuple[str, Credential]] = field(default_factory=list)

    def now(self) -> UnixMs:
        return NOW

    def current(self) -> Instance | None:
        return self.state if self.cached else None

    async def instance(self, *, fresh: bool) -> Instance:
        self.calls.append(f"instance fresh={fresh}")
        return self.state

    def known(self, credential: Credential) -> TokenRecord | None:
        return self.record if self.cached else None

    async def load(self, credential: Credential, *, fresh: bool) -> TokenRecord | None:
        assert credential == request().credential
        self.calls.append(f"load fresh={fresh}")
        return self.record

    async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged | Stale:
        if self.broken:
            raise StoreError(self.broken, "charge")
        self.claims.append(claim)
        self.repeat_keys.append(repeat_key)
        if self.stale and (claim.instance or claim.record):
            self.stale -= 1
            return STALE
        left = 9 if self.admits else 0
        quotas = tuple(Quota(c.scope, c.limit, left, UnixMs(NOW + 5)) for c in claim.counters)
        return Charged(self.admits, quotas, NOW)

    async def places(self, keys: tuple[str, ...]) -> Places:
        self.calls.append(f"places {' '.join(keys)}")
        return dict.fromkeys(keys, None if self.team is None else Place(self.team))

    def held_places(self, keys: tuple[str, ...]) -> Places | None:
        return None

    async def provable_places(self, keys: tuple[str, ...]) -> Places:
        return await self.places(keys)

    def may_look_up(self, address: str, credential: Credential) -> bool:
        self.looked_up.append((address, credential))
        return not self.paced

    def refused_address(self, address: str, until: UnixMs) -> None:
        self.refused.append((address, until))


async def code(store: MemoryStore, asked: AccessRequest | None = None, rules: Rules = RULES) -> str:
    outcome = await authorize(asked or request(), rules, store)
    return "allow" if isinstance(outcome.verdict, Allow) else outcome.verdict.reason.code


async def test_a_warm_request_is_one_charge_with_both_proofs() -> None:
    """Nothing is loaded; what it was judged by is proven."""
    store = MemoryStore()
    outcome = await authorize(request(), RULES, store)
    assert isinstance(outcome.verdict, Allow)
    assert (outcome.route, outcome.record) == ("/api/v1/teams", store.record)
    assert outcome.now == NOW
    assert [q.scope for q in outcome.quotas] == ["user"]
    assert store.calls == []
    [claim] = store.claims
    assert (claim.instance, claim.record) == (OPEN, store.record)
    assert [c.tag for c in claim.counters] == ["u:7"]


async def test_a_stale_state_is_read_again_and_the_last_time_for_this_request_alone() -> None:
    """Nothing of the last attempt is to be proven, so it ends."""
    store = MemoryStore(stale=ATTEMPTS)
    assert await code(store) == "allow"
    assert len(store.claims) == ATTEMPTS
    assert store.calls == ["instance fresh=True", "load fresh=True"]
    assert (store.claims[-1].instance, store.claims[-1].record) == (None, None)
    assert store.claims[-1].counters == store.claims[0].counters


async def test_a_cold_request_loads_what_all_share() -> None:
    """The instance first, then the record."""
    store = MemoryStore(cached=False)
    assert await code(store) == "allow"
    assert store.calls == ["instance fresh=False", "load fresh=False"]


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (None, "token_unknown"),
        (record(digest=b"x" * 32), "token_unknown"),
        (record(expires_at=NOW - 1), "token_expired"),
        (record(expires_at=UnixMs(0)), "token_expired"),
        (record(expires_at=NOW), "allow"),
        (record(role=None), "not_team_member"),
        (record(team=None), "not_team_member"),
        (record("write", role=Role.MEMBER), "team_role_required"),
    ],
)
async def test_what_a_record_gains(held: TokenRecord | None, expected: str) -> None:
    """A 401 of the token is charged to the address, everything later to the user."""
    store = MemoryStore(record=held)
    assert await code(store) == expected
    [claim] = store.claims
    failed = expected in {"token_unknown", "token_expired"}
    assert [c.scope for c in claim.counters] == (["failed"] if failed else ["user"])


async def test_a_request_without_a_token_loads_no_record() -> None:
    """It is charged to its address."""
    store = MemoryStore(cached=False)
    assert await code(store, request(credential=Deny(TOKEN_MISSING))) == "token_missing"
    assert store.calls == ["instance fresh=False"]
    assert store.refused == []


async def test_an_address_without_room_for_failures_is_noted() -> None:
    """Until its bucket has room again."""
    store = MemoryStore(record=None, admits=False)
    assert await code(store) == "rate_limited"
    assert store.refused == [("a:192.0.2.1", NOW + 5)]


async def test_a_full_user_is_no_refused_address() -> None:
    """Others behind the same address go on."""
    store = MemoryStore(admits=False)
    outcome = await authorize(request(), RULES, store)
    assert isinstance(outcome.verdict, Deny)
    assert outcome.verdict.detail == "no room in user (200 in 60000 ms)"
    assert outcome.now == NOW
    assert [(q.scope, q.remaining) for q in outcome.quotas] == [("user", 0)]
    assert (outcome.route, outcome.record) == ("/api/v1/teams", store.record)
    assert store.refused == []


async def test_a_paced_address_is_told_when_to_come_again() -> None:
    """Nothing is loaded or charged for it."""
    store = MemoryStore(cached=False, paced=True)
    outcome = await authorize(request(), RULES, store)
    assert isinstance(outcome.verdict, Deny)
    assert outcome.verdict.reason.code == "rate_limited"
    assert outcome.verdict.detail == "too many unknown tokens from this address"
    assert outcome.now == NOW
    assert store.looked_up == [("a:192.0.2.1", request().credential)]
    assert outcome.quotas == (Quota("failed", Limit(1, 1000), 0, UnixMs(NOW + 1000)),)
    assert outcome.route == "/api/v1/teams"
    assert store.claims == []
    assert store.calls == ["instance fresh=False"]


async def test_without_a_bucket_for_failures_nobody_is_paced() -> None:
    """The operator switched it off."""
    rules = replace(RULES, limits={"user": Limit(200)})
    assert await code(MemoryStore(cached=False, paced=True), rules=rules) == "allow"


@pytest.mark.parametrize(
    ("kind", "detail"),
    [("timeout", "redis: timeout"), (UNSYNCED, "sync: not complete yet")],
)
async def test_a_store_without_an_answer_lets_nobody_in(kind: str, detail: str) -> None:
    """Whoever needs a token is refused, and told why in the log."""
    outcome = await authorize(request(), RULES, MemoryStore(broken=kind))
    assert isinstance(outcome.verdict, Deny)
    assert outcome.verdict.reason.code == "store_unavailable"
    assert outcome.verdict.detail == detail
    assert outcome.now == NOW
    assert outcome.route == "/api/v1/teams"


async def test_a_route_without_a_token_is_answered_alike() -> None:
    """With the time, and the repeat's key where it is counted."""
    health = request("GET", "/api/health", request_id="abc")
    store, lenient = MemoryStore(), replace(RULES, public_without_store=True)
    assert (await authorize(health, RULES, store)).now == NOW
    assert store.repeat_keys[0] is not None
    assert (await authorize(request("POST", "/api/v1/sentinel/push"), RULES, store)).now == NOW
    broken = MemoryStore(broken="timeout")
    assert (await authorize(health, lenient, broken)).now == NOW
    refused = await authorize(health, RULES, broken)
    assert isinstance(refused.verdict, Deny)
    assert (refused.now, refused.verdict.detail) == (NOW, "redis: timeout")


async def test_an_ipv6_client_is_counted_by_its_network() -> None:
    """Of the configured length."""
    store = MemoryStore()
    client = ip_address("2001:db8:1:2:3::4")
    asked = request("GET", "/api/v1/nothing", client=client)
    await authorize(asked, replace(RULES, ipv6_prefix=48), store)
    assert store.claims[0].counters[0].tag == "a:2001:db8:1::/48"


async def test_without_a_store_public_routes_pass_only_where_it_says_so() -> None:
    """And nothing else does."""
    health = request("GET", "/api/health")
    lenient = replace(RULES, public_without_store=True)
    broken = MemoryStore(broken="timeout")
    assert await code(broken, health) == "store_unavailable"
    assert await code(broken, health, lenient) == "allow"
    assert await code(broken, request("GET", "/api/v1/nothing"), lenient) == "store_unavailable"
    assert await code(broken, request(), lenient) == "store_unavailable"


async def test_an_unknown_route_is_charged_to_the_address() -> None:
    """Past the bucket, the 404 becomes 429."""
    nothing = request("GET", "/api/v1/nothing")
    assert await code(MemoryStore(), nothing) == "route_unknown"
    assert await code(MemoryStore(admits=False), nothing) == "rate_limited"


async def test_a_bucket_without_a_limit_is_not_counted() -> None:
    """Nobody is asked."""
    store = MemoryStore()
    assert await code(store, request("POST", "/api/v1/sentinel/push")) == "allow"
    assert store.claims == []


async def test_mcp_switched_off_is_charged_as_unknown() -> None:
    """Before the token is looked at."""
    store = MemoryStore(state=replace(OPEN, mcp_enabled=False))
    assert await code(store, request("POST", "/mcp")) == "mcp_disabled"
    assert [c.scope for c in store.claims[0].counters] == ["unknown"]
    assert await code(MemoryStore(), request("POST", "/mcp")) == "allow"


async def test_a_repeat_is_the_same_request_in_every_part() -> None:
    """Id, token, method and target; without an id, nothing is a repeat."""
    one = request(request_id="abc")
    others = [
        request(request_id="abcd"),
        request("HEAD", request_id="abc"),
        request(request_id="abc", target=b"/api/v1/teams?x"),
        request(request_id="abc", credential=Credential(request().credential.token_id, b"y" * 32)),
        request(request_id="abc", credential=Deny(TOKEN_MISSING)),
    ]
    store = MemoryStore()
    for asked in (one, one, *others, request()):
        await authorize(asked, RULES, store)
    first, again, *rest, none = store.repeat_keys
    assert first is not None
    assert first == again
    assert len({first, *rest}) == 1 + len(others)
    assert none is None


SERVER = "/api/v1/servers/abc"
ISOLATED = replace(RULES, policy=Policy(coolify("4.3"), team_isolation=True))


@pytest.mark.parametrize(
    ("team", "expected"),
    [(TeamId(3), "allow"), (None, "allow"), (TeamId(4), "resource_not_found")],
)
async def test_team_isolation_looks_at_the_owner(team: TeamId | None, expected: str) -> None:
    """What nobody is known to own is Coolify's to decide."""
    store = MemoryStore(team=team)
    assert await code(store, request("GET", SERVER), ISOLATED) == expected
    assert store.calls == ["places abc"]
    assert await code(MemoryStore(team=team), request("GET", SERVER)) == "allow"


async def test_team_isolation_looks_at_what_a_query_names_too() -> None:
    """Coolify's controllers look into the input first; deploy looks nowhere else."""
    for target, asked in (
        (f"{SERVER}?u%75id[]=d", "places abc d"),
        ("/api/v1/deploy?uuid=a,b", "places a b"),
        ("/api/v1/projects/p/prod", "places p p/prod prod"),
    ):
        path = target.partition("?")[0]
        one = request("GET", path, target=target.encode())
        if "deploy" in target:
            one = one._replace(method="POST")
        store = MemoryStore(team=TeamId(4), record=record("root"))
        assert await code(store, one, ISOLATED) == "resource_not_found", target
        assert store.calls == [asked]


async def test_more_resources_than_anybody_names_are_not_looked_for() -> None:
    """Not one is passed on unjudged."""
    many = ",".join(f"u{i}" for i in range(MOST_NAMED + 1))
    one = request("POST", "/api/v1/deploy", target=f"/api/v1/deploy?uuid={many}".encode())
    store = MemoryStore(record=record("root"))
    assert await code(store, one, ISOLATED) == "resource_not_found"
    assert len(store.calls[0].split(" ")) == 1 + MOST_NAMED


async def test_whoever_is_refused_anyway_costs_no_look_at_the_owner() -> None:
    """Neither a refusal before, nor a full counter, nor a path that names nothing."""
    for store, path in (
        (MemoryStore(record=record(role=None)), SERVER),
        (MemoryStore(admits=False), SERVER),
        (MemoryStore(), "/api/v1/servers"),
    ):
        await code(store, request("GET", path), ISOLATED)
        assert store.calls == []
