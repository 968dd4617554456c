"""`key create|list|revoke`: who may use the management API."""

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import Group, IdType, NamedType
from authsidecar.cli.session import Session, changing, done, on_registry, operator, present
from authsidecar.cli.shown_once import expiry, show_once
from authsidecar.times import for_people, rfc3339

if TYPE_CHECKING:
    from authsidecar.store.management_keys import ManagementKey, ManagementKeys

KEY_ID: Final = IdType(1)
SCOPE: Final = NamedType("a scope", ("read", "write"))


class _Lifetime(click.ParamType[int]):
    """Days, or `never`: 0, since None is no value to click."""

    name = "days"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it, or fail as a usage error."""
        text = str(value)
        if text == "never":
            return 0
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
            raise click.BadParameter(f"{value!a} is neither a number of days nor never", ctx, param)
        return int(text)


@click.group(cls=Group)
def key() -> None:
    """Create, list and revoke keys of the management API."""


@key.command()
@click.option("--name", required=True, metavar="N", help="Who it is for: 1 to 255 characters.")
@click.option(
    "--scope", type=SCOPE, required=True, help="read looks only; write may change everything."
)
@click.option(
    "--expires",
    type=_Lifetime(),
    metavar="D",
    default="90",
    show_default=True,
    help="Days from now, or never.",
)
@on_registry
async def create(session: Session, name: str, scope: str, expires: int) -> None:
    """Create a key and show it, this once; if it can't be shown, it is taken back.

    It is sent as `Authorization: Bearer KEY` to /manage/v1 on the management listener.

    \b
    Examples:
      authsidecar key create --name dashboard --scope read
      authsidecar key create --name deploys --scope write --expires 30 --quiet > key.txt
    """
    from authsidecar.admin.keys import create_key
    from authsidecar.admin.refusal import LeftoverError
    from authsidecar.store.management_keys import Scope

    kept = _kept(session)
    try:
        answer = await create_key(kept, name=name, scope=Scope(scope), days=expires or None)
    except LeftoverError as error:
        raise RefusedError(str(error)) from None
    made = done(answer)
    data = as_data(made.key)
    del data["created_at"]
    number, until = made.key.id, made.key.expires_at
    taking_back = partial(kept.remove, number)
    await show_once(session, "key", data, made.plain, expires_at=until, remove=taking_back)


@key.command("list")
@on_registry
async def list_(session: Session) -> None:
    """List the keys, without their secrets.

    \b
    Example:
      authsidecar key list
    """
    kept = _kept(session)
    found, now = await kept.list(), await kept.now()
    items = [
        as_data(one)
        | {"created": for_people(one.created_at), "expires": expiry(one.expires_at, now)}
        for one in found
    ]
    if session.out.is_json:
        for item in items:
            del item["created"], item["expires"]
    session.out.listing(
        ("id", "name", "scope", "created", "expires"),
        items,
        empty="no keys; `authsidecar key create` makes one",
    )


@key.command()
@click.argument("number", type=KEY_ID, metavar="ID")
@on_registry
@changing
async def revoke(session: Session, number: int) -> None:
    """Delete a key; the very next request with it is refused.

    \b
    Example:
      authsidecar key revoke 1
    """
    present(await _kept(session).remove(number) or None, "key", number)
    await session.until_replicated()
    session.out.result({"id": number, "revoked": True}, f"key {number} revoked")


def _kept(session: Session) -> "ManagementKeys":
    from authsidecar.store.keys import Keys
    from authsidecar.store.management_keys import ManagementKeys

    return ManagementKeys(session.client, Keys(session.settings.redis.prefix), operator())


def as_data(key: "ManagementKey") -> dict[str, Any]:
    """A key as --json shows it: everything but its secret's digest."""
    return {
        "id": key.id,
        "name": key.name,
        "scope": key.scope.value,
        "created_at": rfc3339(key.created_at),
        "expires_at": None if key.expires_at is None else rfc3339(key.expires_at),
    }
