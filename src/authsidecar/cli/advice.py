"""`token advise`: what a token could be narrowed to, by what it was used for."""

from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli import restrictions
from authsidecar.cli.options import TOKEN_ID, Command
from authsidecar.cli.output import printable
from authsidecar.cli.restrictions import route_table
from authsidecar.cli.session import Session, on_registry, present
from authsidecar.decision.model import TokenId
from authsidecar.times import date_of

if TYPE_CHECKING:
    from authsidecar.admin.advice import Observed, TokenAdvice
    from authsidecar.store.entities import Token
    from authsidecar.store.usage import Days

LONGEST_WINDOW: Final = 400
"""Days back that may be asked for."""

IDLE_DAYS: Final = 30
"""After how many days without use it is said that a token can be disabled."""


@click.command(cls=Command)
@click.argument("number", type=TOKEN_ID, metavar="[ID]", required=False)
@click.option(
    "--days",
    type=click.IntRange(1, LONGEST_WINDOW),
    default=90,
    show_default=True,
    metavar="N",
    help="How many days are looked at, today included.",
)
@on_registry
async def advise(session: Session, number: int | None, days: int) -> None:
    """Say what a token could be narrowed to, by what it was used for; without an ID, of each token.

    It shows which permissions it holds and never used, which routes and resources it did use, on
    how many days, since when that is known, and the command that narrows it to that: it would
    have refused no request that was admitted in that time. Nothing is changed.

    \b
    Examples:
      authsidecar token advise
      authsidecar token advise 67 --days 30
    """
    from authsidecar.admin.advice import advise_on
    from authsidecar.store.keys import Keys

    registry = session.registry
    if number is None:
        tokens = sorted([one async for one in registry.tokens()], key=lambda one: one.id)
    else:
        tokens = [present(await registry.token(TokenId(number)), "token", number)]
    keys = Keys(session.settings.redis.prefix)
    found = await advise_on(registry, session.client, keys, route_table(session), tokens, days=days)
    items = [_item(*pair) for pair in zip(tokens, found, strict=True)]
    if number is not None:
        session.out.result(items[0], "\n".join(_lines(tokens[0], found[0])))
        return
    if not session.out.is_json:
        for item in items:
            item["never_used"] = item["unused_permissions"] or None
            item["narrower"] = "yes" if item["command"] else None
    session.out.listing(
        ("id", "name", "used_days", "last_day", "days_without_use", "never_used", "narrower"),
        items,
        empty="no tokens; `authsidecar token create` makes one",
    )
    session.out.note("`authsidecar token advise ID` shows the command that narrows one.")


def _item(token: "Token", advice: "TokenAdvice") -> dict[str, Any]:
    used = advice.used
    return {
        "id": token.id,
        "name": token.name,
        "known_since": date_of(advice.since),
        "used_days": 0 if used is None else used.days,
        "first_day": None if used is None else date_of(used.first),
        "last_day": None if used is None else date_of(used.last),
        "days_without_use": advice.days_without_use,
        "unused_permissions": list(advice.unused),
        "routes": [_seen("route", one) for one in advice.routes],
        "resources": [_seen("resource", one) for one in advice.names],
        "restriction": restrictions.as_data(advice.proposal),
        "command": advice.command,
        "notes": list(advice.notes),
    }


def _seen(noun: str, one: "Observed") -> dict[str, Any]:
    return {noun: one.what, "days": one.days.days, "last_day": date_of(one.days.last)}


def _lines(token: "Token", advice: "TokenAdvice") -> list[str]:
    """For people, a line for each thing that is known."""
    shown = [
        f"token {token.id}: {printable(token.name)}",
        f"  known        {date_of(advice.since)} on",
    ]
    used = advice.used
    if used is None:
        idle = advice.days_without_use >= IDLE_DAYS
        hint = f"; `authsidecar token disable {token.id}` can be taken back" if idle else ""
        return [*shown, f"  used         on no day{hint}"]
    shown.append(f"  used         {_when(used)}")
    shown.append(f"  never used   {' '.join(advice.unused) or 'no permission that it holds'}")
    for noun, seen in (("route", advice.routes), ("named", advice.names)):
        shown += [f"  {noun:<12} {printable(one.what)}, {_when(one.days)}" for one in seen]
    shown += [f"  note         {printable(note)}" for note in advice.notes]
    shown.append("  narrower     " + (advice.command or "nothing would be"))
    return shown


def _when(days: "Days") -> str:
    number = "1 day" if days.days == 1 else f"{days.days} days"
    return f"on {number}, last {date_of(days.last)}"
