"""`token create|list|show|advise|rotate|disable|enable|revoke|import`."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from authsidecar.cli import restrictions
from authsidecar.cli.advice import advise
from authsidecar.cli.errors import OutputError, RefusedError
from authsidecar.cli.options import TEAM_ID, TOKEN_ID, USER_ID, Group, NamedType
from authsidecar.cli.output import printable
from authsidecar.cli.session import (
    Session,
    changing,
    done,
    interruptible,
    on_own_registry,
    on_registry,
    present,
)
from authsidecar.cli.shown_once import expiry, show_once
from authsidecar.cli.streams import keep, tell
from authsidecar.decision.model import Permission, Restriction, TeamId, TokenId, UserId
from authsidecar.times import for_people, rfc3339

if TYPE_CHECKING:
    from authsidecar.store.entities import Token
    from authsidecar.store.last_used import Use

PERMISSION: Final = NamedType(
    "a permission", tuple(p for p in Permission if p is not Permission.LEGACY_ROOT), Permission
)
EXPIRY: Final = NamedType("a lifetime in days", ("7", "30", "60", "90", "365", "never"))

ERRORS_KEPT: Final = 1000
"""How many bad lines --json lists; all of them are counted, and named on standard error."""

LONGEST_OVERLAP_MS: Final = 90 * 86_400_000

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class _Duration(click.ParamType[int]):
    """A number with its unit, as milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        number, unit = text[:-1], _UNITS_MS.get(text[-1:])
        if unit is not None and number.isascii() and number.isdigit() and len(number) < 8:
            milliseconds = int(number) * unit
            if milliseconds <= LONGEST_OVERLAP_MS:
                return milliseconds
        problem = f"{value!a} is no time such as 30m, 24h or 7d, of at most 90 days"
        raise click.BadParameter(problem, ctx, param)


@click.group(cls=Group)
def token() -> None:
    """Create, import, list, rotate, disable and revoke tokens."""


restrictions.add_to(token, "token")
token.add_command(advise)


@token.command()
@click.option("--user", type=USER_ID, metavar="U", required=True, help="Its owner's id.")
@click.option(
    "--team", type=TEAM_ID, metavar="T", required=True, help="The id of the team it is for."
)
@click.option("--name", required=True, metavar="N", help="3 to 255 characters.")
@click.option(
    "--permission",
    "permissions",
    type=PERMISSION,
    metavar="P",
    multiple=True,
    required=True,
    help=f"One of {', '.join(p for p in Permission if p != '*')}; several by repeating it.",
)
@click.option("--expires", type=EXPIRY, required=True, help="Days from now.")
@on_own_registry
async def create(  # noqa: PLR0917  # click passes by name
    session: Session,
    user: int,
    team: int,
    name: str,
    permissions: tuple[Permission, ...],
    expires: str,
) -> None:
    """Create a token and show it, this once; if it can't be shown, it is taken back.

    Every permission above read needs an owner or admin of the team. root stands alone;
    read:sensitive brings read.

    \b
    Examples:
      authsidecar token create --user 7 --team 3 --name monitoring --permission read --expires 365
      authsidecar token create --user 7 --team 3 --name deploys --permission read \\
          --permission deploy --expires 90 --quiet > token.txt
    """
    from authsidecar.admin.refusal import LeftoverError
    from authsidecar.admin.tokens import issue

    try:
        answer = await issue(
            session.registry,
            user=UserId(user),
            team=TeamId(team),
            name=name,
            permissions=permissions,
            days=None if expires == "never" else int(expires),
        )
    except LeftoverError as error:
        raise RefusedError(str(error)) from None
    issued = done(answer)
    data = as_data(issued.token)
    del data["created_at"]
    number, until = issued.token.id, issued.token.expires_at
    taking_back = partial(session.registry.remove_token, number)
    await show_once(session, "token", data, issued.plain, expires_at=until, remove=taking_back)


@token.command("list")
@click.option("--team", type=TEAM_ID, metavar="T", help="Only of this team.")
@click.option("--user", type=USER_ID, metavar="U", help="Only of this user.")
@on_registry
async def list_(session: Session, team: int | None, user: int | None) -> None:
    """List tokens, without their secrets.

    \b
    Examples:
      authsidecar token list
      authsidecar token list --team 3 --user 7 --json
    """
    registry = session.registry
    if team is not None:
        present(await registry.team(TeamId(team)), "team", team)
    if user is not None:
        present(await registry.user(UserId(user)), "user", user)
    found = registry.tokens(
        user=None if user is None else UserId(user), team=None if team is None else TeamId(team)
    )
    now = await registry.now()
    tokens = sorted([one async for one in found], key=lambda one: one.id)
    uses = await _uses(session, tokens)
    narrowed = await registry.restrictions("token", [one.id for one in tokens])
    disabled = await registry.disabled([one.id for one in tokens])
    items = [
        as_data(one)
        | _used(uses.get(one.id))
        | {"restriction": restrictions.as_data(narrowed.get(one.id))}
        | {"expires": expiry(one.expires_at, now), "last_used": _last_used(uses.get(one.id))}
        | {"restricted": "yes" if one.id in narrowed else None}
        | {"disabled": one.id in disabled, "state": "disabled" if one.id in disabled else None}
        for one in tokens
    ]
    if session.out.is_json:
        for item in items:
            del item["expires"], item["last_used"], item["restricted"], item["state"]
    shown = ("id", "name", "user", "team", "permissions", "expires", "last_used")
    session.out.listing(
        (*shown, "restricted", "state"),
        items,
        empty="no tokens; `authsidecar token create` makes one",
    )


@token.command()
@click.argument("number", type=TOKEN_ID, metavar="ID")
@on_registry
async def show(session: Session, number: int) -> None:
    """Show one token, without its secret.

    \b
    Example:
      authsidecar token show 67
    """
    found = present(await session.registry.token(TokenId(number)), "token", number)
    use = (await _uses(session, [found])).get(found.id)
    holders = {"token": number, "user": found.user, "team": found.team}
    narrowed = {
        scope: restriction
        for scope, holder in holders.items()
        if holder is not None
        and (restriction := await session.registry.restriction(scope, holder)) is not None
    }
    used = await session.registry.used(found.id, found.user)
    disabled = bool(await session.registry.disabled([found.id]))
    text = "\n".join(
        (
            f"token {found.id}: {printable(found.name)}",
            f"  user         {found.user}",
            f"  team         {found.team}",
            f"  permissions  {' '.join(sorted(found.permissions)) or 'none'}",
            f"  expires      {expiry(found.expires_at, await session.registry.now())}",
            f"  created      {for_people(found.created_at)}",
            f"  last used    {_last_used(use)}{_what_for(use)}",
            *(["  disabled     yes"] if disabled else ()),
            *(line for holder in narrowed.items() for line in _restricted(*holder, used)),
        )
    )
    own = {
        "disabled": disabled,
        "restriction": restrictions.as_data(narrowed.get("token")),
        "uses_spent": used,
        "user_restriction": restrictions.as_data(narrowed.get("user")),
        "team_restriction": restrictions.as_data(narrowed.get("team")),
    }
    session.out.result(as_data(found) | _used(use) | own, text, quiet=text)


@token.command()
@click.argument("number", type=TOKEN_ID, metavar="ID")
@click.option(
    "--overlap",
    type=_Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="For how long the old secret stays valid: 30m, 24h, 7d; 0s: not at all.",
)
@on_own_registry
async def rotate(session: Session, number: int, overlap: int) -> None:
    """Give a token a new secret and show it, this once.

    Its id, permissions, restrictions, limits and expiry stay. The old secret works until the
    overlap ends, and answers to it say so (X-Token-Valid-Until). Rotate again within the overlap,
    and only the secret of the last time stays beside the new one.

    \b
    Examples:
      authsidecar token rotate 67
      authsidecar token rotate 67 --overlap 0s --quiet > token.txt
    """
    from authsidecar.admin.tokens import rotate as give_new_secret

    answer = await give_new_secret(session.registry, TokenId(number), overlap)
    plain, until = present(answer, "token", number)
    await session.until_replicated()
    shown = {"id": number, "token": plain, "old_valid_until": rfc3339(until)}
    try:
        session.out.result(shown, plain, quiet=plain)
        keep()
    except OutputError as error:
        raise RefusedError(
            f"{error}; token {number} has a new secret that nobody was shown, and the old one "
            f"is valid until {for_people(until)}"
        ) from None
    ends = f"works until {for_people(until)}" if overlap else "works no more"
    session.out.note(f"Store it now: it is not shown again. The old one {ends}.")


@token.command()
@click.argument("number", type=TOKEN_ID, metavar="ID")
@on_registry
@changing
async def disable(session: Session, number: int) -> None:
    """Have a token refused from the very next request on, until it is enabled again.

    A token that is followed from Coolify is refused at the edge alone: Coolify knows nothing of it,
    and whoever reaches Coolify past the proxy is admitted.

    \b
    Example:
      authsidecar token disable 67
    """
    await _set_disabled(session, number, disabled=True)


@token.command()
@click.argument("number", type=TOKEN_ID, metavar="ID")
@on_registry
@changing
async def enable(session: Session, number: int) -> None:
    """Have a token admitted again that was disabled.

    \b
    Example:
      authsidecar token enable 67
    """
    await _set_disabled(session, number, disabled=False)


async def _set_disabled(session: Session, number: int, *, disabled: bool) -> None:
    from authsidecar.coolify.status import read_owner
    from authsidecar.store.keys import Keys

    changed = await session.registry.disable_token(TokenId(number), disabled=disabled)
    present(changed or None, "token", number)
    await session.until_replicated()
    keys = Keys(session.settings.redis.prefix)
    if disabled and await read_owner(session.client, keys) is not None:
        session.out.warn("it is disabled at the edge alone: Coolify knows nothing of it")
    word = "disabled" if disabled else "enabled"
    session.out.result({"id": number, "disabled": disabled}, f"token {number} {word}")


@token.command()
@click.argument("number", type=TOKEN_ID, metavar="ID")
@on_own_registry
async def revoke(session: Session, number: int) -> None:
    """Delete a token; the very next request with it is refused.

    \b
    Example:
      authsidecar token revoke 67
    """
    removed = await session.registry.remove_token(TokenId(number))
    present(removed or None, "token", number)
    await session.until_replicated()
    session.out.result({"id": number, "revoked": True}, f"token {number} revoked")


@token.command("import")
@click.argument("file", type=click.File("rb"))
@on_own_registry
async def import_(session: Session, file: BinaryIO) -> None:
    """Import tokens from JSON lines; - reads them from standard input.

    A line is {"id","sha256","user","team","permissions","expires_at","name"}, with the SHA-256 of
    the secret in hexadecimal and expires_at as RFC 3339 or null. Users, teams and members must be
    there. A bad line is reported and imports nothing; it is safe to repeat the whole.

    \b
    Examples:
      authsidecar token import tokens.jsonl
      other-system --export | authsidecar token import - --json
    """
    from authsidecar.admin.token_import import import_tokens

    errors: list[dict[str, object]] = []

    def refused(line: int, why: str) -> None:
        session.out.progress("")
        if not session.out.is_json:  # the error at the end has them
            tell(f"line {line}: {printable(why)}")
        if len(errors) < ERRORS_KEPT:
            errors.append({"line": line, "reason": why})

    report = await import_tokens(
        session.registry,
        Input(file),
        refused=refused,
        progress=lambda lines: session.out.progress(f"{lines:,} lines"),
    )
    session.out.progress("")
    session.out.result(
        {
            "imported": report.imported,
            "unchanged": report.unchanged,
            "refused": report.refused,
            "errors": errors,
        },
        f"{report.imported} imported, {report.unchanged} unchanged, {report.refused} refused",
    )
    if report.refused:
        kept = [f"line {one['line']}: {one['reason']}" for one in errors]
        raise RefusedError(
            f"{report.refused} lines were refused; correct them and repeat the import",
            *(kept if session.out.is_json else ()),
        )


class Input:
    """A file or standard input whose reading Ctrl-C ends."""

    def __init__(self, file: BinaryIO) -> None:
        """Nothing is read yet."""
        self._file = file

    def readline(self, size: int, /) -> bytes:
        """Read up to the end of the line, or `size` bytes; nothing at the end of the file."""
        with interruptible():
            return self._file.readline(size)


def as_data(token: "Token") -> dict[str, Any]:
    """A token as --json shows it: everything but its secret's digest."""
    return {
        "id": token.id,
        "name": token.name,
        "user": token.user,
        "team": token.team,
        "permissions": sorted(token.permissions),
        "expires_at": None if token.expires_at is None else rfc3339(token.expires_at),
        "created_at": rfc3339(token.created_at),
    }


async def _uses(session: Session, tokens: "Iterable[Token]") -> "Mapping[TokenId, Use]":
    from authsidecar.store.keys import Keys
    from authsidecar.store.last_used import last_use

    keys = Keys(session.settings.redis.prefix)
    return await last_use(session.client, keys, [one.id for one in tokens])


def _restricted(scope: str, restriction: Restriction, used: int | None) -> list[str]:
    whose = "itself" if scope == "token" else f"by its {scope}"
    spent = used if scope == "token" else None
    return [f"  restricted   {whose}", *restrictions.lines(restriction, spent)]


def _used(use: "Use | None") -> dict[str, Any]:
    """The last use as --json shows it."""
    return {
        "last_used_at": None if use is None else rfc3339(use.at),
        "last_used_address": None if use is None else use.client,
        "last_used_route": None if use is None else use.route,
    }


def _last_used(use: "Use | None") -> str:
    return "never" if use is None else for_people(use.at)


def _what_for(use: "Use | None") -> str:
    return "" if use is None else f" from {printable(use.client)} for {printable(use.route)}"
