"""Rows of Coolify's tables: what each odd one grants, which is nothing."""

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsidecar.coolify import rows
from authsidecar.coolify.rows import OFF, Odd
from authsidecar.decision.model import Permission, Role

DIGEST = sha256(b"secret").hexdigest()


def token_row(**values: Any) -> dict[str, Any]:
    """A row that is not odd, but for what is given."""
    return {
        "id": 7,
        "owner_type": rows.USER_MODEL,
        "user_id": 1,
        "owned": True,
        "name": "ci",
        "sha256": DIGEST,
        "team_id": "1",
        "abilities": '["read"]',
        "expires_at": None,
        "created_at": 1_700_000_000,
        **values,
    }


def test_a_plain_row_is_a_token() -> None:
    """Every value is where it belongs, times in milliseconds."""
    read = rows.token(token_row(expires_at=1_800_000_000))

    assert read.odd == ()
    assert read.fact is not None
    assert read.fact.sha256 == bytes.fromhex(DIGEST)
    assert read.fact.expires_at == 1_800_000_000_000
    assert read.fact.created_at == 1_700_000_000_000
    assert read.fact.permissions == {Permission.READ}


@pytest.mark.parametrize(
    ("abilities", "held", "odd"),
    [
        ('["read", "write"]', {"read", "write"}, ()),
        ('["read", "read"]', {"read"}, ()),
        ('["*"]', {"*"}, ()),
        ("[]", set(), ()),
        (None, set(), (Odd.ABILITIES,)),
        ("", set(), (Odd.ABILITIES,)),
        ("null", set(), (Odd.ABILITIES,)),
        ("true", set(), (Odd.ABILITIES,)),
        ('"root"', set(), (Odd.ABILITIES,)),
        ('{"a": "read"}', set(), (Odd.ABILITIES,)),
        ("[read", set(), (Odd.ABILITIES,)),
        ("[true]", set(), (Odd.ABILITIES,)),
        ('["root", true]', set(), (Odd.ABILITIES,)),
        ('["root", null]', set(), (Odd.ABILITIES,)),
        ('[["root"]]', set(), (Odd.ABILITIES,)),
        ("[" * 100_000, set(), (Odd.ABILITIES,)),
        ("1" * 10_000, set(), (Odd.ABILITIES,)),
        ('["Read", "read ", "view:sensitive", "read"]', {"read"}, (Odd.ABILITY_UNKNOWN,)),
        ('["\\ud800"]', set(), (Odd.ABILITY_UNKNOWN,)),
    ],
)
def test_abilities_hold_what_they_name_in_a_list_and_nothing_else(
    abilities: str | None, held: set[str], odd: tuple[Odd, ...]
) -> None:
    """Coolify answers some of these with 500, and takes [true] for everything."""
    read = rows.token(token_row(abilities=abilities))

    assert read.fact is not None
    assert (set(read.fact.permissions), read.odd) == (held, odd)


@pytest.mark.parametrize(
    ("text", "team"),
    [
        ("0", 0),
        ("1", 1),
        ("9223372036854775807", 2**63 - 1),
        *((text, None) for text in ("", "01", "00", " 1", "1 ", "+1", "-1", "1\n", "1.0", "0x1")),
        *((text, None) for text in ("abc", "٣", "²", "9223372036854775808", "9" * 30)),
    ],
)
def test_only_a_plain_number_is_a_team(text: str, team: int | None) -> None:
    """PostgreSQL would cast some of the others to a team that is not meant."""
    read = rows.token(token_row(team_id=text))

    assert read.fact is not None
    assert read.fact.team == team
    assert read.odd == (() if team is not None else (Odd.TEAM_ID,))


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ({"id": 0}, Odd.ID),
        ({"id": -7}, Odd.ID),
        ({"owner_type": "App\\Models\\Team"}, Odd.OWNER_TYPE),
        ({"owner_type": "App\\\\Models\\\\User"}, Odd.OWNER_TYPE),
        ({"owner_type": "app\\models\\user"}, Odd.OWNER_TYPE),
        ({"owned": False}, Odd.OWNER_GONE),
        ({"user_id": -1}, Odd.OWNER_GONE),
        ({"sha256": DIGEST.upper()}, Odd.DIGEST),
        ({"sha256": DIGEST[:-1]}, Odd.DIGEST),
        ({"sha256": ""}, Odd.DIGEST),
        ({"sha256": "secret"}, Odd.DIGEST),
    ],
)
def test_what_nobody_could_use_is_no_token(values: dict[str, Any], odd: Odd) -> None:
    """Coolify would answer 401 to it, too."""
    assert rows.token(token_row(**values)) == rows.Read(None, (odd,))


def test_a_time_that_laravel_never_wrote_has_passed() -> None:
    """Infinite, or before 1970."""
    read = rows.token(token_row(expires_at=-1))

    assert read.fact is not None
    assert (read.fact.expires_at, read.odd) == (0, (Odd.EXPIRY,))


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("owner", Role.OWNER),
        ("admin", Role.ADMIN),
        *((text, Role.MEMBER) for text in ("member", "Owner", "ADMIN", "viewer", "", " admin")),
    ],
)
def test_only_exact_names_are_more_than_a_member(text: str, role: Role) -> None:
    """Roles are free text in Coolify's table."""
    read = rows.member({"team_id": 1, "user_id": 2, "role": text, "joined": True})

    assert read.fact is not None
    assert read.fact.role is role


def test_a_dangling_membership_is_none() -> None:
    """Coolify joins users and teams: both must be there."""
    read = rows.member({"team_id": 77, "user_id": 1, "role": "owner", "joined": False})

    assert read == rows.Read(None, (Odd.MEMBERSHIP,))


@pytest.mark.parametrize("missing", [None, {"api_enabled": None, "mcp_enabled": None}])
def test_what_is_not_there_is_off(missing: dict[str, Any] | None) -> None:
    """Without its row Coolify answers 404 to everything; NULL is nobody's consent."""
    row = None if missing is None else {**missing, "allowed_ips": None}

    assert rows.settings(row) == OFF


def test_bad_entries_of_the_allowlist_are_left_out_and_named() -> None:
    """A list of only bad entries admits nobody, also when it is read again."""
    row = {"api_enabled": True, "mcp_enabled": True, "allowed_ips": "10.0.0.0/,192.0.2.1, x"}
    assert rows.settings(row).allowlist == "192.0.2.1"
    assert rows.settings(row).bad_entries == ("10.0.0.0/", "x")

    stored = rows.settings({**row, "allowed_ips": "10.0.0.0/"}).allowlist
    assert rows.settings({**row, "allowed_ips": stored}).allowlist == stored != ""


@given(st.text() | st.none(), st.text(), st.text(), st.text())
def test_no_text_crashes_or_grants_more_than_it_names(
    abilities: str | None, team: str, digest: str, owner: str
) -> None:
    """Whatever stands in the text columns."""
    row = token_row(abilities=abilities, team_id=team, sha256=digest, owner_type=owner)

    assert rows.token(row).fact is None
    read = rows.token(token_row(abilities=abilities, team_id=team))
    assert read.fact is not None
    assert all(f'"{name}"' in (abilities or "") for name in read.fact.permissions)
    assert read.fact.team is None or str(read.fact.team) == team


@given(st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=8))
def test_json_that_is_no_list_of_strings_holds_nothing(value: Any) -> None:
    """However it is nested."""
    read = rows.token(token_row(abilities=json.dumps(value)))
    plain = isinstance(value, list) and all(isinstance(item, str) for item in value)

    assert read.fact is not None
    assert plain or read.odd == (Odd.ABILITIES,)
