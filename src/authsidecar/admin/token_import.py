"""Importing tokens from JSON lines: each line all or nothing, the whole safe to repeat.

Memory is bounded by BATCH lines of LONGEST_LINE bytes. A line that repeats what is stored
changes nothing, so an interrupted run is simply run again.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Protocol

from authsidecar.admin.refusal import Refusal
from authsidecar.admin.tokens import completed, objection, standing, withdraw
from authsidecar.decision.credentials import LARGEST_ID
from authsidecar.decision.model import Permission, Role, TeamId, TokenId, UserId
from authsidecar.store.entities import Token
from authsidecar.store.registry import Registry
from authsidecar.times import UnixMs, parse_rfc3339

BATCH: Final = 500
"""Lines that are checked and written together."""

LONGEST_LINE: Final = 64 * 1024
"""Bytes of the longest line that is read."""

KEYS: Final = ("id", "sha256", "user", "team", "permissions", "expires_at", "name")
"""What every line must say; anything else in it is ignored."""

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_KNOWN: Final = {permission.value: permission for permission in Permission}


@dataclass(frozen=True, slots=True)
class Report:
    """How an import went, in lines.

    Attributes:
        imported: new tokens, and changed ones.
        unchanged: tokens that were stored just so before.
        refused: bad lines, of which nothing was imported.
    """

    imported: int = 0
    unchanged: int = 0
    refused: int = 0


class Lines(Protocol):
    """A binary file, as far as an import reads it."""

    def readline(self, size: int, /) -> bytes:
        """Read up to the end of the line, or `size` bytes; nothing at the end of the file."""


class BadLineError(ValueError):
    """A line is no token; says what is wrong with it, without repeating it."""


async def import_tokens(
    registry: Registry,
    file: Lines,
    *,
    refused: Callable[[int, str], None],
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Import every good line of a file.

    Args:
        registry: where tokens are stored.
        file: JSON lines; empty ones are skipped.
        refused: told of every bad line, in order: its number from 1, and why.
        progress: told after every batch how many lines are done.
    """
    report, now = Report(), await registry.now()
    lines = enumerate(_lines(file), start=1)
    while batch := list(islice(lines, BATCH)):
        report = await _import_batch(registry, batch, now, report, refused)
        progress(batch[-1][0])
    return report


async def _import_batch(
    registry: Registry,
    batch: list[tuple[int, bytes | None]],
    now: UnixMs,
    report: Report,
    refused: Callable[[int, str], None],
) -> Report:
    bad: dict[int, str] = {}
    good: dict[int, Token] = {}
    for number, line in batch:
        try:
            if line is None:
                raise BadLineError(f"is longer than {LONGEST_LINE} bytes")  # noqa: TRY301
            if line.strip():
                good[number] = parse(line, now)
        except BadLineError as error:
            bad[number] = str(error)
    roles = await registry.roles({(t.team, t.user) for t in good.values()})
    stored = {t.id: t for t in await registry.tokens_of({t.id for t in good.values()})}
    lines: dict[int, int] = {}
    changed: dict[TokenId, Token] = {}
    unchanged = 0
    for number, token in good.items():
        why = await _line_objection(registry, token, roles.get((token.team, token.user)))
        known = changed.get(token.id) or stored.get(token.id)
        if why is None and known is not None and known.sha256 != token.sha256:
            why = f"id {token.id} belongs to a token with another secret; revoke that one first"
        if why is not None:
            bad[number] = why
        elif known is not None and replace(token, created_at=known.created_at) == known:
            unchanged += 1
        else:
            changed[token.id] = replace(
                token, created_at=known.created_at if known else token.created_at
            )
            lines[token.id] = number
    await registry.put_tokens(changed.values())
    withdrawn = await withdraw(registry, changed.values())
    bad.update({lines[token]: why for token, why in withdrawn.items()})
    for number in sorted(bad):
        refused(number, bad[number])
    good_lines = sum(1 for number in good if number not in bad)
    return Report(
        imported=report.imported + good_lines - unchanged,
        unchanged=report.unchanged + unchanged,
        refused=report.refused + len(bad),
    )


async def _line_objection(registry: Registry, token: Token, role: Role | None) -> str | None:
    if role is not None:
        return objection(token.name, token.permissions, role)
    if token.team is None:
        return "has no team"
    missing = await standing(registry, token.team, token.user)
    return missing.why if isinstance(missing, Refusal) else None


def _lines(file: Lines) -> Iterator[bytes | None]:
    """Every line; None for one that is too long, of which no more than a piece is ever held."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield None


def parse(line: bytes, now: UnixMs) -> Token:
    """The token that a line describes, its permissions completed.

    Args:
        line: one JSON object with KEYS.
        now: when it is imported.

    Raises:
        BadLineError: says what is wrong.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLineError("is not JSON") from None
    if not isinstance(values, dict):
        raise BadLineError("is not a JSON object")
    missing = [key for key in KEYS if key not in values]
    if missing:
        hint = " (null: it never expires)" if missing == ["expires_at"] else ""
        raise BadLineError(f"has no {', '.join(missing)}{hint}")
    name, digest = values["name"], values["sha256"]
    if not isinstance(name, str):
        raise BadLineError("name is not a text")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BadLineError("sha256 is not 64 hexadecimal digits")
    return Token(
        id=TokenId(_number(values, "id", least=1)),
        sha256=bytes.fromhex(digest),
        name=name,
        user=UserId(_number(values, "user", least=0)),
        team=TeamId(_number(values, "team", least=0)),
        permissions=completed(_permissions(values["permissions"])),
        expires_at=_expiry(values["expires_at"]),
        created_at=now,
    )


def _number(values: dict[str, Any], key: str, *, least: int) -> int:
    value = values[key]
    if type(value) is not int or not least <= value <= LARGEST_ID:
        raise BadLineError(f"{key} is not a whole number from {least} to {LARGEST_ID}")
    return value


def _permissions(values: object) -> frozenset[Permission]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadLineError("permissions is not a list of texts")
    for value in values:
        if value not in _KNOWN:
            allowed = ", ".join(name for name in _KNOWN if name != Permission.LEGACY_ROOT)
            raise BadLineError(f"{value[:40]!a} is no permission; they are {allowed}")
    return frozenset(_KNOWN[value] for value in values)


def _expiry(value: object) -> UnixMs | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadLineError("expires_at is neither null nor a time such as 2027-01-31T12:00:00Z")
    try:
        return parse_rfc3339(value)
    except ValueError as error:
        raise BadLineError(f"expires_at is {error}") from None
