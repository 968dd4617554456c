"""`mcp enable|disable|status`."""

import click

from authsidecar.cli.options import TEAM_ID, Group
from authsidecar.cli.session import Session, done, on_own_registry, on_registry, present
from authsidecar.decision.model import TeamId

_team = click.option("--team", type=TEAM_ID, metavar="T", help="Only this team's switch.")


@click.group(cls=Group)
def mcp() -> None:
    """Switch the MCP server on and off."""


@mcp.command()
@_team
@on_own_registry
async def enable(session: Session, team: int | None) -> None:
    """Switch MCP on. Both the instance's and the team's switch must be on.

    \b
    Examples:
      authsidecar mcp enable
      authsidecar mcp enable --team 3
    """
    await _switch(session, team, on=True)


@mcp.command()
@_team
@on_own_registry
async def disable(session: Session, team: int | None) -> None:
    """Switch MCP off.

    \b
    Example:
      authsidecar mcp disable --team 3
    """
    await _switch(session, team, on=False)


@mcp.command()
@_team
@on_registry
async def status(session: Session, team: int | None) -> None:
    """Say whether MCP is on.

    \b
    Examples:
      authsidecar mcp status
      authsidecar mcp status --team 3 --json
    """
    if team is None:
        on = (await session.registry.instance()).mcp_enabled
    else:
        on = present(await session.registry.team(TeamId(team)), "team", team).mcp_enabled
    _tell(session, team, on=on)


async def _switch(session: Session, team: int | None, *, on: bool) -> None:
    from authsidecar.admin.settings import switch_mcp

    team_id = None if team is None else TeamId(team)
    done(await switch_mcp(session.registry, on=on, team=team_id))
    _tell(session, team, on=on)


def _tell(session: Session, team: int | None, *, on: bool) -> None:
    word = "on" if on else "off"
    whose = "MCP" if team is None else f"MCP of team {team}"
    data = {"mcp_enabled": on} if team is None else {"team": team, "mcp_enabled": on}
    session.out.result(data, f"{whose} is {word}", quiet=word)
