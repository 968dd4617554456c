"""`member set|remove|list`."""

import click

from authsidecar.cli.errors import RefusedError
from authsidecar.cli.options import TEAM_ID, USER_ID, Group, NamedType
from authsidecar.cli.session import Session, on_own_registry, on_registry, present
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
    from authsidecar.admin.tokens import refused_after

    team_id, user_id = TeamId(team), UserId(user)
    present(await session.registry.team(team_id), "team", team)
    present(await session.registry.user(user_id), "user", user)
    if not await session.registry.set_member(team_id, user_id, role):
        raise RefusedError(f"team {team} or user {user} has just been removed")
    await session.until_replicated()
    if refused := await refused_after(session.registry, team_id, user_id, role):
        session.out.warn(
            f"{counted(refused)} of user {user} in team {team} hold more than read, which a "
            "member may not use: they are refused everywhere from now on"
        )
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
    tokens = await session.registry.remove_member(TeamId(team), UserId(user))
    if tokens is None:
        raise RefusedError(
            f"user {user} is not in team {team}; `authsidecar member list --team {team}` shows "
            "who is"
        )
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
