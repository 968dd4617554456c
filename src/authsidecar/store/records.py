"""How a record is written in Redis, both ways; anything unreadable grants nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from authsidecar.decision import restrictions
from authsidecar.decision.allowlist import Allowlist, parse_lenient
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
from authsidecar.decision.policy import Instance
from authsidecar.times import UnixMs

RESTRICTION: Final = "restriction"
"""The field, of a token, user or team, of what narrows it."""

DISABLED: Final = "disabled"
"""The field of a token that is refused until it is enabled: anything but `0`."""

ROTATED: Final = "rotated"
"""The field of a token whose secret was replaced: see `write_rotated`."""

TOKEN_FIELDS: Final = (
    "sha256",
    "name",
    "user",
    "team",
    "permissions",
    "expires_at",
    "limit",
    RESTRICTION,
    DISABLED,
    ROTATED,
)
USER_FIELDS: Final = ("name", "limit", RESTRICTION)
TEAM_FIELDS: Final = ("name", "mcp_enabled", "limit", RESTRICTION)
SYNCED: Final = "synced"
"""The field of the instance by which a sync says that all is there: SYNC_COMPLETE, SYNC_BEGUN until
then, SYNC_ENDED once it was released."""

SYNC_COMPLETE: Final = b"1"
SYNC_BEGUN: Final = b"0"
SYNC_ENDED: Final = b""

INSTANCE_FIELDS: Final = ("api_enabled", "allowlist", "mcp_enabled")

_BIGINT_DIGITS: Final = 19
_DIGEST_BYTES: Final = 32

_ROLES: Final = {role.value.encode(): role for role in Role}

_KINDS: Final = {kind.value.encode(): kind for kind in ResourceKind}

Snapshot = TypeVar("Snapshot", TokenRecord, Instance)

Field = bytes | None
"""A hash field as redis-py reads it; None where it is absent."""


def flag(value: Field, *, absent: bool) -> bool:
    """A switch: `1` is on, anything else that is written is off."""
    return absent if value is None else value == b"1"


def text(value: Field) -> str:
    """A text; what is no UTF-8 in it is replaced, and nothing is the empty text."""
    return (value or b"").decode("utf-8", "replace")


def number(value: Field) -> int | None:
    """A plain decimal number without leading zeros, at most a bigint's digits, else None."""
    if value is None or not value.isdigit() or len(value) > _BIGINT_DIGITS:
        return None
    return int(value) if value == b"0" or not value.startswith(b"0") else None


def permissions(value: Field) -> frozenset[Permission]:
    """The permissions of a space-separated text; unknown names hold nothing."""
    known = {p.value: p for p in Permission}
    words = (value or b"").decode("ascii", "replace").split()
    return frozenset(known[word] for word in words if word in known)


def role(value: Field) -> Role | None:
    """A membership's role: None without one, or where the text is none of the three."""
    return None if value is None else _ROLES.get(value)


def limit(value: Field) -> Limit | None:
    """`REQUESTS/WINDOW_MS`, else None."""
    if value is None:
        return None
    requests, _, window = value.partition(b"/")
    if not (n := number(requests)) or not (w := number(window)):
        return None
    return Limit(n, w)


def write_limit(value: Limit) -> str:
    """The text that `limit` reads."""
    return f"{value.requests}/{value.window_ms}"


def place(value: Field) -> Place | None:
    """Where a resource lies; only whose it is, where the rest can't be read; None: not known."""
    team, *words = (value or b"").split(b" ")
    owner = number(team)
    if owner is None:
        return None
    found = Place(TeamId(owner))
    if not 1 <= len(words) <= len(Place._fields) - 1 or words[0] not in _KINDS:
        return found
    texts = [unquote(word.decode("ascii", "replace")) for word in words[1:]]
    return Place(found.team, _KINDS[words[0]], *texts)


def write_place(place: Place) -> str:
    """The text that `place` reads: few characters, since there are many of them."""
    kind = "" if place.kind is None else place.kind.value
    words = [str(place.team), kind, *(quote(text, safe="") for text in place[2:])]
    return " ".join(words).rstrip(" ")


def is_disabled(value: Field) -> bool:
    """Whether a token is refused; what can't be read refuses."""
    return value is not None and value != b"0"


class Replaced(NamedTuple):
    """A secret that a newer one has replaced.

    Attributes:
        digest: the 32 bytes of its SHA-256.
        until: the last millisecond at which it is valid.
    """

    digest: bytes
    until: UnixMs


def write_rotated(now: bytes, before: Replaced) -> bytes:
    """The text that `replaced` reads, for a token whose digest is `now` from here on.

    It names that digest, so that it means nothing any more once the token has another one.
    """
    return now + before.digest + str(before.until).encode()


def replaced(digest: Field, rotated: Field) -> Replaced | None:
    """The secret that was replaced by the one of this digest, if any."""
    if digest is None or rotated is None or len(digest) != _DIGEST_BYTES:
        return None
    until = number(rotated[2 * _DIGEST_BYTES :])
    if until is None or not rotated.startswith(digest):
        return None
    return Replaced(rotated[_DIGEST_BYTES : 2 * _DIGEST_BYTES], UnixMs(until))


class Canary(NamedTuple):
    """A token that belongs to nobody, and tells who uses it.

    Attributes:
        id: the number before the `|`.
        digest: the 32 bytes of the secret's SHA-256.
        created_at: when it was made.
        note: where it was put.
    """

    id: TokenId
    digest: bytes
    created_at: UnixMs
    note: str

    def written(self) -> bytes:
        """The text that `canary` reads."""
        return self.digest + f"{self.created_at} {self.note}".encode()


def canary(token: TokenId, value: bytes) -> Canary:
    """A canary token as it is kept."""
    created, _, note = value[_DIGEST_BYTES:].partition(b" ")
    return Canary(token, value[:_DIGEST_BYTES], UnixMs(number(created) or 0), text(note))


def canary_digest(value: Field) -> bytes:
    """What a secret is compared with; without a canary, what no secret has."""
    return (value or b"")[:_DIGEST_BYTES].ljust(_DIGEST_BYTES, b"\0")


def token_record(
    token: TokenId,
    fields: Sequence[Field],
    *,
    user: Sequence[Field],
    team: Sequence[Field],
    member: Field,
    nonce: bytes,
    wanted: bytes | None = None,
) -> TokenRecord | None:
    """A token with what is known of its owner, or None if the token is not there.

    Args:
        token: its id.
        wanted: the digest that was sent; the record is that of a rotated secret if it is that.
        fields: the values of TOKEN_FIELDS.
        user: the values of USER_FIELDS of its owner.
        team: the values of TEAM_FIELDS of its team.
        member: the owner's role in that team.
        nonce: the owner's nonce, read before all of the others.
    """
    digest, name, owner_text, team_text, names, expires_text, *more = fields
    token_limit, narrowed, disabled, rotated = more
    owner = number(owner_text)
    if digest is None or owner is None:
        return None
    # Something is written where an expiry belongs, and it is no number: it has expired.
    expires = None if expires_text is None else number(expires_text) or 0
    old = replaced(digest, rotated)
    if old is not None and wanted != old.digest:
        old = None
    if old is not None:  # whatever looks at the expiry ends the old secret, too
        expires = old.until if expires is None else min(expires, old.until)
    team_id = number(team_text)
    belongs = user[0] is not None and team[0] is not None and team_id is not None
    return TokenRecord(
        token=token,
        digest=digest if old is None else old.digest,
        name=text(name),
        user=UserId(owner),
        team=None if team_id is None else TeamId(team_id),
        permissions=permissions(names),
        expires_at=None if expires is None else UnixMs(expires),
        role=role(member) if belongs else None,
        team_mcp=flag(team[1], absent=True),
        limits=_limits(token=token_limit, user=user[1], team=team[2]),
        restrictions={
            **_restrictions(token=narrowed, user=user[2], team=team[3]),
            **_unreadable_limits(token=token_limit, user=user[1], team=team[2]),
        },
        disabled=is_disabled(disabled),
        rotated_until=None if old is None else old.until,
        nonce=nonce,
    )


def instance(row: Sequence[Field], nonce: bytes) -> Instance:
    """The instance-wide state; what was never written is off, an absent allowlist is everyone."""
    api, allowlist, mcp = row
    text = None if allowlist is None else allowlist.decode("utf-8", "replace")
    return Instance(
        api_enabled=flag(api, absent=False),
        allowlist=_allowlist(text)[0],
        mcp_enabled=flag(mcp, absent=False),
        nonce=nonce,
    )


@lru_cache(maxsize=4)
def _allowlist(text: str | None) -> tuple[Allowlist, tuple[str, ...]]:
    """Ten thousand entries take their time, and are the same each time but for a change."""
    return parse_lenient(text)


def unreadable(names: Sequence[str], values: Sequence[Field]) -> tuple[str, ...]:
    """The names of those of these fields that hold something which cannot be read.

    What they hold grants nothing: an odd switch is off, an odd expiry has passed, an odd role is
    none, an odd permission is not held, and an odd limit or restriction admits nothing.
    """
    return tuple(
        name
        for name, value in zip(names, values, strict=True)
        if value is not None and name in _READABLE and not _READABLE[name](value)
    )


def _is_flag(value: bytes) -> bool:
    return value in {b"0", b"1"}


def _is_number(value: bytes) -> bool:
    return number(value) is not None


_READABLE: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "user": _is_number,
    "team": _is_number,
    "expires_at": _is_number,
    "permissions": lambda value: len(permissions(value)) == len(set(value.split())),
    "limit": lambda value: limit(value) is not None,
    RESTRICTION: lambda value: restrictions.read(value) is not DAMAGED,
    "role": lambda value: role(value) is not None,
    DISABLED: _is_flag,
    "api_enabled": _is_flag,
    "mcp_enabled": _is_flag,
    "allowlist": lambda value: not _allowlist(value.decode("utf-8", "replace"))[1],
}
"""Whether a field can be read, by its name; a name and a digest are not read, only compared."""


def unchanged(held: Snapshot | None, read: Snapshot) -> Snapshot:
    """What is held if it says the same as what was just read, else that.

    So all that is remembered of a snapshot, which is compared by identity, stays remembered.
    """
    if held is None or any(
        getattr(held, one.name) != getattr(read, one.name) for one in fields(read)
    ):
        return read
    return held


def _limits(**texts: Field) -> Mapping[str, Limit]:
    return {scope: found for scope, text in texts.items() if (found := limit(text)) is not None}


def _unreadable_limits(**texts: Field) -> Mapping[str, Restriction]:
    return {
        holder: UNREADABLE_LIMIT
        for holder, text in texts.items()
        if text is not None and limit(text) is None
    }


def _restrictions(**texts: Field) -> Mapping[str, Restriction]:
    return {holder: restrictions.read(text) for holder, text in texts.items() if text is not None}
