"""`team add|list|remove`."""

import click

from authsidecar.cli import restrictions
from authsidecar.cli.options import NEW_ID, TEAM_ID, Group
from authsidecar.cli.output import printable
from authsidecar.cli.session import Session, done, on_own_registry, on_registry, present
from authsidecar.cli.users import check_name, counted
from authsidecar.decision.model import TeamId


@click.group(cls=Group)
def team() -> None:
    """Add, list and remove teams."""


restrictions.add_to(team, "team")


@team.command()
@click.argument("name")
@click.option(
    "--id", "number", type=NEW_ID, metavar="N", help="Its id, if it must be a certain one."
)
@on_own_registry
async def add(session: Session, name: str, number: int | None) -> None:
    """Add a team. The team with id 0 may switch the API on and off.

    \b
    Examples:
      authsidecar team add "Root Team" --id 0
      authsidecar team add "Web shop"
    """
    from authsidecar.admin.people import add_team

    check_name(name)
    found = done(await add_team(session.registry, name=name, number=number))
    data = {"id": found, "name": name, "mcp_enabled": True}
    session.out.result(data, f"team {found} added: {printable(name)}", quiet=str(found))


@team.command("list")
@on_registry
async def list_(session: Session) -> None:
    """List all teams.

    \b
    Example:
      authsidecar team list --json
    """
    teams = [
        {"id": t.id, "name": t.name, "mcp_enabled": t.mcp_enabled}
        for t in await session.registry.teams()
    ]
    session.out.listing(
        ("id", "name", "mcp_enabled"), teams, empty="no teams yet; `authsidecar team add` adds one"
    )


@team.command()
@click.argument("number", type=TEAM_ID, metavar="ID")
@on_own_registry
async def remove(session: Session, number: int) -> None:
    """Remove a team, its memberships and its tokens, at once.

    \b
    Example:
      authsidecar team remove 3
    """
    tokens = present(await session.registry.remove_team(TeamId(number)), "team", number)
    await session.until_replicated()
    session.out.result(
        {"id": number, "removed_tokens": tokens}, f"team {number} removed, with {counted(tokens)}"
    )
