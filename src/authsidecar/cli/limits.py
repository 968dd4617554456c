"""`limit set|show|clear|reset`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from authsidecar.cli.options import TEAM_ID, TOKEN_ID, USER_ID, Group
from authsidecar.cli.session import Session, changing, on_registry, present
from authsidecar.decision.model import Limit
from authsidecar.decision.ratelimit.charges import LARGEST_LIMIT, LONGEST_WINDOW_S

if TYPE_CHECKING:
    from authsidecar.decision.ratelimit.charges import Charge

F = TypeVar("F", bound=Callable[..., Any])


def _holder(function: F) -> F:
    for name, kind in (("team", TEAM_ID), ("token", TOKEN_ID), ("user", USER_ID)):
        option = click.option(f"--{name}", type=kind, metavar="ID", help=f"That {name}'s.")
        function = option(function)
    return function


def _one(**holders: int | None) -> tuple[str, int]:
    given = [(scope, number) for scope, number in holders.items() if number is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --user, --token and --team")
    return given[0]


@click.group(cls=Group)
def limit() -> None:
    """Give a user, token or team a rate limit of its own."""


@limit.command("set")
@_holder
@click.option(
    "--limit",
    "requests",
    type=click.IntRange(1, LARGEST_LIMIT),
    metavar="N",
    required=True,
    help="Requests admitted in any window.",
)
@click.option(
    "--window",
    type=click.IntRange(1, LONGEST_WINDOW_S),
    metavar="SECONDS",
    help="Length of the window; else that of the configured limit, or 60.",
)
@on_registry
@changing
async def set_(  # noqa: PLR0917  # click passes by name
    session: Session,
    user: int | None,
    token: int | None,
    team: int | None,
    requests: int,
    window: int | None,
) -> None:
    """Set a limit that wins over the configured one.

    \b
    Examples:
      authsidecar limit set --user 7 --limit 1000
      authsidecar limit set --token 67 --limit 5 --window 1
    """
    from authsidecar.admin.limits import chosen

    scope, number = _one(user=user, token=token, team=team)
    configured = session.settings.limits.as_limits().get(scope)
    wanted = chosen(requests, window, configured)
    present(await session.registry.set_limit(scope, number, wanted) or None, scope, number)
    item = _item(scope, number, wanted, "override")
    text = f"{scope} {number}: {requests} requests in {_seconds(wanted):g} s"
    if window is None:
        text += f" (the {'configured' if configured else 'usual'} window)"
    session.out.result(item, text)


@limit.command()
@_holder
@on_registry
async def show(session: Session, user: int | None, token: int | None, team: int | None) -> None:
    """Show one limit, or every limit that was set.

    \b
    Examples:
      authsidecar limit show
      authsidecar limit show --user 7
    """
    registry = session.registry
    if user is None and token is None and team is None:
        items = [
            _item(scope, number, found, "override")
            for (scope, number), found in sorted((await registry.limits()).items())
        ]
        columns = ("scope", "id", "limit", "window_seconds")
        session.out.listing(columns, items, empty="none was set; the configured ones apply")
        return
    scope, number = _one(user=user, token=token, team=team)
    await _counter(session, scope, number)
    override = await registry.limit(scope, number)
    configured = session.settings.limits.as_limits().get(scope)
    source = "override" if override else "configuration" if configured else "off"
    item = _item(scope, number, override or configured, source)
    text = f"{scope} {number}: not limited"
    if source != "off":
        text = (
            f"{scope} {number}: {item['limit']} requests in {item['window_seconds']:g} s ({source})"
        )
    session.out.result(item, text, quiet=text)


@limit.command()
@_holder
@on_registry
@changing
async def clear(session: Session, user: int | None, token: int | None, team: int | None) -> None:
    """Take a limit back; the configured one applies again.

    \b
    Example:
      authsidecar limit clear --user 7
    """
    scope, number = _one(user=user, token=token, team=team)
    present(await session.registry.set_limit(scope, number, None) or None, scope, number)
    session.out.result(
        {"scope": scope, "id": number, "cleared": True}, f"{scope} {number}: as configured"
    )


@limit.command()
@_holder
@on_registry
@changing
async def reset(session: Session, user: int | None, token: int | None, team: int | None) -> None:
    """Forget what was counted: the full limit is there again.

    \b
    Example:
      authsidecar limit reset --token 67
    """
    scope, number = _one(user=user, token=token, team=team)
    await session.registry.reset(await _counter(session, scope, number))
    session.out.result(
        {"scope": scope, "id": number, "reset": True}, f"{scope} {number}: nothing counted"
    )


async def _counter(session: Session, scope: str, number: int) -> "Charge":
    """The counter of something that is there."""
    from authsidecar.admin.limits import counter

    return present(await counter(session.registry, scope, number), scope, number)


def _item(scope: str, number: int, limit: Limit | None, source: str) -> dict[str, Any]:
    return {
        "scope": scope,
        "id": number,
        "limit": limit and limit.requests,
        "window_seconds": limit and _seconds(limit),
        "source": source,
    }


def _seconds(limit: Limit) -> float:
    seconds = limit.window_ms / 1000
    return int(seconds) if seconds.is_integer() else seconds
