"""Who is admitted by Coolify's own rows: written from the rules alone.

Nothing of the product is imported here: what is checked must not be its own judge.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address, ip_network
from time import time
from typing import Any, NamedTuple

import asyncpg

USER_MODEL = "App\\Models\\User"
EVERY = {"root", "*"}
KNOWN = {"read", "read:sensitive", "write", "write:sensitive", "deploy", "root", "*"}
ELEVATED = KNOWN - {"read"}


class Route(NamedTuple):
    """A route, the permission that it needs, and what it goes by."""

    method: str
    path: str
    needs: str | None
    switch: bool = False
    mcp: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ROUTES = (
    Route("GET", "/api/v1/teams", "read"),
    Route("POST", "/api/v1/projects", "write"),
    Route("POST", "/api/v1/deploy", "deploy"),
    Route("POST", "/api/v1/enable", "root", switch=True),
    Route("POST", "/mcp", None, mcp=True),
)
ADDRESSES = ("192.0.2.1", "10.1.2.3")


class Question(NamedTuple):
    """One request: which token, where, and from which address."""

    token: int
    route: Route
    address: str

    def __str__(self) -> str:
        return f"token {self.token}, {self.route}, from {self.address}"


class Identity(NamedTuple):
    """Who an admitted request is said to be."""

    user: str
    team: str
    role: str
    permissions: tuple[str, ...]
    sensitive: bool

    def __str__(self) -> str:
        held = " ".join(self.permissions) or "nothing"
        more = ", sees secrets" if self.sensitive else ""
        return f"user {self.user}, {self.role} of team {self.team}, with {held}{more}"


@dataclass(frozen=True)
class Rows:
    """Coolify's rows at one instant."""

    tokens: Mapping[int, Mapping[str, Any]]
    users: frozenset[int]
    teams: Mapping[int, bool]
    roles: Mapping[tuple[int, int], str]
    settings: Mapping[str, Any] | None

    @classmethod
    async def read(cls, dsn: str) -> "Rows":
        """What PostgreSQL holds now."""
        connection = await asyncpg.connect(dsn, timeout=5, command_timeout=5)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                tokens = await connection.fetch(
                    "SELECT *, extract(epoch FROM expires_at)::float AS ends "
                    "FROM personal_access_tokens"
                )
                users = await connection.fetch("SELECT id FROM users")
                teams = await connection.fetch("SELECT id, is_mcp_server_enabled FROM teams")
                members = await connection.fetch("SELECT team_id, user_id, role FROM team_user")
                settings = await connection.fetchrow("SELECT * FROM instance_settings WHERE id = 0")
        finally:
            await connection.close(timeout=1)
        return cls(
            tokens={row["id"]: dict(row) for row in tokens},
            users=frozenset(row["id"] for row in users),
            teams={row["id"]: row["is_mcp_server_enabled"] for row in teams},
            roles={(row["team_id"], row["user_id"]): row["role"] for row in members},
            settings=None if settings is None else dict(settings),
        )

    def admitted(
        self, secrets: Mapping[int, str], questions: Iterable[Question]
    ) -> dict[Question, Identity]:
        """Whoever is let in, and as whom; all other questions are refused."""
        people = {token: self._person(token, secret) for token, secret in secrets.items()}
        return {
            question: person
            for question in questions
            if (person := people[question.token]) is not None and self._may(person, question)
        }

    def _person(self, number: int, secret: str) -> Identity | None:
        """Whom a token stands for, by checks 2, 4 and 5; None if for nobody."""
        row = self.tokens.get(number)
        if (
            row is None
            or row["tokenable_type"] != USER_MODEL
            or row["token"] != sha256(secret.encode()).hexdigest()
            or row["tokenable_id"] not in self.users
            or (row["ends"] is not None and row["ends"] < time())
            or re.fullmatch("0|[1-9][0-9]*", row["team_id"]) is None
        ):
            return None
        team, user = int(row["team_id"]), row["tokenable_id"]
        if team not in self.teams or (team, user) not in self.roles:
            return None
        role = self.roles[team, user]
        role = role if role in {"owner", "admin"} else "member"
        held = _permissions(row["abilities"])
        if role == "member" and held & ELEVATED:
            return None
        sensitive = role != "member" and bool(held & (EVERY | {"read:sensitive"}))
        return Identity(str(user), str(team), role, tuple(sorted(held)), sensitive)

    def _may(self, person: Identity, question: Question) -> bool:
        """Whether a member passes the checks 6 to 9 and, for MCP, its switches."""
        route, settings = question.route, self.settings
        held = set(person.permissions)
        if settings is None:
            return False
        if route.switch:
            return bool(held & EVERY) and person.team == "0"
        if not _listed(settings["allowed_ips"], question.address):
            return False
        if route.mcp:
            return settings["is_mcp_server_enabled"] and self.teams[int(person.team)]
        enough = EVERY | {route.needs} | ({"read:sensitive"} if route.needs == "read" else set())
        return settings["is_api_enabled"] and bool(held & enough)


def _permissions(text: str | None) -> set[str]:
    """The known names of a list of strings; anything else holds nothing."""
    try:
        names = json.loads(text or "null")
    except ValueError:
        return set()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return set()
    return set(names) & KNOWN


def _listed(text: str | None, address: str) -> bool:
    """Whether the allowlist admits an address; only entries that the churn writes are known."""
    entries = [entry.strip() for entry in (text or "").split(",") if entry.strip()]
    if not entries or "0.0.0.0" in entries:
        return True
    return any(_within(entry, address) for entry in entries)


def _within(entry: str, address: str) -> bool:
    try:
        return ip_address(address) in ip_network(entry)
    except ValueError:
        return False
