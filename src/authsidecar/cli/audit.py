"""`audit tail|show`: who changed what."""

import json
from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Group
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, on_registry
from authsidecar.cli.streams import write
from authsidecar.times import rfc3339

if TYPE_CHECKING:
    from authsidecar.store.audit import Record, Trail

MOST: Final = 10_000
POLL_S: Final = 0.5
"""The time between two looks for new records, in seconds."""


@click.group(cls=Group)
def audit() -> None:
    """Show who changed what, when and from where."""


@audit.command()
@click.option(
    "--lines",
    "count",
    type=click.IntRange(1, MOST),
    metavar="N",
    default=20,
    show_default=True,
    help="How many records.",
)
@click.option("--follow", is_flag=True, help="Go on with each new record, until Ctrl-C.")
@on_registry
async def tail(session: Session, count: int, follow: bool) -> None:
    """Show the last changes, the newest at the end.

    With --follow and --json each record is one JSON object on a line of its own.

    \b
    Examples:
      authsidecar audit tail
      authsidecar audit tail --lines 100 --json
      authsidecar audit tail --follow
    """
    trail = _trail(session)
    records = (await trail.latest(count))[::-1]
    if not follow:
        items = [as_data(one) | {"who": _who(one), "change": _change(one)} for one in records]
        if session.out.is_json:
            for item in items:
                del item["who"], item["change"]
        columns = ("at", "id", "who", "action", "target", "change")
        session.out.listing(columns, items, empty="no changes were recorded yet")
        return
    import asyncio

    last = "0-0"
    while True:
        for one in records:
            _line(session, one)
            last = one.id
        await asyncio.sleep(POLL_S)
        records = await trail.after(last, MOST)


@audit.command()
@click.argument("record", metavar="ID")
@on_registry
async def show(session: Session, record: str) -> None:
    """Show one change whole, before and after.

    \b
    Example:
      authsidecar audit show 1790000000000-0
    """
    from authsidecar.admin.audit import find_record

    found = await find_record(_trail(session), record)
    if found is None:
        raise RefusedError(
            f"there is no record {record[:40]!a}; `authsidecar audit tail` shows them"
        )
    rows = {
        "at": rfc3339(found.at),
        "who": _who(found),
        "action": found.action,
        "target": found.target,
        "before": _facts(found.before),
        "after": _facts(found.after),
    }
    text = "\n".join(
        [f"record {found.id}", *(f"  {key:<8} {printable(value)}" for key, value in rows.items())]
    )
    session.out.result(as_data(found), text, quiet=text)


def _line(session: Session, record: "Record") -> None:
    if session.out.is_json:
        write(json.dumps(as_data(record)))
        return
    words = (
        rfc3339(record.at),
        record.id,
        _who(record),
        record.action,
        record.target,
        _change(record),
    )
    write("  ".join(map(printable, words)))


def _trail(session: Session) -> "Trail":
    from authsidecar.store.audit import Trail
    from authsidecar.store.keys import Keys

    return Trail(session.client, Keys(session.settings.redis.prefix))


def as_data(record: "Record") -> dict[str, Any]:
    """A record as --json shows it."""
    from authsidecar.store.audit import as_data as facts

    return {"at": rfc3339(record.at), **facts(record)}


def _who(record: "Record") -> str:
    return f"{record.origin.actor} ({record.origin.via}, {record.origin.place})"


def _change(record: "Record") -> str:
    """What differs, in a few words."""
    before, after = record.before or {}, record.after or {}
    if not after:
        return "removed" if before else "-"
    shown = [
        f"{name}: {_value(before[name])} -> {_value(value)}"
        if name in before
        else f"{name}: {_value(value)}"
        for name, value in after.items()
        if before.get(name) != value
    ]
    text = ", ".join(shown) or "as it was"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _facts(facts: Any) -> str:
    return (
        "-" if facts is None else ", ".join(f"{name}: {_value(one)}" for name, one in facts.items())
    )
