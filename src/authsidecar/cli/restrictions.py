"""`token|user|team restrict|unrestrict`: what narrows a token, and how it is shown."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from authsidecar.cli.errors import MisconfiguredError, RefusedError
from authsidecar.cli.options import TEAM_ID, TOKEN_ID, USER_ID, IdType
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, changing, done, on_registry
from authsidecar.decision.model import DAMAGED, Restriction
from authsidecar.decision.restrictions import RestrictionError, as_mapping, parse

if TYPE_CHECKING:
    from authsidecar.admin.restrictions import Planned
    from authsidecar.decision.routes import RouteTable

F = TypeVar("F", bound=Callable[..., Any])

LARGEST_FILE: Final = 4 * 1024 * 1024
"""Bytes of the largest file of restrictions that is read."""

_IDS: Final[Mapping[str, IdType]] = {"token": TOKEN_ID, "user": USER_ID, "team": TEAM_ID}

Given = dict[str, Any]
"""The options of a restriction by their names in a file; what was not given is empty."""


def _part(name: str, field: str, text: str, **more: Any) -> Callable[[F], F]:
    return click.option(f"--{name}", field, help=text, **more)


_PARTS: Final = (
    _part("permission", "permissions", "Only this of its permissions.", metavar="P", multiple=True),
    _part(
        *("route", "routes", "Only this route, as `routes list` shows it; * is any method."),
        metavar="'METHOD TEMPLATE'",
        multiple=True,
    ),
    _part(
        *("project", "projects", "Only what lies in this project of Coolify's."),
        metavar="UUID",
        multiple=True,
    ),
    _part(
        *("environment", "environments", "Only what lies in this environment."),
        metavar="PROJECT/NAME",
        multiple=True,
    ),
    _part(
        *("resource", "resources", "Only this server, application, database or service."),
        metavar="UUID",
        multiple=True,
    ),
    _part("tag", "tags", "Deploy what has this tag, too.", metavar="NAME", multiple=True),
    _part("from", "from", "Only from this network.", metavar="CIDR", multiple=True),
    _part("not-before", "not_before", "Not before this time (RFC 3339).", metavar="T"),
    _part("until", "until", "Not after this time (RFC 3339).", metavar="T"),
    _part(
        *("hours", "hours", "Only then, as 'Mon-Fri 08:00-18:00 Europe/Berlin'."),
        metavar="SPEC",
        multiple=True,
    ),
    _part("note", "note", "Why, and for whom.", metavar="TEXT"),
)
_COUNTED: Final = (
    _part("rate", "rate", "A limit of its own: 10/60s, 100/1h.", metavar="N/WINDOW"),
    _part("uses", "uses", "So many requests in all.", type=int, metavar="N"),
)
_FORCE: Final = click.option(
    "--force", is_flag=True, help="Keep what names nothing known, or is wider than before."
)
_DRY_RUN: Final = click.option(
    "--dry-run", is_flag=True, help="Say what would change, and change nothing."
)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def added(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return added


def add_to(group: click.Group, scope: str) -> None:
    """Give a group of commands its `restrict` and `unrestrict`.

    Args:
        group: `token`, `user` or `team`.
        scope: the same, as the registry calls it.
    """
    if scope == "token":
        group.command("restrict")(_restrict_token)
    else:
        group.command("restrict", help=_CEILING.format(scope=scope))(_restrict(scope))
    group.command("unrestrict", help=_UNRESTRICT.format(scope=scope))(
        _unrestrict(scope, _IDS[scope])
    )


@click.argument("number", type=TOKEN_ID, metavar="[ID]", required=False)
@_options(*_PARTS, *_COUNTED, _FORCE)
@click.option(
    "--file", type=click.File("rb"), metavar="F|-", help="YAML for several tokens; - reads stdin."
)
@_DRY_RUN
@on_registry
@changing
async def _restrict_token(session: Session, /, number: int | None, **given: Any) -> None:
    """Narrow a token: it can then do no more than all of this, from the very next request on.

    It replaces what narrowed it before; `token show` tells that. Coolify knows nothing of it:
    whoever reaches Coolify past the proxy is not narrowed.

    Projects, environments and resources add up; what else a request names, or may name unseen, is
    refused: collections, creations, bodies. The sync must follow them (sync.resources).

    A file has {tokens: {ID: {permissions: [...], routes: [...], projects: [...],
    environments: [...], resources: [...], tags: [...], from: [...], rate: N/WINDOW, uses: N,
    not_before: T, until: T, hours: [...], note: TEXT}}}; it is carried out whole or not at all,
    and tokens that it does not name stay as they are.

    \b
    Examples:
      authsidecar token restrict 67 --route 'POST /api/v1/deploy' --from 192.0.2.0/24
      authsidecar token restrict 67 --resource bo8s4k4g0kw4kgsg8wk8wcow --permission deploy
      authsidecar token restrict 67 --permission read --hours 'Mon-Fri 08:00-18:00 Europe/Berlin'
      authsidecar token restrict --file ci.yaml --dry-run
    """
    file, force, dry_run = given.pop("file"), given.pop("force"), given.pop("dry_run")
    if (file is None) == (number is None):
        raise click.UsageError("give the ID of a token, or --file")
    if file is None:
        assert number is not None  # noqa: S101  # it was looked at just now
        wanted: Mapping[int, Restriction | None] = {number: _restriction(given)}
    elif any(given.values()):
        raise click.UsageError("with --file, everything is in the file")
    else:
        wanted = _of_file(file.read(LARGEST_FILE + 1))
    await _change(session, "token", wanted, force=force, dry_run=dry_run)


def _restrict(scope: str) -> Callable[..., None]:
    @click.argument("number", type=_IDS[scope], metavar="ID")
    @_options(*_PARTS, _FORCE, _DRY_RUN)
    @on_registry
    @changing
    async def restrict(
        session: Session, /, number: int, *, force: bool, dry_run: bool, **given: Any
    ) -> None:
        await _change(session, scope, {number: _restriction(given)}, force=force, dry_run=dry_run)

    return restrict


_CEILING: Final = """Narrow all tokens of a {scope}: each can then do no more than all of this.

It replaces what narrowed them before; what narrows a token itself holds as well.

\b
Example:
  authsidecar {scope} restrict 3 --from 192.0.2.0/24 --note "only from the office"
"""

_UNRESTRICT: Final = """Take back what narrows a {scope}, from the very next request on.

\b
Example:
  authsidecar {scope} unrestrict 67
"""


def _unrestrict(scope: str, kind: IdType) -> Callable[..., None]:
    @click.argument("number", type=kind, metavar="ID")
    @_DRY_RUN
    @on_registry
    @changing
    async def unrestrict(session: Session, number: int, *, dry_run: bool) -> None:
        await _change(session, scope, {number: None}, force=False, dry_run=dry_run)

    return unrestrict


def _restriction(given: Given) -> Restriction:
    """The restriction that the options spell."""
    parts = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in {None, ()}
    }
    try:
        return parse(parts)
    except RestrictionError as error:
        raise click.UsageError(str(error)) from None


def _of_file(text: bytes) -> dict[int, Restriction | None]:
    import yaml

    if len(text) > LARGEST_FILE:
        raise RefusedError(f"the file is larger than {LARGEST_FILE} bytes; nothing was changed")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise RefusedError(f"the file is no YAML{line}; nothing was changed") from None
    tokens = (
        found.get("tokens") if isinstance(found, Mapping) and set(found) == {"tokens"} else None
    )
    if not isinstance(tokens, Mapping) or not tokens:
        raise RefusedError("the file has not {tokens: {ID: {...}}}; nothing was changed")
    wanted: dict[int, Restriction | None] = {}
    for key, value in tokens.items():
        try:
            number = TOKEN_ID.convert(key, None, None)
            wanted[number] = parse(value)
        except click.BadParameter as error:
            raise RefusedError(f"{error.message}; nothing was changed") from None
        except RestrictionError as error:
            raise RefusedError(f"token {key}: {error}; nothing was changed") from None
    return wanted


async def _change(
    session: Session,
    scope: str,
    wanted: Mapping[int, Restriction | None],
    *,
    force: bool,
    dry_run: bool,
) -> None:
    """Carry out all of it, or nothing if anything speaks against any of it."""
    from authsidecar.admin.restrictions import carry_out, plan

    table = route_table(session)
    plans = [
        done(await plan(session.registry, table, scope, number, new, force=force))
        for number, new in wanted.items()
    ]
    for planned in plans:
        for warning in planned.warnings:
            session.out.warn(f"{scope} {planned.number}: {warning}")
    if not dry_run:
        for planned in plans:
            if planned.changes:
                refusal = await carry_out(session.registry, planned)
                if refusal is not None:
                    raise RefusedError(refusal.why)
        await session.until_replicated()
    items = [_item(planned, dry_run=dry_run) for planned in plans]
    text = "\n".join(_line(planned, dry_run=dry_run) for planned in plans)
    data = items[0] if len(items) == 1 else {"items": items}
    session.out.result(data, text)


def route_table(session: Session) -> "RouteTable":
    """The routes that are configured."""
    from authsidecar.run.errors import StartError
    from authsidecar.run.rules import routes

    try:
        return routes(session.settings)
    except StartError as error:
        raise MisconfiguredError(str(error)) from None


def _item(planned: "Planned", *, dry_run: bool) -> dict[str, object]:
    return {
        "scope": planned.scope,
        "id": planned.number,
        "changed": planned.changes and not dry_run,
        "before": as_data(planned.old),
        "restriction": as_data(planned.new),
    }


def _line(planned: "Planned", *, dry_run: bool) -> str:
    who = f"{planned.scope} {planned.number}"
    if not planned.changes:
        return f"{who}: unchanged" if planned.new else f"{who}: not restricted"
    would = "would be " if dry_run else ""
    if planned.new is None:
        return f"{who}: {would}not restricted any more"
    return "\n".join([f"{who}: {would}restricted", *lines(planned.new)])


def as_data(restriction: Restriction | None) -> dict[str, Any] | None:
    """A restriction as --json shows it."""
    if restriction is DAMAGED:
        return {"damaged": True}
    return None if restriction is None else as_mapping(restriction)


def lines(restriction: Restriction, used: int | None = None) -> Sequence[str]:
    """A restriction for people, a line for each of its parts.

    Args:
        restriction: what narrows.
        used: how many of its uses are spent.
    """
    if restriction is DAMAGED:
        return ["    damaged      admits nothing; restrict it again, or unrestrict it"]
    shown = []
    for name, value in as_mapping(restriction).items():
        texts = value if isinstance(value, list) else [value]
        if name == "uses" and used is not None:
            texts = [f"{value}, {used} of them spent"]
        shown += [f"    {name:<12} {printable(str(text))}" for text in texts]
    return shown
