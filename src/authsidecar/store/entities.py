"""Users, teams, memberships and tokens as they are listed, and their fields in Redis, both ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from authsidecar.decision.model import Permission, Role, TeamId, TokenId, UserId
from authsidecar.store import records
from authsidecar.store.records import Field
from authsidecar.times import UnixMs, rfc3339


@dataclass(frozen=True, slots=True)
class User:
    """A user as it is listed."""

    FIELDS: ClassVar = ("name", "email")

    id: UserId
    name: str
    email: str

    @classmethod
    def read(cls, user: UserId, fields: Sequence[Field]) -> Self | None:
        """The user with these values of FIELDS, or None if it is not there."""
        name, email = fields
        return None if name is None else cls(user, records.text(name), records.text(email))

    def fields(self) -> Mapping[str, str]:
        """The values that `read` reads, by name."""
        return {"name": self.name, "email": self.email}

    def facts(self) -> Mapping[str, object]:
        """What the audit says of it."""
        return self.fields()


@dataclass(frozen=True, slots=True)
class Team:
    """A team as it is listed."""

    FIELDS: ClassVar = ("name", "mcp_enabled")

    id: TeamId
    name: str
    mcp_enabled: bool

    @classmethod
    def read(cls, team: TeamId, fields: Sequence[Field]) -> Self | None:
        """The team with these values of FIELDS, or None if it is not there."""
        name, mcp = fields
        if name is None:
            return None
        return cls(team, records.text(name), records.flag(mcp, absent=True))

    def fields(self) -> Mapping[str, str | int]:
        """The values that `read` reads, by name."""
        return {"name": self.name, "mcp_enabled": int(self.mcp_enabled)}

    def facts(self) -> Mapping[str, object]:
        """What the audit says of it."""
        return {"name": self.name, "mcp_enabled": self.mcp_enabled}


@dataclass(frozen=True, slots=True)
class Member:
    """A membership as it is listed."""

    team: TeamId
    user: UserId
    role: Role

    def facts(self) -> Mapping[str, object]:
        """What the audit says of it."""
        return {"role": self.role.value}


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored; the secret is only its SHA-256.

    Attributes:
        id: the number before the `|`.
        sha256: the 32 bytes of the secret's digest.
        name: what its owner calls it.
        user: its owner.
        team: its team, or None: it came from Coolify and its team is no plain number.
        permissions: what it holds.
        expires_at: the last millisecond at which it is valid, or None.
        created_at: when it was issued.
    """

    FIELDS: ClassVar = ("sha256", "name", "user", "team", "permissions", "expires_at", "created_at")

    id: TokenId
    sha256: bytes = field(repr=False)
    name: str
    user: UserId
    team: TeamId | None
    permissions: frozenset[Permission]
    expires_at: UnixMs | None
    created_at: UnixMs

    @classmethod
    def read(cls, token: TokenId, fields: Sequence[Field]) -> Self | None:
        """The token with these values of FIELDS, or None if it is not there."""
        digest, name, user, team_text, permissions, expires_at, created_at = fields
        if digest is None:
            return None
        team = records.number(team_text)
        return cls(
            id=token,
            sha256=digest,
            name=records.text(name),
            user=UserId(records.number(user) or 0),
            team=None if team is None else TeamId(team),
            permissions=records.permissions(permissions),
            expires_at=None if expires_at is None else UnixMs(records.number(expires_at) or 0),
            created_at=UnixMs(records.number(created_at) or 0),
        )

    def fields(self) -> Mapping[str, bytes | str | int]:
        """The values that `read` reads, by name; without those that the token has not."""
        values: Mapping[str, bytes | str | int | None] = {
            "sha256": self.sha256,
            "name": self.name,
            "user": self.user,
            "team": self.team,
            "permissions": " ".join(sorted(self.permissions)),
            "expires_at": self.expires_at,
            "created_at": self.created_at,
        }
        return {name: value for name, value in values.items() if value is not None}

    def facts(self) -> Mapping[str, object]:
        """What the audit says of it: nothing of its secret."""
        return {
            "name": self.name,
            "user": self.user,
            "team": self.team,
            "permissions": sorted(self.permissions),
            "expires_at": None if self.expires_at is None else rfc3339(self.expires_at),
        }
