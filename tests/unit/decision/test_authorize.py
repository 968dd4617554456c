"""One request's way to a verdict, over a store in memory."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from authsidecar.decision.authorize import (
    ATTEMPTS,
    UNSYNCED,
    Charged,
    Claim,
    Judged,
    Rules,
    Stale,
    authorize,
    holds,
    judge_held,
    names_of,
)
from authsidecar.decision.bodies import read as read_body
from authsidecar.decision.credentials import TOKEN_MISSING
from authsidecar.decision.model import (
    AccessRequest,
    Allow,
    Credential,
    Deny,
    Limit,
    Place,
    Quota,
    ResourceKind,
    Role,
    TeamId,
    TokenRecord,
)
from authsidecar.decision.policy import Policy, find_route
from authsidecar.decision.resources import MOST_NAMED, Places
from authsidecar.decision.restrictions import parse
from authsidecar.decision.routes import Route, coolify
from authsidecar.times import UnixMs, rfc3339
from tests.support.cases import NOW, OPEN, record, request
from tests.support.memory_store import RULES, MemoryStore


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


# ------------------------------------------------------------------ a request that was seen before

TEAMS_ROUTE = find_route(RULES.policy, request())
HERE = Place(TeamId(3), ResourceKind.SERVER)
INSIDE, OUTSIDE = parse({"resources": ["abc"]}), parse({"resources": ["other"]})


def narrowed(**parts: Any) -> TokenRecord:
    """A token that is narrowed itself; `from_` stands for `from`."""
    return record(restrictions={"token": parse({k.rstrip("_"): v for k, v in parts.items()})})


def held(
    asked: AccessRequest,
    of: TokenRecord,
    rules: Rules = RULES,
    *,
    places: Places | None = None,
    now: UnixMs = NOW,
) -> Judged | None:
    """What `judge_held` says, where these places are held."""
    route = find_route(rules.policy, asked)
    assert isinstance(route, Route)
    known = MemoryStore(held=places).held_places
    return judge_held(asked, rules, route, OPEN, of, now=now, held_places=known)


def said(judged: Judged | None) -> str:
    assert judged is not None
    verdict = judged.judgement.verdict
    return "allow" if isinstance(verdict, Allow) else verdict.reason.code


def scopes(judged: Judged | None) -> list[str]:
    assert judged is not None
    return [counter.scope for counter in judged.claim.counters]


def test_what_is_held_judges_as_authorize_does() -> None:
    """With the same claim, which proves all that it was judged by."""
    of = record()
    judged = held(request(), of)
    assert said(judged) == "allow"
    assert judged is not None
    assert (judged.claim.instance, judged.claim.record) == (OPEN, of)
    assert scopes(judged) == ["user"]
    assert judged.case is not None
    assert (judged.case.record, judged.case.route) == (of, TEAMS_ROUTE)
    assert (judged.timed, judged.paid, judged.to_resources) == (False, False, False)
    assert said(held(request("POST", "/api/v1/projects"), of)) == "permission_missing"


def test_who_is_not_authenticated_is_left_to_authorize() -> None:
    """An expired token, and another secret."""
    assert held(request(), record(expires_at=UnixMs(NOW - 1))) is None
    assert held(request(), record(digest=b"x" * 32)) is None


def test_team_isolation_is_left_to_authorize_where_something_is_named() -> None:
    """A path that names nothing needs no look."""
    assert held(request("GET", SERVER), record(), ISOLATED) is None
    assert said(held(request(), record(), ISOLATED)) == "allow"
    assert said(held(request("GET", SERVER), record())) == "allow"


def test_places_that_are_held_are_judged_by_and_proven() -> None:
    """Where they are not held, they must be looked up."""
    one, of = request("GET", SERVER), record(restrictions={"token": INSIDE})
    assert held(one, of) is None
    judged = held(one, of, places={"abc": HERE})
    assert said(judged) == "allow"
    assert judged is not None
    assert judged.claim.places == (("abc", HERE),)
    assert (judged.claim.instance, judged.claim.record) == (OPEN, of)
    assert judged.case is not None
    assert judged.case.places == {"abc": HERE}
    outside = held(one, record(restrictions={"token": OUTSIDE}), places={"abc": HERE})
    assert said(outside) == "resource_not_found"
    unknown = held(one, record(restrictions={"user": INSIDE}), places={})
    assert said(unknown) == "token_restricted"


def test_only_who_is_admitted_pays_with_a_use() -> None:
    """A refusal costs what it costs everybody."""
    own = {"rate": "5/60s", "uses": 9}
    one, places = request("GET", SERVER), {"abc": HERE}
    inside = held(one, narrowed(resources=["abc"], **own), places=places)
    assert (said(inside), scopes(inside)) == ("allow", ["user", "restriction", "uses"])
    outside = held(one, narrowed(resources=["b"], **own), places=places)
    assert (said(outside), scopes(outside)) == ("resource_not_found", ["user"])
    assert outside is not None
    assert outside.claim.places == (("abc", HERE),)
    late = narrowed(until=rfc3339(UnixMs(NOW - 1000)), **own)
    judged = held(request(), late)
    assert (said(judged), scopes(judged)) == ("token_restricted", ["user"])
    assert judged is not None
    assert (judged.claim.instance, judged.claim.record, judged.claim.places) == (OPEN, late, ())
    in_time = held(request(), narrowed(until=rfc3339(UnixMs(NOW + 1000)), **own))
    assert (said(in_time), scopes(in_time)) == ("allow", ["user", "restriction", "uses"])
    assert in_time is not None
    assert (in_time.timed, in_time.paid) == (True, True)


def test_an_ipv6_client_s_refusal_is_counted_by_its_network() -> None:
    """Of the configured length, also where it is judged again."""
    rules = replace(RULES, limits={"address": Limit(5)}, ipv6_prefix=48)
    client = ip_address("2001:db8:1:2:3::4")
    late = narrowed(until=rfc3339(UnixMs(NOW - 1000)))
    away = record(restrictions={"token": OUTSIDE})
    for asked, of in (
        (request(client=client), late),
        (request("GET", SERVER, client=client), away),
    ):
        judged = held(asked, of, rules, places={"abc": HERE})
        assert judged is not None
        assert [c.tag for c in judged.claim.counters] == ["a:2001:db8:1::/48"]


def test_places_and_hours_together_are_both_looked_at() -> None:
    """Inside, and too late."""
    parts = {"resources": ["abc"], "until": rfc3339(NOW)}
    one, of = request("GET", SERVER), narrowed(**parts)
    assert said(held(one, of, places={"abc": HERE})) == "allow"
    assert said(held(one, of, places={"abc": HERE}, now=UnixMs(NOW + 1))) == "token_restricted"


@pytest.mark.parametrize(
    ("of", "at", "expected"),
    [
        (record(), NOW + 10**9, True),
        (record(expires_at=NOW), NOW, True),
        (record(expires_at=NOW), NOW + 1, False),
        (narrowed(until=rfc3339(NOW)), NOW, True),
        (narrowed(until=rfc3339(NOW)), NOW + 1, False),
        (narrowed(not_before=rfc3339(NOW)), NOW - 1, False),
    ],
)
def test_what_was_judged_holds_until_time_says_otherwise(of, at: int, expected: bool) -> None:
    """Its expiry and its hours are all that time changes."""
    judged = held(request(), of)
    assert judged is not None
    assert holds(judged, UnixMs(at)) is expected


@pytest.mark.parametrize("which", ["token", "user", "team"])
def test_each_restriction_s_hours_count(which: str) -> None:
    """One that is over refuses, whatever the others say."""
    over = parse({"until": rfc3339(UnixMs(NOW - 1000))})
    on = parse({"until": rfc3339(UnixMs(NOW + 10**6))})
    narrower = {"token": on, "user": on, "team": on, which: over}
    judged = held(request(), record(restrictions=narrower))
    assert said(judged) == "token_restricted"
    fine = held(request(), record(restrictions=dict.fromkeys(narrower, on)))
    assert fine is not None
    assert not holds(fine, UnixMs(NOW + 10**6 + 1))


SHOWS = replace(RULES, forwarded_bodies=True)
BODY = read_body([b"application/json"], b'{"uuid": "d"}')
DEPLOY = request("POST", "/api/v1/deploy", target=b"/api/v1/deploy?uuid=abc")


@pytest.mark.parametrize(
    ("has_body", "rules", "body", "expected"),
    [
        (False, RULES, None, (False, False, ("abc",))),
        (True, RULES, None, (True, False, ("abc",))),
        (False, SHOWS, None, (False, True, ("abc",))),
        (True, SHOWS, None, (True, True, ("abc",))),
        (True, SHOWS, BODY, (False, True, ("abc", "d"))),
    ],
)
def test_a_body_is_hidden_unless_it_is_shown(has_body: bool, rules, body, expected) -> None:
    """Where bodies are shown, what a creation names is looked at, too."""
    route = find_route(rules.policy, DEPLOY)
    assert isinstance(route, Route)
    names = names_of(route, DEPLOY._replace(body=has_body), rules, body)
    assert (names.body, names.held, names.keys) == expected


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_body_that_is_shown_is_read_once_and_judged(fresh: bool) -> None:
    """Nothing of it is kept; the last time, its places are asked for anew."""
    reads: list[int] = []

    async def shown() -> Any:
        reads.append(1)
        return BODY

    of = record("deploy", restrictions={"token": parse({"resources": ["abc", "d"]})})
    asked = DEPLOY._replace(body=True)
    stale = ATTEMPTS if fresh else 0
    app = Place(TeamId(3), ResourceKind.APPLICATION)
    store = MemoryStore(record=of, team=TeamId(3), held={"abc": app, "d": app}, stale=stale)
    outcome = await authorize(asked, SHOWS, store, shown)
    if not fresh:
        assert isinstance(outcome.verdict, Allow)
        assert store.claims[0].places == (("abc", app), ("d", app))
        assert store.calls == []
    else:
        assert store.calls[-1] == "places abc d"
        assert store.claims[-1].places == ()
    assert len(reads) == len(store.claims)


async def test_isolation_is_looked_at_before_what_only_the_admitted_pay() -> None:
    """A use is not spent on another team's resource."""
    of = narrowed(uses=9)
    store = MemoryStore(record=of, team=TeamId(4))
    assert await code(store, request("GET", SERVER), ISOLATED) == "resource_not_found"
    assert [c.scope for c in store.claims[0].counters] == ["user"]
    assert store.calls == ["places abc"]
    store = MemoryStore(record=of, team=TeamId(3))
    assert await code(store, request("GET", SERVER), ISOLATED) == "allow"
    assert [c.scope for c in store.claims[0].counters] == ["user", "uses"]
    store = MemoryStore(record=of, team=TeamId(4))
    assert await code(store, request("GET", SERVER)) == "allow"
    assert store.calls == []


async def test_spent_uses_are_a_restriction_and_no_rate() -> None:
    """No window opens again; a rate that is full as well is said first."""

    class Full(MemoryStore):
        full: tuple[str, ...] = ("uses",)

        async def charge(self, claim: Claim, *, repeat_key: bytes | None) -> Charged | Stale:
            done = await super().charge(claim, repeat_key=repeat_key)
            assert isinstance(done, Charged)
            quotas = [q if q.scope not in self.full else replaced(q) for q in done.quotas]
            return Charged(False, tuple(quotas), done.now)

    def replaced(quota: Quota) -> Quota:
        return Quota(quota.scope, quota.limit, 0, quota.reset_at)

    of = narrowed(rate="5/60s", uses=9)
    outcome = await authorize(request(), RULES, Full(record=of))
    assert isinstance(outcome.verdict, Deny)
    assert outcome.verdict.reason.code == "token_restricted"
    assert outcome.verdict.detail == "its uses are spent"
    assert [q.scope for q in outcome.quotas] == ["user", "restriction"]
    store = Full(record=of)
    store.full = ("uses", "restriction", "user")
    outcome = await authorize(request(), RULES, store)
    assert isinstance(outcome.verdict, Deny)
    assert (
        outcome.verdict.detail == "no room in user (200 in 60000 ms), restriction (5 in 60000 ms)"
    )
