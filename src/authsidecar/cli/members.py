"""`member set|remove|list`."""

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import TEAM_ID, USER_ID, Group, NamedType
from authsidecar.cli.session import Session, done, on_own_registry, on_registry, present
from authsidecar.cli.users import counted
from authsidecar.decision.model import Role, TeamId, UserId

ROLE = NamedType("a role", tuple(Role), Role)


@click.group(cls=Group)
def member() -> None:
    """Say who is in which team, and as what."""


@member.command("set")
@click.option("--team", type=TEAM_ID, metavar="T", required=True, help="The team's id.")
@click.option("--user", type=USER_ID, metavar="U", required=True, help="The user's id.")
@click.option("--role", type=ROLE, required=True, help="owner and admin may hold every permission.")
@on_own_registry
async def set_(session: Session, team: int, user: int, role: Role) -> None:
    """Put a user into a team, or change its role there, from the very next request on.

    \b
    Example:
      authsidecar member set --team 3 --user 7 --role admin
    """
    from authsidecar.admin.people import set_member

    placed = done(await set_member(session.registry, TeamId(team), UserId(user), role))
    await session.until_replicated()
    for warning in placed.warnings:
        session.out.warn(warning)
    session.out.result(
        {"team": team, "user": user, "role": role}, f"user {user} is {role} of team {team}"
    )


@member.command()
@click.option("--team", type=TEAM_ID, metavar="T", required=True, help="The team's id.")
@click.option("--user", type=USER_ID, metavar="U", required=True, help="The user's id.")
@on_own_registry
async def remove(session: Session, team: int, user: int) -> None:
    """Take a user out of a team, with the tokens that it has there, at once.

    \b
    Example:
      authsidecar member remove --team 3 --user 7
    """
    from authsidecar.admin.people import no_member

    tokens = await session.registry.remove_member(TeamId(team), UserId(user))
    if tokens is None:
        raise RefusedError(no_member(team, user))
    await session.until_replicated()
    session.out.result(
        {"team": team, "user": user, "removed_tokens": tokens},
        f"user {user} is out of team {team}; {counted(tokens)} removed",
    )


@member.command("list")
@click.option("--team", type=TEAM_ID, metavar="T", required=True, help="The team's id.")
@on_registry
async def list_(session: Session, team: int) -> None:
    """List a team's members.

    \b
    Example:
      authsidecar member list --team 3
    """
    present(await session.registry.team(TeamId(team)), "team", team)
    members = [
        {"team": m.team, "user": m.user, "role": m.role}
        for m in await session.registry.members(TeamId(team))
    ]
    session.out.listing(
        ("user", "role"), members, empty="no members; `authsidecar member set` adds one"
    )
