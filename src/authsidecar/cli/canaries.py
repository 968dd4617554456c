"""`canary create|list|remove`."""

import click

from authsidecar.cli.errors import OutputError, RefusedError
from authsidecar.cli.options import Group, IdType
from authsidecar.cli.session import Session, changing, on_registry
from authsidecar.cli.streams import keep
from authsidecar.decision.model import TokenId
from authsidecar.times import for_people, rfc3339


@click.group(cls=Group)
def canary() -> None:
    """Create, list and remove canary tokens, which tell who uses them."""


@canary.command()
@click.option("--note", required=True, metavar="TEXT", help="Where it is put: the alarm says so.")
@on_registry
@changing
async def create(session: Session, note: str) -> None:
    """Create a canary token and show it, this once.

    It looks like any other and belongs to nobody. Put it where only somebody who should not be
    there finds it. Whoever uses it is refused as with an unknown token; the log, the webhook and
    mail.operator are told, once a minute for each address.

    \b
    Example:
      authsidecar canary create --note "backup server, ~/.coolify-token" --quiet > token.txt
    """
    from authsidecar.admin.canaries import LONGEST_NOTE
    from authsidecar.admin.canaries import create as make
    from authsidecar.coolify.status import read_owner
    from authsidecar.store.keys import Keys

    if not note.isprintable() or not 1 <= len(note) <= LONGEST_NOTE:
        raise click.UsageError(f"--note: 1 to {LONGEST_NOTE} printable characters")
    keys = Keys(session.settings.redis.prefix)
    synced = await read_owner(session.client, keys) is not None
    made, plain = await make(session.registry, note, synced=synced)
    try:
        session.out.result({"id": made.id, "token": plain, "note": note}, plain, quiet=plain)
        keep()
    except OutputError as error:
        await session.registry.remove_canary(made.id)
        raise RefusedError(f"{error}; the canary was taken back") from None
    session.out.note("Store it now: it is not shown again.")


@canary.command("list")
@on_registry
async def list_(session: Session) -> None:
    """List canary tokens, without their secrets.

    \b
    Example:
      authsidecar canary list --json
    """
    found = await session.registry.canaries()
    when = rfc3339 if session.out.is_json else for_people
    items = [{"id": c.id, "created_at": when(c.created_at), "note": c.note} for c in found]
    session.out.listing(
        ("id", "created_at", "note"), items, empty="none; `authsidecar canary create` makes one"
    )


@canary.command()
@click.argument("number", type=IdType(1), metavar="ID")
@on_registry
@changing
async def remove(session: Session, number: int) -> None:
    """Forget a canary token: it is an unknown one from then on.

    \b
    Example:
      authsidecar canary remove 67
    """
    if not await session.registry.remove_canary(TokenId(number)):
        raise RefusedError(f"there is no canary {number}; `authsidecar canary list` shows them")
    session.out.result({"id": number, "removed": True}, f"canary {number} removed")
