"""How a record is read: what cannot be read grants nothing."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsidecar.decision.model import (
    DAMAGED,
    UNREADABLE_LIMIT,
    Limit,
    Permission,
    Place,
    ResourceKind,
    Restriction,
    Role,
    TeamId,
    TokenId,
    TokenRecord,
    UserId,
)
from authsidecar.store import records
from authsidecar.times import UnixMs

DIGEST = b"d" * 32


def token(**changed: Any) -> TokenRecord | None:
    """User 7's token 67 in team 3, as an owner; `token(expires_at=b"0")`."""
    held: dict[str, bytes | None] = {
        "sha256": DIGEST,
        "name": b"ci",
        "user": b"7",
        "team": b"3",
        "permissions": b"read",
        "expires_at": None,
        "limit": None,
        "restriction": None,
        "disabled": None,
        "rotated": None,
        "user_name": b"ada",
        "user_limit": None,
        "user_restriction": None,
        "team_name": b"core",
        "mcp_enabled": None,
        "team_limit": None,
        "team_restriction": None,
        "member": b"owner",
    }
    held |= changed
    return records.token_record(
        TokenId(67),
        [held[name] for name in records.TOKEN_FIELDS],
        user=[held["user_name"], held["user_limit"], held["user_restriction"]],
        team=[
            *(held["team_name"], held["mcp_enabled"]),
            *(held["team_limit"], held["team_restriction"]),
        ],
        member=held["member"],
        nonce=b"n",
        wanted=held.get("wanted"),
    )


def read(**changed: Any) -> TokenRecord:
    """The same, which is there."""
    found = token(**changed)
    assert found is not None
    return found


def test_a_whole_record_is_read_as_it_is() -> None:
    """Every field, in its place."""
    found = read(
        expires_at=b"1800000000000",
        limit=b"5/1000",
        user_limit=b"6/2000",
        team_limit=b"7/3000",
        permissions=b"read write",
    )
    assert (found.token, found.digest, found.name, found.nonce) == (67, DIGEST, "ci", b"n")
    assert (found.user, found.team, found.role) == (UserId(7), TeamId(3), Role.OWNER)
    assert found.permissions == {Permission.READ, Permission.WRITE}
    assert found.expires_at == UnixMs(1_800_000_000_000)
    assert found.team_mcp is True
    assert found.limits == {"token": Limit(5, 1000), "user": Limit(6, 2000), "team": Limit(7, 3000)}


@pytest.mark.parametrize("text", [b"0", b"", b"never", b"-1", b"01", b"1e12", b"\xff", b"9" * 20])
def test_an_expiry_that_is_no_time_has_passed(text: bytes) -> None:
    """Only an absent one never comes."""
    assert read(expires_at=text).expires_at == 0
    assert read(expires_at=None).expires_at is None


@pytest.mark.parametrize("gone", ["user_name", "team_name", "member", "team"])
def test_a_membership_does_not_outlive_its_user_team_or_itself(gone: str) -> None:
    """Whatever is left of it in Redis."""
    assert read().role is Role.OWNER
    assert read(**{gone: None}).role is None


@pytest.mark.parametrize("gone", ["sha256", "user"])
def test_a_token_without_digest_or_owner_is_not_there(gone: str) -> None:
    """Neither is one whose owner cannot be read."""
    assert token(**{gone: None}) is None
    assert token(user=b"x") is None


@pytest.mark.parametrize("text", [b"Owner", b"", b"root", b"\xff", b"owner "])
def test_an_odd_role_is_none(text: bytes) -> None:
    """Coolify's other texts are written as `member`; nothing else is ever written here."""
    assert read(member=text).role is None
    assert [records.role(role.value.encode()) for role in Role] == list(Role)


@pytest.mark.parametrize("text", [b"0", b"", b"true", b"on", b"01", b"2", b"1 ", b"\xff"])
def test_an_odd_switch_is_off(text: bytes) -> None:
    """Only `1` is on."""
    assert not read(mcp_enabled=text).team_mcp
    made = records.instance([text, None, text], b"")
    assert not made.api_enabled
    assert not made.mcp_enabled


def test_what_was_never_written_is_off_and_the_absent_allowlist_is_everyone() -> None:
    """A new instance."""
    made = records.instance([None, None, None], b"n")
    assert (made.api_enabled, made.mcp_enabled, made.nonce) == (False, False, b"n")
    assert made.allowlist.everyone
    on = records.instance([b"1", b"10.0.0.0/8", b"1"], b"")
    assert (on.api_enabled, on.mcp_enabled) == (True, True)
    assert on.allowlist.admits(ip_address("10.1.2.3"))
    assert not on.allowlist.admits(ip_address("192.0.2.1"))


@pytest.mark.parametrize("text", [b"nonsense", b"\xff\xfe", b"10.0.0.0/99"])
def test_an_allowlist_of_bad_entries_admits_nobody(text: bytes) -> None:
    """It was meant to keep somebody out."""
    made = records.instance([b"1", text, b"1"], b"")
    assert not made.allowlist.admits(ip_address("10.1.2.3"))


@pytest.mark.parametrize("text", [b"READ", b"admin", b"\xff", b"", b"read,write", b"\xc3\xa9"])
def test_unknown_permissions_hold_nothing(text: bytes) -> None:
    """Known ones beside them count."""
    assert read(permissions=text).permissions == frozenset()
    assert read(permissions=text + b" read").permissions == {Permission.READ}
    assert read(permissions=None).permissions == frozenset()


@pytest.mark.parametrize("text", [b"x", b"-1", b"1.0", b"01", b" 1", b"\xff", b"", b"9" * 20])
def test_a_team_that_is_no_number_is_none(text: bytes) -> None:
    """And nobody is a member of it."""
    found = read(team=text)
    assert (found.team, found.role) == (None, None)
    assert records.number(b"9" * 19) == int("9" * 19)
    assert records.number(b"0") == 0
    assert records.number(None) is None


@pytest.mark.parametrize("text", [b"0/1", b"1/0", b"5", b"/", b"5/", b"/5", b"a/b", b"-1/5", b""])
def test_an_odd_limit_admits_nothing(text: bytes) -> None:
    """The configured one may admit more than what stood there; a restriction beside it is moot."""
    found = read(user_limit=text, user_restriction=b'{"uses":5}', team_limit=b"7/3000")
    assert found.limits == {"team": Limit(7, 3000)}
    assert found.restrictions == {"user": UNREADABLE_LIMIT}
    assert found.restrictions["user"] is not DAMAGED
    found = read(limit=text, user_limit=text, team_limit=text)
    assert (found.limits, sorted(found.restrictions)) == ({}, ["team", "token", "user"])
    assert records.limit(None) is None
    assert records.limit(records.write_limit(Limit(5, 60_000)).encode()) == Limit(5, 60_000)
    assert records.limit(b"1/1") == Limit(1, 1)


def test_texts_are_read_whatever_they_are() -> None:
    """Nobody is refused for a name."""
    assert records.text(None) == ""
    assert records.text("prüfung".encode()) == "prüfung"
    assert records.text(b"\xff") == "\N{REPLACEMENT CHARACTER}"
    assert read(name=None).name == ""


def test_restrictions_are_read_by_their_holder() -> None:
    """One that cannot be read stands for one that admits nothing; none is none."""
    found = read(restriction=b'{"uses":5}', user_restriction=b'{"uses":"many"}')
    assert found.restrictions == {"token": Restriction(uses=5), "user": DAMAGED}
    assert read(team_restriction=b"").restrictions == {"team": DAMAGED}
    assert read().restrictions == {}


def test_unreadable_fields_are_named() -> None:
    """Each that holds something odd, and no other."""
    odd = [DIGEST, b"\xff", b"x", b"y", b"read everything", b"soon", b"5", b"{", b"no", b"x"]
    assert records.unreadable(records.TOKEN_FIELDS, odd) == (
        *("user", "team", "permissions", "expires_at", "limit", "restriction"),
        "disabled",
    )
    fine = [
        DIGEST,
        b"ci",
        b"7",
        b"3",
        b"read write read",
        b"1800000000000",
        b"5/1000",
        None,
        b"1",
        None,
    ]
    assert records.unreadable(records.TOKEN_FIELDS, fine) == ()
    assert records.unreadable(records.TOKEN_FIELDS, [None] * 10) == ()
    instance = records.INSTANCE_FIELDS
    assert records.unreadable(instance, [b"on", b"nonsense", b"2"]) == instance
    assert records.unreadable(instance, [b"1", b"10.0.0.0/8", b"0"]) == ()
    assert records.unreadable(["role"], [b"boss"]) == ("role",)
    assert records.unreadable(["role"], [b"admin"]) == ()


def test_what_says_the_same_stays_what_is_held() -> None:
    """By identity; any difference is news."""
    held = read()
    assert records.unchanged(held, read()) is held
    for changed in (read(permissions=b"write"), read(expires_at=b"5"), read(member=b"admin")):
        assert records.unchanged(held, changed) is changed
    first = read()
    assert records.unchanged(None, first) is first


def test_what_cannot_be_read_disables() -> None:
    """Only its absence, or a plain 0, admits."""
    assert [read(disabled=value).disabled for value in (None, b"0", b"1", b"", b"x")] == [
        *(False, False),
        *(True, True, True),
    ]


def test_a_replaced_secret_is_bound_to_the_one_that_replaced_it() -> None:
    """Once the token has another digest, by whatever way, the old secret means nothing."""
    old = records.Replaced(b"o" * 32, UnixMs(5))
    written = records.write_rotated(DIGEST, old)
    assert records.replaced(DIGEST, written) == old
    assert records.replaced(b"e" * 32, written) is None
    for damaged in (None, b"", written[:64], written[:-1] + b"x", b"x" + written):
        assert records.replaced(DIGEST, damaged) is None


def test_an_old_secret_expires_no_later_than_its_overlap() -> None:
    """Whatever looks at the expiry alone ends it, too; the new one keeps the token's own."""
    old = records.Replaced(b"o" * 32, UnixMs(5))
    written = records.write_rotated(DIGEST, old)

    def of(wanted: bytes, expires_at: bytes | None) -> TokenRecord:
        found = token(rotated=written, expires_at=expires_at, wanted=wanted)
        assert found is not None
        return found

    for expires_at, expected in ((None, 5), (b"9", 5), (b"3", 3)):
        found = of(old.digest, expires_at)
        assert (found.digest, found.expires_at, found.rotated_until) == (old.digest, expected, 5)
    found = of(DIGEST, b"9")
    assert (found.digest, found.expires_at, found.rotated_until) == (DIGEST, 9, None)


PLACES = st.builds(
    Place,
    st.integers(0, 2**40).map(TeamId),
    st.sampled_from(ResourceKind),
    *[st.text(max_size=20)] * 4,
)


@given(place=PLACES)
def test_a_place_is_read_as_it_was_written(place: Place) -> None:
    """Whatever its names hold: blanks, per cents, any letter."""
    written = records.write_place(place)
    assert written.isascii()
    assert records.place(written.encode()) == place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        (b"", None),
        (b"x server", None),
        (b"3", Place(TeamId(3))),
        (b"3 nonsense p", Place(TeamId(3))),
        (b"3 server p e n w", Place(TeamId(3), ResourceKind.SERVER, "p", "e", "n", "w")),
        (b"3 server p e n w more", Place(TeamId(3))),
        (b"3 server", Place(TeamId(3), ResourceKind.SERVER)),
        (b"3 server a%20b\xff", Place(TeamId(3), ResourceKind.SERVER, "a b\ufffd")),
    ],
)
def test_a_place_that_can_not_be_read_is_its_team_s_alone(text, expected) -> None:
    """Nothing more is known of it, so no restriction to resources admits it."""
    assert records.place(text) == expected
    if expected is not None and text.isascii() and b"nonsense" not in text and b"more" not in text:
        assert records.write_place(expected) == text.decode()


def test_a_canary_is_read_as_it_is_kept() -> None:
    """Its digest, when it was made, and why; of an odd time, 0."""
    one = records.canary(TokenId(9), DIGEST + b"1800000000000 in the wiki")
    assert one == records.Canary(TokenId(9), DIGEST, UnixMs(1_800_000_000_000), "in the wiki")
    assert records.canary(TokenId(9), DIGEST + b"x y").created_at == 0
    assert records.canary_digest(DIGEST + b"5 note") == DIGEST
    assert records.canary_digest(None) == bytes(32)
    assert records.canary_digest(b"d") == b"d" + bytes(31)
