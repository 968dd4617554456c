"""Which counters a request costs, where they live, and whose limit counts."""

from ipaddress import IPv6Address, ip_address

import pytest

from authsidecar.decision.model import Limit, Restriction, TokenId, UserId
from authsidecar.decision.ratelimit.charges import (
    PRINCIPAL_SCOPES,
    Charge,
    budget,
    of_address,
    of_principal,
    of_restriction,
)
from tests.support.cases import record

CLIENT = ip_address("192.0.2.1")
ALL = {scope: Limit(10 + i) for i, scope in enumerate(PRINCIPAL_SCOPES)}


def test_an_authenticated_request_costs_every_configured_counter() -> None:
    """Token, user, team and address, narrowest first."""
    assert of_principal(record(), CLIENT, ALL, 64) == (
        Charge("token", "u:7", "token:67", Limit(10)),
        Charge("user", "u:7", "user", Limit(11)),
        Charge("team", "t:3", "team", Limit(12)),
        Charge("address", "a:192.0.2.1", "address", Limit(13)),
    )


def test_what_is_not_configured_is_not_counted() -> None:
    """By default that is all but the user."""
    assert [c.scope for c in of_principal(record(), CLIENT, {"user": Limit(200)}, 64)] == ["user"]
    assert of_principal(record(), CLIENT, {}, 64) == ()
    assert of_address("sentinel", CLIENT, ALL, 64) == ()


@pytest.mark.parametrize("scope", ["token", "user", "team"])
def test_an_override_wins_and_needs_no_configured_limit(scope: str) -> None:
    """An operator's limit for one of them counts, whatever the others have."""
    held = record(limits={scope: Limit(5)})
    for configured in (ALL, {}):
        limits = {c.scope: c.limit for c in of_principal(held, CLIENT, configured, 64)}
        assert limits == {**configured, scope: Limit(5)}


def test_a_token_without_a_team_charges_no_team() -> None:
    """Coolify's odd data must not share a counter named None."""
    charges = of_principal(record(team=None), CLIENT, ALL, 64)
    assert [c.scope for c in charges] == ["token", "user", "address"]


def test_a_user_and_its_tokens_live_in_one_slot() -> None:
    """On Redis Cluster they are charged together, or neither."""
    token, user, *_ = of_principal(record(), CLIENT, ALL, 64)
    assert token.tag == user.tag == "u:7"


def test_buckets_of_one_address_are_apart() -> None:
    """Failed authentications cost nothing of the unknown routes' budget."""
    limits = {"failed": Limit(30), "unknown": Limit(200)}
    charges = [of_address(bucket, CLIENT, limits, 64)[0] for bucket in limits]
    assert [(c.tag, c.name) for c in charges] == [
        ("a:192.0.2.1", "failed"),
        ("a:192.0.2.1", "unknown"),
    ]


RATE = Charge("restriction", "u:7", "restriction:67", Limit(5, 1000))
USES = Charge("uses", "u:7", "uses:67", Limit(3, 0))


@pytest.mark.parametrize(
    ("narrower", "charges"),
    [
        (Restriction(), ()),
        (Restriction(rate=Limit(5, 1000)), (RATE,)),
        (Restriction(uses=3), (USES,)),
        (Restriction(rate=Limit(5, 1000), uses=3), (RATE, USES)),
    ],
)
def test_a_restriction_is_charged_by_its_rate_and_its_uses(
    narrower: Restriction, charges: tuple[Charge, ...]
) -> None:
    """In the user's slot, the rate first; only what narrows the token itself is."""
    assert of_restriction(record(restrictions={"token": narrower})) == charges
    assert of_restriction(record(restrictions={"user": narrower, "team": narrower})) == ()
    assert of_restriction(record()) == ()


def test_a_budget_has_no_window() -> None:
    """What is used up stays so."""
    assert budget(TokenId(67), UserId(7), 3) == USES


@pytest.mark.parametrize("prefix", [48, 56, 64, 128])
def test_32_ipv6_is_counted_by_network(prefix: int) -> None:
    """Pitfall 32: rotation within the configured network changes nothing, outside it does."""
    start = int(IPv6Address("2001:db8:1:2:3:4:5:6"))
    limits = {"failed": Limit(30)}

    def tag(address: int) -> str:
        return of_address("failed", IPv6Address(address), limits, prefix)[0].tag

    host_bits = 128 - prefix
    if host_bits:
        assert tag(start) == tag(start ^ 1) == tag(start ^ (1 << (host_bits - 1)))
    assert tag(start) != tag(start ^ (1 << host_bits))


def test_32_ipv4_is_counted_by_address() -> None:
    """Pitfall 32: the network's length is IPv6's alone."""
    limits = {"failed": Limit(30)}
    tags = {of_address("failed", ip_address(f"192.0.2.{i}"), limits, 48)[0].tag for i in range(9)}
    assert len(tags) == 9
