"""`user add|list|remove`."""

import click

from authsidecar.cli import restrictions
from authsidecar.cli.options import NEW_ID, USER_ID, Group
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, done, on_own_registry, on_registry, present
from authsidecar.decision.model import UserId


@click.group(cls=Group)
def user() -> None:
    """Add, list and remove users."""


restrictions.add_to(user, "user")


@user.command()
@click.argument("name")
@click.option("--email", required=True, metavar="E", help="Where expiry warnings go.")
@click.option(
    "--id", "number", type=NEW_ID, metavar="N", help="Its id, if it must be a certain one."
)
@on_own_registry
async def add(session: Session, name: str, email: str, number: int | None) -> None:
    """Add a user.

    \b
    Example:
      authsidecar user add "Ada" --email ada@example.com
    """
    from authsidecar.admin.people import add_user, mail_objection

    check_name(name)
    if (why := mail_objection(email)) is not None:
        raise click.BadParameter(why, param_hint="--email")
    found = done(await add_user(session.registry, name=name, email=email, number=number))
    data = {"id": found, "name": name, "email": email}
    session.out.result(data, f"user {found} added: {printable(name)}", quiet=str(found))


@user.command("list")
@on_registry
async def list_(session: Session) -> None:
    """List all users.

    \b
    Example:
      authsidecar user list --json
    """
    users = [{"id": u.id, "name": u.name, "email": u.email} for u in await session.registry.users()]
    session.out.listing(
        ("id", "name", "email"), users, empty="no users yet; `authsidecar user add` adds one"
    )


@user.command()
@click.argument("number", type=USER_ID, metavar="ID")
@on_own_registry
async def remove(session: Session, number: int) -> None:
    """Remove a user, its memberships and its tokens, at once.

    \b
    Example:
      authsidecar user remove 7
    """
    tokens = present(await session.registry.remove_user(UserId(number)), "user", number)
    await session.until_replicated()
    session.out.result(
        {"id": number, "removed_tokens": tokens}, f"user {number} removed, with {counted(tokens)}"
    )


def counted(tokens: int) -> str:
    """So many tokens, in words."""
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def check_name(name: str) -> None:
    """Refuse what is no name of a user or team.

    Raises:
        click.BadParameter: it is empty, too long, or holds control characters.
    """
    from authsidecar.admin.people import name_objection

    if (why := name_objection(name)) is not None:
        raise click.BadParameter(why, param_hint="NAME")
