"""From a row of Coolify's tables to a fact or to nothing; no row can crash it.

Pure. A row that means nothing sure is refused or holds nothing, and says so as an Odd reason
(decisions: "Tokens synced from Coolify with odd data").
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from authsidecar.decision.allowlist import parse_lenient
from authsidecar.decision.model import (
    Permission,
    Place,
    ResourceKind,
    Role,
    TeamId,
    TokenId,
    UserId,
)
from authsidecar.store.bulk import Owner
from authsidecar.store.entities import Member, Team, Token, User
from authsidecar.times import UnixMs

USER_MODEL: Final = "App\\Models\\User"
"""The only owner type whose tokens Coolify accepts."""

_LARGEST_ID: Final = 2**63 - 1
_PLAIN_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PERMISSIONS: Final = {p.value: p for p in Permission}

Row = Mapping[str, Any]
"""A record by column name; asyncpg's Record is one."""

F = TypeVar("F")


class Odd(StrEnum):
    """What is wrong with a row; closed, since it labels a metric."""

    ID = "id"
    OWNER_TYPE = "owner_type"
    OWNER_GONE = "owner_gone"
    DIGEST = "digest"
    TEAM_ID = "team_id"
    ABILITIES = "abilities"
    ABILITY_UNKNOWN = "ability_unknown"
    EXPIRY = "expiry"
    MEMBERSHIP = "membership"
    ALLOWLIST_ENTRY = "allowlist_entry"


@dataclass(frozen=True, slots=True)
class Read(Generic[F]):
    """What a row says: its fact, or None where it grants nothing to anyone, and what is odd."""

    fact: F | None
    odd: tuple[Odd, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """The instance's switches and its allowlist, cleaned as it is stored.

    Attributes:
        api_enabled: the API switch.
        mcp_enabled: the instance's MCP switch.
        allowlist: as `parse_lenient` reads it again.
        bad_entries: the entries of the allowlist that were left out.
    """

    api_enabled: bool
    mcp_enabled: bool
    allowlist: str
    bad_entries: tuple[str, ...] = field(default=(), compare=False)

    @property
    def shown(self) -> str:
        """The settings in a line for people."""
        switches = f"API {_on(self.api_enabled)}, MCP {_on(self.mcp_enabled)}"
        return f"{switches}, allowlist {self.allowlist or 'everyone'}"


OFF: Final = InstanceSettings(api_enabled=False, mcp_enabled=False, allowlist="")
"""Without its settings row, Coolify answers 404 to everything."""


def token(row: Row) -> Read[Token]:
    """A token; none where nobody could use it, without permissions where they are unreadable."""
    if not 0 < row["id"] <= _LARGEST_ID:
        return Read(None, (Odd.ID,))
    if row["owner_type"] != USER_MODEL:
        return Read(None, (Odd.OWNER_TYPE,))
    if not row["owned"] or row["user_id"] < 0:
        return Read(None, (Odd.OWNER_GONE,))
    if not _DIGEST.fullmatch(row["sha256"]):
        return Read(None, (Odd.DIGEST,))
    odd: list[Odd] = []
    team = _team(row["team_id"])
    if team is None:
        odd.append(Odd.TEAM_ID)
    permissions, wrong = _permissions(row["abilities"])
    odd += wrong
    expires = row["expires_at"]
    if expires is not None and expires < 0:  # infinite, or before 1970: nothing that Laravel wrote
        odd.append(Odd.EXPIRY)
        expires = 0
    fact = Token(
        id=TokenId(row["id"]),
        sha256=bytes.fromhex(row["sha256"]),
        name=row["name"],
        user=UserId(row["user_id"]),
        team=team,
        permissions=permissions,
        expires_at=None if expires is None else UnixMs(expires * 1000),
        created_at=UnixMs(max(row["created_at"] or 0, 0) * 1000),
    )
    return Read(fact, tuple(odd))


def user(row: Row) -> Read[User]:
    """A user."""
    if row["id"] < 0:
        return Read(None, (Odd.ID,))
    return Read(User(UserId(row["id"]), row["name"], row["email"]))


def team(row: Row) -> Read[Team]:
    """A team."""
    if row["id"] < 0:
        return Read(None, (Odd.ID,))
    return Read(Team(TeamId(row["id"]), row["name"], mcp_enabled=row["mcp_enabled"] is True))


def member(row: Row) -> Read[Member]:
    """A membership, if its user and its team are there; any unknown role is a member's."""
    if not row["joined"] or row["team_id"] < 0 or row["user_id"] < 0:
        return Read(None, (Odd.MEMBERSHIP,))
    roles = {"owner": Role.OWNER, "admin": Role.ADMIN}
    role = roles.get(row["role"], Role.MEMBER)
    return Read(Member(TeamId(row["team_id"]), UserId(row["user_id"]), role))


def owner(row: Row) -> Read[Owner]:
    """Whose a resource is, and where it lies; a team that no token can name is nobody's."""
    if row["team_id"] < 0:
        return Read(None)
    place = Place(TeamId(row["team_id"]))
    if row["kind"]:
        around = (row[name] for name in ("project", "environment", "environment_name", "within"))
        place = Place(place.team, ResourceKind(row["kind"]), *around)
    return Read(Owner(row["uuid"], place))


def settings(row: Row | None) -> InstanceSettings:
    """The instance's settings; everything is off where the row is missing."""
    if row is None:
        return OFF
    allowlist, bad = parse_lenient(row["allowed_ips"])
    return InstanceSettings(
        api_enabled=row["api_enabled"] is True,
        mcp_enabled=row["mcp_enabled"] is True,
        allowlist=allowlist.text,
        bad_entries=bad,
    )


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def _team(text: str) -> TeamId | None:
    """The team of a token: PostgreSQL would cast `01` and ` 1` as well, we do not."""
    if not _PLAIN_NUMBER.fullmatch(text) or int(text) > _LARGEST_ID:
        return None
    return TeamId(int(text))


def _permissions(text: str | None) -> tuple[frozenset[Permission], list[Odd]]:
    """The known names of a JSON list of strings; anything else holds nothing."""
    try:
        names = json.loads(text or "")
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return frozenset(), [Odd.ABILITIES]
    known = frozenset(_PERMISSIONS[name] for name in names if name in _PERMISSIONS)
    return known, [Odd.ABILITY_UNKNOWN] if len(known) < len(set(names)) else []
