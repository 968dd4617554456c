"""Users, teams and memberships over the management API."""

from typing import Any

from authsidecar.admin import people
from authsidecar.admin.refusal import Refusal
from authsidecar.admin.replicas import late_replicas
from authsidecar.admin.settings import switch_mcp
from authsidecar.decision.model import Role, TeamId, UserId
from authsidecar.serving.manage import models
from authsidecar.serving.manage.operations import (
    Call,
    CurrentState,
    NotDoneError,
    Operation,
    done,
    page_of,
    place_in_set,
    present,
    read_cursor,
    write_cursor,
)
from authsidecar.store import entities
from authsidecar.store.management_keys import Scope


async def list_users(call: Call) -> models.UserPage:
    """A page of users."""
    ids, following = await page_of(call, call.sidecar.keys.users)
    found = await call.registry.users_of([UserId(i) for i in ids])
    return models.UserPage(items=[_user(one) for one in found], next=following)


async def read_user(call: Call) -> models.User:
    """One user."""
    user = call.path["user"]
    return _user(present(await call.registry.user(UserId(user)), "user", user))


async def add_user(call: Call) -> models.User:
    """Add one."""
    body: models.NewUser = call.body
    added = await people.add_user(call.registry, name=body.name, email=body.email, number=body.id)
    if isinstance(added, Refusal):
        raise NotDoneError(409 if " is taken" in added.why else 422, added.why)
    return models.User(id=added, name=body.name, email=body.email)


async def remove_user(call: Call) -> models.Removed:
    """Remove one."""
    user = call.path["user"]
    tokens = present(await call.registry.remove_user(UserId(user)), "user", user)
    return models.Removed(removed_tokens=tokens, warnings=await late_replicas_of(call))


async def list_teams(call: Call) -> models.TeamPage:
    """A page of teams."""
    ids, following = await page_of(call, call.sidecar.keys.teams)
    found = await call.registry.teams_of([TeamId(i) for i in ids])
    return models.TeamPage(items=[_team(one) for one in found], next=following)


async def read_team(call: Call) -> models.Team:
    """One team."""
    team = call.path["team"]
    return _team(present(await call.registry.team(TeamId(team)), "team", team))


async def add_team(call: Call) -> models.Team:
    """Add one."""
    body: models.NewTeam = call.body
    added = await people.add_team(call.registry, name=body.name, number=body.id)
    if isinstance(added, Refusal):
        raise NotDoneError(409 if " is taken" in added.why else 422, added.why)
    return models.Team(id=added, name=body.name, mcp_enabled=True)


async def change_team(call: Call) -> models.Team:
    """Turn its MCP switch."""
    body: models.TeamChange = call.body
    team = TeamId(call.path["team"])
    done(await switch_mcp(call.registry, on=body.mcp_enabled, team=team), 404)
    return await read_team(call)


async def remove_team(call: Call) -> models.Removed:
    """Remove one."""
    team = call.path["team"]
    tokens = present(await call.registry.remove_team(TeamId(team)), "team", team)
    return models.Removed(removed_tokens=tokens, warnings=await late_replicas_of(call))


async def list_members(call: Call) -> models.MemberPage:
    """A page of a team's members."""
    await read_team(call)
    cursor, scan = place_in_set(read_cursor(call.query.cursor))
    team = TeamId(call.path["team"])
    found, following, scanned = await call.registry.members_page(
        team, cursor, call.query.limit, scan=scan
    )
    more = None if following is None else write_cursor([following, scanned])
    return models.MemberPage(items=[_member(one) for one in found], next=more)


async def read_member(call: Call) -> models.Member:
    """One membership."""
    team, user = call.path["team"], call.path["user"]
    role = await call.registry.member(TeamId(team), UserId(user))
    if role is None:
        raise NotDoneError(404, people.no_member(team, user))
    return models.Member(team=team, user=user, role=role.value)


async def set_member(call: Call) -> models.SetMember:
    """Put a user into a team, or change its role."""
    team, user = call.path["team"], call.path["user"]
    body: models.NewRole = call.body
    role = Role(body.role)
    placed = done(await people.set_member(call.registry, TeamId(team), UserId(user), role), 404)
    late = await late_replicas_of(call)
    return models.SetMember(
        team=team, user=user, role=body.role, warnings=[*placed.warnings, *late]
    )


async def remove_member(call: Call) -> models.Removed:
    """Take a user out of a team."""
    team, user = call.path["team"], call.path["user"]
    tokens = await call.registry.remove_member(TeamId(team), UserId(user))
    if tokens is None:
        raise NotDoneError(404, people.no_member(team, user))
    return models.Removed(removed_tokens=tokens, warnings=await late_replicas_of(call))


async def late_replicas_of(call: Call) -> list[str]:
    """Wait for the replicas that a revocation waits for; what is said if they are late."""
    replicas, timeout_ms = call.sidecar.replicas
    why = await late_replicas(call.sidecar.client, call.sidecar.keys, replicas, timeout_ms)
    return [] if why is None else [why]


def _user(user: entities.User) -> models.User:
    return models.User(id=user.id, name=user.name, email=user.email)


def _team(team: entities.Team) -> models.Team:
    return models.Team(id=team.id, name=team.name, mcp_enabled=team.mcp_enabled)


def _member(member: entities.Member) -> models.Member:
    return models.Member(team=member.team, user=member.user, role=member.role.value)


_USER = CurrentState(read_user, lambda call: call.sidecar.keys.user(UserId(call.path["user"])))
_TEAM = CurrentState(read_team, lambda call: call.sidecar.keys.team(TeamId(call.path["team"])))
_MEMBER = CurrentState(
    read_member, lambda call: call.sidecar.keys.team_members(TeamId(call.path["team"]))
)
_OWNED: dict[str, Any] = {"scope": Scope.WRITE, "owned": True}

OPERATIONS = (
    Operation(
        method="GET",
        path="/users",
        name="listUsers",
        summary="List users.",
        run=list_users,
        query=models.PageQuery,
        answer=models.UserPage,
        refusals=(422,),
    ),
    Operation(
        method="POST",
        path="/users",
        name="addUser",
        summary="Add a user.",
        run=add_user,
        body=models.NewUser,
        answer=models.User,
        status=201,
        creates=read_user,
        refusals=(409,),
        **_OWNED,
    ),
    Operation(
        method="GET",
        path="/users/{user}",
        name="readUser",
        summary="Read a user.",
        run=read_user,
        answer=models.User,
        tagged=True,
    ),
    Operation(
        method="DELETE",
        path="/users/{user}",
        name="removeUser",
        summary="Remove a user, its memberships and its tokens, at once.",
        run=remove_user,
        answer=models.Removed,
        current=_USER,
        **_OWNED,
    ),
    Operation(
        method="GET",
        path="/teams",
        name="listTeams",
        summary="List teams.",
        run=list_teams,
        query=models.PageQuery,
        answer=models.TeamPage,
        refusals=(422,),
    ),
    Operation(
        method="POST",
        path="/teams",
        name="addTeam",
        summary="Add a team.",
        run=add_team,
        body=models.NewTeam,
        answer=models.Team,
        status=201,
        creates=read_team,
        refusals=(409,),
        **_OWNED,
    ),
    Operation(
        method="GET",
        path="/teams/{team}",
        name="readTeam",
        summary="Read a team.",
        run=read_team,
        answer=models.Team,
        tagged=True,
    ),
    Operation(
        method="PATCH",
        path="/teams/{team}",
        name="changeTeam",
        summary="Switch MCP on or off for a team.",
        run=change_team,
        body=models.TeamChange,
        answer=models.Team,
        tagged=True,
        current=_TEAM,
        **_OWNED,
    ),
    Operation(
        method="DELETE",
        path="/teams/{team}",
        name="removeTeam",
        summary="Remove a team, its memberships and its tokens, at once.",
        run=remove_team,
        answer=models.Removed,
        current=_TEAM,
        **_OWNED,
    ),
    Operation(
        method="GET",
        path="/teams/{team}/members",
        name="listMembers",
        summary="List a team's members.",
        run=list_members,
        query=models.PageQuery,
        answer=models.MemberPage,
        refusals=(422,),
    ),
    Operation(
        method="GET",
        path="/teams/{team}/members/{user}",
        name="readMember",
        summary="Read a membership.",
        run=read_member,
        answer=models.Member,
        tagged=True,
    ),
    Operation(
        method="PUT",
        path="/teams/{team}/members/{user}",
        name="setMember",
        summary="Put a user into a team, or change its role there.",
        run=set_member,
        body=models.NewRole,
        answer=models.SetMember,
        current=_MEMBER,
        **_OWNED,
    ),
    Operation(
        method="DELETE",
        path="/teams/{team}/members/{user}",
        name="removeMember",
        summary="Take a user out of a team, with the tokens that it has there, at once.",
        run=remove_member,
        answer=models.Removed,
        current=_MEMBER,
        **_OWNED,
    ),
)
"""In the order of their paths."""
